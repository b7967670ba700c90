"""A real PostgreSQL for the tests: the embedded one, or the server of `WALY_TEST_DSN`."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql

from waly_cdc.embedded import EmbeddedServer


class TestServer:
    """Where tests find a server: its administrator's connection string, and databases on it."""

    __test__ = False

    def __init__(self, dsn: str, embedded: EmbeddedServer | None) -> None:
        self.admin_dsn = dsn
        self.embedded = embedded

    def dsn(self, dbname: str) -> str:
        return conninfo.make_conninfo(self.admin_dsn, dbname=dbname)

    def create_database(self) -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template template0").format(sql.Identifier(name))
            )
        return name

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots"
                " where database = %s and active",
                (name,),
            )
            for _ in range(50):
                rows = connection.execute(
                    "select slot_name from pg_replication_slots where database = %s and not active",
                    (name,),
                ).fetchall()
                for (slot,) in rows:
                    connection.execute("select pg_drop_replication_slot(%s)", (slot,))
                left = connection.execute(
                    "select count(*), pg_sleep(0.05) from pg_replication_slots where database = %s",
                    (name,),
                ).fetchone()
                if left is not None and left[0] == 0:
                    break
            connection.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )


@pytest.fixture(scope="session")
def server() -> Iterator[TestServer]:
    """The server that all tests of this process share."""
    own = os.environ.get("WALY_TEST_DSN")
    if own:
        yield TestServer(own, None)
        return
    with EmbeddedServer.start(settings={"max_prepared_transactions": "10"}) as embedded:
        yield TestServer(embedded.dsn(), embedded)


@pytest.fixture
def database(server: TestServer) -> Iterator[str]:
    """A connection string of a database of the test's own, as superuser."""
    name = server.create_database()
    yield server.dsn(name)
    server.drop_database(name)


@pytest.fixture
def work_dir() -> Iterator[Path]:
    """A folder for the test, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="waly-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)
