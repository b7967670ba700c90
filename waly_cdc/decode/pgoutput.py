"""pgoutput, decoded by columns: a chunk of frames becomes Arrow batches of events.

The messages are those of protocol version 1 in text format, without streaming of open transactions
(PostgreSQL documentation, section 53.9). Messages of rows and of transaction bounds are read by
numpy over a whole chunk; those that are rare (relations, truncates, logical messages) one by one.
`waly_cdc.decode.reference` is the same thing written to be read; tests hold the two equal.

Invariants between two chunks:

* `_open` describes the transaction whose Commit has not been seen, and how much of it has;
* `_relations` holds the version that the next row of each relation has.

After a DecodeError a decoder is of no further use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from waly_cdc.decode import events, messages, tuples
from waly_cdc.decode.chunk import COPYDATA_HEADER, MESSAGE_AT, Chunk
from waly_cdc.decode.events import EventBatch, Header, Texts
from waly_cdc.decode.tuples import Bytes, Positions, Spans
from waly_cdc.errors import DecodeError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion, StreamRelation

Resolve = Callable[[StreamRelation, Lsn], RelationVersion]
"""Gives the relation version for a Relation message, in the transaction that commits at an LSN."""

_B, _C, _I, _U, _D, _T, _R, _Y, _O, _M = b"BCIUDTRYOM"
_NEW, _KEY, _OLD = b"NKO"
_KNOWN = np.zeros(256, np.bool_)
_KNOWN[[_B, _C, _I, _U, _D, _T, _R, _Y, _O, _M]] = True


@dataclass(slots=True)
class Decoded:
    """What a chunk held: batches of events, and the transactions that committed in it.

    `messages` are the contents of the transactions' own logical messages, by xid, in order.
    """

    batches: list[EventBatch]
    transactions: pa.RecordBatch
    messages: list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class _OpenTransaction:
    lsn: int
    committed_at: int
    xid: int
    seq: int = 0
    events: int = 0


@dataclass(slots=True)
class _Transactions:
    """The transactions of a chunk. Element 0 is the one that was open before it, if any.

    `of` gives the element for each message of the chunk; an element's `seq` is what to subtract
    from a row's ordinal in the chunk to get its `_seq`.
    """

    of: Positions
    lsn: Positions
    committed_at: Positions
    xid: Positions
    seq: Positions


class ColumnarDecoder:
    """Decodes one stream, chunk after chunk.

    `resolve` is called for the first Relation message of a table, and whenever its shape differs
    from the one before. `known` are the versions in force where the decoding begins: a stream that
    goes on describes each relation only once, before its first row.
    """

    def __init__(
        self, resolve: Resolve, era: int = 1, known: Iterable[RelationVersion] = ()
    ) -> None:
        self._resolve = resolve
        self._era = era
        self._relations = {relation.oid: relation for relation in known}
        self._open: _OpenTransaction | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether the last chunk ended inside a transaction."""
        return self._open is not None

    def decode(self, chunk: Chunk) -> Decoded:
        """Decode a chunk. Raises DecodeError for anything that is not pgoutput's."""
        if not len(chunk):
            return Decoded([], pa.RecordBatch.from_pylist([], schema=events.TRANSACTIONS), [])
        return _ChunkDecoder(self, chunk).run()


class _ChunkDecoder:
    """The work on one chunk; `stream` keeps what outlives it."""

    def __init__(self, stream: ColumnarDecoder, chunk: Chunk) -> None:
        self.stream = stream
        self.data = Bytes(chunk.data)
        self.bytes = chunk.data
        ends = np.cumsum(chunk.lengths)
        starts = ends - chunk.lengths
        if (chunk.lengths <= MESSAGE_AT).any() or int(ends[-1]) != len(chunk.data):
            raise DecodeError("a frame is too short")
        if (self.data.uint8(starts + COPYDATA_HEADER) != ord("w")).any():
            raise DecodeError("a frame is not XLogData")
        self.begin = starts + MESSAGE_AT
        self.end = ends
        self.kind = self.data.uint8(self.begin)
        unknown = ~_KNOWN[self.kind]
        if unknown.any():
            raise DecodeError(f"unknown message kind {bytes(self.kind[unknown][:1])!r}")

    def run(self) -> Decoded:
        transactions = self._transactions()
        is_row = (self.kind == _I) | (self.kind == _U) | (self.kind == _D) | (self.kind == _T)
        rows = np.flatnonzero(is_row)
        begins = np.flatnonzero(self.kind == _B)
        transactions.seq[1:] = np.searchsorted(rows, begins)
        self._check_inside(rows)

        seq = np.zeros(len(self.kind), np.int64)
        seq[rows] = np.arange(len(rows)) - transactions.seq[transactions.of[rows]]
        counts = np.bincount(transactions.of[rows], minlength=len(transactions.lsn))
        truncates, own_messages, versions = self._rare(transactions)
        for index, oids in truncates:
            counts[transactions.of[index]] += len(oids) - 1

        batches = [
            batch
            for relation, chosen in self._groups(rows, truncates, versions)
            for batch in self._by_day(relation, chosen, transactions, seq)
        ]
        committed = self._commit(transactions, counts, len(rows))
        return Decoded(batches, committed, own_messages)

    # Transactions

    def _transactions(self) -> _Transactions:
        kind = self.kind
        bounds = np.flatnonzero((kind == _B) | (kind == _C))
        first = _C if self.stream._open else _B
        expected = np.where(np.arange(len(bounds)) % 2 == 0, first, _B + _C - first)
        if (kind[bounds] != expected).any():
            raise DecodeError("Begin and Commit do not take turns")
        begins = bounds[kind[bounds] == _B]
        at = self.begin[begins]
        if (self.end[begins] - at != 21).any():
            raise DecodeError("a Begin message has a wrong length")
        lsn, committed_at = self._lsn(at + 1), self.data.int64(at + 9)
        if ((committed_at < _FIRST_TIME) | (committed_at > _LAST_TIME)).any():
            raise DecodeError("a commit time lies outside of the calendar")
        before = self.stream._open or _OpenTransaction(0, 0, 0)
        return _Transactions(
            of=np.cumsum(kind == _B),
            lsn=np.append(before.lsn, lsn),
            committed_at=np.append(before.committed_at, committed_at + _EPOCH),
            xid=np.append(before.xid, self.data.uint32(at + 17)),
            seq=np.append(-before.seq, np.zeros(len(begins), np.int64)),
        )

    def _lsn(self, at: Positions) -> Positions:
        lsn = self.data.int64(at)
        if (lsn < 0).any():
            raise DecodeError("an LSN is beyond 2^63, which no column holds")
        return lsn

    def _check_inside(self, rows: Positions) -> None:
        """Rows, relations and transactional messages belong to a transaction."""
        needing = np.append(rows, np.flatnonzero(self.kind == _R))
        logical = np.flatnonzero(self.kind == _M)
        transactional = self.data.uint8(self.begin[logical] + 1) & 1 == 1
        needing = np.append(needing, logical[transactional])
        depth = np.cumsum(self.kind == _B) - np.cumsum(self.kind == _C)
        if (depth[needing] + (self.stream._open is not None) != 1).any():
            raise DecodeError("a message lies outside of a transaction")

    def _commit(self, transactions: _Transactions, counts: Positions, rows: int) -> pa.RecordBatch:
        """The transactions committed in this chunk; remembers the one that is still open."""
        stream = self.stream
        commits = np.flatnonzero(self.kind == _C)
        at = self.begin[commits]
        of = transactions.of[commits]
        if (self.end[commits] - at != 26).any():
            raise DecodeError("a Commit message has a wrong length")
        if (self.data.int64(at + 2) != transactions.lsn[of]).any():
            raise DecodeError("a Commit message does not belong to its Begin")
        counts = counts.astype(np.int64)
        counts[0] += stream._open.events if stream._open else 0
        still_open = len(transactions.lsn) - 1 not in of[-1:] and (
            len(transactions.lsn) > 1 or stream._open is not None
        )
        stream._open = (
            _OpenTransaction(
                lsn=int(transactions.lsn[-1]),
                committed_at=int(transactions.committed_at[-1]),
                xid=int(transactions.xid[-1]),
                seq=rows - int(transactions.seq[-1]),
                events=int(counts[-1]),
            )
            if still_open
            else None
        )
        return pa.RecordBatch.from_arrays(
            [
                pa.array(transactions.lsn[of]),
                pa.array(self._lsn(at + 10)),
                pa.array(transactions.xid[of]),
                pa.array(transactions.committed_at[of]).cast(events.COMMITTED_AT),
                pa.array(counts[of]),
            ],
            schema=events.TRANSACTIONS,
        )

    # Relations and other rare messages

    def _rare(
        self, transactions: _Transactions
    ) -> tuple[
        list[tuple[int, list[int]]],
        list[tuple[int, bytes]],
        dict[int, list[tuple[int, RelationVersion]]],
    ]:
        """Truncates (message, oids), our logical messages (xid, content), and for each relation the
        versions in force, each from one message of the chunk on."""
        truncates: list[tuple[int, list[int]]] = []
        own_messages: list[tuple[int, bytes]] = []
        versions = {oid: [(-1, known)] for oid, known in self.stream._relations.items()}
        rare = (self.kind == _T) | (self.kind == _R) | (self.kind == _M)
        for index in np.flatnonzero(rare).tolist():
            body = self.bytes[self.begin[index] : self.end[index]]
            element = transactions.of[index]
            if body[0] == _T:
                truncates.append((index, messages.truncate(body)))
            elif body[0] == _M:
                content = messages.own_message(body)
                if content is not None:
                    own_messages.append((int(transactions.xid[element]), content))
            else:
                relation = messages.relation(body)
                known = versions.setdefault(relation.oid, [])
                if not known or not known[-1][1].matches(relation):
                    lsn = Lsn(int(transactions.lsn[element]))
                    known.append((index, self.stream._resolve(relation, lsn)))
        for oid, known in versions.items():
            self.stream._relations[oid] = known[-1][1]
        return truncates, own_messages, versions

    def _groups(
        self,
        rows: Positions,
        truncates: list[tuple[int, list[int]]],
        versions: dict[int, list[tuple[int, RelationVersion]]],
    ) -> Iterator[tuple[RelationVersion, Positions]]:
        """The messages of each relation version, in order."""
        rows = rows[self.kind[rows] != _T]
        oids = self.data.uint32(self.begin[rows] + 1)
        truncated: dict[int, list[int]] = {}
        for index, names in truncates:
            for oid in names:
                truncated.setdefault(oid, []).append(index)
        present = set(truncated)
        if len(oids):
            single = (oids == oids[0]).all()
            present |= {int(oids[0])} if single else set(np.unique(oids).tolist())
        for oid in sorted(present):
            mine = rows if len(present) == 1 else rows[oids == oid]
            if oid in truncated:
                mine = np.sort(np.append(mine, truncated[oid])).astype(np.int64)
            known = versions.get(oid)
            if known is None or int(mine[0]) < known[0][0]:
                raise DecodeError(f"a row comes before the description of relation {oid}")
            cuts = np.searchsorted(mine, [index for index, _ in known[1:]])
            for (_, relation), part in zip(known, np.split(mine, cuts), strict=True):
                if len(part):
                    yield relation, part

    # Events

    def _by_day(
        self,
        relation: RelationVersion,
        chosen: Positions,
        transactions: _Transactions,
        seq: Positions,
    ) -> Iterator[EventBatch]:
        of = transactions.of[chosen]
        header = Header(
            op=self.kind[chosen],
            lsn=transactions.lsn[of],
            seq=seq[chosen],
            xid=transactions.xid[of],
            committed_at=transactions.committed_at[of],
        )
        record_batch = self._events(relation, chosen, header)
        days = header.day
        for day in np.unique(days).tolist():
            same = days == day
            yield EventBatch(
                relation,
                _date(day),
                record_batch if same.all() else record_batch.filter(pa.array(same)),
            )

    def _events(
        self, relation: RelationVersion, chosen: Positions, header: Header
    ) -> pa.RecordBatch:
        data = self.data
        new, old, new_rows, old_rows = self._tuples(relation, chosen)
        full_rows = data.uint8(self.begin[chosen] + 5) == _OLD
        deleted = header.op[old_rows] == _D
        texts = Texts(len(chosen))
        own: list[pa.Array] = []
        unchanged_names: list[str] = []
        unchanged_masks: list[npt.NDArray[np.bool_]] = []
        before_columns: list[pa.Array] = []
        at = self.begin[chosen]
        for number, column in enumerate(relation.columns):
            spans = tuples.nowhere(at)
            if new:
                if len(new_rows) == len(chosen):
                    spans = replace(new[number])
                else:
                    tuples.place(spans, new_rows, new[number], slice(None))
            if old:
                if deleted.any():
                    tuples.place(spans, old_rows[deleted], old[number], np.flatnonzero(deleted))
                sent = full_rows | column.identity
                _fill_from_old(spans, old[number], old_rows, sent)
            own.append(texts.typed(column.stored, column.storage, spans.text(data)))
            if spans.unchanged is not None and spans.unchanged.any():
                unchanged_names.append(column.stored)
                unchanged_masks.append(spans.unchanged)
            if old and column.identity:
                before = tuples.nowhere(at)
                tuples.place(before, old_rows, old[number], slice(None))
                name = events.BEFORE_PREFIX + column.stored
                before_columns.append(texts.typed(name, column.storage, before.text(data)))
        return events.batch(
            relation,
            self.stream._era,
            header,
            own,
            events.unchanged_names(unchanged_names, unchanged_masks, len(chosen)),
            _before(relation, before_columns, old_rows, len(chosen)),
            texts.raw(),
        )

    def _tuples(
        self, relation: RelationVersion, chosen: Positions
    ) -> tuple[list[Spans], list[Spans], Positions, Positions]:
        """Spans of the new and of the old rows, and which of the chosen messages have them.

        Checks that every message ends where its last value does.
        """
        data, columns = self.data, len(relation.columns)
        kind, at, end = self.kind[chosen], self.begin[chosen] + 5, self.end[chosen]
        marker = data.uint8(at)
        has_row = kind != _T
        has_old = ((marker == _KEY) | (marker == _OLD)) & ((kind == _U) | (kind == _D))
        has_new = (kind == _I) | (kind == _U)
        old_rows, new_rows = np.flatnonzero(has_old), np.flatnonzero(has_new)
        if (has_row & ~has_old & ((marker != _NEW) | (kind == _D))).any():
            raise DecodeError("a row message has no row")
        position = at + 1
        old: list[Spans] = []
        new: list[Spans] = []
        if len(old_rows):
            old, position[old_rows] = tuples.parse(data, position[old_rows], columns)
            updates = np.flatnonzero(has_old & has_new)
            if (data.uint8(position[updates]) != _NEW).any():
                raise DecodeError("an update has no new row")
            position[updates] += 1
        if len(new_rows):
            new, position[new_rows] = tuples.parse(data, position[new_rows], columns)
        if (has_row & (position != end)).any():
            raise DecodeError("a message is shorter or longer than its row")
        return new, old, new_rows, old_rows


_EPOCH = 946_684_800_000_000
"""2000-01-01, PostgreSQL's epoch, in microseconds since 1970-01-01."""

_DAY = 86_400_000_000
_FIRST_TIME = (date.min - date(2000, 1, 1)).days * _DAY
_LAST_TIME = (date.max - date(2000, 1, 1)).days * _DAY + _DAY - 1
"""The calendar's bounds, in microseconds since PostgreSQL's epoch."""


def _date(day: int) -> date:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day)


def _fill_from_old(
    spans: Spans, old: Spans, old_rows: Positions, sent: npt.NDArray[np.bool_]
) -> None:
    """Take unchanged values from the old row where the column of it was sent: always for the
    replica identity's columns, else where the whole old row was."""
    if spans.unchanged is None:
        return
    spans.start, spans.end = spans.start.copy(), spans.end.copy()
    assert spans.absent is not None
    spans.absent, spans.unchanged = spans.absent.copy(), spans.unchanged.copy()
    known = np.ones(len(old_rows), np.bool_) if old.unchanged is None else ~old.unchanged
    fill = sent[old_rows] & spans.unchanged[old_rows] & known
    rows = old_rows[fill]
    spans.unchanged[rows] = False
    tuples.place(spans, rows, old, np.flatnonzero(fill))


def _before(
    relation: RelationVersion, columns: list[pa.Array], old_rows: Positions, rows: int
) -> pa.Array | None:
    kind = events.before_type(relation)
    if kind is None:
        return None
    if not columns:
        return pa.nulls(rows, kind)
    missing = np.ones(rows, np.bool_)
    missing[old_rows] = False
    return pa.StructArray.from_arrays(columns, fields=list(kind), mask=pa.array(missing))
