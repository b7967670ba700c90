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
from datetime import date

import numpy as np
import pyarrow as pa

from waly_cdc.decode import events, messages, tuples
from waly_cdc.decode.chunk import Chunk
from waly_cdc.decode.events import Decoded, Header
from waly_cdc.decode.rows import Rows
from waly_cdc.decode.transactions import OpenTransaction, Transactions, check_turns
from waly_cdc.decode.tuples import Bytes, Positions, Spans
from waly_cdc.errors import DecodeError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion, StreamRelation

Resolve = Callable[[StreamRelation, Lsn], RelationVersion]
"""Gives the relation version for a Relation message, in the transaction that commits at an LSN."""

_B, _C, _I, _U, _D, _T, _R, _Y, _O, _M = b"BCIUDTRYOM"
_NEW, _KEY, _OLD = b"NKO"
_KNOWN = np.zeros(256, np.bool_)
_KNOWN[[_B, _C, _I, _U, _D, _T, _R, _Y, _O, _M]] = True


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
        self._open: OpenTransaction | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether the last chunk ended inside a transaction."""
        return self._open is not None

    def committed(self, chunk: Chunk, before: Lsn | None = None) -> tuple[int, int]:
        """How many frames there are up to the last Commit, and that transaction's end LSN.

        `before`: up to the last one whose commit record begins before that LSN. `(0, 0)` where
        there is none. Raises DecodeError for frames too short to tell.
        """
        begin, end = chunk.messages()
        commits = np.flatnonzero(np.frombuffer(chunk.data, np.uint8)[begin] == _C)
        # Commit: kind, flags (1 byte each), commit LSN, end LSN (8 each), commit time.
        for last in commits[::-1].tolist():
            if end[last] - begin[last] != _COMMIT_SIZE:
                raise DecodeError("a Commit message has a wrong length")
            at = int(begin[last]) + 2
            if before is None or int.from_bytes(chunk.data[at : at + 8], "big") < before.value:
                return last + 1, int.from_bytes(chunk.data[at + 8 : at + 16], "big")
        return 0, 0

    def know(self, known: Iterable[RelationVersion]) -> None:
        """File what follows under these versions, until the stream describes other shapes."""
        self._relations.update((relation.oid, relation) for relation in known)

    def decode(self, chunk: Chunk) -> Decoded:
        """Decode a chunk. Raises DecodeError for anything that is not pgoutput's."""
        if not len(chunk):
            return events.nothing()
        return _ChunkDecoder(self, chunk).run()


class _ChunkDecoder:
    """The work on one chunk; `stream` keeps what outlives it."""

    def __init__(self, stream: ColumnarDecoder, chunk: Chunk) -> None:
        self.stream = stream
        self.data = Bytes(chunk.data)
        self.bytes = chunk.data
        self.begin, self.end = chunk.messages()
        self.kind = self.data.uint8(self.begin)
        unknown = ~_KNOWN[self.kind]
        if unknown.any():
            raise DecodeError(f"unknown message kind {bytes(self.kind[unknown][:1])!r}")

    def run(self) -> Decoded:
        transactions = self._transactions()
        is_row = (self.kind == _I) | (self.kind == _U) | (self.kind == _D) | (self.kind == _T)
        rows = np.flatnonzero(is_row)
        seq = transactions.number(rows)
        transactions.check_inside(self._inside(rows))
        counts = np.bincount(transactions.of[rows], minlength=len(transactions.lsn))
        truncates, own_messages, versions = self._rare(transactions)
        for index, oids in truncates:
            counts[transactions.of[index]] += len(oids) - 1

        batches = [
            batch
            for relation, chosen in self._groups(rows, truncates, versions)
            for batch in self._rows(relation, chosen, transactions, seq).batches(
                self.stream._era, self._text
            )
        ]
        committed = transactions.committed(self._end_lsn(transactions), counts)
        self.stream._open = transactions.still_open(counts, len(rows))
        return Decoded(batches, committed, own_messages)

    def _text(self, _: Column, spans: Spans) -> pa.StringArray:
        return spans.text(self.data)

    # Transactions

    def _transactions(self) -> Transactions:
        check_turns(self.stream._open, self.kind)
        begins = self.kind == _B
        at = self.begin[begins]
        if (self.end[begins] - at != 21).any():
            raise DecodeError("a Begin message has a wrong length")
        committed_at = self.data.int64(at + 9)
        if ((committed_at < _FIRST_TIME) | (committed_at > _LAST_TIME)).any():
            raise DecodeError("a commit time lies outside of the calendar")
        return Transactions.of_chunk(
            self.stream._open,
            self.kind,
            lsn=self._lsn(at + 1),
            committed_at=committed_at + _EPOCH,
            xid=self.data.uint32(at + 17),
        )

    def _lsn(self, at: Positions) -> Positions:
        lsn = self.data.int64(at)
        if (lsn < 0).any():
            raise DecodeError("an LSN is beyond 2^63, which no column holds")
        return lsn

    def _inside(self, rows: Positions) -> Positions:
        """Rows, relations and transactional messages, which belong to a transaction."""
        logical = np.flatnonzero(self.kind == _M)
        transactional = self.data.uint8(self.begin[logical] + 1) & 1 == 1
        return np.concatenate([rows, np.flatnonzero(self.kind == _R), logical[transactional]])

    def _end_lsn(self, transactions: Transactions) -> Positions:
        """Where each Commit ends."""
        commits = self.kind == _C
        at = self.begin[commits]
        if (self.end[commits] - at != _COMMIT_SIZE).any():
            raise DecodeError("a Commit message has a wrong length")
        if (self.data.int64(at + 2) != transactions.lsn[transactions.of[commits]]).any():
            raise DecodeError("a Commit message does not belong to its Begin")
        return self._lsn(at + 10)

    # Relations and other rare messages

    def _rare(
        self, transactions: Transactions
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

    def _rows(
        self,
        relation: RelationVersion,
        chosen: Positions,
        transactions: Transactions,
        seq: Positions,
    ) -> Rows:
        of = transactions.of[chosen]
        header = Header(
            op=self.kind[chosen],
            lsn=transactions.lsn[of],
            seq=seq[chosen],
            xid=transactions.xid[of],
            committed_at=transactions.committed_at[of],
        )
        new, old, new_rows, old_rows = self._tuples(relation, chosen)
        whole = self.data.uint8(self.begin[chosen] + 5) == _OLD
        return Rows(relation, header, self.begin[chosen], new, new_rows, old, old_rows, whole)

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


_COMMIT_SIZE = 26
_EPOCH = 946_684_800_000_000
"""2000-01-01, PostgreSQL's epoch, in microseconds since 1970-01-01."""

_DAY = 86_400_000_000
_FIRST_TIME = (date.min - date(2000, 1, 1)).days * _DAY
_LAST_TIME = (date.max - date(2000, 1, 1)).days * _DAY + _DAY - 1
"""The calendar's bounds, in microseconds since PostgreSQL's epoch."""
