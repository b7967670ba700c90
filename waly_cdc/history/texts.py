"""Exact texts of values, in SQL."""

from __future__ import annotations

from waly_cdc.history.floats import float_function
from waly_cdc.history.session import identifier, literal
from waly_cdc.relations import Column

_NEVER_RAW = ("text", "bool", "int16", "int32", "int64")
"""Storages whose typed column holds every value that PostgreSQL prints."""


def may_be_raw(column: Column) -> bool:
    """Whether a value of the column may be in `_raw` only."""
    return column.storage not in _NEVER_RAW


def raw_text(stored: str) -> str:
    """The exact text kept for a column where its typed value is NULL; else NULL."""
    return f"_raw[{literal(stored)}]"


def column_text(column: Column, raw: str | None = None) -> str:
    """An expression for a column's exact value as a text that PostgreSQL reads back."""
    return exact_text(column, identifier(column.stored), raw or raw_text(column.stored))


def exact_text(column: Column, value: str, raw: str) -> str:
    """The same for any two expressions of a column's typed value and of its text in `_raw`."""
    text = _text(column.storage, value)
    return f"coalesce({text}, {raw})" if may_be_raw(column) else text


def printed_text(column: Column, value: str, raw: str) -> str:
    """An expression for exactly the text that PostgreSQL prints: `exact_text`, but for
    floating-point numbers."""
    if not column.storage.startswith("float"):
        return exact_text(column, value, raw)
    return f"coalesce({float_function(column.storage)}({value}), {raw})"


def _text(storage: str, value: str) -> str:
    match storage:
        case "text":
            return value
        case "bytes":
            return f"('\\x' || lower(hex({value})))"
        case "bool":
            return f"CASE WHEN {value} THEN 't' WHEN NOT {value} THEN 'f' END"
        case "timestamptz":
            # Casting a TIMESTAMPTZ itself would need a time zone library.
            return f"(CAST(make_timestamp(epoch_us({value})) AS VARCHAR) || '+00')"
        case "float32":
            # So many digits give the number back. DuckDB's own cast prints some numbers wrongly.
            return f"format('{{:.9g}}', CAST({value} AS DOUBLE))"
        case "float64":
            return f"format('{{:.17g}}', {value})"
        case _ if storage.startswith("decimal"):
            # DuckDB leaves out a zero before the point where the type has no digit there.
            return f"regexp_replace(CAST({value} AS VARCHAR), '^(-?)\\.', '\\10.')"
        case _:
            return f"CAST({value} AS VARCHAR)"
