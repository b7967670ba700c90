"""Comparing a restored database with the archive's state, value for value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import duckdb
import psycopg
import pyarrow as pa

from waly_cdc.decode.copytext import read_rows
from waly_cdc.findings import FAIL, Finding
from waly_cdc.relations import RelationVersion
from waly_cdc.restore import target
from waly_cdc.restore.plan import Plan, PlannedTable
from waly_cdc.restore.rows import Rows
from waly_cdc.source import catalog
from waly_cdc.source.catalog import Table
from waly_cdc.source.copy import copy_table

MOST = 20
"""How many rows of one table are named."""

_FLOATS = {"float32": "float", "float64": "double"}
_SIDES = ("archived", "restored")


def compare(rows: Rows, plan: Plan, dsn: str) -> tuple[list[Finding], dict[str, int]]:
    """Where the database differs from the plan's state, and the rows of each table in it.

    Raises TargetError, SourceError.
    """
    findings: list[Finding] = []
    counts: dict[str, int] = {}
    with target.session(dsn) as connection:
        present = {
            (table.schema, table.name): table for table in catalog.tables(connection, unlogged=True)
        }
        for planned in plan.tables:
            name = planned.name.qualified_name
            table = present.get((planned.name.schema, planned.name.name))
            if table is None:
                findings.append(Finding("drill.table", FAIL, name, "not in the database"))
                continue
            found, counts[name] = _compare_table(rows, plan, planned, table, connection)
            findings += found
    return findings, counts


def _compare_table(
    rows: Rows,
    plan: Plan,
    planned: PlannedTable,
    table: Table,
    connection: psycopg.Connection,
) -> tuple[list[Finding], int]:
    name = planned.name.qualified_name
    stated = [column.name for column in planned.version.columns]
    if (found := [column.name for column in table.columns]) != stated:
        message = f"columns {', '.join(found)}, and the archive has {', '.join(stated)}"
        return [Finding("drill.columns", FAIL, name, message)], 0
    query = _comparable(planned.version, f"({rows.query(planned.version, plan.lsn)})")
    copied = _comparable(planned.version, "copied")
    digest = _digest(len(stated))
    with rows.cursor() as cursor:
        (archived,) = cursor.execute(f"select {digest} from ({query})").fetchall()
        cursor.register("copied", _copied(connection, table))
        (restored,) = cursor.execute(f"select {digest} from ({copied})").fetchall()
        cursor.unregister("copied")
        if archived == restored:
            return [], int(restored[0])
        cursor.execute(f"create or replace temp table archived as {query}")
        cursor.register("copied", _copied(connection, table))
        cursor.execute(f"create or replace temp table restored as {copied}")
        cursor.unregister("copied")
        findings = _differences(cursor, planned.version, name, (archived[0], restored[0]))
        for side in _SIDES:
            cursor.execute(f"drop table {side}")
    return findings, int(restored[0])


def _copied(connection: psycopg.Connection, table: Table) -> pa.RecordBatchReader:
    """The table as it is in the database: text columns c0, c1, …"""
    names = [f"c{i}" for i in range(len(table.columns))] or ["c"]
    schema = pa.schema([pa.field(name, pa.string()) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        for block in copy_table(connection, table):
            count, columns = read_rows(block, len(table.columns))
            arrays = columns or [pa.nulls(count, pa.string())]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _comparable(version: RelationVersion, source: str) -> str:
    """SQL for rows of texts that are equal where the values are. Only floats have several texts for
    one value: PostgreSQL's and DuckDB's."""
    texts = [
        f"cast(cast(c{i} as {_FLOATS[column.storage]}) as varchar) as c{i}"
        if column.storage in _FLOATS
        else f"c{i}"
        for i, column in enumerate(version.columns)
    ]
    return f"select {', '.join(texts) or '0 as c'} from {source}"


def _digest(columns: int) -> str:
    """SQL for the number of rows and the sum of their 128-bit hashes: equal for equal multisets,
    and for others with a chance of one in 2^128. Every value counts with its length, so that no two
    rows have the same text."""
    parts = [f"coalesce(strlen(c{i})::varchar || ':' || c{i}, '-')" for i in range(columns)]
    row = " || ".join(parts) or "''"
    return f"count(*), sum(md5_number_lower({row})::hugeint), sum(md5_number_upper({row})::hugeint)"


def _differences(
    cursor: duckdb.DuckDBPyConnection,
    version: RelationVersion,
    name: str,
    counts: tuple[int, int],
) -> list[Finding]:
    """Findings for the rows that are only on one side."""
    for side, other in (_SIDES, _SIDES[::-1]):
        cursor.execute(
            f"create or replace temp table only_{side} as"
            f" select * from {side} except all select * from {other}"
        )
    (total,) = cursor.execute(
        "select (select count(*) from only_archived), (select count(*) from only_restored)"
    ).fetchall()
    rows = _by_key(cursor, version) if version.key else _whole_rows(cursor, version)
    for side in _SIDES:
        cursor.execute(f"drop table only_{side}")
    summary = (
        f"{counts[1]} rows, and the archive has {counts[0]}; {total[0]} of the archive's are not"
        f" in the database, and {total[1]} of the database's not in the archive"
    )
    findings = [Finding("drill.rows", FAIL, name, summary)]
    findings += [Finding("drill.row", FAIL, f"{name} {where}", what) for where, what in rows]
    return findings


def _by_key(cursor: duckdb.DuckDBPyConnection, version: RelationVersion) -> list[tuple[str, str]]:
    """Rows that differ, by their key: missing, too many, or which columns differ."""
    keys = [version.columns.index(column) for column in version.key_columns]
    same = " and ".join(f"a.c{i} = r.c{i}" for i in keys)
    key = ", ".join(f"coalesce(a.c{i}, r.c{i})" for i in keys)
    others = [i for i in range(len(version.columns)) if i not in keys]
    differ = ", ".join(f"a.c{i} is distinct from r.c{i}" for i in others)
    found = cursor.execute(
        f"select a.c{keys[0]} is null, r.c{keys[0]} is null, {key}{', ' + differ if differ else ''}"
        f" from only_archived a full join only_restored r on {same} order by {key} limit {MOST}"
    ).fetchall()
    named = []
    for missing, extra, *values in found:
        where = dict(zip((c.name for c in version.key_columns), values, strict=False))
        unlike = [
            version.columns[i].name
            for i, differs in zip(others, values[len(keys) :], strict=True)
            if differs
        ]
        what = f"differs in {', '.join(unlike)}"
        if missing:
            what = "in the database, and not in the archive"
        elif extra:
            what = "in the archive, and not in the database"
        named.append((_pairs(where), what))
    return named


def _whole_rows(
    cursor: duckdb.DuckDBPyConnection, version: RelationVersion
) -> list[tuple[str, str]]:
    names = [column.name for column in version.columns]
    named = []
    for side, what in (
        ("archived", "in the archive, and not in the database"),
        ("restored", "in the database, and not in the archive"),
    ):
        found = cursor.execute(
            f"select * from only_{side} order by all limit {MOST // 2}"
        ).fetchall()
        named += [(_pairs(dict(zip(names, row, strict=False))), what) for row in found]
    return named


def _pairs(values: Mapping[str, str | None]) -> str:
    text = " ".join(f"{k}={'NULL' if v is None else v}" for k, v in values.items())
    return text if len(text) <= 200 else text[:200] + "…"
