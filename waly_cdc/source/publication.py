"""Publications: which changes the server sends.

There are two, because a publication that publishes updates of a table without replica identity
makes the application's own UPDATE fail. `<slot>_all` publishes inserts and truncates of all tables,
`<slot>_keyed` updates and deletes of those that have an identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import source_errors


def names(slot: str) -> tuple[str, str]:
    """The two publications of a slot: for all tables, and for those with an identity."""
    return f"{slot[:57]}_all", f"{slot[:57]}_keyed"


def plan(
    connection: psycopg.Connection, slot: str, tables: Sequence[Table], *, every_table: bool
) -> list[sql.Composed]:
    """The statements that make what is missing, in order; none if all is there.

    With `every_table`, tables made later are published as well, which takes a superuser; else only
    `tables` are, which takes their owner.
    """
    everything, keyed = names(slot)
    there = existing(connection, slot)
    statements = []
    if everything not in there:
        which = sql.SQL("for all tables ") if every_table else _for_tables(tables)
        statements.append(
            sql.SQL("create publication {} {}with (publish = 'insert, truncate')").format(
                sql.Identifier(everything), which
            )
        )
    if keyed not in there:
        statements.append(
            sql.SQL("create publication {} {}with (publish = 'update, delete')").format(
                sql.Identifier(keyed), _for_tables([t for t in tables if t.followed])
            )
        )
    return statements


def existing(connection: psycopg.Connection, slot: str) -> set[str]:
    """Those of the slot's publications that are there."""
    with source_errors():
        rows = connection.execute(
            "select pubname::text from pg_publication where pubname = any(%s)", (list(names(slot)),)
        ).fetchall()
    return {row[0] for row in rows}


def apply(connection: psycopg.Connection, statements: Sequence[sql.Composed]) -> None:
    """Run the statements in one transaction. Raises SourceError."""
    with source_errors(), connection.transaction():
        for statement in statements:
            connection.execute(statement)


def drop(connection: psycopg.Connection, slot: str) -> None:
    """Drop the slot's publications, if they are there. Raises SourceError."""
    with source_errors(), connection.transaction():
        for name in names(slot):
            connection.execute(
                sql.SQL("drop publication if exists {}").format(sql.Identifier(name))
            )


def _for_tables(tables: Sequence[Table]) -> sql.Composable:
    if not tables:
        return sql.SQL("")
    listed = sql.SQL(", ").join(
        sql.SQL("only {}").format(sql.Identifier(table.schema, table.name)) for table in tables
    )
    return sql.SQL("for table {} ").format(listed)
