from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from waly_cdc.embedded import find_program
from waly_cdc.errors import SourceError
from waly_cdc.restore.dump import read_items
from waly_cdc.source.schema_dump import dump_schema, fingerprint


@pytest.fixture
def program(database: str) -> Path:
    with psycopg.connect(database) as connection:
        found = find_program("pg_dump", connection.info.server_version // 10_000)
    if found is None:
        pytest.skip("no pg_dump for this server")
    return found


def tags(dump: bytes) -> set[tuple[str, str]]:
    return {(item.kind, item.tag) for item in read_items(dump)}


def test_the_schema_without_what_belongs_to_us(database: str, program: Path) -> None:
    with psycopg.connect(database) as connection:
        connection.execute('create table "Odd ""name" (id int primary key)')
        connection.execute("create publication ours for all tables")
    kinds = tags(dump_schema(database, snapshot=None, program=program))
    assert ("TABLE", 'Odd "name') in kinds
    assert not any(kind.startswith("PUBLICATION") for kind, _ in kinds)


def test_as_a_snapshot_sees_it(database: str, program: Path) -> None:
    with psycopg.connect(database) as holder, psycopg.connect(database) as other:
        other.execute("create table before_it ()")
        other.commit()
        holder.execute("set transaction isolation level repeatable read")
        row = holder.execute("select pg_export_snapshot()").fetchone()
        assert row is not None
        other.execute("create table after_it ()")
        other.commit()
        kinds = tags(dump_schema(database, snapshot=row[0], program=program))
    assert ("TABLE", "before_it") in kinds
    assert ("TABLE", "after_it") not in kinds


def test_no_secret_on_the_command_line(database: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "pg_dump"
    stand_in.write_text('#!/bin/sh\necho $PGPASSWORD; echo "$@"\n')
    stand_in.chmod(0o700)
    dsn = conninfo.make_conninfo(database, password="hunter2", keepalives_idle=7)
    password, arguments = dump_schema(dsn, snapshot=None, program=stand_in).decode().splitlines()
    assert password == "hunter2"
    assert "hunter2" not in arguments
    assert "--dbname=keepalives_idle=7" in arguments


def test_a_secret_that_cannot_be_hidden_is_refused(database: str, program: Path) -> None:
    dsn = conninfo.make_conninfo(database, sslpassword="hunter2")
    with pytest.raises(SourceError, match="sslpassword") as caught:
        dump_schema(dsn, snapshot=None, program=program)
    assert "hunter2" not in caught.value.message


def test_what_pg_dump_says_reaches_the_user(database: str, program: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        dump_schema(
            conninfo.make_conninfo(database, dbname="nowhere"), snapshot=None, program=program
        )


def test_a_role_that_may_not_read_gets_a_hint(database: str, program: Path) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("create table closed (a int)")
        connection.execute("drop role if exists waly_test_nobody")
        connection.execute("create role waly_test_nobody login")
    try:
        dsn = conninfo.make_conninfo(database, user="waly_test_nobody")
        with pytest.raises(SourceError, match="permission denied") as caught:
            dump_schema(dsn, snapshot=None, program=program)
        assert caught.value.hint is not None
        assert "pg_read_all_data" in caught.value.hint
    finally:
        with psycopg.connect(database) as connection:
            connection.execute("drop role waly_test_nobody")


def test_a_missing_program(database: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot run"):
        dump_schema(database, snapshot=None, program=tmp_path / "pg_dump")


@pytest.mark.parametrize(
    "statement",
    [
        "create table more ()",
        "alter table t add column x int",
        "alter table t drop column v",
        "alter table t rename to u",
        "alter table t alter v set default 'x'",
        "alter table t alter v set not null",
        "alter table t add check (id > 0)",
        "alter table t replica identity full",
        "create index on t (v)",
        "drop view w",
        "create or replace view w as select 2 as one",
        "create type mood as enum ('sad')",
        "alter type kind add value 'b'",
        "create schema more",
        "create function f() returns int language sql as 'select 1'",
        "create sequence s",
        "alter sequence counter increment 5",
        "alter table t enable row level security",
        "grant select on t to pg_read_all_data",
    ],
)
def test_the_fingerprint_changes_with_the_schema(database: str, statement: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table t (id int primary key, v text)")
        connection.execute("create view w as select 1 as one")
        connection.execute("create type kind as enum ('a')")
        connection.execute("create sequence counter")
        before = fingerprint(connection)
        connection.execute(statement.encode())
        assert fingerprint(connection) != before


def test_the_fingerprint_does_not_change_without_the_schema(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table t (id serial primary key, v text)")
        before = fingerprint(connection)
        connection.execute("insert into t (v) select 'x' from generate_series(1, 1000)")
        connection.execute(
            "create temporary table passing (id int primary key, v text default 'x')"
        )
        for statement in ("vacuum analyze t", "vacuum full t", "truncate t", "reindex table t"):
            connection.execute(statement.encode())
            assert fingerprint(connection) == before, statement
