"""wal2json, decoded by columns: a chunk of frames becomes the same Arrow batches as pgoutput's.

Format 2, with the options of `waly_cdc.source.wal2json`. Every message is a JSON object; all that
are alike but for their values are read together: a template taken from the first of them is held
against the others, value by value, for all messages at once (`waly_cdc.decode.wal2json_template`).
Values never become numbers on the way: a column's texts are cut out of the chunk as they stand.
`waly_cdc.decode.wal2json_reference` is the same thing written to be read; tests hold the two equal.

What the messages lack of pgoutput's: tables have names but no oid, and no Relation message tells
when their shape changes. `resolve` makes up for both. An update always brings the identity's
values: they are an old row only where they differ from the new one's.

Between two chunks `_open` describes the transaction whose Commit has not been seen. After a
DecodeError a decoder is of no further use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waly_cdc.decode import events, jsontext, tuples, wal2json_template, wal2json_values
from waly_cdc.decode.chunk import LSN_BEFORE_MESSAGE, MESSAGE_AT, Chunk
from waly_cdc.decode.events import Decoded, Header
from waly_cdc.decode.jsontext import Scan
from waly_cdc.decode.messages import PREFIX
from waly_cdc.decode.rows import Rows
from waly_cdc.decode.transactions import OpenTransaction, Transactions, check_turns
from waly_cdc.decode.tuples import Mask, Positions, Spans
from waly_cdc.decode.wal2json_template import BOOL, BYTEA, NUMBERS
from waly_cdc.errors import DecodeError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import IDENTITY_FULL, Column, NamedTable, RelationVersion

Resolve = Callable[[NamedTable, Lsn], RelationVersion | None]
"""Gives the relation version that a message describes, in the transaction that commits at an LSN.

The version has all columns that the message shows, but for generated ones, which pgoutput does not
send. None for a table that is not captured. What it gives may change with the LSN, but does not go
back and forth.
"""

_ACTION = b'{"action":"'
_B, _C, _I, _U, _D, _T, _M = b"BCIUDTM"
_KNOWN = np.zeros(256, np.bool_)
_KNOWN[[_B, _C, _I, _U, _D, _T, _M]] = True


class Wal2jsonDecoder:
    """Decodes one stream, chunk after chunk.

    `resolve` is called for each kind of message in each chunk.
    """

    def __init__(self, resolve: Resolve, era: int = 1) -> None:
        self._resolve = resolve
        self._era = era
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
        kinds = np.frombuffer(chunk.data, np.uint8).take(begin + len(_ACTION), mode="clip")
        commits = np.flatnonzero(kinds == _C) if len(begin) else begin
        start = np.zeros(1, np.int64)
        for last in commits[::-1].tolist():
            message = chunk.data[begin[last] : end[last]]
            scan = Scan(message.ljust(4), start, start + len(message), 0)
            _, _, lsn, end_lsn = wal2json_values.bounds(scan, "C", start)
            if before is None or int(lsn[0]) < before.value:
                return last + 1, int(end_lsn[0])
        return 0, 0

    def know(self, known: Iterable[RelationVersion]) -> None:
        """Nothing is kept from one chunk to the next: `resolve` is asked again."""

    def decode(self, chunk: Chunk) -> Decoded:
        """Decode a chunk. Raises DecodeError for anything that is not wal2json's."""
        if not len(chunk):
            return events.nothing()
        return _ChunkDecoder(self, chunk).run()


@dataclass(slots=True)
class _Group:
    """Messages of one template, and the spans of its values; `at` is a position in each message."""

    table: NamedTable
    rows: Positions
    at: Positions
    spans: list[Spans]

    def select(self, chosen: slice) -> _Group:
        spans = [_part(each, chosen) for each in self.spans]
        return _Group(self.table, self.rows[chosen], self.at[chosen], spans)


@dataclass(slots=True)
class _Table:
    """All groups of one relation version."""

    relation: RelationVersion
    groups: list[_Group] = field(default_factory=list)


class _ChunkDecoder:
    """The work on one chunk; `stream` keeps what outlives it."""

    def __init__(self, stream: Wal2jsonDecoder, chunk: Chunk) -> None:
        self.stream = stream
        self.bytes = chunk.data
        begin, end = chunk.messages()
        self.scan = Scan(chunk.data, begin, end, MESSAGE_AT)
        self.kind = self.scan.byte(begin + len(_ACTION))
        known = self.scan.matches(begin, _ACTION) & _KNOWN[self.kind]
        if not known.all():
            raise DecodeError("a message does not begin as wal2json's do")

    def run(self) -> Decoded:
        transactions = self._transactions()
        messages = self._own_messages(transactions)
        kind = self.kind
        is_row = (kind == _I) | (kind == _U) | (kind == _D) | (kind == _T)
        transactions.check_inside(np.flatnonzero(is_row))
        tables = self._tables(np.flatnonzero(is_row), transactions)

        captured = np.zeros(len(kind), np.bool_)
        for table in tables:
            for group in table.groups:
                captured[group.rows] = True
        counts = np.bincount(transactions.of[captured], minlength=len(transactions.lsn))
        again = self._same_truncate(captured)
        numbered = np.flatnonzero(captured & ~again)
        seq = transactions.number(numbered)
        before = np.cumsum(captured & ~again) - 1 - transactions.seq[transactions.of]
        seq[again] = before[again]

        batches = [
            batch
            for table in tables
            for batch in self._rows(table, transactions, seq).batches(self.stream._era, self._text)
        ]
        commits = np.flatnonzero(kind == _C)
        _, _, lsn, end_lsn = wal2json_values.bounds(self.scan, "C", commits)
        if (lsn != transactions.lsn[transactions.of[commits]]).any():
            raise DecodeError("a Commit does not belong to its Begin")
        committed = transactions.committed(end_lsn, counts)
        self.stream._open = transactions.still_open(
            counts, len(numbered), self._last_truncate(captured)
        )
        return Decoded(batches, committed, messages)

    # Transactions and truncates

    def _transactions(self) -> Transactions:
        before = self.stream._open
        check_turns(before, self.kind)
        xid, committed_at, lsn, _ = wal2json_values.bounds(
            self.scan, "B", np.flatnonzero(self.kind == _B)
        )
        return Transactions.of_chunk(before, self.kind, lsn, committed_at, xid)

    def _own_messages(self, transactions: Transactions) -> list[tuple[int, bytes]]:
        found = []
        for index in np.flatnonzero(self.kind == _M).tolist():
            body = self.bytes[self.scan.begin[index] : self.scan.end[index]]
            transactional, content = wal2json_template.own_message(body, PREFIX)
            if transactional:
                transactions.check_inside(np.array([index]))
                if content is not None:
                    found.append((int(transactions.xid[transactions.of[index]]), content))
        return found

    def _log_lsns(self) -> Positions:
        """Where in the log each message's change stands, as the frames' headers tell."""
        return self.scan.bytes.int64(self.scan.begin - LSN_BEFORE_MESSAGE)

    def _same_truncate(self, captured: Mask) -> Mask:
        """Which messages go on with the TRUNCATE of the message before: wal2json writes one for
        each table, all with the place of the one record in the log."""
        index = np.flatnonzero(captured)
        truncates = np.where(self.kind[index] == _T, self._log_lsns()[index], -1)
        open_before = self.stream._open.truncated if self.stream._open else -1
        same = (truncates >= 0) & (
            truncates == np.append(open_before, truncates[:-1])[: len(index)]
        )
        again = np.zeros(len(captured), np.bool_)
        again[index[same]] = True
        return again

    def _last_truncate(self, captured: Mask) -> int:
        index = np.flatnonzero(captured)
        if not len(index):
            return self.stream._open.truncated if self.stream._open else -1
        last = int(index[-1])
        return int(self._log_lsns()[last]) if self.kind[last] == _T else -1

    # Rows

    def _tables(self, rows: Positions, transactions: Transactions) -> list[_Table]:
        """The row messages by relation version, without those of tables that are not captured."""
        tables: dict[tuple[int, int], _Table] = {}
        for group in self._groups(rows):
            for relation, part in self._resolve(group, transactions):
                tables.setdefault(_key(relation), _Table(relation)).groups.append(part)
        return [tables[key] for key in sorted(tables)]

    def _groups(self, rows: Positions) -> Iterator[_Group]:
        """The row messages by template, in the order of the first of each."""
        at, quote = self._heads(rows)
        while len(rows):
            body = self.bytes[self.scan.begin[rows[0]] : self.scan.end[rows[0]]]
            template, table = wal2json_template.parse(body)
            alike = self.kind[rows] == self.kind[rows[0]]
            alike &= self.scan.matches(at, template.literals[0])
            index = np.flatnonzero(alike)
            fits, spans = wal2json_values.read(
                self.scan, template, rows[index], at[index], quote[index]
            )
            if not fits[0]:
                raise DecodeError("a value is not as wal2json writes it")
            if not fits.all():
                spans = [_part(each, np.flatnonzero(fits)) for each in spans]
            index = index[fits]
            yield _Group(table, rows[index], at[index], spans)
            alike = np.zeros(len(rows), np.bool_)
            alike[index] = True
            rows, at, quote = rows[~alike], at[~alike], quote[~alike]

    def _heads(self, rows: Positions) -> tuple[Positions, Positions]:
        """Where the messages' heads end, and which quote of the chunk comes next."""
        at = self.scan.begin[rows] + len(_ACTION) + 1
        quote = self.scan.first_quote[rows] + 3
        literals = wal2json_template.HEAD
        fits = self.scan.matches(at, literals[0])
        at, quote = at + len(literals[0]), quote + wal2json_values.quotes(literals[0])
        following = (*literals[1:], b',"schema":')
        for kind, literal in zip(wal2json_template.HEAD_KINDS, following, strict=True):
            found, _, at, quote = wal2json_values.read_value(self.scan, kind, literal, at, quote)
            fits &= found & self.scan.matches(at, literal)
            if literal is not following[-1]:
                at, quote = at + len(literal), quote + wal2json_values.quotes(literal)
        if not fits.all():
            raise DecodeError("a message does not begin as wal2json's do")
        return at, quote

    def _resolve(
        self, group: _Group, transactions: Transactions
    ) -> Iterator[tuple[RelationVersion, _Group]]:
        """The group's relation version; where it changes on the way, the parts and theirs."""
        of = transactions.of[group.rows]
        first = self.stream._resolve(group.table, Lsn(int(transactions.lsn[of[0]])))
        last = self.stream._resolve(group.table, Lsn(int(transactions.lsn[of[-1]])))
        if _key(first) == _key(last) or of[0] == of[-1]:
            if first is not None:
                yield first, group
            return
        cut = int(np.searchsorted(of, of[0] + (of[-1] - of[0] + 1) // 2))
        yield from self._resolve(group.select(slice(None, cut)), transactions)
        yield from self._resolve(group.select(slice(cut, None)), transactions)

    def _rows(self, table: _Table, transactions: Transactions, seq: Positions) -> Rows:
        """Put the groups of a relation version together, in the order of the messages."""
        chosen = np.sort(np.concatenate([group.rows for group in table.groups]))
        of = transactions.of[chosen]
        kind = self.kind[chosen]
        header = Header(
            op=kind,
            lsn=transactions.lsn[of],
            seq=seq[chosen],
            xid=transactions.xid[of],
            committed_at=transactions.committed_at[of],
        )
        at = self.scan.begin[chosen]
        width = len(table.relation.columns)
        new_rows = np.flatnonzero((kind == _I) | (kind == _U))
        new = [tuples.nowhere(at[new_rows]) for _ in range(width)]
        old = [tuples.nowhere(at) for _ in range(width)]
        has_old = np.zeros(len(chosen), np.bool_)
        for group in table.groups:
            rows = np.searchsorted(chosen, group.rows)
            new_spans, old_spans = _by_column(table.relation, group)
            if new_spans:
                places = np.searchsorted(new_rows, rows)
                for target, spans in zip(new, new_spans, strict=True):
                    tuples.place(target, places, spans, slice(None))
            if old_spans:
                sent = self._old_row_sent(table.relation, group, new_spans, old_spans)
                has_old[rows[sent]] = True
                for target, spans in zip(old, old_spans, strict=True):
                    tuples.place(target, rows[sent], spans, np.flatnonzero(sent))
        old_rows = np.flatnonzero(has_old)
        whole = np.full(len(chosen), table.relation.replica_identity == IDENTITY_FULL)
        return Rows(
            table.relation,
            header,
            at,
            new if len(new_rows) else [],
            new_rows,
            [_part(spans, old_rows) for spans in old] if len(old_rows) else [],
            old_rows,
            whole,
        )

    def _old_row_sent(
        self,
        relation: RelationVersion,
        group: _Group,
        new: Sequence[Spans],
        old: Sequence[Spans],
    ) -> Mask:
        """Which of the identities are an old row: all of deletes and under replica identity FULL,
        else those that are not what the new row has."""
        count = len(group.rows)
        if not new or relation.replica_identity == IDENTITY_FULL:
            return np.ones(count, np.bool_)
        differs = np.zeros(count, np.bool_)
        for column, now, was in zip(relation.columns, new, old, strict=True):
            if not column.identity:
                continue
            same = pc.equal(now.text(self.scan.bytes), was.text(self.scan.bytes))
            both_null = _absent(now) & _absent(was)
            if now.unchanged is not None:
                both_null &= ~now.unchanged
            differs |= ~(same.fill_null(False).to_numpy(zero_copy_only=False) | both_null)
        return differs

    def _text(self, column: Column, spans: Spans) -> pa.StringArray:
        text = jsontext.unescape(spans.text(self.scan.bytes))
        if column.type_oid == BOOL:
            return pc.utf8_slice_codeunits(text, 0, 1)
        if column.type_oid == BYTEA:
            return pc.binary_join_element_wise("\\x", text, "")
        if column.type_oid in NUMBERS:
            wal2json_values.check_numbers(text)
        return text


def _by_column(relation: RelationVersion, group: _Group) -> tuple[list[Spans], list[Spans]]:
    """A group's spans of the new and of the old rows by the relation version's columns; empty where
    the action has none. Raises DecodeError where the version is not what the messages show."""
    table = group.table
    at = group.at
    names = [column.name for column in table.columns]
    new_slots = dict(zip(names, group.spans, strict=False))
    names = [column.name for column in table.identity]
    old_slots = dict(zip(names, group.spans[len(table.columns) :], strict=True))
    types = {column.name: column.type_oid for column in (*table.columns, *table.identity)}
    for column in relation.columns:
        missing = table.action == "I" and column.name not in new_slots
        missing |= bool(table.identity) and column.identity and column.name not in old_slots
        if missing or types.get(column.name, column.type_oid) != column.type_oid:
            raise DecodeError(f"{relation.qualified_name} has another shape than its messages")
    new: list[Spans] = []
    if table.action in "IU":
        new = [new_slots.get(column.name) or _unchanged(at) for column in relation.columns]
    if not table.identity:
        return new, []
    nowhere = tuples.nowhere(at)
    return new, [old_slots.get(column.name, nowhere) for column in relation.columns]


def _unchanged(at: Positions) -> Spans:
    spans = tuples.nowhere(at)
    spans.unchanged = np.ones(len(at), np.bool_)
    return spans


def _part(spans: Spans, chosen: Positions | slice) -> Spans:
    return Spans(
        spans.start[chosen],
        spans.end[chosen],
        None if spans.absent is None else spans.absent[chosen],
        None if spans.unchanged is None else spans.unchanged[chosen],
    )


def _absent(spans: Spans) -> Mask:
    return np.zeros(len(spans.start), np.bool_) if spans.absent is None else spans.absent


def _key(relation: RelationVersion | None) -> tuple[int, int]:
    return (relation.oid, relation.version) if relation is not None else (0, 0)
