"""Prepared transactions: they count when they are committed, however long that takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.integration.archived import archived_rows
from tests.integration.sample import live_rows
from tests.running import execute, running, wait_for
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture import table_watch
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.history.log import LogFilter, log
from waly_cdc.history.session import session


@pytest.fixture
def settings(database: str, work_dir: Path) -> Iterator[CaptureSettings]:
    with psycopg.connect(database) as connection:
        (allowed,) = connection.execute("show max_prepared_transactions").fetchone() or ("0",)
    if allowed == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    execute(
        database, "create table t (id int primary key, v text)", "insert into t values (1, 'a')"
    )
    settings = CaptureSettings(database, work_dir / "archive", seal_interval=0.2, sample_interval=0)
    initialise(settings)
    yield settings
    with psycopg.connect(database, autocommit=True) as connection:
        for (gid,) in connection.execute(
            "select gid from pg_prepared_xacts where database = current_database()"
        ).fetchall():
            connection.execute(f"rollback prepared '{gid}'")


def _gid(settings: CaptureSettings, name: str) -> str:
    """An identifier for a prepared transaction: they are the whole cluster's."""
    return f"{psycopg.conninfo.conninfo_to_dict(settings.dsn)['dbname']} {name}"


def _prepare(settings: CaptureSettings, name: str, *statements: str) -> None:
    gid = _gid(settings, name)
    execute(settings.dsn, f"begin; {'; '.join(statements)}; prepare transaction '{gid}'")


def _is_published(settings: CaptureSettings, table: str) -> bool:
    query = "select from pg_publication_tables where tablename = %s and pubname like '%%_keyed'"
    with psycopg.connect(settings.dsn) as connection:
        return connection.execute(query, (table,)).fetchone() is not None


def test_a_prepared_transaction_is_there_once_it_is_committed(settings: CaptureSettings) -> None:
    _prepare(
        settings,
        "late",
        "insert into t values (2, 'prepared')",
        "savepoint s",
        "delete from t",
        "rollback to s",
        "update t set id = 3 where id = 2",
    )
    _prepare(settings, "never", "insert into t values (4, 'never')")
    _prepare(settings, "in between", "insert into t values (5, 'between')")
    run(settings, once=True)
    assert archived_rows(settings) == {"public.t": ["(1,a)"]}
    execute(settings.dsn, f"rollback prepared '{_gid(settings, 'never')}'")
    with running(settings):
        execute(settings.dsn, "insert into t values (6, 'after')")
        execute(settings.dsn, f"commit prepared '{_gid(settings, 'in between')}'")
        wait_for(lambda: load(LocalStore(settings.archive)).events == 2)
    execute(settings.dsn, f"commit prepared '{_gid(settings, 'late')}'")
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)
    store = LocalStore(settings.archive)
    with session() as connection:
        events = log(connection, load(store), store, "t", (), LogFilter())
        assert [(event["op"], str(event["key"]["id"])) for event in events] == [
            ("U", "3"),
            ("I", "2"),
            ("I", "5"),
            ("I", "6"),
        ]


def test_what_is_prepared_holds_back_a_new_baseline_and_nothing_else(
    settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_watch, "LONGEST_WAIT", 1.0)
    _prepare(settings, "open", "insert into t values (2, 'b')")
    execute(settings.dsn, "create table fresh (id int primary key); insert into fresh values (1)")
    run(settings, once=True)
    (gap,) = load(LocalStore(settings.archive)).gaps
    assert gap.end is None
    with running(settings):
        execute(settings.dsn, "create table later (id int primary key, v text)")
        execute(settings.dsn, "insert into t values (3, 'c'); insert into later values (1)")
        wait_for(lambda: load(LocalStore(settings.archive)).events == 3)
        wait_for(lambda: _is_published(settings, "later"))
        execute(settings.dsn, "update later set v = 'u'")
        wait_for(lambda: load(LocalStore(settings.archive)).events == 4)
    execute(settings.dsn, f"commit prepared '{_gid(settings, 'open')}'")
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)
