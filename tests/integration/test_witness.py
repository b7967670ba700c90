"""The witness: who committed, of every transaction; and that nobody waits for a sidecar in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest
from psycopg import conninfo

from tests.running import execute, require, running, wait_for
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.embedded import EmbeddedServer
from waly_cdc.errors import SourceError
from waly_cdc.source.preflight import check
from waly_cdc.source.synchronous import Standbys, connection_name

CLIENTS = 8
TRANSACTIONS = 10_000 if "WALY_WITNESS_FULL" in os.environ else 2_000
NAME = connection_name("waly_postgres")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """A server of the module's own: what it sets concerns every database of a server."""
    with EmbeddedServer.start() as server:
        yield server


@pytest.fixture
def settings(server: EmbeddedServer, work_dir: Path) -> Iterator[CaptureSettings]:
    execute(
        server.dsn(), "drop table if exists t", "create table t (id serial primary key, v text)"
    )
    settings = CaptureSettings(
        server.dsn(), work_dir / "archive", witness=True, sample_interval=0, seal_interval=1.0
    )
    initialise(settings)
    yield settings
    execute(
        server.dsn(),
        "alter system reset synchronous_standby_names",
        "select pg_reload_conf()",
        "select pg_terminate_backend(active_pid) from pg_replication_slots where active",
        "select pg_sleep(0.3)",
        "select pg_drop_replication_slot('waly_postgres')",
        "drop publication waly_postgres_all, waly_postgres_keyed",
    )


def _setting(dsn: str) -> str:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute("show synchronous_standby_names").fetchone()
    assert row is not None
    return str(row[0])


def _armed(dsn: str) -> bool:
    return NAME in _setting(dsn)


@contextmanager
def _sidecar(settings: CaptureSettings, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program itself, as a process that can be killed."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "waly_cdc", "--archive", str(settings.archive)),
            *("run", "--witness", *options),
        ],
        env={**os.environ, "WALY_DSN": settings.dsn},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: _armed(settings.dsn))
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def _transactions(settings: CaptureSettings) -> list[dict[str, object]]:
    store = LocalStore(settings.archive)
    return [
        row
        for file in load(store).transaction_files()
        for row in pq.read_table(store.path(file.path), partitioning=None).to_pylist()
    ]


def _work(dsn: str, number: int, count: int) -> None:
    """Transactions of one client, each of which writes its own identity into its row."""
    user = f"role_{number % 4}"
    who = conninfo.make_conninfo(dsn, user=user, application_name=f"app {number} é")
    identity = (
        "insert into seen select session_user, current_setting('application_name'),"
        " pg_backend_pid(), inet_client_port(), txid_current() % (2^32)::bigint"
    )
    with psycopg.connect(who, autocommit=True) as connection:
        for turn in range(count):
            if turn % 3:
                connection.execute(identity.encode())
                continue
            with connection.transaction():
                connection.execute(identity.encode())
                connection.execute("update seen set pid = pid where xid = txid_current()")


def test_every_transaction_is_attributed_to_who_made_it(
    server: EmbeddedServer, settings: CaptureSettings
) -> None:
    dsn = server.dsn()
    execute(
        dsn,
        "drop table if exists seen",
        "create table seen (u name, app text, pid int, port int, xid bigint primary key)",
        *(
            f"do $$ begin create role role_{n} login superuser;"
            " exception when duplicate_object then null; end $$"
            for n in range(4)
        ),
    )
    with running(settings):
        wait_for(lambda: _armed(dsn))
        clients = [
            threading.Thread(target=_work, args=(dsn, n, TRANSACTIONS // CLIENTS))
            for n in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("select xid, u::text, app, pid, port from seen").fetchall()
    truth = {row[0]: row[1:] for row in rows}
    found = {
        row["xid"]: tuple(
            row[f"actor_{name}"] for name in ("user", "application_name", "pid", "client_port")
        )
        for row in _transactions(settings)
        if row["actor_source"] == "witness"
    }
    assert len(truth) == TRANSACTIONS // CLIENTS * CLIENTS
    assert {xid: found.get(xid) for xid in truth} == truth


def test_sessions_that_do_not_wait_are_unknown_and_other_databases_do_not_hang(
    server: EmbeddedServer, settings: CaptureSettings
) -> None:
    dsn = server.dsn()
    execute(dsn, "drop database if exists other", "create database other")
    with running(settings):
        wait_for(lambda: _armed(dsn))
        with psycopg.connect(server.dsn("other"), autocommit=True) as connection:
            connection.execute("set statement_timeout = '10s'")
            connection.execute("create table t (id int)")
            for number in range(20):
                connection.execute("insert into t values (%s)", (number,))
        for level in ("local", "off"):
            execute(
                dsn,
                *(f"set synchronous_commit = {level}", f"insert into t (v) values ('{level}')"),
                "rollback",
            )
        with psycopg.connect(dsn, autocommit=True) as connection:
            with connection.transaction(force_rollback=True):
                connection.execute("insert into t (v) values ('rolled back')")
            connection.execute("create unlogged table if not exists u (id int)")
            connection.execute("insert into u values (1)")
        assert _armed(dsn), "nobody waited long enough for the watchdog"
    assert {row["actor_source"] for row in _transactions(settings)} <= {"witness", "unknown"}


def test_a_killed_sidecar_blocks_nobody_and_loses_no_sighting(settings: CaptureSettings) -> None:
    dsn = settings.dsn
    with _sidecar(settings, "--seal-interval", "1h") as sidecar:
        execute(dsn, *["insert into t (v) values ('seen')"] * 5)
        sidecar.kill()
        began = time.monotonic()
        execute(dsn, "insert into t (v) values ('nobody looks')")
        assert time.monotonic() - began < 5
        wait_for(lambda: not _armed(dsn))
    assert _setting(dsn) == ""
    run(CaptureSettings(dsn, settings.archive, sample_interval=0), once=True)
    sources = [row["actor_source"] for row in _transactions(settings)]
    assert sources[:5] == ["witness"] * 5
    assert len(sources) == 6


def test_a_sidecar_that_does_not_answer_holds_commits_up_for_the_patience_only(
    settings: CaptureSettings,
) -> None:
    dsn = settings.dsn
    with _sidecar(settings, "--witness-patience", "1s") as sidecar:
        sidecar.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        execute(dsn, "insert into t (v) values ('waits')")
        assert 0.9 < time.monotonic() - began < 10
        wait_for(lambda: not _armed(dsn))
        execute(dsn, "insert into t (v) values ('does not')")


def test_a_sidecar_that_stops_or_loses_its_stream_leaves_nothing_behind(
    settings: CaptureSettings,
) -> None:
    dsn = settings.dsn
    with _sidecar(settings) as sidecar:
        execute(
            dsn,
            "select pg_terminate_backend(active_pid) from pg_replication_slots where active",
            "insert into t (v) values ('in between')",
        )
        wait_for(lambda: _armed(dsn))
        execute(
            dsn,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'waly watchdog'",
        )
        wait_for(lambda: not _armed(dsn))
        execute(dsn, "insert into t (v) values ('without a watchdog')")
        sidecar.send_signal(signal.SIGTERM)
        assert sidecar.wait(30) == 0
    assert _setting(dsn) == ""
    assert len(_transactions(settings)) == 2


def test_a_name_that_was_left_behind_is_taken_out_by_any_sidecar(settings: CaptureSettings) -> None:
    dsn = settings.dsn
    execute(
        dsn,
        f"alter system set synchronous_standby_names = '\"{NAME}\"'",
        "select pg_reload_conf()",
    )
    wait_for(lambda: _armed(dsn))
    findings = {found.id: found for found in check(dsn, None)}
    assert findings["witness"].severity == "fail"
    assert "RESET synchronous_standby_names" in (findings["witness"].fix_sql or "")
    run(CaptureSettings(dsn, settings.archive, sample_interval=0), once=True)
    assert _setting(dsn) == ""


def test_a_change_of_a_table_s_shape_does_not_make_its_commit_wait_for_the_seal(
    settings: CaptureSettings,
) -> None:
    dsn = settings.dsn
    with running(CaptureSettings(dsn, settings.archive, witness=True, seal_interval=0.05)):
        wait_for(lambda: _armed(dsn))
        for number in range(15):
            execute(dsn, f"alter table t add c{number} int", "insert into t (v) values ('x')")
        assert _armed(dsn), "the watchdog had no reason to act"
    assert [row["actor_source"] for row in _transactions(settings)] == ["witness"] * 15


@pytest.mark.parametrize(
    ("before", "joined"),
    [
        ("", f'"{NAME}"'),
        ("a, b", f'FIRST 2 ("{NAME}", a, b)'),
        ('2 ("x y", *)', f'FIRST 3 ("{NAME}", "x y", *)'),
        ("first 1 (a)", f'FIRST 2 ("{NAME}", a)'),
    ],
)
def test_standbys_that_commits_wait_for_are_waited_for_still(before: str, joined: str) -> None:
    value = Standbys.parse(before)
    assert str(value.joined_by(NAME)) == joined
    assert Standbys.parse(joined).without(NAME) == Standbys(value.names, value.number)


@pytest.mark.parametrize("before", ["any 1 (a, b)", "waly-witness-other", '"WALY-witness-x", a'])
def test_a_value_that_cannot_be_joined_is_refused(before: str) -> None:
    with pytest.raises(SourceError):
        Standbys.parse(before).joined_by(NAME)


def test_a_role_that_may_not_is_told_what_it_lacks_and_captures_all_the_same(
    settings: CaptureSettings,
) -> None:
    dsn = settings.dsn
    require(dsn, 150000, "the right to set one parameter")
    execute(
        dsn,
        "do $$ begin create role weak login replication; exception when duplicate_object then null;"
        " end $$",
        "grant pg_read_all_data to weak",
    )
    told: list[str] = []
    weak = replace(settings, dsn=conninfo.make_conninfo(dsn, user="weak"))
    stop = threading.Event()
    sidecar = threading.Thread(
        target=run, args=(weak,), kwargs={"stop": stop, "on_event": told.append}
    )
    sidecar.start()
    wait_for(lambda: any("GRANT ALTER SYSTEM ON PARAMETER" in text for text in told))
    execute(dsn, "insert into t (v) values ('x')")
    stop.set()
    sidecar.join()
    assert _setting(dsn) == ""
    run(replace(weak, witness=False), once=True)
    assert len(_transactions(settings)) == 1
    execute(
        dsn,
        "grant alter system on parameter synchronous_standby_names to weak",
        "grant execute on function pg_reload_conf() to weak",
        "grant pg_read_all_stats to weak",
    )
    with running(weak):
        wait_for(lambda: _armed(dsn))
        execute(dsn, "insert into t (v) values ('seen')")
    assert _setting(dsn) == ""
    assert [row["actor_source"] for row in _transactions(settings)][1:] == ["witness"]
