"""Exact texts of values, in SQL."""

from __future__ import annotations

from waly_cdc.history.events import may_be_raw, raw_text
from waly_cdc.history.session import identifier
from waly_cdc.relations import Column


def column_text(column: Column, raw: str | None = None) -> str:
    """An expression for a column's exact value as a text that PostgreSQL reads back."""
    return exact_text(column, identifier(column.stored), raw or raw_text(column.stored))


def exact_text(column: Column, value: str, raw: str) -> str:
    """The same for any two expressions of a column's typed value and of its text in `_raw`."""
    text = _text(column.storage, value)
    return f"coalesce({text}, {raw})" if may_be_raw(column) else text


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
