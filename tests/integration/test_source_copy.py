from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from waly_cdc.errors import SourceError
from waly_cdc.source import catalog, copy, slot
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect


@pytest.fixture
def owner(database: str) -> Iterator[psycopg.Connection]:
    with connect(database) as connection:
        connection.execute(
            'CREATE TABLE public.t (a int PRIMARY KEY, gone int, "B %s" text,'
            " c int GENERATED ALWAYS AS (a * 2) STORED, d bytea, e timestamptz);"
            "ALTER TABLE public.t DROP COLUMN gone;"
            'INSERT INTO public.t (a, "B %s", d, e) VALUES'
            " (1, E'tab\\tnew\\nline\\\\', '\\x00ff', '2026-11-23 14:00+01'), (2, NULL, '', NULL)"
        )
        yield connection


def _table(connection: psycopg.Connection, name: str = "t") -> Table:
    (table,) = catalog.tables(connection, [f"public.{name}"])
    return table


def _view(connection: psycopg.Connection) -> Table:
    """Something to copy that computes while it is read: the view `v`, with a column `a`."""
    return replace(_table(connection), name="v", columns=_table(connection).columns[:1])


def test_rows_are_those_of_the_snapshot(database: str, owner: psycopg.Connection) -> None:
    table = _table(owner)
    with connect(database, replication=True) as replication:
        created = slot.create(replication, "waly_copy_test", temporary=True)
        owner.execute("DELETE FROM public.t WHERE a = 1")
        with copy.snapshot_transaction(database, created.snapshot) as connection:
            rows = b"".join(copy.copy_table(connection, table))
            assert copy.count(connection, table) == 2
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("DELETE FROM public.t")
    assert rows == (
        b"1\ttab\\tnew\\nline\\\\\t\\\\x00ff\t2026-11-23 13:00:00+00\n2\t\\N\t\\\\x\t\\N\n"
    )
    assert copy.count(owner, table) == 1


def test_a_snapshot_that_is_gone(database: str) -> None:
    with (
        pytest.raises(SourceError),
        copy.snapshot_transaction(database, "00000003-0000001B-1"),
    ):
        pass


def test_blocks_are_large_and_end_with_rows(owner: psycopg.Connection) -> None:
    owner.execute(
        "INSERT INTO public.t SELECT g, repeat('x', 100) FROM generate_series(3, 30000) g"
    )
    blocks = list(copy.copy_table(owner, _table(owner)))
    assert len(blocks) >= 3
    assert all(block.endswith(b"\n") for block in blocks)
    assert all(len(block) >= copy.BLOCK_BYTES for block in blocks[:-1])
    assert sum(block.count(b"\n") for block in blocks) == 30_000
    assert owner.execute("SELECT 1").fetchone() == (1,)


def test_children_are_left_out(owner: psycopg.Connection) -> None:
    owner.execute("CREATE TABLE public.child () INHERITS (public.t)")
    owner.execute("INSERT INTO public.child SELECT 7")
    table = _table(owner)
    assert b"".join(copy.copy_table(owner, table)).count(b"\n") == 2
    assert copy.count(owner, table) == 2


def test_empty_and_columnless_tables(owner: psycopg.Connection) -> None:
    owner.execute("CREATE TABLE public.bare ()")
    assert list(copy.copy_table(owner, _table(owner, "bare"))) == []
    owner.execute("INSERT INTO public.bare DEFAULT VALUES")
    assert list(copy.copy_table(owner, _table(owner, "bare"))) == [b"\n"]


def test_a_table_that_is_gone(owner: psycopg.Connection) -> None:
    table = _table(owner)
    owner.execute("DROP TABLE public.t")
    with pytest.raises(SourceError, match="does not exist"):
        list(copy.copy_table(owner, table))


def test_an_error_in_the_middle(owner: psycopg.Connection) -> None:
    owner.execute("CREATE VIEW public.v AS SELECT 1 / (5000 - a) FROM generate_series(1, 9999) a")
    owner.execute('ALTER VIEW public.v RENAME COLUMN "?column?" TO a')
    with pytest.raises(SourceError, match="division by zero"):
        list(copy.copy_table(owner, _view(owner)))
    assert owner.execute("SELECT 1").fetchone() == (1,)


def test_an_early_end_closes_the_connection(database: str, owner: psycopg.Connection) -> None:
    owner.execute("INSERT INTO public.t SELECT g, repeat('x', 999) FROM generate_series(3, 9999) g")
    connection = connect(database, autocommit=False)
    copying = copy.copy_table(connection, _table(owner))
    next(copying)
    copying.close()
    assert connection.closed


def test_other_threads_run_while_the_server_is_slow(owner: psycopg.Connection) -> None:
    owner.execute(
        "CREATE FUNCTION public.slow() RETURNS int LANGUAGE sql AS"
        " 'SELECT 1 FROM pg_sleep(0.4)';"
        "CREATE VIEW public.v AS SELECT public.slow() AS a"
    )
    ticks, done = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.01):
            ticks += 1

    other = threading.Thread(target=tick)
    other.start()
    try:
        assert list(copy.copy_table(owner, _view(owner))) == [b"1\n"]
    finally:
        done.set()
        other.join()
    assert ticks > 5
