"""The columnar decoder and the reference decoder give the same events for the same bytes.

`WALY_FUZZ` sets the number of examples of each test; hypothesis prints how to repeat a failing one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests import pgoutput_bytes as build
from tests.decoding import attempt, columnar, reference, without_typed_values
from tests.pgoutput_bytes import UNCHANGED, Value
from waly_cdc.capture.shapes import Shapes
from waly_cdc.decode.chunk import Chunk
from waly_cdc.decode.pgoutput import ColumnarDecoder
from waly_cdc.decode.reference import ReferenceDecoder
from waly_cdc.errors import DecodeError
from waly_cdc.relations import StreamColumn, StreamRelation

FUZZ = settings(
    max_examples=int(os.environ.get("WALY_FUZZ", "120")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Values, as the texts that PostgreSQL prints


def _fraction(microsecond: int) -> str:
    return f".{microsecond:06}".rstrip("0") if microsecond else ""


def _float_text(number: float | np.float32) -> str:
    special = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return special.get(str(number), str(number))


def _numeric(precision: int, scale: int) -> st.SearchStrategy[str]:
    limit = 10**precision - 1
    digits = st.integers(-limit, limit).map(
        lambda number: f"{Decimal((number < 0, Decimal(abs(number)).as_tuple().digits, -scale)):f}"
    )
    return digits | st.just("NaN")


def _moment_text(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}{_fraction(moment.microsecond)}"


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8) | st.sampled_from(
    ["", " ", "NULL", "\\N", "'", '"', "\\", "\t", "\n", "\r\n", "é", "日本語", "😀", "a" * 300]
)
DATE = st.dates().map(str) | st.sampled_from(
    ["infinity", "-infinity", "0044-03-15 BC", "4714-11-24 BC", "10000-01-01", "5874897-12-31"]
)
TIME = st.datetimes().map(_moment_text) | st.just("24:00:00")
TIMESTAMP = st.datetimes().map(lambda m: f"{m.date()} {_moment_text(m)}") | st.sampled_from(
    ["infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999"]
)
TIMESTAMPTZ = st.datetimes().map(lambda m: f"{m.date()} {_moment_text(m)}+00") | st.sampled_from(
    ["infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "10000-01-01 00:00:00.5+00"]
)
UNBOUNDED = st.sampled_from(
    ["0", "-1", "1.50", "NaN", "Infinity", "-Infinity", "9" * 5000, "0." + "0" * 99 + "1"]
)


def _integers(bits: int) -> st.SearchStrategy[str]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(str)


def _typmod(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


TYPES: list[tuple[int, int, st.SearchStrategy[str]]] = [
    (16, -1, st.sampled_from("tf")),
    (17, -1, st.binary(max_size=9).map(lambda data: "\\x" + data.hex())),
    (20, -1, _integers(64)),
    (21, -1, _integers(16)),
    (23, -1, _integers(32)),
    (25, -1, TEXT),
    (26, -1, st.integers(0, 2**32 - 1).map(str)),
    (700, -1, st.floats(width=32).map(np.float32).map(_float_text)),
    (701, -1, st.floats().map(_float_text)),
    (1082, -1, DATE),
    (1083, -1, TIME),
    (1114, -1, TIMESTAMP),
    (1184, -1, TIMESTAMPTZ),
    (1700, -1, UNBOUNDED),
    (1700, _typmod(5, 2), _numeric(5, 2)),
    (1700, _typmod(38, 0), _numeric(38, 0)),
    (1700, _typmod(38, 38), _numeric(38, 38)),
    (1700, _typmod(39, 2), UNBOUNDED),
    (1700, _typmod(3, 5), UNBOUNDED),
    (1700, _typmod(5, -2), UNBOUNDED),
    (3802, -1, st.sampled_from(["{}", '{"a": "\\u00e9"}', "null"])),
    (16385, -1, TEXT),
]
"""Types with what they print: by oid and typmod. Oids from 16384 on are not PostgreSQL's own."""

TEXT_OF = {(oid, typmod): texts for oid, typmod, texts in TYPES}

# Shapes of tables

NAMES = st.sampled_from(["a", "A", "b", "_op", "_raw", "day", 'q"uo.te', "été", "", "x" * 63])


@st.composite
def relations(draw: st.DrawFn, oid: int) -> StreamRelation:
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    identity = draw(st.sampled_from("dnfi"))
    columns = []
    for name in names:
        type_oid, typmod, _ = draw(st.sampled_from(TYPES))
        flagged = identity == "f" or (identity != "n" and draw(st.booleans()))
        columns.append(StreamColumn(name, type_oid, typmod, flagged))
    schema = draw(st.sampled_from(["public", "pg_catalog", "Sch.ema"]))
    return StreamRelation(oid, schema, draw(NAMES), identity, tuple(columns))


# Streams


@dataclass
class Stream:
    """A stream on its way: its messages, and the shape each relation was last described with."""

    draw: st.DrawFn
    messages: list[bytes] = field(default_factory=list)
    shapes: dict[int, StreamRelation] = field(default_factory=dict)
    lsn: int = 1000

    def transaction(self) -> None:
        self.lsn += self.draw(st.integers(100, 2**40))
        committed_at = self.draw(COMMIT_TIMES)
        self.messages.append(build.begin(self.lsn, committed_at, self.draw(st.integers(0, 9))))
        for action in self.draw(st.lists(st.sampled_from(ACTIONS), max_size=8)):
            action(self)
        self.messages.append(build.commit(self.lsn, self.lsn + 40, committed_at))

    def describe(self) -> None:
        """A Relation message: a new relation, another shape, or the same one once more."""
        oid = self.draw(st.integers(1, 3))
        if oid not in self.shapes or self.draw(st.booleans()):
            self.shapes[oid] = self.draw(relations(oid))
        self.messages.append(build.relation(self.shapes[oid]))

    def insert(self) -> None:
        relation = self._any()
        self.messages.append(build.insert(relation.oid, self._values(relation)))

    def update(self) -> None:
        relation = self._any()
        old = self.draw(st.sampled_from(["key", "old", None]))
        kept = {old: self._values(relation)} if old else {}
        self.messages.append(build.update(relation.oid, self._values(relation), **kept))

    def delete(self) -> None:
        relation = self._any()
        kept = {self.draw(st.sampled_from(["key", "old"])): self._values(relation)}
        self.messages.append(build.delete(relation.oid, **kept))

    def truncate(self) -> None:
        self._any()
        oids = st.lists(st.sampled_from(sorted(self.shapes)), min_size=1, unique=True)
        self.messages.append(build.truncate(self.draw(oids), cascade=True))

    def other(self) -> None:
        self.messages.append(
            self.draw(
                st.sampled_from(
                    [
                        build.message("waly", b'{"user": "x"}'),
                        build.message("waly", b"\0\xff", transactional=False),
                        build.message("other", b""),
                        build.origin(7, "elsewhere"),
                        build.type_(16385, "public", "mood"),
                    ]
                )
            )
        )

    def _any(self) -> StreamRelation:
        if not self.shapes:
            self.describe()
        return self.draw(st.sampled_from(list(self.shapes.values())))

    def _values(self, relation: StreamRelation) -> list[Value]:
        return [
            self.draw(TEXT_OF[column.type_oid, column.typmod] | st.sampled_from([None, UNCHANGED]))
            for column in relation.columns
        ]


ACTIONS: list[Callable[[Stream], None]] = [
    Stream.insert,
    Stream.update,
    Stream.delete,
    Stream.insert,
    Stream.update,
    Stream.describe,
    Stream.truncate,
    Stream.other,
]
_FIRST_DAY, _LAST_DAY = (
    (datetime(*day, tzinfo=UTC) - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    for day in ((1, 1, 1), (9999, 12, 31))
)
_DAY = 86_400_000_000
COMMIT_TIMES = st.sampled_from([0, -1, _DAY - 1, _DAY, 850_000_000_000_000]) | st.integers(
    _FIRST_DAY, _LAST_DAY
)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """The frames of some whole transactions."""
    stream = Stream(draw)
    for _ in range(draw(st.integers(1, 4))):
        stream.transaction()
        if draw(st.booleans()):
            stream.messages.append(build.message("waly", b"x", transactional=False))
    return build.frames(stream.messages)


@st.composite
def cut_streams(draw: st.DrawFn) -> list[list[bytes]]:
    """A stream in pieces, cut anywhere between two frames."""
    frames = draw(streams())
    cuts = sorted(draw(st.sets(st.integers(1, len(frames)), max_size=4)))
    return [frames[a:b] for a, b in zip([0, *cuts], [*cuts, len(frames)], strict=True)]


@FUZZ
@given(cut_streams(), st.booleans())
def test_both_decoders_give_the_same_events(pieces: list[list[bytes]], restart: bool) -> None:
    expected = reference(frame for piece in pieces for frame in piece)
    event(f"tables: {len({relation.oid for relation, _ in expected.rows})}")
    assert columnar(pieces, restart=restart) == expected


@FUZZ
@given(cut_streams())
def test_both_know_whether_a_transaction_is_open(pieces: list[list[bytes]]) -> None:
    fast = ColumnarDecoder(Shapes({}, lambda _: None).resolve)
    plain = ReferenceDecoder(Shapes({}, lambda _: None).resolve)
    for piece in pieces:
        fast.decode(Chunk.of(piece))
        plain.decode(piece)
        assert fast.in_transaction == plain.in_transaction


# Damage


@st.composite
def damaged_streams(draw: st.DrawFn) -> list[bytes]:
    """A stream in which bytes or whole frames are changed, lost, repeated or added."""
    frames = draw(streams())
    for _ in range(draw(st.integers(1, 3))):
        if not frames:
            break
        at = draw(st.integers(0, len(frames) - 1))
        place = draw(st.integers(0, len(frames[at])))
        frame = frames[at]
        match draw(st.sampled_from(["byte", "byte", "cut", "extend", "lose", "repeat", "junk"])):
            case "byte" if place < len(frame):
                byte = draw(st.integers(0, 255) | st.sampled_from(b"nutNKOBCIUDTRM\x7f\x80\xff"))
                frames[at] = frame[:place] + bytes([byte]) + frame[place + 1 :]
            case "cut":
                frames[at] = frame[:place]
            case "extend":
                frames[at] = frame + draw(st.binary(min_size=1, max_size=9))
            case "lose":
                del frames[at]
            case "repeat":
                frames.insert(draw(st.integers(0, len(frames))), frame)
            case _:
                frames[at] = frame[:25] + draw(st.binary(max_size=40))
    return frames


@FUZZ
@given(damaged_streams(), st.booleans())
def test_damage_is_a_decode_error_or_decoded_the_same(frames: list[bytes], split: bool) -> None:
    expected = attempt(lambda: reference(frames))
    pieces = [[frame] for frame in frames] if split else [frames]
    found = attempt(lambda: columnar(pieces))
    event("decoded" if expected else "refused")
    if expected is None or found is None:
        assert found == expected
    else:
        assert without_typed_values(found) == without_typed_values(expected)


@FUZZ
@given(damaged_streams())
def test_the_last_commit_of_a_chunk_is_found_or_refused(frames: list[bytes]) -> None:
    commits = [number for number, frame in enumerate(frames, 1) if frame[25:26] == b"C"]
    chunk = Chunk.of(frames)
    try:
        count, end = ColumnarDecoder(Shapes({}, lambda _: None).resolve).committed(chunk)
    except DecodeError:
        unframed = any(len(frame) <= 25 or frame[:1] != b"w" for frame in frames)
        assert unframed or len(frames[commits[-1] - 1]) != 51
        return
    if not commits:
        assert (count, end) == (0, 0)
    else:
        assert count == commits[-1]
        assert end == int.from_bytes(frames[count - 1][35:43], "big")
        whole, rest = chunk.split(count)
        assert whole.data + rest.data == chunk.data
        assert len(whole) + len(rest) == len(frames)


@FUZZ
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=5), st.booleans())
def test_noise_is_a_decode_error(noise: list[bytes], framed: bool) -> None:
    frames = build.frames(noise) if framed else noise
    expected = attempt(lambda: reference(frames))
    found = attempt(lambda: columnar([frames]))
    assert (found is None) == (expected is None)


@pytest.mark.parametrize("size", [0, 1, 24, 25])
def test_a_frame_without_a_message_is_a_decode_error(size: int) -> None:
    frame = build.frame(b"")[:size]
    assert attempt(lambda: reference([frame])) is None
    assert attempt(lambda: columnar([[frame]])) is None
