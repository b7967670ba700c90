"""wal2json's messages, format 2, built from Python values as its version 2.5 or 2.6 writes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = {20, 21, 23, 26, 700, 701, 1700}


@dataclass(frozen=True)
class Field:
    """A column of a message, with its text or None for NULL."""

    name: str
    type_name: str
    type_oid: int
    attnum: int
    text: str | None


@dataclass(frozen=True)
class Head:
    """What all messages of a transaction begin with."""

    xid: int
    time: str
    lsn: int
    end_lsn: int


def frame(message: str, start: int = 0) -> bytes:
    """An XLogData frame around a message."""
    return struct.pack(">cQQq", b"w", start, start, 0) + message.encode()


def lsn_text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def escaped(text: str) -> str:
    """As PostgreSQL's `escape_json` has it."""
    written = json.dumps(text, ensure_ascii=False)
    # Python escapes this one, PostgreSQL does not.
    return written.replace("\\u007f", "\x7f")


def bound(action: str, head: Head) -> str:
    """Begin (`B`) or Commit (`C`)."""
    return (
        f'{{"action":"{action}","xid":{head.xid},"timestamp":"{head.time}",'
        f'"lsn":"{lsn_text(head.lsn)}","nextlsn":"{lsn_text(head.end_lsn)}"}}'
    )


def change(
    action: str,
    head: Head,
    at: int,
    table: tuple[str, str],
    *,
    columns: Sequence[Field] | None = None,
    identity: Sequence[Field] | None = None,
    key: Sequence[Field] | None = None,
    numbers_as_text: bool = False,
) -> str:
    """A row (`I`, `U`, `D`) or truncate (`T`) message, whose change the log has at `at`."""
    parts = [
        f'"action":"{action}","xid":{head.xid},"timestamp":"{head.time}"',
        f'"lsn":"{lsn_text(at)}","schema":{escaped(table[0])},"table":{escaped(table[1])}',
    ]
    for name, fields in (("columns", columns), ("identity", identity), ("pk", key)):
        if fields is not None:
            listed = ",".join(_column(name, field, numbers_as_text) for field in fields)
            parts.append(f'"{name}":[{listed}]')
    return "{" + ",".join(parts) + "}"


def message(head: Head, prefix: str, content: str, *, transactional: bool = True) -> str:
    """A logical message."""
    xid, time = (head.xid, f'"{head.time}"') if transactional else ("null", "null")
    return (
        f'{{"action":"M","xid":{xid},"timestamp":{time},"lsn":"{lsn_text(head.lsn)}",'
        f'"transactional":{"true" if transactional else "false"},"prefix":{escaped(prefix)},'
        f'"content":{escaped(content)}}}'
    )


def _column(kind: str, field: Field, numbers_as_text: bool) -> str:
    name = field.type_name
    # wal2json's own rule: what looks quoted is taken for JSON.
    written = name if name.startswith('"') and not name.endswith("]") else escaped(name)
    signed = field.type_oid - (1 << 32) if field.type_oid >= 1 << 31 else field.type_oid
    text = f'{{"name":{escaped(field.name)},"type":{written},"typeoid":{signed}'
    if kind != "pk":
        text += f',"value":{_value(field, numbers_as_text)}'
    if kind == "columns":
        text += f',"position":{field.attnum}'
    return text + "}"


def _value(field: Field, numbers_as_text: bool) -> str:
    if field.text is None:
        return "null"
    if field.type_oid in NUMBERS:
        if numbers_as_text:
            return escaped(field.text)
        special = field.text in ("NaN", "Infinity", "-Infinity")
        return "null" if special else field.text
    if field.type_oid == 16:
        return "true" if field.text == "t" else "false"
    return escaped(field.text.removeprefix("\\x") if field.type_oid == 17 else field.text)
