"""pgoutput's rare messages, read one by one: Relation, Truncate and logical messages.

Formats: PostgreSQL documentation, section 53.9. Every function takes a whole message, its kind
included, and raises DecodeError when it is anything else.
"""

from __future__ import annotations

import struct

from waly_cdc.errors import DecodeError
from waly_cdc.relations import StreamColumn, StreamRelation

PREFIX = "waly"
"""The prefix of logical messages that are addressed to us."""

_COLUMN = struct.Struct(">Ii")


def relation(message: bytes) -> StreamRelation:
    """A Relation message."""
    with _reading("Relation"):
        (oid,) = struct.unpack_from(">I", message, 1)
        schema, at = _string(message, 5)
        name, at = _string(message, at)
        replica_identity = chr(message[at])
        (count,) = struct.unpack_from(">H", message, at + 1)
        at += 3
        columns = []
        for _ in range(count):
            flags = message[at]
            column, at = _string(message, at + 1)
            type_oid, typmod = _COLUMN.unpack_from(message, at)
            at += _COLUMN.size
            columns.append(StreamColumn(column, type_oid, typmod, bool(flags & 1)))
        _ends(message, at)
    return StreamRelation(oid, schema or "pg_catalog", name, replica_identity, tuple(columns))


def truncate(message: bytes) -> list[int]:
    """The oids of the relations that a Truncate message names."""
    with _reading("Truncate"):
        (count,) = struct.unpack_from(">I", message, 1)
        if len(message) != 6 + 4 * count:
            raise DecodeError("a Truncate message has a wrong length")
        oids = struct.unpack_from(f">{count}I", message, 6)
        if len(set(oids)) != count or not count:
            raise DecodeError("a Truncate message names no relation, or one twice")
        return list(oids)


def own_message(message: bytes) -> bytes | None:
    """The content of a transactional logical message with our prefix; None for all others."""
    with _reading("logical"):
        transactional = message[1] & 1
        prefix, at = _string(message, 10)
        (size,) = struct.unpack_from(">I", message, at)
        _ends(message, at + 4 + size)
    return message[at + 4 :] if transactional and prefix == PREFIX else None


def _string(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1


def _ends(message: bytes, at: int) -> None:
    if at != len(message):
        raise ValueError("wrong length")


class _reading:  # noqa: N801 - reads as a statement
    """Turns what struct, index and decode raise on damaged bytes into a DecodeError."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, struct.error | ValueError | IndexError):
            raise DecodeError(f"damaged {self._kind} message: {error}") from error
