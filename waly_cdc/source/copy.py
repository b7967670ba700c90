"""Copying whole tables out, as they are in a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import pq, sql

from waly_cdc.errors import SourceLost
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect, source_errors

BLOCK_BYTES = 2 << 20


@contextmanager
def snapshot_transaction(dsn: str, snapshot: str) -> Iterator[psycopg.Connection]:
    """A read-only transaction that sees what an exported snapshot does. Raises SourceError."""
    with connect(dsn, autocommit=False, application_name="waly baseline") as connection:
        with source_errors():
            connection.execute("set transaction isolation level repeatable read, read only")
            connection.execute(sql.SQL("set transaction snapshot {}").format(snapshot))
        yield connection
        connection.rollback()


def copy_table(connection: psycopg.Connection, table: Table) -> Iterator[bytes]:
    """The table's own rows (no children's) in COPY's text format, columns as `table.columns`.

    Gives blocks of at least `BLOCK_BYTES`, but for the last, that end with a row. Raises
    SourceError; SourceLost when the connection breaks.
    """
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    statement = sql.SQL("copy (select {} from only {}) to stdout").format(
        columns, sql.Identifier(table.schema, table.name)
    )
    pgconn = connection.pgconn
    with source_errors():
        result = pgconn.exec_(statement.as_bytes(connection))
        if result.status != pq.ExecStatus.COPY_OUT:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        rows: list[memoryview] = []
        size = 0
        # One message per row: read them all without the cost of psycopg's generators.
        while True:
            length, data = pgconn.get_copy_data(0)
            if length <= 0:
                break
            rows.append(data)
            size += length
            if size >= BLOCK_BYTES:
                yield b"".join(rows)
                rows, size = [], 0
        if rows:
            yield b"".join(rows)
        while (result := pgconn.get_result()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
    if pgconn.status != pq.ConnStatus.OK:
        raise SourceLost("the connection to PostgreSQL broke during a copy")
