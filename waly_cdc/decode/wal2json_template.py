"""What wal2json's messages of one kind have in common: the text between their values.

wal2json (format 2) writes the name, type and position of every column into every message, so all
messages of one action on one table of one shape are the same but for the values in them. A template
is that text, and what it says of the table; it is taken from one message, read on its own, and then
held against all others at once.

Formats: wal2json's README, "Parameters", and `pg_decode_write_change` in its `wal2json.c`, with the
options of `waly_cdc.source.wal2json`. It writes type names that begin with a double quote without
escaping them (`"type":"My Schema"."mood"`), which is no JSON.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from waly_cdc.errors import DecodeError
from waly_cdc.relations import NamedColumn, NamedTable

BOOL, BYTEA = 16, 17
_CHAR = 18
"""Type oids. The type named `"char"` is written in its quotes, which look like JSON's."""

NUMBERS = frozenset({20, 21, 23, 26, 700, 701, 1700})
"""The types whose values are written as JSON numbers, or as strings by newer versions."""

_STRING = rb'"(?:[^"\\]|\\.)*+"'
_COLUMN = re.compile(
    rb'\{"name":(?P<name>'
    + _STRING
    + rb'),"type":(?P<type>(?:(?!,"typeoid":).)*),"typeoid":(?P<oid>-?\d+)'
    rb'(?:,"value":(?P<value>' + _STRING + rb'|[^",\]}]+)(?:,"position":(?P<position>\d+))?)?\}',
    re.DOTALL,
)
_HEAD = re.compile(
    rb'\{"action":"(?P<action>[IUDT])","xid":\d+,"timestamp":'
    + _STRING
    + rb',"lsn":(?P<lsn>'
    + _STRING
    + rb'),"schema":(?P<schema>'
    + _STRING
    + rb'),"table":(?P<table>'
    + _STRING
    + rb")",
    re.DOTALL,
)
_MESSAGE = re.compile(
    rb'\{"action":"M","xid":(?:\d+|null),"timestamp":(?:'
    + _STRING
    + rb'|null),"lsn":'
    + _STRING
    + rb',"transactional":(?P<transactional>true|false),"prefix":(?P<prefix>'
    + _STRING
    + rb'),"content":(?P<content>'
    + _STRING
    + rb")\}",
    re.DOTALL,
)
_ROW_LISTS = {
    b"I": (b"columns", b"pk"),
    b"U": (b"columns", b"identity", b"pk"),
    b"D": (b"identity", b"pk"),
    b"T": (),
}


@dataclass(frozen=True, slots=True)
class Template:
    """`literals[n]` stands before value `n`, and the last literal after the last value.

    `kinds` tells what a value may be: `text` (a string), `number` (a number or a string), `bool`;
    any of them also `null`; or, where the plugin itself has something to say, `string` or `digits`.
    A row message's template begins where its head ends; its values are the columns', then the
    identity's.
    """

    literals: tuple[bytes, ...]
    kinds: tuple[str, ...]


HEAD = (b'","xid":', b',"timestamp":', b',"lsn":')
HEAD_KINDS = ("digits", "string", "string")
"""After the action, every message has an xid, the commit time and an LSN."""


def bound(action: str) -> Template:
    """The template of a whole Begin (`B`) or Commit (`C`): xid, commit time, LSN of the commit
    record and of its end."""
    first = b'{"action":"' + action.encode() + HEAD[0]
    return Template((first, *HEAD[1:], b',"nextlsn":', b"}"), (*HEAD_KINDS, "string"))


def parse(message: bytes) -> tuple[Template, NamedTable]:
    """The template of a row or truncate message, and what it says of the table. Raises DecodeError
    for what is none."""
    head = _HEAD.match(message)
    if head is None:
        raise DecodeError("a message does not begin as wal2json's do")
    values: list[tuple[int, int]] = []
    at = head.end()
    lists: dict[bytes, list[NamedColumn]] = {}
    for name in _ROW_LISTS[head["action"]]:
        at = _expect(message, at, b',"%s":[' % name)
        lists[name], spans, at = _columns(message, at, name)
        values += spans
        at = _expect(message, at, b"]")
    if message[at:] != b"}":
        raise DecodeError("a message does not end as wal2json's do")
    columns, identity = lists.get(b"columns", []), lists.get(b"identity", [])
    kinds = tuple(_kind(column) for column in (*columns, *identity))
    cuts = [head.end("lsn"), *(bound for span in values for bound in span), len(message)]
    literals = tuple(message[cuts[n] : cuts[n + 1]] for n in range(0, len(cuts), 2))
    table = NamedTable(
        schema=_text(head["schema"]),
        name=_text(head["table"]),
        action=head["action"].decode(),
        columns=tuple(columns),
        identity=tuple(identity),
        key=tuple(column.name for column in lists.get(b"pk", ())),
    )
    return Template(literals, kinds), table


def own_message(message: bytes, prefix: str) -> tuple[bool, bytes | None]:
    """Whether a logical message is transactional, and its content if it has that prefix.

    The content ends before its first zero byte, which wal2json cannot write. Raises DecodeError.
    """
    match = _MESSAGE.fullmatch(message)
    if match is None:
        raise DecodeError("a logical message is not as wal2json writes it")
    transactional = match["transactional"] == b"true"
    if json.loads(match["prefix"].decode("utf-8", "surrogateescape")) != prefix:
        return transactional, None
    content = json.loads(match["content"].decode("utf-8", "surrogateescape"))
    return transactional, content.encode("utf-8", "surrogateescape")


def _columns(
    message: bytes, at: int, name: bytes
) -> tuple[list[NamedColumn], list[tuple[int, int]], int]:
    """The columns of a list, the bounds of their values, and where the list ends."""
    columns: list[NamedColumn] = []
    spans: list[tuple[int, int]] = []
    while message[at : at + 1] != b"]":
        at = _expect(message, at, b",") if columns else at
        match = _COLUMN.match(message, at)
        if match is None:
            raise DecodeError("a column is not as wal2json writes it")
        has = (match["value"] is not None, match["position"] is not None)
        if has != (name != b"pk", name == b"columns"):
            raise DecodeError("a column is not as wal2json writes it")
        # wal2json writes an oid as if it were signed.
        oid = int(match["oid"]) % (1 << 32)
        attnum = int(match["position"]) if has[1] else None
        columns.append(
            NamedColumn(attnum, _text(match["name"]), oid, _type_name(match["type"], oid))
        )
        spans += [match.span("value")] if has[0] else []
        at = match.end()
    return columns, spans, at


def _kind(column: NamedColumn) -> str:
    if column.type_oid == BOOL:
        return "bool"
    return "number" if column.type_oid in NUMBERS else "text"


def _type_name(written: bytes, oid: int) -> str:
    """The type as `format_type` gives it."""
    if re.fullmatch(_STRING, written, re.DOTALL) and oid != _CHAR:
        return _text(written)
    return _utf8(written)


def _text(string: bytes) -> str:
    try:
        text = json.loads(_utf8(string))
    except ValueError as error:
        raise DecodeError(f"a name cannot be read: {error}") from error
    assert isinstance(text, str)
    return text


def _utf8(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise DecodeError("a name is not UTF-8") from error


def _expect(message: bytes, at: int, literal: bytes) -> int:
    if not message.startswith(literal, at):
        raise DecodeError(f"a message lacks {literal.decode()}")
    return at + len(literal)
