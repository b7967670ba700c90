"""The sidecar through server restarts and broken connections."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.embedded import EmbeddedServer


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    """A server that may be stopped."""
    with EmbeddedServer.start() as server:
        yield server


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_it_goes_on_after_a_restart_and_after_its_connections_are_cut(
    own_server: EmbeddedServer, work_dir: Path
) -> None:
    dsn, archive, log = own_server.dsn(), work_dir / "archive", work_dir / "log"

    def execute(statement: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statement.encode())

    def events() -> int:
        return load(LocalStore(archive)).events

    execute("create table t (id int primary key)")
    initialise(CaptureSettings(dsn, archive, sample_interval=0))
    with log.open("w") as stderr:
        sidecar = subprocess.Popen(
            [sys.executable, "-m", "waly_cdc", "run", "--seal-interval", "100ms"],
            env={**os.environ, "WALY_DSN": dsn, "WALY_ARCHIVE": str(archive)},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        execute("insert into t values (1)")
        _wait(lambda: events() == 1, "the first event")
        own_server.restart("immediate")
        execute("insert into t values (2)")
        _wait(lambda: events() == 2, "the event after the restart")
        execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like 'waly%' and pid <> pg_backend_pid()"
        )
        execute("insert into t values (3)")
        _wait(lambda: events() == 3, "the event after the cut")
    finally:
        sidecar.send_signal(signal.SIGTERM)
        code = sidecar.wait(30)
    assert code == 0, log.read_text()
    assert log.read_text().count("connecting again") >= 2
