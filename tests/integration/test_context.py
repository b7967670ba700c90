"""What applications say of who acts, through the real libraries."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import django
import psycopg
import psycopg_pool
import pyarrow.parquet as pq
import pytest
import sqlalchemy
import sqlalchemy.orm
from django.conf import settings as django_settings
from psycopg import conninfo

from tests.running import execute
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.context import LIMIT, STATEMENT, acting, message
from waly_cdc.context.psycopg import AsyncConnection, Connection
from waly_cdc.context.sqlalchemy import tell

REQUESTS = 1_000
THREADS = 8
INSERT = "insert into t (who, note) values (%s, '')"
UPDATE = "update t set note = note || 'x' where who = %s"


class Captured:
    """A database with a table `t`, and what its archive says of who changed it."""

    def __init__(self, dsn: str, archive: Path) -> None:
        self.dsn = dsn
        self._settings = CaptureSettings(dsn, archive, sample_interval=0)
        execute(
            dsn,
            "create table t (id serial primary key, who text, note text,"
            " xid bigint default txid_current() % (2^32)::bigint)",
        )
        initialise(self._settings)

    def transactions(self) -> list[dict[str, Any]]:
        run(self._settings, once=True)
        store = LocalStore(self._settings.archive)
        files = load(store).transaction_files()
        tables = (pq.read_table(store.path(file.path), partitioning=None) for file in files)
        return [row for table in tables for row in table.to_pylist()]

    def users(self) -> dict[str, str]:
        """For each row its own user, and whom the transaction named that inserted it."""
        named = {row["xid"]: row["actor_user"] for row in self.transactions()}
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute("select who, xid from t").fetchall()
        return {who: named[xid] for who, xid in rows}


@pytest.fixture
def captured(database: str, work_dir: Path) -> Captured:
    return Captured(database, work_dir / "archive")


def _requests(act: Callable[[str], None]) -> None:
    """A thousand requests of different users, over a few threads."""
    with ThreadPoolExecutor(THREADS) as executor:
        list(executor.map(act, (f"user {number}" for number in range(REQUESTS))))


def _all_right(users: dict[str, str]) -> None:
    assert users == {f"user {number}": f"user {number}" for number in range(REQUESTS)}


def test_psycopg_names_the_user_of_each_request_over_a_pool(captured: Captured) -> None:
    with psycopg_pool.ConnectionPool(
        captured.dsn, connection_class=Connection, min_size=4, max_size=4
    ) as pool:

        def act(user: str) -> None:
            with acting(user, request=user), pool.connection() as connection:
                connection.execute(INSERT, (user,))
                with connection.transaction():
                    connection.execute(UPDATE, (user,))

        _requests(act)
    rows = captured.transactions()
    assert len(rows) == REQUESTS
    _all_right(captured.users())


def test_async_psycopg_names_the_user_of_each_request_over_a_pool(captured: Captured) -> None:
    async def act(pool: psycopg_pool.AsyncConnectionPool[Any], users: Iterator[str]) -> None:
        for user in users:
            with acting(user):
                async with pool.connection() as connection, connection.transaction():
                    await connection.execute(INSERT, (user,))
                    await asyncio.sleep(0)

    async def everything() -> None:
        users = (f"user {number}" for number in range(REQUESTS))
        async with psycopg_pool.AsyncConnectionPool(
            captured.dsn, connection_class=AsyncConnection, min_size=4, max_size=4
        ) as pool:
            await asyncio.gather(*(act(pool, users) for _ in range(THREADS)))

    asyncio.run(everything())
    _all_right(captured.users())


def test_sqlalchemy_names_the_user_of_each_request_over_a_pool(captured: Captured) -> None:
    given = conninfo.conninfo_to_dict(captured.dsn)
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        given["user"],
        host=given["host"],
        port=int(given["port"]),
        database=given["dbname"],
    )
    engine = tell(tell(sqlalchemy.create_engine(url, pool_size=4)))
    table = sqlalchemy.Table("t", sqlalchemy.MetaData(), autoload_with=engine)

    def act(user: str) -> None:
        with acting(user), sqlalchemy.orm.Session(engine) as session:
            with session.begin_nested():
                session.execute(table.insert().values(who=user, note=""))
            session.execute(table.update().where(table.c.who == user).values(note="x"))
            session.commit()

    _requests(act)
    engine.dispose()
    _all_right(captured.users())


@pytest.fixture(scope="module")
def configured() -> None:
    django_settings.configure(
        DATABASES={},
        SECRET_KEY="tests",
        USE_TZ=True,
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[
            f"{__name__}.authenticated",
            "waly_cdc.context.django.ActorMiddleware",
        ],
    )
    django.setup()


urlpatterns: list[Any] = []


class _User:
    is_authenticated = True

    def __init__(self, name: str) -> None:
        self._name = name

    def get_username(self) -> str:
        return self._name


def authenticated(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def middleware(request: Any) -> Any:
        request.user = _User(request.headers["X-User"])
        return get_response(request)

    return middleware


@pytest.mark.usefixtures("configured")
def test_django_names_the_user_of_each_request_over_a_pool(captured: Captured) -> None:
    from django.db import connections, transaction
    from django.http import HttpResponse
    from django.test import Client
    from django.urls import path

    given = conninfo.conninfo_to_dict(captured.dsn)
    connections.settings["default"] = connections.configure_settings(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": given["dbname"],
                "USER": given["user"],
                "HOST": given["host"],
                "PORT": given["port"],
                "OPTIONS": {"pool": {"min_size": 4, "max_size": 8}},
            }
        }
    )["default"]
    turns = itertools.count()

    def change(request: Any) -> HttpResponse:
        user = request.user.get_username()
        connection = connections["default"]
        if next(turns) % 2:
            with transaction.atomic(), connection.cursor() as cursor:
                try:
                    with transaction.atomic():
                        cursor.execute(INSERT, (user,))
                        raise LookupError
                except LookupError:
                    cursor.execute(INSERT, (user,))
                cursor.execute(UPDATE, (user,))
        else:
            with connection.cursor() as cursor:
                cursor.execute("select 1")
                cursor.execute(INSERT, (user,))
        return HttpResponse()

    urlpatterns.append(path("change", change))
    local = threading.local()

    def act(user: str) -> None:
        local.client = getattr(local, "client", None) or Client()
        response = local.client.post("/change", headers={"X-User": user, "X-Request-ID": user})
        assert response.status_code == 200
        # Gives it back to the pool.
        connections.close_all()

    try:
        _requests(act)
    finally:
        connections["default"].close_pool()
    rows = captured.transactions()
    assert len(rows) == REQUESTS
    assert all('"operation": "POST /change"' in row["actor_context"] for row in rows)
    _all_right(captured.users())


def test_a_transaction_that_changes_nothing_says_nothing(captured: Captured) -> None:
    with psycopg.connect(captured.dsn, autocommit=True) as watching:

        def position() -> str:
            row = watching.execute("select pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            return str(row[0])

        with acting("alice"), Connection.connect(captured.dsn) as connection:
            before = position()
            connection.execute("select * from t")
            connection.commit()
            assert position() == before
            connection.execute(INSERT, ("alice",))
            with pytest.raises(psycopg.errors.UndefinedTable):
                connection.execute("select * from nowhere")
            connection.rollback()
            connection.execute(INSERT, ("bob",))
    assert [row["actor_user"] for row in captured.transactions()] == ["alice"]


def test_nobody_is_named_outside_and_the_inner_one_goes_first() -> None:
    assert message() is None
    with acting("alice", request="1", shop=7), acting(lambda: "bob", operation="refund"):
        assert message() == '{"actor": "bob", "request": "1", "shop": 7, "operation": "refund"}'
    assert message() is None


def test_a_context_that_cannot_be_told_keeps_its_actor() -> None:
    endless: list[Any] = []
    endless.append(endless)

    def fails() -> str:
        raise RuntimeError

    with acting("alice", basket="x" * LIMIT):
        assert message() == '{"actor": "alice", "shortened": true}'
    with acting("alice", basket=endless):
        assert message() == '{"actor": "alice", "shortened": true}'
    with acting(fails, request="1"):
        assert message() == '{"actor": null, "request": "1"}'


def test_the_statement_serves_any_driver(captured: Captured) -> None:
    with psycopg.connect(captured.dsn) as connection, acting("'; drop table t; --"):
        connection.execute(INSERT, ("x",))
        connection.execute(STATEMENT.format("%s").encode(), (message(),))
    assert [row["actor_user"] for row in captured.transactions()] == ["'; drop table t; --"]
