"""pgoutput messages and XLogData frames, built from Python values.

Formats: PostgreSQL documentation, sections 53.4 and 53.9, protocol version 1 in text format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import Enum

from waly_cdc.relations import StreamColumn, StreamRelation


class Unchanged(Enum):
    """A TOASTed value that is not sent."""

    UNCHANGED = "u"


UNCHANGED = Unchanged.UNCHANGED

Value = str | bytes | Unchanged | None
Values = Sequence[Value]


def frame(message: bytes, start: int = 0, end: int = 0, sent_at: int = 0) -> bytes:
    """An XLogData frame around a message."""
    return struct.pack(">cQQq", b"w", start, end, sent_at) + message


def frames(messages: Iterable[bytes]) -> list[bytes]:
    return [frame(message) for message in messages]


def begin(lsn: int, committed_at: int, xid: int) -> bytes:
    """Begin. `committed_at` counts microseconds since 2000-01-01."""
    return struct.pack(">cQqI", b"B", lsn, committed_at, xid)


def commit(lsn: int, end_lsn: int, committed_at: int) -> bytes:
    return struct.pack(">cBQQq", b"C", 0, lsn, end_lsn, committed_at)


def origin(lsn: int, name: str) -> bytes:
    return struct.pack(">cQ", b"O", lsn) + _string(name)


def type_(oid: int, schema: str, name: str) -> bytes:
    return struct.pack(">cI", b"Y", oid) + _string(schema) + _string(name)


def relation(described: StreamRelation) -> bytes:
    """Relation. A schema `pg_catalog` is sent as an empty string, as the server does."""
    schema = "" if described.schema == "pg_catalog" else described.schema
    head = struct.pack(">cI", b"R", described.oid) + _string(schema) + _string(described.name)
    count = struct.pack(">H", len(described.columns))
    columns = b"".join(_column(column) for column in described.columns)
    return head + described.replica_identity.encode("latin-1") + count + columns


def insert(oid: int, new: Values) -> bytes:
    return struct.pack(">cI", b"I", oid) + b"N" + _tuple(new)


def update(oid: int, new: Values, *, key: Values | None = None, old: Values | None = None) -> bytes:
    """Update: with the old row's key, with the whole old row, or with neither."""
    return struct.pack(">cI", b"U", oid) + _old(key, old) + b"N" + _tuple(new)


def delete(oid: int, *, key: Values | None = None, old: Values | None = None) -> bytes:
    """Delete: with the old row's key, or with the whole old row."""
    return struct.pack(">cI", b"D", oid) + _old(key, old)


def truncate(oids: Sequence[int], *, cascade: bool = False, restart: bool = False) -> bytes:
    head = struct.pack(">cIB", b"T", len(oids), cascade | restart << 1)
    return head + struct.pack(f">{len(oids)}I", *oids)


def message(prefix: str, content: bytes, *, transactional: bool = True, lsn: int = 0) -> bytes:
    """A logical message, as `pg_logical_emit_message` makes it."""
    head = struct.pack(">cBQ", b"M", transactional, lsn) + _string(prefix)
    return head + struct.pack(">I", len(content)) + content


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _column(column: StreamColumn) -> bytes:
    tail = struct.pack(">Ii", column.type_oid, column.typmod)
    return bytes([column.identity]) + _string(column.name) + tail


def _old(key: Values | None, old: Values | None) -> bytes:
    assert key is None or old is None
    if key is not None:
        return b"K" + _tuple(key)
    return b"" if old is None else b"O" + _tuple(old)


def _tuple(values: Values) -> bytes:
    return struct.pack(">H", len(values)) + b"".join(map(_value, values))


def _value(value: Value) -> bytes:
    match value:
        case None:
            return b"n"
        case Unchanged.UNCHANGED:
            return b"u"
        case _:
            data = value.encode() if isinstance(value, str) else value
            return b"t" + struct.pack(">I", len(data)) + data
