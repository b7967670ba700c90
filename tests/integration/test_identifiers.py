"""Names of every kind: of tables, columns, schemas, databases and roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.conftest import TestServer
from tests.integration.archived import archived_tables
from tests.integration.sample import live_rows
from tests.integration.test_cli import Waly
from waly_cdc.relations import RESERVED, quote_identifier

NAMES = (
    "plain",
    "Plain",
    "PLAIN",
    "dot.ted",
    "two words",
    " edges ",
    'quo"te',
    "apos'trophe",
    "back\\slash",
    "per%s cent %",
    "{brace} $1 :p ?",
    "new\nline\ttab",
    "a/b",
    "..",
    "*",
    "-- x; drop table plain",
    "x~1",
    "Täble",
    "TÄBLE",
    "日本語",
    "😀",
    "select",
    "user",
    "null",
    "rowid",
    "filename",
    "x" * 63,
    "é" * 31 + "x",
    *sorted(RESERVED),
    "_OP",
    "DAY",
    "_row",
    "key",
)
"""The last of them and `RESERVED` are names that event files or queries use themselves."""

ROLE = 'Röle "x".%s'
DATABASES = ('Dätabase "x".%s \\', "d" * 63, "UPPER", "select")


@pytest.fixture
def role(server: TestServer) -> Iterator[str]:
    """A superuser with an odd name."""
    with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} superuser login").format(sql.Identifier(ROLE)))
        yield ROLE
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(ROLE)))


@pytest.fixture(params=DATABASES)
def named_database(server: TestServer, role: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A connection string to a database with an odd name, as a role with an odd name."""
    create = sql.SQL("create database {} template template0").format(sql.Identifier(request.param))
    with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
        admin.execute(create)
    yield conninfo.make_conninfo(server.dsn(request.param), user=role)
    server.drop_database(request.param)


@pytest.fixture
def waly(database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> Waly:
    return Waly(database, work_dir / "archive", capsys)


def _make_tables(connection: psycopg.Connection) -> list[sql.Identifier]:
    """A table of each name, in schemas of these names in turn, with a column of each name."""
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(n)) for n in NAMES)
    made = []
    for number, name in enumerate(NAMES):
        schema = NAMES[number % 7 * 5]
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))
        made.append(sql.Identifier(schema, name))
        connection.execute(
            sql.SQL("create table {} (id int primary key, {})").format(made[-1], columns)
        )
        values = sql.SQL(", ").join(map(sql.Literal, NAMES))
        connection.execute(sql.SQL("insert into {} values (1, {})").format(made[-1], values))
    return made


def test_tables_columns_and_schemas(waly: Waly, server: TestServer) -> None:
    with psycopg.connect(waly.dsn, autocommit=True) as connection:
        tables = _make_tables(connection)
        waly("init")
        for table in tables:
            for name in NAMES[:: len(NAMES) // 3]:
                column = sql.Identifier(name)
                connection.execute(
                    sql.SQL("update {} set {} = {} || '!'").format(table, column, column)
                )
            connection.execute(sql.SQL("update {} set id = 2").format(table))
            connection.execute(sql.SQL("insert into {} (id) values (3)").format(table))
    waly("run", "--once")
    assert dict(archived_tables(waly.archive).values()) == live_rows(waly.dsn)
    for table in tables[::4]:
        (shown,) = waly("show", table.as_string(), "2")
        assert list(shown["row"]) == ["id", *NAMES]
        assert shown["row"]["plain"] == "plain!"
        assert [e["op"] for e in waly("log", table.as_string(), "2", "-n", "9")][:1] == ["U"]
    other = server.create_database()
    try:
        waly("restore", "--to", "latest", "--target", server.dsn(other))
        assert live_rows(server.dsn(other)) == live_rows(waly.dsn)
    finally:
        server.drop_database(other)


def test_a_query_takes_each_name_that_is_alone_with_its_case(waly: Waly) -> None:
    with psycopg.connect(waly.dsn, autocommit=True) as connection:
        _make_tables(connection)
    waly("init")
    alone = [n for n in NAMES if [m.casefold() for m in NAMES].count(n.casefold()) == 1]
    for number, name in list(enumerate(NAMES))[::2]:
        if name in alone:
            table = sql.Identifier(NAMES[number % 7 * 5], name).as_string()
            column = quote_identifier(name)
            assert waly("query", f"select {column} as value from {table}") == [{"value": name}]


def test_databases_and_roles(
    named_database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waly = Waly(named_database, work_dir / "archive", capsys)
    waly.sql("create table t (id int primary key); insert into t values (1)")
    waly("check")
    waly("init")
    waly.sql("update t set id = 2")
    waly("run", "--once")
    assert waly("show", "t", "2")[0]["row"] == {"id": 2}
    assert waly("status")[0]["slot"]["name"]
    waly("slot", "drop", "--yes")
