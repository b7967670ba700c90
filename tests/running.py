"""A sidecar in a thread, waiting for what it does, and what a server must have for a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psycopg
import pytest

from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run


@contextmanager
def running(
    settings: CaptureSettings,
    beside: Callable[[ArchiveWriter], AbstractContextManager[object]] = nullcontext,
) -> Iterator[None]:
    """A sidecar at work; its error, if it has one, is raised at the end."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run(settings, stop=stop, beside=beside)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def wait_for(condition: Callable[[], bool], seconds: float = 40) -> None:
    """Wait until the condition holds; an AssertionError if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def require(dsn: str, version: int, what: str) -> None:
    """Skip the test on servers older than `version` (150000 is 15), which lack `what`."""
    with psycopg.connect(dsn) as connection:
        if connection.info.server_version < version:
            pytest.skip(f"{what} came with PostgreSQL {version // 10_000}")
