"""The columnar decoder of wal2json and its reference give the same events for the same bytes.

`WALY_FUZZ` sets the number of examples of each test; hypothesis prints how to repeat a failing one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hypothesis import event, given
from hypothesis import strategies as st

from tests import wal2json_bytes as build
from tests.decoding import Group, Outcome, attempt, plain, without_typed_values
from tests.property.test_decoders_agree import FUZZ, NAMES, TEXT_OF, TYPES
from tests.wal2json_bytes import Field, Head
from waly_cdc.decode import events
from waly_cdc.decode.chunk import Chunk
from waly_cdc.decode.values import storage_of
from waly_cdc.decode.wal2json import Wal2jsonDecoder
from waly_cdc.decode.wal2json_reference import Wal2jsonReferenceDecoder
from waly_cdc.errors import DecodeError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, NamedTable, RelationVersion, stored_name

TYPE_NAMES = {18: '"char"', 16385: '"My ""S"""."mo,od"', 1700: "numeric"}


@dataclass(frozen=True)
class Shape:
    """A table as the stream shows it: its version, a generated column beside, its key."""

    relation: RelationVersion
    generated: bool


@st.composite
def shapes(draw: st.DrawFn, oid: int) -> Shape:
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    replica_identity = draw(st.sampled_from("dnfi"))
    columns: list[Column] = []
    for attnum, name in enumerate(names, 1):
        type_oid, typmod, _ = draw(st.sampled_from(TYPES))
        flagged = replica_identity == "f" or (replica_identity != "n" and draw(st.booleans()))
        columns.append(
            Column(
                name,
                stored_name(name, [column.stored for column in columns]),
                storage_of(type_oid, typmod),
                type_oid,
                typmod,
                TYPE_NAMES.get(type_oid, "of mine"),
                flagged,
                attnum,
            )
        )
    relation = RelationVersion(
        oid,
        1,
        draw(st.sampled_from(["public", 'q"s'])),
        f"t{oid}",
        replica_identity,
        tuple(columns),
        (),
        Lsn(0),
    )
    return Shape(relation, draw(st.booleans()))


@dataclass
class Stream:
    """A stream on its way, and the tables that it tells of; one of them is not captured."""

    draw: st.DrawFn
    shapes: list[Shape]
    turn: int
    """From this LSN on the tables have another version."""
    numbers_as_text: bool
    frames: list[bytes] = field(default_factory=list)
    lsn: int = 1000

    def transaction(self) -> None:
        self.lsn += self.draw(st.integers(100, 2**33))
        time = self.draw(st.sampled_from(["2026-11-23 14:02:11.1+00", "1999-12-31 23:59:59+00"]))
        head = Head(self.draw(st.integers(3, 2**32 - 1)), time, self.lsn, self.lsn + 40)
        self.frames.append(build.frame(build.bound("B", head)))
        for place in range(self.draw(st.integers(0, 7))):
            self._change(head, self.lsn - 90 + place)
        self.frames.append(build.frame(build.bound("C", head)))
        if self.draw(st.booleans()):
            self.frames.append(build.frame(build.message(head, "waly", "x", transactional=False)))

    def _change(self, head: Head, at: int) -> None:
        action = self.draw(st.sampled_from("IIUUDTM"))
        if action == "M":
            content = self.draw(st.sampled_from(['{"a": "\\u0001"}', "", "é\n"]))
            prefix = self.draw(st.sampled_from(["waly", "other"]))
            self.frames.append(build.frame(build.message(head, prefix, content)))
        elif action == "T":
            for shape in self.draw(st.lists(st.sampled_from(self.shapes), min_size=1, max_size=3)):
                self._add(build.change("T", head, at, _name(shape)), at)
        else:
            self._row(action, head, at, self.draw(st.sampled_from(self.shapes)))

    def _row(self, action: str, head: Head, at: int, shape: Shape) -> None:
        new = [self._field(column) for column in shape.relation.columns]
        old = [
            each if self.draw(st.booleans()) else self._field(column)
            for each, column in zip(new, shape.relation.columns, strict=True)
        ]
        identity = [
            each
            for each, column in zip(old, shape.relation.columns, strict=True)
            if column.identity
        ]
        shown = [each for each in new if action == "I" or self.draw(st.integers(0, 4))]
        if shape.generated:
            shown.append(Field("gen", "text", 25, 90, "g"))
            if shape.relation.replica_identity == "f":
                identity.append(Field("gen", "text", 25, 90, "g"))
        text = build.change(
            action,
            head,
            at,
            _name(shape),
            columns=shown if action in "IU" else None,
            identity=identity if action in "UD" else None,
            key=identity[:1],
            numbers_as_text=self.numbers_as_text,
        )
        self._add(text, at)

    def _field(self, column: Column) -> Field:
        text = self.draw(TEXT_OF[column.type_oid, column.typmod] | st.none())
        assert column.attnum is not None
        return Field(column.name, column.type_name, column.type_oid, column.attnum, text)

    def _add(self, text: str, at: int) -> None:
        self.frames.append(build.frame(text, at))


@dataclass(frozen=True)
class Case:
    """Frames in pieces, and what the tables' names mean."""

    pieces: list[list[bytes]]
    shapes: list[Shape]
    turn: int

    def resolve(self, table: NamedTable, lsn: Lsn) -> RelationVersion | None:
        for shape in self.shapes[:-1]:
            if _name(shape) == (table.schema, table.name):
                relation = shape.relation
                return relation if lsn.value < self.turn else _later(relation)
        return None


def _later(relation: RelationVersion) -> RelationVersion:
    return RelationVersion(
        relation.oid,
        2,
        relation.schema,
        relation.name,
        relation.replica_identity,
        relation.columns,
        relation.key,
        relation.since,
    )


def _name(shape: Shape) -> tuple[str, str]:
    return shape.relation.schema, shape.relation.name


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Some whole transactions, cut anywhere between two frames."""
    tables = [draw(shapes(oid)) for oid in range(1, draw(st.integers(3, 4)))]
    stream = Stream(draw, tables, draw(st.integers(0, 2**34)), draw(st.booleans()))
    for _ in range(draw(st.integers(1, 4))):
        stream.transaction()
    cuts = sorted(draw(st.sets(st.integers(1, len(stream.frames)), max_size=4)))
    bounds = zip([0, *cuts], [*cuts, len(stream.frames)], strict=True)
    return Case([stream.frames[a:b] for a, b in bounds], tables, stream.turn)


def _columnar(case: Case, pieces: Sequence[Sequence[bytes]]) -> Outcome:
    decoder = Wal2jsonDecoder(case.resolve, 3)
    rows: dict[Group, list[dict[str, object]]] = defaultdict(list)
    outcome = Outcome(rows, [], [])
    for piece in pieces:
        decoded = decoder.decode(Chunk.of(piece))
        for batch in decoded.batches:
            assert batch.events.schema == events.schema(batch.relation)
            batch.events.validate(full=True)
            for row in batch.events.to_pylist():
                row["_raw"] = dict(row["_raw"]) if row["_raw"] is not None else None
                rows[batch.relation, batch.day].append(plain(row))
        outcome.transactions += decoded.transactions.to_pylist()
        outcome.messages += decoded.messages
    return outcome


def _reference(case: Case, frames: Iterable[bytes]) -> Outcome:
    decoded = Wal2jsonReferenceDecoder(case.resolve, 3).decode(frames)
    rows: dict[Group, list[dict[str, object]]] = defaultdict(list)
    for relation, row in decoded.events:
        rows[relation, row["day"]].append(plain(row))
    return Outcome(rows, decoded.transactions, decoded.messages)


@FUZZ
@given(cases())
def test_both_decoders_give_the_same_events(case: Case) -> None:
    expected = _reference(case, (frame for piece in case.pieces for frame in piece))
    event(f"tables: {len({relation.oid for relation, _ in expected.rows})}")
    assert _columnar(case, case.pieces) == expected


@FUZZ
@given(cases())
def test_the_last_commit_of_a_chunk_is_found(case: Case) -> None:
    decoder = Wal2jsonDecoder(case.resolve)
    for piece in case.pieces:
        commits = [n for n, frame in enumerate(piece, 1) if frame[25:].startswith(b'{"action":"C"')]
        count, end = decoder.committed(Chunk.of(piece))
        assert count == (commits[-1] if commits else 0)
        if commits:
            assert build.lsn_text(end).encode() in piece[count - 1]


@st.composite
def damaged(draw: st.DrawFn) -> Case:
    """A stream of which some bytes of some messages are others, missing or there twice."""
    case = draw(cases())
    frames = [frame for piece in case.pieces for frame in piece]
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(frames) - 1))
        frame = frames[number]
        at = draw(st.integers(25, len(frame) - 1))
        new = draw(
            st.sampled_from([b"", b'"', b"\\", b",", b"}", b"0", b"n", b"\x01", b"\xff", b"T"])
        )
        frames[number] = frame[:at] + new + frame[at + draw(st.integers(0, 1)) :]
    return Case([frames], case.shapes, case.turn)


@FUZZ
@given(damaged())
def test_both_refuse_damaged_bytes_or_read_them_alike(case: Case) -> None:
    expected = attempt(lambda: _reference(case, case.pieces[0]))
    found = attempt(lambda: _columnar(case, case.pieces))
    event("refused" if expected is None else "read")
    if expected is None or found is None:
        assert found == expected
    else:
        assert without_typed_values(found) == without_typed_values(expected)


@FUZZ
@given(st.lists(st.binary(max_size=90), min_size=1, max_size=4))
def test_noise_is_a_decode_error(noise: list[bytes]) -> None:
    frames = [build.frame("")[:25] + message for message in noise]
    case = Case([frames], [], 0)
    assert attempt(lambda: _reference(case, frames)) is None
    assert attempt(lambda: _columnar(case, [frames])) is None
    try:
        Wal2jsonDecoder(case.resolve).committed(Chunk.of(frames))
    except DecodeError:
        return
