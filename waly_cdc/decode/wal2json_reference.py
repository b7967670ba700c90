"""wal2json, decoded message by message: the oracle that `waly_cdc.decode.wal2json` is held to.

Written to be checked by eye against wal2json's `pg_decode_write_change` and PostgreSQL's
`escape_json`; shares no code with the decoder it checks, and takes from the reference decoder of
pgoutput only how an event is put together. It reads each message from its beginning, and refuses
whatever wal2json would have written differently. Nothing but tests uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

from waly_cdc.decode.reference import (
    UNCHANGED,
    ReferenceDecoder,
    Transaction,
    Tuple,
    Unchanged,
    typed,
)
from waly_cdc.errors import DecodeError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import NamedColumn, NamedTable, RelationVersion

_ESCAPES = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b'"': b'"'}
_ESCAPES[b"\\"] = b"\\"
_ESCAPE = re.compile(rb'\\(?:[bfnrt"\\]|u00(?:0[0-7bef]|1[0-9a-f]))')
_NUMBERS = {20, 21, 23, 26, 700, 701, 1700}
_BOOL, _BYTEA, _CHAR = 16, 17, 18

_Value = tuple[bytes, bool]
"""A value's text as it stands in the message, escapes resolved, and whether it was a string."""


class Wal2jsonReferenceDecoder(ReferenceDecoder):
    """Decodes one stream, some frames after others. Arguments as for `Wal2jsonDecoder`."""

    def __init__(
        self, resolve: Callable[[NamedTable, Lsn], RelationVersion | None], era: int = 1
    ) -> None:
        super().__init__(lambda *_: _never(), era)
        self._resolve_named = resolve
        self._truncated: bytes | None = None
        self._was_captured = False

    def _frame(self, header: bytes, message: bytes) -> None:
        if any(byte < 32 for byte in message) or b"\\" in _ESCAPE.sub(b"", message):
            raise DecodeError("a control character, or an escape that is none")
        reader = _Json(message)
        reader.expect(b'{"action":"')
        action = reader.take(1).decode("latin-1")
        reader.expect(b'","xid":')
        xid = reader.plain()
        reader.expect(b',"timestamp":')
        time = reader.any_value()
        reader.expect(b',"lsn":')
        lsn = reader.string()
        if action != "M" and (re.fullmatch(rb"\d{1,10}", xid) is None or not time[1]):
            raise DecodeError("a head that is none")
        log_lsn = header[1:9]
        match action:
            case "B" | "C":
                reader.expect(b',"nextlsn":')
                end = reader.string()
                reader.expect(b"}")
                self._bound(action, int(xid), time[0], _lsn(lsn), _lsn(end))
            case "I" | "U" | "D":
                self._change(action, reader)
                self._truncated = None if self._was_captured else self._truncated
            case "T":
                self._table_truncated(reader, log_lsn)
            case "M":
                self._message_of_ours(reader, xid, time)
            case _:
                raise DecodeError(f"unknown action {action!r}")
        reader.finish()

    def _bound(self, action: str, xid: int, time: bytes, lsn: Lsn, end: Lsn) -> None:
        moment = _moment(time)
        if action == "B":
            if self._transaction is not None:
                raise DecodeError("Begin inside a transaction")
            self._transaction = Transaction(lsn, moment, xid)
            self._truncated = None
            return
        transaction = self._open()
        if lsn != transaction.lsn:
            raise DecodeError("Commit of another transaction")
        self._transaction = None
        self._add_transaction(transaction, end)

    def _change(self, action: str, reader: _Json) -> None:
        self._open()
        schema, name = reader.table()
        columns: list[tuple[NamedColumn, _Value | None]] = []
        identity: list[tuple[NamedColumn, _Value | None]] = []
        if action in "IU":
            columns = reader.columns(b"columns")
        if action in "UD":
            identity = reader.columns(b"identity")
        key = reader.columns(b"pk")
        reader.expect(b"}")
        table = NamedTable(
            schema,
            name,
            action,
            tuple(column for column, _ in columns),
            tuple(column for column, _ in identity),
            tuple(column.name for column, _ in key),
        )
        relation = self._resolve_named(table, self._open().lsn)
        self._was_captured = relation is not None
        if relation is None:
            return
        old: Tuple | None = None
        if action in "UD":
            old = _values(relation, identity, None)
            sent = {column.name for column, _ in identity}
            if any(column.identity and column.name not in sent for column in relation.columns):
                raise DecodeError("an identity without all of its columns")
        values: Tuple = old or []
        if action in "IU":
            values = _values(relation, columns, UNCHANGED)
            if action == "I" and UNCHANGED in values:
                raise DecodeError("an insert without all columns")
            if relation.replica_identity != "f" and old is not None:
                same = all(
                    now == was
                    for now, was, column in zip(values, old, relation.columns, strict=True)
                    if column.identity
                )
                old = None if same else old
        if old is not None and action == "U":
            whole = relation.replica_identity == "f"
            values = [
                was if now is UNCHANGED and (whole or column.identity) else now
                for now, was, column in zip(values, old, relation.columns, strict=True)
            ]
        self._event(action, relation, values, old)
        self._open().seq += 1

    def _table_truncated(self, reader: _Json, log_lsn: bytes) -> None:
        transaction = self._open()
        schema, name = reader.table()
        reader.expect(b"}")
        relation = self._resolve_named(NamedTable(schema, name, "T", (), (), ()), transaction.lsn)
        if relation is None:
            return
        if self._truncated == log_lsn:
            # One TRUNCATE of several tables.
            transaction.seq -= 1
        self._event("T", relation, [None] * len(relation.columns), None)
        transaction.seq += 1
        self._truncated = log_lsn

    def _message_of_ours(self, reader: _Json, xid: bytes, time: _Value) -> None:
        if xid != b"null" and not xid.isdigit():
            raise DecodeError("no xid")
        if not time[1] and time[0] != b"null":
            raise DecodeError("no time")
        reader.expect(b',"transactional":')
        transactional = reader.plain()
        reader.expect(b',"prefix":')
        prefix = reader.string()
        reader.expect(b',"content":')
        content = reader.string()
        reader.expect(b"}")
        if transactional not in (b"true", b"false"):
            raise DecodeError("neither transactional nor not")
        if transactional == b"true":
            xid_of_transaction = self._open().xid
            if prefix == b"waly":
                self._decoded.messages.append((xid_of_transaction, content))


def _never() -> RelationVersion:
    raise AssertionError("wal2json has no Relation messages")


def _values(
    relation: RelationVersion,
    given: list[tuple[NamedColumn, _Value | None]],
    missing: Unchanged | None,
) -> Tuple:
    """The texts that PostgreSQL printed, by the relation's columns; None for NULL."""
    by_name = {column.name: (column, value) for column, value in given}
    values: Tuple = []
    for column in relation.columns:
        if column.name not in by_name:
            values.append(missing)
            continue
        named, value = by_name[column.name]
        if named.type_oid != column.type_oid:
            raise DecodeError("a column of another type")
        assert value is not None
        values.append(_text(named, value))
    return values


def _text(column: NamedColumn, value: _Value) -> bytes | None:
    text, is_string = value
    if not is_string and text == b"null":
        return None
    if column.type_oid == _BOOL:
        return text[:1]
    if column.type_oid in _NUMBERS and re.fullmatch(rb"[-+0-9eE.NaInfity]*", text) is None:
        raise DecodeError("no number")
    return b"\\x" + text if column.type_oid == _BYTEA else text


def _check_kind(type_oid: int, value: _Value) -> None:
    """Numbers are written as such or as strings, true and false as such, all else as strings."""
    text, is_string = value
    if not is_string and text == b"null":
        return
    if type_oid == _BOOL:
        if is_string or text not in (b"true", b"false"):
            raise DecodeError("neither true nor false")
    elif type_oid not in _NUMBERS and not is_string:
        raise DecodeError("a text without quotes")


def _moment(text: bytes) -> datetime:
    try:
        moment = typed("timestamptz", text.decode())
    except ValueError as error:
        raise DecodeError("no commit time") from error
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def _lsn(text: bytes) -> Lsn:
    match = re.fullmatch(rb"([0-9A-F]{1,8})/([0-9A-F]{1,8})", text)
    if match is None or int(match[1], 16) >= 1 << 31:
        raise DecodeError("no LSN")
    return Lsn(int(match[1], 16) << 32 | int(match[2], 16))


class _Json:
    """Reads a message from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def expect(self, literal: bytes) -> None:
        if self.take(len(literal)) != literal:
            raise DecodeError(f"{literal!r} is missing")

    def finish(self) -> None:
        if self._at != len(self._data):
            raise DecodeError("a message does not end where it should")

    def peek(self) -> bytes:
        return self._data[self._at : self._at + 1]

    def plain(self) -> bytes:
        """What is no string: up to what may follow a value."""
        match = re.compile(rb'[^",\]}\\]+').match(self._data, self._at)
        if match is None:
            raise DecodeError("a value is missing")
        self._at = match.end()
        return match[0]

    def any_value(self) -> _Value:
        return (self.string(), True) if self.peek() == b'"' else (self.plain(), False)

    def string(self) -> bytes:
        self.expect(b'"')
        text = b""
        while (byte := self.take(1)) != b'"':
            if not byte:
                raise DecodeError("a string does not end")
            text += self._escape() if byte == b"\\" else byte
        return text

    def _escape(self) -> bytes:
        letter = self.take(1)
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        match = re.fullmatch(rb"00([01][0-9a-f])", self.take(4))
        if letter != b"u" or match is None or chr(int(match[1], 16)) in "\b\f\n\r\t":
            raise DecodeError("no escape")
        return bytes([int(match[1], 16)])

    def name(self) -> str:
        return _decode(self.string())

    def table(self) -> tuple[str, str]:
        self.expect(b',"schema":')
        schema = self.name()
        self.expect(b',"table":')
        return schema, self.name()

    def columns(self, which: bytes) -> list[tuple[NamedColumn, _Value | None]]:
        self.expect(b',"' + which + b'":[')
        found: list[tuple[NamedColumn, _Value | None]] = []
        while self.peek() != b"]":
            if found:
                self.expect(b",")
            found.append(self._column(which))
        self.expect(b"]")
        return found

    def _column(self, which: bytes) -> tuple[NamedColumn, _Value | None]:
        self.expect(b'{"name":')
        name = self.name()
        self.expect(b',"type":')
        written = self._type()
        self.expect(b',"typeoid":')
        oid = self.plain()
        value, attnum = None, None
        if which != b"pk":
            self.expect(b',"value":')
            value = self.any_value()
        if which == b"columns":
            self.expect(b',"position":')
            attnum = self.plain()
        self.expect(b"}")
        if re.fullmatch(rb"-?\d+", oid) is None or (attnum and not attnum.isdigit()):
            raise DecodeError("no number")
        type_oid = int(oid) % (1 << 32)
        if type_oid == _CHAR or not _is_string(written):
            type_name = _decode(written)
        else:
            type_name = _Json(written).name()
        if value is not None:
            _check_kind(type_oid, value)
        return NamedColumn(int(attnum) if attnum else None, name, type_oid, type_name), value

    def _type(self) -> bytes:
        """A type's name as it is written: a string, or an identifier in quotes as in SQL."""
        end = self._data.find(b',"typeoid":', self._at)
        if end < 0:
            raise DecodeError("a type does not end")
        return self.take(end - self._at)


def _is_string(written: bytes) -> bool:
    return re.fullmatch(rb'"(?:[^"\\]|\\.)*"', written) is not None


def _decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("a name is not UTF-8") from error
