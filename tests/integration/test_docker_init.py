"""docker/init-waly.sql, run by psql as PostgreSQL's image runs it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.conftest import TestServer
from waly_cdc.embedded import find_program
from waly_cdc.findings import FAIL
from waly_cdc.source import catalog, preflight, publication, slot
from waly_cdc.source.connect import connect

SCRIPT = Path(__file__).parents[2] / "docker" / "init-waly.sql"
PASSWORD = "it's:a\\pass word"

TABLES = """
CREATE TABLE keyed (a int PRIMARY KEY, b int);
CREATE TABLE keyless (a int, b int);
CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE full_identity (a int); ALTER TABLE full_identity REPLICA IDENTITY FULL;
CREATE TABLE generated (a int, b int GENERATED ALWAYS AS (a * 2) STORED);
ALTER TABLE generated REPLICA IDENTITY FULL;
CREATE TABLE by_index (a int NOT NULL); CREATE UNIQUE INDEX by_index_a ON by_index (a);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_a;
CREATE TABLE deferred (a int PRIMARY KEY DEFERRABLE);
CREATE TABLE made AS SELECT 1 AS a; ALTER TABLE made ADD PRIMARY KEY (a);
CREATE TABLE parted (a int PRIMARY KEY) PARTITION BY RANGE (a);
CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (9);
CREATE SCHEMA "Odd schema" CREATE TABLE "odd.table" (a int PRIMARY KEY);
CREATE UNLOGGED TABLE unlogged (a int PRIMARY KEY);
CREATE TEMP TABLE temporary (a int PRIMARY KEY);
"""


def _psql(database: str, password_file: Path) -> subprocess.CompletedProcess[str]:
    program = find_program("psql")
    assert program is not None
    return subprocess.run(
        [str(program), "--no-psqlrc", "--dbname", database, "--file", str(SCRIPT)],
        env={**os.environ, "WALY_PASSWORD_FILE": str(password_file)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def password_file(work_dir: Path) -> Path:
    path = work_dir / "waly_password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.fixture
def admin(database: str, password_file: Path) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a database that the script has prepared."""
    done = _psql(database, password_file)
    try:
        assert done.returncode == 0, done.stderr
        with psycopg.connect(database, autocommit=True) as connection:
            yield connection
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("DROP OWNED BY waly; DROP ROLE waly")


def _slot(connection: psycopg.Connection) -> str:
    return slot.default_name(connection.info.dbname)


def _opens(password: str, verifier: str) -> bool:
    """Whether a SCRAM verifier (`SCRAM-SHA-256$iterations:salt$stored:server`) is of a password."""
    _, parameters, keys = verifier.split("$")
    iterations, salt = parameters.split(":")
    salted = hashlib.pbkdf2_hmac(
        "sha256", password.encode(), base64.b64decode(salt), int(iterations)
    )
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return base64.b64encode(hashlib.sha256(client_key).digest()).decode() == keys.split(":")[0]


def test_the_sidecar_finds_nothing_to_complain_of(database: str, admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE guarded (a int PRIMARY KEY)")
    admin.execute("ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
    admin.execute("CREATE TABLE numbered (a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
    findings = preflight.check(conninfo.make_conninfo(database, user="waly"), None)
    assert [finding for finding in findings if finding.severity == FAIL] == []
    assert not {f.id for f in findings if f.severity != "pass"} & {
        "not_published",
        "publication",
        "table_privilege",
        "sequence_privilege",
    }


def test_the_role_has_its_password_and_may_write_nothing(
    database: str, admin: psycopg.Connection
) -> None:
    admin.execute("CREATE TABLE guarded (a int PRIMARY KEY)")
    row = admin.execute(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolpassword"
        " FROM pg_authid WHERE rolname = 'waly'"
    ).fetchone()
    assert row is not None
    assert row[:4] == (False, False, False, True)
    assert _opens(PASSWORD, row[4])
    with psycopg.connect(database, user="waly", autocommit=True) as waly:
        for statement in ("INSERT INTO guarded VALUES (1)", "CREATE TABLE mine (a int)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                waly.execute(statement)


def test_updates_are_published_of_exactly_the_tables_that_have_an_identity(
    admin: psycopg.Connection,
) -> None:
    admin.execute(TABLES)
    with connect(admin.info.dsn) as connection:
        there = publication.look(connection, _slot(admin))
        tables = catalog.tables(connection)
        assert publication.changes(there, tables) == []
        keyed = there[1]
    assert keyed is not None
    assert keyed.tables == {(table.schema, table.name) for table in tables if table.followed}
    assert {name for _, name in keyed.tables} >= {
        *("keyed", "full_identity", "by_index", "made", "part", "odd.table")
    }


def test_a_table_that_loses_its_identity_can_still_be_updated(admin: psycopg.Connection) -> None:
    admin.execute(TABLES)
    admin.execute("ALTER TABLE keyed DROP CONSTRAINT keyed_pkey")
    admin.execute("DROP INDEX by_index_a")
    for table in ("keyed", "by_index", "keyless"):
        admin.execute(sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier(table)))
        admin.execute(sql.SQL("UPDATE {} SET a = 2").format(sql.Identifier(table)))


def test_an_owner_who_is_no_superuser_makes_tables_as_ever(admin: psycopg.Connection) -> None:
    admin.execute("CREATE SCHEMA application; GRANT ALL ON SCHEMA application TO PUBLIC")
    admin.execute("DROP ROLE IF EXISTS waly_test_app; CREATE ROLE waly_test_app")
    try:
        admin.execute("SET ROLE waly_test_app")
        admin.execute("CREATE TABLE application.mine (a int PRIMARY KEY)")
        admin.execute("RESET ROLE")
        _, keyed = publication.look(admin, _slot(admin))
        assert keyed is not None
        assert keyed.tables == {("application", "mine")}
    finally:
        admin.execute("RESET ROLE; DROP OWNED BY waly_test_app CASCADE; DROP ROLE waly_test_app")


def test_what_check_prints_for_a_database_that_exists_amounts_to_the_same(
    admin: psycopg.Connection, server: TestServer
) -> None:
    admin.execute(TABLES)
    admin.execute("CREATE TABLE guarded (a int PRIMARY KEY)")
    other = server.create_database()
    role = "waly_test_plain"
    try:
        with psycopg.connect(server.dsn(other), autocommit=True) as there:
            there.execute(f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN".encode())
            there.execute(TABLES)
            there.execute("CREATE TABLE guarded (a int PRIMARY KEY)")
            there.execute("ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
            dsn = conninfo.make_conninfo(server.dsn(other), user=role)
            for finding in preflight.check(dsn, None):
                if finding.severity == FAIL or finding.id == "actors":
                    there.execute((finding.fix_sql or "").encode())
            assert _rights(there, role) == _rights(admin, "waly")
            assert _published(there) == _published(admin)
    finally:
        server.drop_database(other)
        admin.execute(f"DROP ROLE IF EXISTS {role}".encode())


def _rights(connection: psycopg.Connection, role: str) -> tuple[object, ...] | None:
    return connection.execute(
        "SELECT rolcanlogin, rolsuper, rolcreaterole, rolreplication, rolbypassrls,"
        " (SELECT array_agg(roleid::regrole::text ORDER BY roleid::regrole::text)"
        "  FROM pg_auth_members m WHERE m.member = r.oid)"
        " FROM pg_roles r WHERE rolname = %s",
        (role,),
    ).fetchone()


def _published(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,"
        " (SELECT array_agg(t.schemaname || '.' || t.tablename ORDER BY t.schemaname, t.tablename)"
        "  FROM pg_publication_tables t WHERE t.pubname = p.pubname)"
        " FROM pg_publication p ORDER BY pubname"
    ).fetchall()


def test_what_the_trigger_publishes_check_does_not_publish_again(
    admin: psycopg.Connection, database: str
) -> None:
    admin.execute("CREATE TABLE keyless (a int)")
    findings = preflight.check(conninfo.make_conninfo(database, user="waly"), None)
    (finding,) = (finding for finding in findings if finding.id == "replica_identity")
    admin.execute((finding.fix_sql or "").encode())
    _, keyed = publication.look(admin, _slot(admin))
    assert keyed is not None
    assert keyed.tables == {("public", "keyless")}


def test_without_a_publication_ddl_goes_on(admin: psycopg.Connection) -> None:
    publication.drop(admin, _slot(admin))
    admin.execute(TABLES)


@pytest.mark.parametrize("content", [None, "", "\n"], ids=["no file", "empty", "only a line end"])
def test_a_missing_password_stops_it(database: str, work_dir: Path, content: str | None) -> None:
    path = work_dir / "waly_password"
    if content is not None:
        path.write_text(content)
    done = _psql(database, path)
    assert done.returncode != 0
    assert "no file with a password" in done.stderr
    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT FROM pg_roles WHERE rolname = 'waly'").fetchone()
    assert found is None
