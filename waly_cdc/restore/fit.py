"""Fitting a dump's tables to the relation versions in force at a point.

A schema dump is as of one moment, and shapes change in between: the stream tells when exactly, but
only columns, their types and the key. Where the two differ the relation version is right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from waly_cdc.relations import IDENTITY_INDEX, Column, RelationVersion, quote_identifier
from waly_cdc.restore.schema import Statement, TableItem

_FIRST_USER_OID = 16384
"""Types from this oid on are the user's: their names may change without a new relation version."""

_TYPES = {
    "bool": "boolean",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float32": "real",
    "float64": "double precision",
    "bytes": "bytea",
}


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of a table as the dump made it. Its type is named as `format_type` does."""

    name: str
    type_name: str
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Fitted:
    """What makes a table fit: `ALTER TABLE` actions, and what they cannot bring back."""

    actions: tuple[str, ...]
    left_out: tuple[str, ...]


def fit(
    table: TableItem,
    version: RelationVersion,
    versions: Sequence[RelationVersion],
    present: Collection[TargetColumn],
    *,
    dumped_later: bool,
) -> Fitted:
    """How the table that the dump made becomes one of the relation version's shape.

    `versions` are all of the relation, `dumped_later` says that the dump was taken after the point.
    A column that no version knows is kept: nothing was ever written to it.
    """
    stored = {column.name: column for column in present if not column.generated}
    wanted = {column.name: column for column in version.columns}
    extra = [name for name in stored if name not in wanted]
    actions, left_out = [], []
    for column in version.columns:
        own = stored.get(column.name)
        former = [name for name in extra if name in _names(column, versions)]
        if own is None and former:
            extra.remove(former[0])
            own = stored[former[0]]
            actions.append(f"rename column {quote_identifier(own.name)} to {_quoted(column)}")
        if own is None:
            actions.append(f"add column {_quoted(column)} {type_of(column)}")
            left_out.append(
                f"column {table.qualified_name}.{_quoted(column)}: its default and constraints"
                " are not in the schema dump of that time"
            )
        elif column.type_oid < _FIRST_USER_OID and own.type_name != type_of(column):
            action = f"type {type_of(column)} using null::{type_of(column)}"
            actions.append(f"alter column {_quoted(column)} {action}")
    for name in extra:
        before = any(v.version < version.version and _has(v, name) for v in versions)
        after = any(v.version > version.version and _has(v, name) for v in versions)
        if before or (after and dumped_later):
            actions.append(f"drop column {quote_identifier(name)} cascade")
    return Fitted(tuple(actions), tuple(left_out))


def made_from_version(version: RelationVersion) -> tuple[list[Statement], list[Statement]]:
    """A table of the relation version's shape, for one that no dump describes: what makes it before
    the rows, and its key after them. A restore goes on without one whose types are gone."""
    name = version.qualified_name
    columns = ", ".join(f"{_quoted(column)} {type_of(column)}" for column in version.columns)
    schema = quote_identifier(version.schema)
    before = [
        Statement(f"create schema if not exists {schema};", "SCHEMA", "", version.schema),
        Statement(f"create table {name} ({columns});", "TABLE", version.schema, version.name, True),
    ]
    after = []
    if version.key:
        kind = "unique" if version.replica_identity == IDENTITY_INDEX else "primary key"
        key = ", ".join(_quoted(column) for column in version.key_columns)
        sql = f"alter table {name} add {kind} ({key});"
        after.append(Statement(sql, "CONSTRAINT", version.schema, f"{version.name} {kind}", True))
    return before, after


def type_of(column: Column) -> str:
    """The column's type in SQL; where the catalog could not be asked in time, one that holds its
    values."""
    if column.type_name:
        return column.type_name
    return _TYPES.get(column.storage, column.storage.replace("decimal", "numeric"))


def _names(column: Column, versions: Sequence[RelationVersion]) -> set[str]:
    """All names that the column has had."""
    return {
        other.name
        for version in versions
        for other in version.columns
        if other.stored == column.stored
        or (other.attnum is not None and other.attnum == column.attnum)
    }


def _has(version: RelationVersion, name: str) -> bool:
    return any(column.name == name for column in version.columns)


def _quoted(column: Column) -> str:
    return quote_identifier(column.name)
