"""Restoring into a PostgreSQL database.

The order, and what an error, an interrupt or a kill leaves behind in each step:

1. tables, types, functions and the marker, in one transaction: nothing;
2. the rows, by COPY over several connections, into tables that have no index, constraint or trigger
   yet: a target with the marker (see `waly_cdc.restore.target`);
3. sequences, indexes, constraints, triggers, and the end of the marker, in one transaction: the
   same, or a whole target;
4. ANALYZE: a whole target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psycopg
from psycopg import sql

from waly_cdc.archive.manifest import SequenceValue
from waly_cdc.restore import target
from waly_cdc.restore.fit import fit
from waly_cdc.restore.load import Loader
from waly_cdc.restore.plan import Plan, PlannedTable
from waly_cdc.restore.result import RestoreResult
from waly_cdc.restore.rows import Rows

JOBS = 2


def restore_postgres(
    rows: Rows,
    plan: Plan,
    dsn: str,
    *,
    jobs: int = JOBS,
    force: bool = False,
    schema_only: bool = False,
    on_rows: Callable[[str, int], None] = lambda _table, _count: None,
) -> RestoreResult:
    """Restore a plan into the database that `dsn` names. `on_rows` is told rows as they go in.

    Raises TargetError; its message says when the target is not whole. ArchiveCorrupt where a file
    cannot be read.
    """
    began = time.monotonic()
    schema = plan.required_schema()
    loader = Loader(rows, dsn, plan.lsn, on_rows)
    with target.session(dsn) as connection:
        target.require_empty(connection, force=force)
        with connection.transaction():
            target.mark(connection, f"a restore to {plan.lsn}")
            skipped = target.run(connection, schema.before, keep_existing=force)
            missing = {(s.statement.schema, s.statement.tag) for s in skipped}
            made = [t for t in plan.tables if (t.made_as.schema, t.made_as.name) not in missing]
            unfitted = _fit(connection, plan, made)
        loaded = [] if schema_only else made
        kept = {(s.statement.schema, s.statement.tag) for s in skipped if s.kept}
        with target.under_way():
            loader.load(loaded, jobs)
            with connection.transaction():
                if not schema_only:
                    values = (s for s in plan.sequences if (s.schema, s.name) not in kept)
                    _set_sequences(connection, values)
                skipped += _complete(connection, plan, made, keep_existing=force)
        _analyze(connection, loaded)
    return RestoreResult(
        target=target.masked(dsn),
        era=plan.era,
        lsn=plan.lsn,
        time=plan.time,
        tables=tuple((t.name.qualified_name, loader.counts[t.name.oid]) for t in loaded),
        seconds=time.monotonic() - began,
        left_out=(
            *plan.left_out,
            *unfitted,
            *map(str, skipped),
            *sorted(loader.notes),
            *loader.violated,
        ),
        violated=(*(str(s) for s in skipped if s.violated), *loader.violated),
    )


def _complete(
    connection: psycopg.Connection,
    plan: Plan,
    tables: Iterable[PlannedTable],
    *,
    keep_existing: bool,
) -> list[target.LeftOut]:
    """Make what comes after the rows, and say that the target is whole; what was left out."""
    schema = plan.required_schema()
    left_out = target.run(
        connection,
        schema.after,
        keep_existing=keep_existing,
        may_violate=True,
        # A dump from after the point tells of what its rows and columns do not allow.
        may_fail=plan.dumped_later,
    )
    _rename(connection, tables)
    target.unmark(connection)
    return left_out + target.run(connection, schema.last, keep_existing=keep_existing)


def _fit(connection: psycopg.Connection, plan: Plan, tables: Iterable[PlannedTable]) -> list[str]:
    """Give the tables the columns that they had at the point; what cannot be brought back."""
    made = target.columns(connection)
    left_out: list[str] = []
    done: set[tuple[str, str]] = set()
    for table in tables:
        root, present = made[table.made_as.schema, table.made_as.name]
        fitted = fit(
            table.name, table.version, table.versions, present, dumped_later=plan.dumped_later
        )
        left_out += fitted.left_out
        for action in fitted.actions:
            # Partitions have the columns of the table that they are a part of.
            if (root, action) not in done:
                done.add((root, action))
                with target.target_errors(f"columns of {table.name.qualified_name}"):
                    connection.execute(sql.SQL(f"alter table {root} {action}"))
    return left_out


def _set_sequences(connection: psycopg.Connection, values: Iterable[SequenceValue]) -> None:
    for value in values:
        connection.execute(
            "select setval(to_regclass(format('%%I.%%I', %s::text, %s::text)), %s, %s)",
            (value.schema, value.name, value.last_value, value.is_called),
        )


def _rename(connection: psycopg.Connection, tables: Iterable[PlannedTable]) -> None:
    """Call the tables what they were called at the point."""
    for table in tables:
        made, name = table.made_as, table.name
        if made.name != name.name:
            connection.execute(
                sql.SQL("alter table {} rename to {}").format(
                    sql.Identifier(made.schema, made.name), sql.Identifier(name.name)
                )
            )
        if made.schema != name.schema:
            connection.execute(
                sql.SQL("alter table {} set schema {}").format(
                    sql.Identifier(made.schema, name.name), sql.Identifier(name.schema)
                )
            )


def _analyze(connection: psycopg.Connection, tables: Iterable[PlannedTable]) -> None:
    for table in tables:
        name = sql.Identifier(table.name.schema, table.name.name)
        connection.execute(sql.SQL("analyze {}").format(name))
