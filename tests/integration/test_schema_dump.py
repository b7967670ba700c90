from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from waly_cdc.embedded import find_program
from waly_cdc.errors import SourceError
from waly_cdc.restore.dump import read_items
from waly_cdc.source.schema_dump import dump_schema


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
