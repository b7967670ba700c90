"""Keys as users write them, and keys and rows as JSON shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from waly_cdc.errors import UsageError
from waly_cdc.history.jsonb import pg_text, to_json
from waly_cdc.history.narrow import Key
from waly_cdc.history.rows import Texts
from waly_cdc.relations import Column, RelationVersion

_TYPMOD_HEADER = 4
"""What a typmod counts beside the characters."""


def row_json(relation: RelationVersion, row: Texts | None) -> dict[str, Any] | None:
    """A whole row as `to_jsonb(row)` shows it."""
    if row is None:
        return None
    return {
        column.name: to_json(column, row[column.stored])
        for column in relation.columns
        if column.stored in row
    }


def key_json(relation: RelationVersion, key: Key | None) -> dict[str, Any] | None:
    if not key:
        return None
    return {
        column.name: to_json(column, text)
        for column, text in zip(relation.key_columns, key, strict=True)
    }


def parse_key(relation: RelationVersion, key: Sequence[str]) -> Key:
    """The key as given by a user, value by value in key order. Raises UsageError."""
    columns = relation.key_columns
    if not columns:
        raise UsageError(
            f"{relation.qualified_name} has no key",
            hint=f"`waly log {relation.qualified_name}` shows all of it",
        )
    if len(key) != len(columns):
        names = " ".join(column.name for column in columns)
        raise UsageError(
            f"{len(key)} key values given, and the key of {relation.qualified_name} has"
            f" {len(columns)}",
            hint=f"its key is: {names}",
        )
    return tuple(_key_text(column, text) for column, text in zip(columns, key, strict=True))


def _key_text(column: Column, text: str) -> str | None:
    """A key's value as PostgreSQL prints it, from the other forms in which it is written."""
    try:
        if column.storage in ("int16", "int32", "int64"):
            return str(int(text))
        if column.storage in ("float32", "float64"):
            return pg_text(column, str(float(text)))
    except ValueError:
        raise UsageError(
            f"{text!r} is not a value of {column.name}, which is {column.type_name}",
        ) from None
    if column.storage == "bool":
        return {"true": "t", "false": "f"}.get(text.lower(), text)
    if column.type_name == "uuid":
        return text.lower()
    if column.type_name.startswith("character(") and column.typmod > 0:
        return text.ljust(column.typmod - _TYPMOD_HEADER)
    return text
