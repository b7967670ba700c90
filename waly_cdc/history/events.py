"""Events of one relation from many files, in the shape of one relation version.

Files of other versions of the relation have other columns: each version is read on its own, and
what it does not have is NULL. A numeric column whose precision was raised or removed keeps its
values without being rewritten: they are converted, exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.store import LocalStore
from waly_cdc.decode.events import BEFORE_PREFIX
from waly_cdc.history.session import identifier, literal, read_files
from waly_cdc.history.texts import exact_text, raw_text
from waly_cdc.relations import Column, RelationVersion

_SQL_TYPES = {
    "bool": "BOOLEAN",
    "bytes": "BLOB",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
    "text": "VARCHAR",
}
ReadFiles = Callable[[LocalStore, Sequence[File]], str]
"""Gives the table expression by which a statement reads files that have one schema."""


def sql_type(storage: str) -> str:
    """DuckDB's type for a storage."""
    return _SQL_TYPES.get(storage) or storage.replace("decimal", "DECIMAL")


def old_name(column: Column) -> str:
    """What the old row's value of a column is called in `events`."""
    return identifier("old " + column.stored)


def old_raw_name(column: Column) -> str:
    return identifier("old raw " + column.stored)


def raw_name(column: Column) -> str:
    return identifier("raw " + column.stored)


def events(
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    files: Sequence[File],
    *,
    old: Iterable[Column] = (),
    extra: Sequence[str] = (),
    read: ReadFiles = read_files,
) -> str:
    """A statement for the events in `files`: the relation's columns under their stored names,
    `_op`, `_lsn`, `_seq`, `_unchanged`, `_raw`, `_has_before`, `extra`; for the columns of `old`
    the old row's value and raw text, as `old_name` and `old_raw_name`."""
    old = list(old)
    by_version: dict[int, list[File]] = defaultdict(list)
    for file in files:
        assert file.version is not None
        by_version[file.version].append(file)
    parts = []
    for number, mine in sorted(by_version.items()):
        version = contents.version(relation.oid, number)
        columns = [own_column(version, column) for column in relation.columns]
        columns += ["_op", "_lsn", "_seq", "_unchanged", _raw(version, relation), *extra]
        has_before = any(column.identity for column in version.columns)
        columns.append(("_before IS NOT NULL" if has_before else "FALSE") + " AS _has_before")
        for column in old:
            columns += _old(version, column)
        parts.append(f"SELECT {', '.join(columns)}\nFROM {read(store, mine)}")
    return "\nUNION ALL\n".join(parts) if parts else _nothing(relation, old, extra)


def own_column(version: RelationVersion, column: Column) -> str:
    """A column of rows of one version as another has it: NULL where they lack it."""
    name = identifier(column.stored)
    if any(other.stored == column.stored for other in version.columns):
        return name
    former = _widened(version, column)
    if former is not None:
        value = _converted(former, column, identifier(former.stored), raw_text(former.stored))
        return f"{value} AS {name}"
    return f"CAST(NULL AS {sql_type(column.storage)}) AS {name}"


def _old(version: RelationVersion, column: Column) -> list[str]:
    sent = {other.stored for other in version.columns if other.identity}
    former = _widened(version, column)
    value = f"_before.{identifier(column.stored)}" if column.stored in sent else "NULL"
    if former is not None and former.stored in sent:
        field = f"_before.{identifier(former.stored)}"
        value = _converted(former, column, field, raw_text(BEFORE_PREFIX + former.stored))
    return [
        f"CAST({value} AS {sql_type(column.storage)}) AS {old_name(column)}",
        f"{raw_text(BEFORE_PREFIX + column.stored)} AS {old_raw_name(column)}",
    ]


def _widened(version: RelationVersion, column: Column) -> Column | None:
    """The numeric column of a version that `column` became by having its precision raised or
    removed, which PostgreSQL does without rewriting rows."""
    if any(other.stored == column.stored for other in version.columns):
        return None
    return next(
        (
            other
            for other in version.columns
            if other.attnum == column.attnum is not None and _widens(other.storage, column)
        ),
        None,
    )


def _widens(storage: str, column: Column) -> bool:
    if not storage.startswith("decimal"):
        return False
    if column.storage == "text":
        return column.type_name == "numeric"
    if not column.storage.startswith("decimal"):
        return False
    (precision, scale), (wider, same) = (
        (int(number) for number in each[len("decimal(") : -1].split(","))
        for each in (storage, column.storage)
    )
    return scale == same and precision <= wider


def _converted(former: Column, column: Column, value: str, raw: str) -> str:
    if column.storage == "text":
        return exact_text(former, value, raw)
    return f"CAST({value} AS {sql_type(column.storage)})"


def _raw(version: RelationVersion, relation: RelationVersion) -> str:
    """The `_raw` of a version's rows by the stored names of another."""
    renamed = {
        prefix + former.stored: prefix + column.stored
        for column in relation.columns
        if (former := _widened(version, column)) is not None
        for prefix in ("", BEFORE_PREFIX)
    }
    if not renamed:
        return "_raw"
    cases = " ".join(f"WHEN {literal(was)} THEN {literal(now)}" for was, now in renamed.items())
    return (
        "map_from_entries(list_transform(map_entries(_raw), lambda entry:"
        f" {{'key': CASE entry.key {cases} ELSE entry.key END, 'value': entry.value}})) AS _raw"
    )


def _nothing(relation: RelationVersion, old: Sequence[Column], extra: Sequence[str]) -> str:
    columns = [
        f"CAST(NULL AS {sql_type(c.storage)}) AS {identifier(c.stored)}" for c in relation.columns
    ]
    columns += [
        "'' AS _op",
        "0::BIGINT AS _lsn",
        "0::BIGINT AS _seq",
        "CAST(NULL AS VARCHAR[]) AS _unchanged",
        "CAST(NULL AS MAP(VARCHAR, VARCHAR)) AS _raw",
        *(f"CAST(NULL AS BIGINT) AS {each.rpartition(' AS ')[2]}" for each in extra),
        "FALSE AS _has_before",
    ]
    for column in old:
        columns.append(f"CAST(NULL AS {sql_type(column.storage)}) AS {old_name(column)}")
        columns.append(f"CAST(NULL AS VARCHAR) AS {old_raw_name(column)}")
    return f"SELECT {', '.join(columns)} WHERE FALSE"
