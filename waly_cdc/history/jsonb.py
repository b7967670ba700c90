"""Row values as PostgreSQL's `to_jsonb(row)` shows them, and a JSON writer that keeps digits.

Numbers never pass through int or float: numerics have up to 131,072 digits, and Python refuses to
convert more than 4,300.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from waly_cdc.history.floats import float_text
from waly_cdc.relations import Column


class Literal(str):
    """A JSON token that is written as it stands, a number with all its digits."""

    __slots__ = ()


def dumps(value: Any) -> str:
    """Compact JSON text on one line."""
    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        parts = (f"{dumps(str(name))}:{dumps(item)}" for name, item in value.items())
        return "{" + ",".join(parts) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(dumps, value)) + "]"
    return json.dumps(value)


_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision")


def pg_text(column: Column, text: str | None) -> str | None:
    """The text PostgreSQL prints, from the one that the state's SQL gives.

    They differ for floating-point numbers only, which the two print with other thresholds.
    """
    if text is None or column.storage not in ("float32", "float64"):
        return text
    return float_text(column.storage, text)


def to_json(column: Column, text: str | None) -> Any:
    """The JSON value of a column, from the text PostgreSQL prints. Composites stay text."""
    type_name = column.type_name or _TYPE_NAMES.get(column.type_oid, "")
    if text is not None and type_name.endswith("[]"):
        elements = _ArrayReader(text, type_name.removesuffix("[]")).read()
        return text if elements is None else elements
    return _scalar(type_name, text)


_TYPE_NAMES = {
    16: "boolean",
    20: "bigint",
    21: "smallint",
    23: "integer",
    114: "json",
    700: "real",
    701: "double precision",
    1082: "date",
    1114: "timestamp without time zone",
    1184: "timestamp with time zone",
    1700: "numeric",
    3802: "jsonb",
}


def _scalar(type_name: str, text: str | None) -> Any:
    if text is None:
        return None
    base = type_name.partition("(")[0]
    if base in _NUMBERS:
        return Literal(text) if text[-1].isdigit() else text
    if base == "boolean":
        return text == "t"
    if base in ("json", "jsonb"):
        return json.loads(text, parse_int=Literal, parse_float=Literal)
    if base == "timestamp" or base.startswith("timestamp "):
        text = text.replace(" ", "T", 1)
        # to_jsonb writes the offset's minutes; where rendering is UTC the offset is always +00.
        return text.replace("+00", "+00:00", 1) if type_name.endswith("with time zone") else text
    return text


class _ArrayReader:
    """Reads an array's text (PostgreSQL documentation, section 8.15.6)."""

    def __init__(self, text: str, element: str) -> None:
        self._text = text
        self._element = element
        self._delimiter = ";" if element == "box" else ","
        self._at = 0

    def read(self) -> list[Any] | None:
        """The elements; None for a text that is no array."""
        if self._text.startswith("["):
            self._at = self._text.find("=") + 1
        try:
            elements = self._array()
        except IndexError:
            return None
        return elements if self._at == len(self._text) else None

    def _array(self) -> list[Any] | None:
        if self._text[self._at] != "{":
            return None
        self._at += 1
        elements: list[Any] = []
        while self._text[self._at] != "}":
            elements.append(self._array() if self._text[self._at] == "{" else self._one())
            if self._text[self._at] == self._delimiter:
                self._at += 1
        self._at += 1
        return elements

    def _one(self) -> Any:
        quoted = self._text[self._at] == '"'
        value: list[str] = []
        if quoted:
            self._at += 1
            while self._text[self._at] != '"':
                self._at += self._text[self._at] == "\\"
                value.append(self._text[self._at])
                self._at += 1
            self._at += 1
        else:
            while self._text[self._at] not in (self._delimiter, "}"):
                self._at += self._text[self._at] == "\\"
                value.append(self._text[self._at])
                self._at += 1
        text = "".join(value)
        return None if text == "NULL" and not quoted else _scalar(self._element, text)
