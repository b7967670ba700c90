"""`waly check --fix-sql`: its script, run once by psql as superuser, is enough."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from waly_cdc.cli.main import run
from waly_cdc.embedded import EmbeddedServer, find_program

ROLE = "waly_fix"

SCHEMA = """
CREATE TABLE keyed (a int PRIMARY KEY, b int GENERATED ALWAYS AS IDENTITY);
CREATE TABLE keyless (a int);
CREATE TABLE indexed (a int NOT NULL UNIQUE, b text);
CREATE UNLOGGED TABLE quick (a int PRIMARY KEY);
CREATE TABLE guarded (a int PRIMARY KEY);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE SCHEMA private;
CREATE TABLE private.denied (a int PRIMARY KEY);
CREATE TABLE "two
SELECT 1/0; --" (a int);
INSERT INTO keyed VALUES (1); INSERT INTO keyless VALUES (1); INSERT INTO guarded VALUES (1);
"""


@dataclass(frozen=True)
class Newcomer:
    """Somebody with a role that has no rights, and a superuser at hand who runs scripts."""

    admin: str
    dsn: str
    work_dir: Path
    capsys: pytest.CaptureFixture[str]

    def waly(self, *arguments: str, code: int | None = 0) -> str:
        """What a command prints; None as `code` means any."""
        self.capsys.readouterr()
        archive = str(self.work_dir / "archive")
        got = run(["--dsn", self.dsn, "--archive", archive, *arguments])
        captured = self.capsys.readouterr()
        assert code is None or got == code, captured.out + captured.err
        return captured.out + captured.err

    def findings(self, code: int) -> list[dict[str, Any]]:
        report = json.loads(self.waly("--json", "check", code=code))
        return list(report["findings"])

    def psql(self, script: str) -> None:
        """Run a script in one go; it must not fail."""
        file = self.work_dir / "fix.sql"
        file.write_text(script)
        program = find_program("psql")
        assert program is not None
        done = subprocess.run(
            [program, "-X", "-v", "ON_ERROR_STOP=1", "-d", self.admin, "-f", file],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last statement, run as superuser."""
        with psycopg.connect(self.admin, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def newcomer(
    database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Newcomer]:
    newcomer = Newcomer(database, conninfo.make_conninfo(database, user=ROLE), work_dir, capsys)
    newcomer.sql(f"DROP ROLE IF EXISTS {ROLE}", f"CREATE ROLE {ROLE} LOGIN", SCHEMA)
    try:
        yield newcomer
    finally:
        newcomer.sql(f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}")


def _plain(script: str) -> list[str]:
    return [line for line in script.splitlines() if line and not line.startswith("--")]


def _with_everything_optional(script: str) -> str:
    """The script as somebody leaves it who wants all that is a matter of choice."""
    # The odd table's name goes on in the next line: in a reason a colon follows it.
    return re.sub(
        r"^-- ((ALTER|GRANT) .*|SELECT 1/0; --\"[^:].*)$", r"\1", script, flags=re.MULTILINE
    )


def test_one_run_of_the_script_leaves_nothing_that_blocks(newcomer: Newcomer) -> None:
    before = newcomer.findings(code=6)
    script = newcomer.waly("check", "--fix-sql", code=6)
    assert _plain(script).count(f"GRANT pg_read_all_data TO {ROLE};") == 1
    assert not any(word in "\n".join(_plain(script)) for word in ("LOGGED", "FULL", "SYSTEM"))
    assert "-- optional: server: max_slot_wal_keep_size is unlimited" in script
    newcomer.psql(script)
    after = newcomer.findings(code=0)
    assert [finding for finding in after if finding["severity"] == "fail"] == []
    mended = {finding["fix_sql"] for finding in before if finding["severity"] == "fail"}
    assert not mended & {finding["fix_sql"] for finding in after}
    again = newcomer.waly("check", "--fix-sql")
    assert _plain(again) == []
    assert "nothing blocks capture" in again


def test_a_role_that_was_mended_captures_later_tables_too(newcomer: Newcomer) -> None:
    newcomer.psql(newcomer.waly("check", "--fix-sql", code=6))
    newcomer.waly("init")
    newcomer.sql(
        "UPDATE guarded SET a = 2",
        "INSERT INTO keyless VALUES (2)",
        "CREATE TABLE private.later (a int PRIMARY KEY)",
        "INSERT INTO private.later VALUES (7)",
    )
    said = newcomer.waly("run", "--once")
    assert "could not be archived" not in said
    events = [json.loads(line) for line in newcomer.waly("--json", "log").splitlines()]
    assert {(event["table"], event["op"]) for event in events} == {
        ("private.later", "I"),
        ("public.keyless", "I"),
        ("public.guarded", "U"),
    }


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
def test_what_is_optional_needs_no_second_round(newcomer: Newcomer, at_once: bool) -> None:
    script = newcomer.waly("check", "--fix-sql", code=6)
    if not at_once:
        newcomer.psql(script)
        script = newcomer.waly("check", "--fix-sql")
    # Other tests use this server too: its settings stay.
    wanted = _with_everything_optional(script).replace("\nALTER SYSTEM", "\n-- ALTER SYSTEM")
    newcomer.psql(wanted)
    left = {finding["id"] for finding in newcomer.findings(code=0) if finding["fix_sql"]}
    assert left <= {"max_slot_wal_keep_size", "open_transaction"}
    (everything, keyed) = newcomer.sql(
        "SELECT array_agg(tablename::text ORDER BY tablename) FROM pg_publication_tables"
        " GROUP BY pubname ORDER BY pubname"
    )
    assert everything == keyed


@pytest.fixture(scope="module")
def physical() -> Iterator[EmbeddedServer]:
    settings = {"wal_level": "replica", "max_replication_slots": "1"}
    with EmbeddedServer.start(settings=settings) as server:
        yield server


def test_settings_are_mended_by_the_script_and_one_restart(
    physical: EmbeddedServer, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newcomer = Newcomer(physical.dsn(), physical.dsn(user=ROLE), work_dir, capsys)
    newcomer.sql(f"CREATE ROLE {ROLE} LOGIN", SCHEMA)
    newcomer.sql("SELECT pg_create_physical_replication_slot('other')")
    script = newcomer.waly("check", "--fix-sql", code=6)
    (wal_level,) = (line for line in _plain(script) if "wal_level" in line)
    assert wal_level.startswith("ALTER SYSTEM SET wal_level = 'logical';")
    assert f"{wal_level}\n-- then restart the server\n" in script
    newcomer.psql(_with_everything_optional(script))
    waiting = {f["id"]: f for f in newcomer.findings(code=6) if f["severity"] == "fail"}
    assert waiting.keys() == {"wal_level", "max_replication_slots"}
    for finding in waiting.values():
        assert "is set, and waits for a restart" in finding["message"]
        assert finding["fix_sql"] is None
    assert _plain(newcomer.waly("check", "--fix-sql", code=6)) == []
    physical.restart()
    assert newcomer.waly("check", "--fix-sql") == "-- nothing to mend\n"
    assert "max_slot_wal_keep_size is 64.0 GiB" in newcomer.waly("check")
    newcomer.waly("init")
    newcomer.waly("run", "--once")


def test_a_wrong_password_is_called_one(
    physical: EmbeddedServer, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newcomer = Newcomer(physical.dsn(), "", work_dir, capsys)
    newcomer.sql("CREATE ROLE waly_secret LOGIN PASSWORD 'right'")
    rules = physical.directory / "data" / "pg_hba.conf"
    trusting = rules.read_text()
    rules.write_text(f"host all waly_secret 127.0.0.1/32 scram-sha-256\n{trusting}")
    try:
        newcomer.sql("SELECT pg_reload_conf()", "SELECT pg_sleep(0.2)")
        dsn = physical.dsn(user="waly_secret")
        said = newcomer.waly("check", "--dsn", f"{dsn} password=wrong", code=12)
        assert "hint: is the password right? " in said
        assert "wrong" not in said
        said = newcomer.waly("check", "--dsn", dsn, code=12)
        assert "hint: set the password in " in said
    finally:
        rules.write_text(trusting)
        newcomer.sql("SELECT pg_reload_conf()")


def test_init_says_what_keeps_it_from_which_table(newcomer: Newcomer) -> None:
    newcomer.sql(f"ALTER ROLE {ROLE} REPLICATION")
    said = newcomer.waly("init", "--table", "guarded", "--table", "private.*", code=12)
    assert f"role {ROLE} may not read private.denied, public.guarded" in said
    assert f"row level security hides rows of public.guarded from role {ROLE}" in said
    statements = f"GRANT pg_read_all_data TO {ROLE}; ALTER ROLE {ROLE} BYPASSRLS;"
    assert f"hint: as a superuser: {statements}" in said
    newcomer.sql(f"GRANT pg_read_all_data TO {ROLE}")
    said = newcomer.waly("init", code=12)
    assert f"row level security hides rows of public.guarded from role {ROLE}" in said
    assert "may not read" not in said
    assert f"hint: as a superuser: ALTER ROLE {ROLE} BYPASSRLS;" in said


def test_statements_that_are_the_same_are_shown_once_in_a_row(newcomer: Newcomer) -> None:
    said = newcomer.waly("check", code=6)
    assert said.count(f"role {ROLE} may not read it") == 7
    assert said.count(f"GRANT pg_read_all_data TO {ROLE};") == 1
