"""pgoutput, decoded message by message: the oracle that `waly_cdc.decode.pgoutput` is held to.

Written to be checked by eye against the PostgreSQL documentation, section 53.9, "Logical
Replication Message Formats", and so shares neither code nor tricks with the decoder it checks. It
gives events as rows of Python values, equal to what `to_pylist` gives for the other's batches.
Nothing but tests uses it: it is some hundred times slower.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

from waly_cdc.errors import DecodeError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion, StreamColumn, StreamRelation

Row = dict[str, Any]
"""A row of an event file or of the transactions: a Python value by column name."""


@dataclass(slots=True)
class ReferenceDecoded:
    """What some frames held: events with the version they belong to, and committed transactions.

    `messages` are the contents of the transactions' own logical messages, by xid, in order.
    """

    events: list[tuple[RelationVersion, Row]] = field(default_factory=list)
    transactions: list[Row] = field(default_factory=list)
    messages: list[tuple[int, bytes]] = field(default_factory=list)


class Unchanged(Enum):
    UNCHANGED = "u"


UNCHANGED = Unchanged.UNCHANGED
Tuple = list[bytes | Unchanged | None]
"""TupleData: a value's bytes, None for NULL, or unchanged, by column."""


@dataclass(slots=True)
class Transaction:
    lsn: Lsn
    committed_at: datetime
    xid: int
    seq: int = 0
    events: int = 0


class ReferenceDecoder:
    """Decodes one stream, some frames after others. Arguments as for `ColumnarDecoder`."""

    def __init__(
        self,
        resolve: Callable[[StreamRelation, Lsn], RelationVersion],
        era: int = 1,
        known: Iterable[RelationVersion] = (),
    ) -> None:
        self._resolve = resolve
        self._era = era
        self._relations = {relation.oid: relation for relation in known}
        self._transaction: Transaction | None = None
        self._decoded = ReferenceDecoded()

    @property
    def in_transaction(self) -> bool:
        """Whether the last frame was inside a transaction."""
        return self._transaction is not None

    def decode(self, frames: Iterable[bytes]) -> ReferenceDecoded:
        """Decode whole XLogData frames. Raises DecodeError for anything that is not pgoutput's."""
        self._decoded = ReferenceDecoded()
        for frame in frames:
            if len(frame) <= 25 or frame[:1] != b"w":
                raise DecodeError("not XLogData")
            # The header: start LSN, end LSN, send time.
            self._frame(frame[:25], frame[25:])
        return self._decoded

    def _frame(self, _: bytes, message: bytes) -> None:
        self._message(_Reader(message))

    def _message(self, message: _Reader) -> None:
        kind = message.take(1)
        match kind:
            case b"B":
                self._begin(message)
            case b"C":
                self._commit(message)
            case b"R":
                self._relation(message)
            case b"I" | b"U" | b"D":
                self._row(kind, message)
            case b"T":
                self._truncate(message)
            case b"M":
                self._logical_message(message)
            case b"Y" | b"O":
                return  # what types and origins are called makes no difference to an event
            case _:
                raise DecodeError(f"unknown message kind {kind!r}")
        message.finish()

    def _begin(self, message: _Reader) -> None:
        if self._transaction is not None:
            raise DecodeError("Begin inside a transaction")
        self._transaction = Transaction(message.lsn(), message.timestamp(), message.uint32())

    def _commit(self, message: _Reader) -> None:
        transaction = self._open()
        message.take(1)  # flags
        if message.lsn() != transaction.lsn:
            raise DecodeError("Commit of another transaction")
        end = message.lsn()
        message.take(8)  # commit time, again
        self._transaction = None
        self._add_transaction(transaction, end)

    def _add_transaction(self, transaction: Transaction, end: Lsn) -> None:
        self._decoded.transactions.append(
            {
                "lsn": transaction.lsn.value,
                "end_lsn": end.value,
                "xid": transaction.xid,
                "committed_at": transaction.committed_at,
                "events": transaction.events,
            }
        )

    def _relation(self, message: _Reader) -> None:
        oid = message.uint32()
        schema = message.string() or "pg_catalog"
        name = message.string()
        replica_identity = chr(message.uint8())
        columns = []
        for _ in range(message.uint16()):
            flags, column = message.uint8(), message.string()
            type_oid, typmod = message.uint32(), message.int32()
            columns.append(StreamColumn(column, type_oid, typmod, identity=flags & 1 == 1))
        relation = StreamRelation(oid, schema, name, replica_identity, tuple(columns))
        lsn = self._open().lsn
        known = self._relations.get(oid)
        if known is None or not known.matches(relation):
            self._relations[oid] = self._resolve(relation, lsn)

    def _logical_message(self, message: _Reader) -> None:
        transactional = message.uint8() & 1
        message.take(8)  # LSN
        prefix = message.string()
        content = message.take(message.uint32())
        if transactional:
            xid = self._open().xid
            if prefix == "waly":
                self._decoded.messages.append((xid, content))

    def _truncate(self, message: _Reader) -> None:
        count = message.uint32()
        message.take(1)  # options
        oids = message.uint32s(count)
        if not oids or len(set(oids)) < len(oids):
            raise DecodeError("a truncate of no relation, or of one twice")
        for oid in oids:
            relation = self._known(oid)
            self._event("T", relation, [None] * len(relation.columns), None)
        self._open().seq += 1

    def _row(self, kind: bytes, message: _Reader) -> None:
        relation = self._known(message.uint32())
        width = len(relation.columns)
        old: Tuple | None = None
        marker = message.take(1)
        whole = marker == b"O"
        if marker in (b"K", b"O") and kind != b"I":
            old = message.tuple_data(width)
            marker = b"" if kind == b"D" else message.take(1)
        if marker != (b"" if kind == b"D" else b"N"):
            raise DecodeError("a row message without its row")
        if kind == b"D":
            assert old is not None
            values = old
        else:
            values = message.tuple_data(width)
            if old is not None:
                values = [
                    was if now is UNCHANGED and (whole or column.identity) else now
                    for now, was, column in zip(values, old, relation.columns, strict=True)
                ]
        self._event(kind.decode(), relation, values, old)
        self._open().seq += 1

    def _event(self, op: str, relation: RelationVersion, values: Tuple, old: Tuple | None) -> None:
        transaction = self._open()
        transaction.events += 1
        unchanged: list[str] = []
        raw: dict[str, str] = {}
        row: Row = {}
        before: Row = {}
        for number, column in enumerate(relation.columns):
            row[column.stored] = _store(column, values[number], column.stored, raw)
            if values[number] is UNCHANGED:
                unchanged.append(column.stored)
            if old is not None and column.identity:
                name = f"_before.{column.stored}"
                before[column.stored] = _store(column, old[number], name, raw)
        row |= {
            "_op": op,
            "_era": self._era,
            "_lsn": transaction.lsn.value,
            "_seq": transaction.seq,
            "_xid": transaction.xid,
            "_committed_at": transaction.committed_at,
            "_relation": relation.version,
            "_unchanged": unchanged or None,
        }
        if any(column.identity for column in relation.columns):
            row["_before"] = before or None
        row |= {"_raw": raw or None, "day": transaction.committed_at.date()}
        self._decoded.events.append((relation, row))

    def _open(self) -> Transaction:
        if self._transaction is None:
            raise DecodeError("a message outside of a transaction")
        return self._transaction

    def _known(self, oid: int) -> RelationVersion:
        if oid not in self._relations:
            raise DecodeError(f"relation {oid} has not been described")
        return self._relations[oid]


def _store(
    column: Column, value: bytes | Unchanged | None, name: str, raw: dict[str, str]
) -> object:
    """What the typed column holds; where only the text will do, that goes to `raw`."""
    if value is None or value is UNCHANGED:
        return None
    assert isinstance(value, bytes)
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("a value is not UTF-8") from error
    try:
        return typed(column.storage, text)
    except (ValueError, ArithmeticError):
        raw[name] = text
        return None


def typed(storage: str, text: str) -> object:
    """The Python value of a text that PostgreSQL prints.

    Raises ValueError or ArithmeticError for one that would not give back the very same text, or
    that the storage has no room for. Floating-point numbers always fit.
    """
    value, again = _parse(storage, text)
    if again != text:
        raise ValueError(f"{text!r} is not the text of a {storage}")
    return value


def _parse(storage: str, text: str) -> tuple[object, str]:
    """A value and its text."""
    match storage:
        case "text":
            return text, text
        case "bool":
            return text == "t", "t" if text == "t" else "f"
        case "int16" | "int32" | "int64":
            number = int(text)
            bits = int(storage.removeprefix("int"))
            if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
                raise ValueError("out of range")
            return number, str(number)
        case "float32":
            (single,) = struct.unpack("f", struct.pack("f", float(text)))
            return single, text
        case "float64":
            return float(text), text
        case "bytes":
            data = bytes.fromhex(text[2:])
            return data, "\\x" + data.hex()
        case "date":
            day = date.fromisoformat(text)
            return day, day.isoformat()
        case "time":
            clock = time.fromisoformat(text)
            return clock, _without_zeros(clock.isoformat())
        case "timestamp":
            moment = datetime.fromisoformat(text)
            return moment, _without_zeros(moment.isoformat(" "))
        case "timestamptz":
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                raise ValueError("no time zone")
            return moment.astimezone(UTC), _without_zeros(
                moment.replace(tzinfo=None).isoformat(" ")
            ) + "+00"
        case _:
            return _decimal(storage, text)


def _decimal(storage: str, text: str) -> tuple[Decimal, str]:
    precision, scale = map(int, storage.removeprefix("decimal(").removesuffix(")").split(","))
    number = Decimal(text)
    if not number.is_finite() or number.as_tuple().exponent != -scale:
        raise ValueError("another scale")
    if len(number.as_tuple().digits) > precision:
        raise ValueError("out of range")
    return number, f"{number:f}"


def _without_zeros(text: str) -> str:
    """Fractions of a second as PostgreSQL prints them: no zeros at the end."""
    return text.rstrip("0") if "." in text else text


class _Reader:
    """Reads a message from its beginning; whatever is not there is a DecodeError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise DecodeError("a message ends too soon")
        self._at += size
        return taken

    def finish(self) -> None:
        if self._at != len(self._data):
            raise DecodeError("a message does not end where it should")

    def uint8(self) -> int:
        return self.take(1)[0]

    def uint16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def uint32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def uint32s(self, count: int) -> list[int]:
        if count > len(self._data):
            raise DecodeError("a message ends too soon")
        return [self.uint32() for _ in range(count)]

    def int32(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def int64(self) -> int:
        return int.from_bytes(self.take(8), "big", signed=True)

    def lsn(self) -> Lsn:
        value = self.int64()
        if value < 0:
            raise DecodeError("an LSN beyond 2^63, which no column holds")
        return Lsn(value)

    def timestamp(self) -> datetime:
        """Microseconds since 2000-01-01."""
        try:
            return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.int64())
        except OverflowError as error:
            raise DecodeError("a time outside of the calendar") from error

    def string(self) -> str:
        end = self._data.find(0, self._at)
        if end < 0:
            raise DecodeError("a string without its end")
        text = self.take(end - self._at)
        self.take(1)
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise DecodeError("a name is not UTF-8") from error

    def tuple_data(self, width: int) -> Tuple:
        if self.uint16() != width:
            raise DecodeError("a row of another width than its relation")
        return [self._value() for _ in range(width)]

    def _value(self) -> bytes | Unchanged | None:
        match self.take(1):
            case b"n":
                return None
            case b"u":
                return UNCHANGED
            case b"t":
                return self.take(self.uint32())
            case kind:
                raise DecodeError(f"a value of kind {kind!r}")
