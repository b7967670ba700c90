"""The sidecar and its server: keepalives, acknowledgement, durability."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.conftest import TestServer
from tests.integration.archived import archived_rows
from tests.integration.sample import live_rows
from tests.running import running, wait_for
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.embedded import EmbeddedServer
from waly_cdc.history.log import LogFilter, log
from waly_cdc.history.session import session
from waly_cdc.lsn import Lsn


def _one(dsn: str, statement: str, *values: object) -> str:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement.encode(), values or None).fetchone()
    assert row is not None
    return str(row[0])


def _execute(dsn: str, statement: str, *values: object) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode(), values or None)


def _confirmed(dsn: str) -> Lsn:
    return Lsn.parse(
        _one(
            dsn,
            "select confirmed_flush_lsn::text from pg_replication_slots"
            " where database = current_database()",
        )
    )


def _settings(dsn: str, work_dir: Path, **more: object) -> CaptureSettings:
    return CaptureSettings(dsn, work_dir / "archive", sample_interval=0, **more)  # type: ignore[arg-type]


def test_an_idle_database_is_acknowledged_past_what_others_write(
    server: TestServer, database: str, work_dir: Path
) -> None:
    settings = _settings(database, work_dir)
    initialise(settings)
    other = server.create_database()
    try:
        with running(settings):
            with psycopg.connect(server.dsn(other), autocommit=True) as connection:
                connection.execute("create table t as select generate_series(1, 100000) n")
                row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            wait_for(lambda: _confirmed(database) >= Lsn.parse(row[0]))
    finally:
        server.drop_database(other)


def test_a_large_transaction_outlasts_an_impatient_server(work_dir: Path) -> None:
    impatient = {"wal_sender_timeout": "3s"}
    with EmbeddedServer.start(settings=impatient) as server:
        dsn = server.dsn()
        _execute(dsn, "create table t (id int primary key, v text)")
        settings = _settings(dsn, work_dir, seal_size=1 << 20, seal_interval=0.2)
        initialise(settings)
        with running(settings):
            _execute(
                dsn,
                "insert into t select n, repeat('x', 100) from generate_series(1, 400000) n",
            )
            wait_for(lambda: load(LocalStore(settings.archive)).events == 400_000, 90)
            time.sleep(4)
            _execute(dsn, "insert into t values (0)")
            wait_for(lambda: load(LocalStore(settings.archive)).events == 400_001)


def test_with_durability_archive_nothing_is_acknowledged_before_it_is_sealed(
    database: str, work_dir: Path
) -> None:
    settings = _settings(database, work_dir, durability="archive", seal_interval=1.0)
    _execute(database, "create table t (id int primary key)")
    initialise(settings)
    store = LocalStore(settings.archive)
    with running(settings):
        for number in range(20):
            _execute(database, "insert into t values (%s)", number)
            horizon_after = load(store).horizon
            # The slot is looked at first: sealing in between can only move the horizon on.
            confirmed = _confirmed(database)
            assert confirmed <= max(horizon_after, load(store).horizon)
            time.sleep(0.1)
    assert _confirmed(database) <= load(store).horizon


@pytest.mark.parametrize("seal_size", [1, 5_000])
def test_many_small_seals_hold_what_one_large_one_holds(
    database: str, work_dir: Path, seal_size: int
) -> None:
    settings = _settings(database, work_dir, seal_size=seal_size, seal_interval=0.01)
    _execute(database, "create table t (id int primary key, v int)")
    initialise(settings)
    with running(settings), psycopg.connect(database, autocommit=True) as connection:
        for number in range(60):
            time.sleep(0.02)
            connection.execute("insert into t values (%s, 0)", (number,))
            connection.execute("update t set v = v + 1 where id %% 7 = %s %% 7", (number,))
    # What had not come when it was told to stop.
    run(settings, once=True)
    contents = load(LocalStore(settings.archive))
    with psycopg.connect(database) as connection:
        row = connection.execute("select count(*) + sum(v) from t").fetchone()
    assert row is not None
    assert contents.events == row[0]
    assert contents.transactions == 120
    assert contents.entries > 4


def test_a_kill_or_a_restart_while_idle_is_no_gap(
    server: TestServer, database: str, work_dir: Path
) -> None:
    settings = _settings(database, work_dir)
    _execute(database, "create table t (id int primary key)")
    initialise(settings)
    other = server.create_database()
    command = [sys.executable, "-m", "waly_cdc", "--archive", str(settings.archive), "run"]
    try:
        for round_number in range(3):
            sidecar = subprocess.Popen(
                [*command, "--quiet"],
                env={**os.environ, "WALY_DSN": database},
                stdout=subprocess.DEVNULL,
            )
            _execute(database, "insert into t values (%s)", round_number)
            before = _confirmed(database)
            _execute(server.dsn(other), f"create table t{round_number} as select 1")
            target = Lsn.parse(_one(database, "select pg_current_wal_insert_lsn()::text"))
            wait_for(lambda target=target: _confirmed(database) >= target)
            assert before < target
            assert sidecar.poll() is None
            sidecar.kill()
            sidecar.wait()
    finally:
        server.drop_database(other)
    result = run(settings, once=True)
    assert result.horizon >= target
    assert load(LocalStore(settings.archive)).events == 3


def test_two_kills_in_one_large_transaction_leave_it_whole(database: str, work_dir: Path) -> None:
    settings = _settings(database, work_dir)
    _execute(database, "create table t (id int primary key, v text)")
    initialise(settings)
    _execute(database, "insert into t select n, repeat('x', 250) from generate_series(1, 100000) n")
    command = [sys.executable, "-m", "waly_cdc", "--archive", str(settings.archive), "run"]
    for failpoint in ("journal.append=kill:3", "journal.append=kill:2", "seal.publish=kill"):
        killed = subprocess.run(
            [*command, "--once"],
            env={
                **os.environ,
                "WALY_DSN": database,
                "WALY_FAILPOINTS": failpoint,
            },
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL
    run(settings, once=True)
    contents = load(LocalStore(settings.archive))
    assert (contents.events, contents.transactions) == (100_000, 1)


def test_what_is_written_while_the_archive_is_made_is_there_once(
    database: str, work_dir: Path
) -> None:
    settings = _settings(database, work_dir)
    _execute(database, "create table t (id int primary key, v int)")
    _execute(database, "create table bag (id int); alter table bag replica identity full")
    enough = threading.Event()

    def write(writer: int) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for number in itertools.count(writer, 3):
                with connection.transaction():
                    connection.execute("insert into t values (%s, 0)", (number,))
                    connection.execute("insert into bag values (%s)", (number % 7,))
                    connection.execute("update t set v = v + 1 where id = %s", (number - 30,))
                if enough.is_set():
                    return

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, writer) for writer in range(3)]
        initialise(settings)
        enough.set()
        for writer in writers:
            writer.result()
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(database)


def test_transactions_are_in_the_order_of_their_commits(database: str, work_dir: Path) -> None:
    settings = _settings(database, work_dir)
    _execute(database, "create table t (id int primary key, v text)")
    _execute(database, "insert into t values (1, 'start')")
    initialise(settings)
    with psycopg.connect(database) as first, psycopg.connect(database) as second:
        first.execute("insert into t values (2, 'first')")
        second.execute("update t set v = 'second' where id = 1")
        second.execute("insert into t values (3, 'second')")
        first.execute("update t set id = 4 where id = 2")
        second.commit()
        first.execute("update t set v = 'first' where id = 1")
        first.commit()
    run(settings, once=True)
    store = LocalStore(settings.archive)
    with session() as connection:
        events = list(log(connection, load(store), store, "t", (), LogFilter()))[::-1]
    assert [(event["op"], str(event["key"]["id"]), event["seq"]) for event in events] == [
        ("U", "1", 0),
        ("I", "3", 1),
        ("I", "2", 0),
        ("U", "4", 1),
        ("U", "1", 2),
    ]
    assert archived_rows(settings) == live_rows(database)
