"""Restoring into a DuckDB file: schemas, tables and columns under their own names, values typed.

The file is written under a temporary name and gets its own when it is whole, so an interrupt leaves
nothing under that name, or the older file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from waly_cdc import durable
from waly_cdc.errors import TargetError
from waly_cdc.relations import Column
from waly_cdc.restore.plan import Plan, PlannedTable
from waly_cdc.restore.result import RestoreResult
from waly_cdc.restore.rows import Rows

_STORAGE_VERSION = "v1.0.0"
"""The oldest DuckDB that can read the file."""


def restore_duckdb(
    rows: Rows,
    plan: Plan,
    path: Path,
    *,
    force: bool = False,
    on_rows: Callable[[str, int], None] = lambda _table, _count: None,
) -> RestoreResult:
    """Restore a plan's rows into a new DuckDB file; with `force` an older one is replaced.

    A column with a value that its DuckDB type cannot hold (`NaN` in a numeric, `infinity` in a
    date, …) becomes VARCHAR with PostgreSQL's text in that file. Raises TargetError and
    ArchiveCorrupt.
    """
    began = time.monotonic()
    if path.exists() and not force:
        raise TargetError(
            f"{path} exists already", hint="choose another name, or add --force to replace it"
        )
    if not path.parent.is_dir():
        raise TargetError(f"there is no folder {path.parent}", hint="create it first")
    temporary = path.with_name(f"incoming-{os.getpid()}-{path.name}")
    counts: list[tuple[str, int]] = []
    notes: list[str] = []
    try:
        with _attached(rows, temporary) as connection:
            names = _Names()
            for table in plan.tables:
                name = table.name.qualified_name
                count = _write(connection, rows, plan, table, names, notes)
                counts.append((name, count))
                on_rows(name, count)
        with temporary.open("rb") as written:
            durable.sync_file(written.fileno())
        durable.publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(temporary.name + ".wal").unlink(missing_ok=True)
    return RestoreResult(
        target=str(path),
        era=plan.era,
        lsn=plan.lsn,
        time=plan.time,
        tables=tuple(counts),
        seconds=time.monotonic() - began,
        left_out=(*plan.without_rows, *notes),
    )


class _Names:
    """DuckDB's identifiers are the same without regard to case, and PostgreSQL's are not: where two
    would meet, the later one gets a number."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], str] = {}
        self._used: set[tuple[str, str]] = set()

    def get(self, scope: str, name: str) -> str:
        """The name in the file for something in the target database."""
        known = self._taken.get((scope, name))
        if known is not None:
            return known
        candidate, number = name, 2
        while (scope, candidate.casefold()) in self._used:
            candidate = f"{name}_{number}"
            number += 1
        self._used.add((scope, candidate.casefold()))
        self._taken[scope, name] = candidate
        return candidate


@contextmanager
def _attached(rows: Rows, path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the archive's states with the new file attached as `target`."""
    path.unlink(missing_ok=True)
    with rows.cursor() as connection:
        literal = str(path).replace("'", "''")
        try:
            connection.execute(
                f"attach '{literal}' as target (storage_version '{_STORAGE_VERSION}')"
            )
            try:
                yield connection
                connection.execute("checkpoint target")
            finally:
                connection.execute("detach target")
        except duckdb.IOException as error:
            raise TargetError(
                f"cannot write {path}: {str(error).splitlines()[0]}",
                hint="is there space, and write permission?",
            ) from error


def _write(
    connection: duckdb.DuckDBPyConnection,
    rows: Rows,
    plan: Plan,
    table: PlannedTable,
    names: _Names,
    notes: list[str],
) -> int:
    """Write one table; how many rows it has."""
    name = table.name.qualified_name
    if not table.version.columns:
        notes.append(f"table {name}: DuckDB has no tables without columns")
        return 0
    schema = names.get("", table.name.schema)
    relation = names.get(f"schema {schema}", table.name.name)
    connection.execute(
        "create or replace temp table state as " + rows.state(table.version, plan.lsn)
    )
    raw = _raw_columns(connection, table.version.columns)
    columns = []
    for column in table.version.columns:
        value = quoted(column.stored)
        if column.stored in raw:
            value = rows.text(column)
            notes.append(
                f"column {name}.{column.name}: VARCHAR, for it holds a value that"
                f" {column.type_name or column.storage} cannot be in DuckDB"
            )
        own = names.get(f"table {schema}.{relation}", column.name)
        if own != column.name:
            notes.append(f"column {name}.{column.name}: called {own} in the file")
        columns.append(f"{value} as {quoted(own)}")
    if (schema, relation) != (table.name.schema, table.name.name):
        notes.append(f"table {name}: called {quoted(schema)}.{quoted(relation)} in the file")
    connection.execute(f"create schema if not exists target.{quoted(schema)}")
    connection.execute(
        f"create table target.{quoted(schema)}.{quoted(relation)} as"
        f" select {', '.join(columns)} from state"
    )
    # Fetched to the end, for else DuckDB 2 takes the connection to be busy.
    ((count,),) = connection.execute("select count(*) from state").fetchall()
    connection.execute("drop table state")
    return int(count)


def _raw_columns(
    connection: duckdb.DuckDBPyConnection, columns: Iterable[Column]
) -> frozenset[str]:
    """Stored names of the columns of `state` that have a value only as text."""
    found = connection.execute(
        "select distinct unnest(map_keys(_raw)) from state where _raw is not null"
    ).fetchall()
    keys = {row[0] for row in found}
    return frozenset(column.stored for column in columns if column.stored in keys)


def quoted(name: str) -> str:
    """An identifier for DuckDB."""
    return '"' + name.replace('"', '""') + '"'
