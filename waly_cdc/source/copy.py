"""Reading whole tables, as they are in an exported snapshot."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import pq, sql

from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect, source_errors

BLOCK_BYTES = 1 << 20
"""Bytes of a block of rows, at least; the last block of a table may be smaller."""


@contextmanager
def snapshot_transaction(dsn: str, snapshot: str) -> Iterator[psycopg.Connection]:
    """A read-only transaction that sees what an exported snapshot does.

    The snapshot must still be exported when it begins. Raises SourceError, SourceLost.
    """
    connection = connect(dsn, autocommit=False, application_name="waly baseline")
    try:
        with source_errors():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
        yield connection
    finally:
        connection.close()


def copy_table(connection: psycopg.Connection, table: Table) -> Iterator[bytes]:
    """The table's own rows, without its children's, in COPY's text format.

    Columns are `table.columns` in that order. Every block is whole rows, and all but the last one
    have at least `BLOCK_BYTES`. Runs in the caller's transaction. An iterator that is closed before
    its end closes the connection. Raises SourceError, SourceLost.
    """
    statement = sql.SQL("COPY (SELECT {} FROM ONLY {}) TO STDOUT").format(
        sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns),
        sql.Identifier(table.schema, table.name),
    )
    pgconn = connection.pgconn
    with source_errors():
        # Opens the transaction, if the caller has not.
        connection.execute("SELECT")
        result = pgconn.exec_(statement.as_bytes(connection))
        if result.status != pq.ExecStatus.COPY_OUT:
            raise psycopg.errors.error_from_result(result)
        try:
            yield from _read_blocks(pgconn)
            _finish(pgconn)
        finally:
            if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                connection.close()


def count(connection: psycopg.Connection, table: Table) -> int:
    """The number of the table's own rows, without its children's. Raises SourceError."""
    query = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(table.schema, table.name))
    with source_errors():
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _read_blocks(pgconn: pq.abc.PGconn) -> Iterator[bytes]:
    # The server sends a message per row. libpq hands them out one by one; everything else is done
    # once per block. Its own waiting would hold the interpreter's lock and stop all other threads.
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    rows: list[memoryview] = []
    append, get = rows.append, pgconn.get_copy_data
    size = 0
    while True:
        length, row = get(1)
        if length > 0:
            append(row)
            size += length
            if size >= BLOCK_BYTES:
                yield b"".join(rows)
                rows.clear()
                size = 0
        elif length == 0:
            poll.poll()
            pgconn.consume_input()
        else:
            break
    if rows:
        yield b"".join(rows)


def _finish(pgconn: pq.abc.PGconn) -> None:
    results = []
    while (result := pgconn.get_result()) is not None:
        results.append(result)
    for result in results:
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)
