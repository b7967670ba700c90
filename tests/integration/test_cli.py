"""The commands, as a user runs them, on a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.comparing import digests
from tests.conftest import TestServer
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.cli.main import run
from waly_cdc.embedded import EmbeddedServer

SCHEMA = """
create table customers (id int primary key, name text not null);
create table orders (
    id bigint generated always as identity primary key,
    customer_id int references customers,
    status text not null default 'new',
    total numeric(12, 2),
    placed_at timestamptz default '2026-01-02 03:04:05.6+00'
);
create table notes (body text);
insert into customers select i, 'customer ' || i from generate_series(1, 10) i;
insert into orders (customer_id, total) select 1 + i % 10, i * 1.5 from generate_series(1, 50) i;
"""


@dataclass(frozen=True)
class Waly:
    """Runs commands in this process, against one database and one archive."""

    dsn: str
    archive: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        """What the command answers with `--json`; its exit code must be `code`."""
        self.capsys.readouterr()
        got = run(["--dsn", self.dsn, "--archive", str(self.archive), "--json", *arguments])
        captured = self.capsys.readouterr()
        assert got == code, captured.err
        return [json.loads(line) for line in captured.out.splitlines()]

    def text(self, *arguments: str, code: int = 0) -> str:
        """What the command shows a person, on both streams."""
        self.capsys.readouterr()
        got = run(["--dsn", self.dsn, "--archive", str(self.archive), *arguments])
        captured = self.capsys.readouterr()
        assert got == code, captured.err
        return captured.out + captured.err

    def error(self, *arguments: str, code: int) -> dict[str, Any]:
        """The error the command ends with: one object on stderr, and nothing on stdout."""
        self.capsys.readouterr()
        got = run(["--dsn", self.dsn, "--archive", str(self.archive), "--json", *arguments])
        captured = self.capsys.readouterr()
        assert got == code, captured.err
        assert captured.out == ""
        error = json.loads(captured.err.splitlines()[-1])
        assert error["code"] == code
        return dict(error)

    def sql(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@pytest.fixture
def waly(database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> Waly:
    waly = Waly(database, work_dir / "archive", capsys)
    waly.sql(SCHEMA)
    return waly


@pytest.fixture
def captured(waly: Waly) -> Waly:
    """An archive with a baseline and three transactions."""
    waly("init")
    waly.sql(
        "update orders set status = 'paid' where id = 7",
        "update orders set status = 'gone', total = 'NaN'",
        "delete from orders where id = 8",
    )
    waly("run", "--once")
    return waly


def test_init_makes_what_it_says_and_is_refused_the_second_time(waly: Waly) -> None:
    (made,) = waly("init")
    assert made["created"] is True
    assert {t["table"]: t["rows"] for t in made["tables"]} == {
        "public.customers": 10,
        "public.notes": 0,
        "public.orders": 50,
    }
    assert "already" in waly.error("init", code=2)["message"]
    (again,) = waly("init", "--if-not-exists")
    assert again["created"] is False
    assert again["lsn"] == made["lsn"]


def test_init_takes_only_the_tables_that_it_is_told_to(waly: Waly) -> None:
    (made,) = waly("init", "--table", "public.*", "--exclude", "notes")
    assert {t["table"] for t in made["tables"]} == {"public.customers", "public.orders"}


def test_a_database_without_tables_is_captured_too(
    database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waly = Waly(database, work_dir / "archive", capsys)
    (made,) = waly("init")
    assert made["tables"] == []
    assert waly("init", "--if-not-exists")[0]["created"] is False
    waly("run", "--once")
    assert waly("verify", code=0)[0]["result"] == "passed"
    assert waly("log") == []
    assert waly("query", "select count(*) as n from transactions") == [{"n": 0}]
    waly.error("diff", "--from", "2001-01-01T00:00:00Z", code=7)


def test_a_row_has_its_whole_history(captured: Waly) -> None:
    newest, older = captured("log", "orders", "7")
    assert newest["changed"] == {"status": ["paid", "gone"], "total": [10.5, "NaN"]}
    assert older["changed"] == {"status": ["new", "paid"]}
    assert older["after"] == newest["before"]
    assert older["before"] == {
        "id": 7,
        "customer_id": 8,
        "status": "new",
        "total": 10.5,
        "placed_at": "2026-01-02T03:04:05.6+00:00",
    }
    assert (older["version"], newest["version"]) == (2, 3)
    (deleted, *_) = captured("log", "orders", "8")
    assert (deleted["op"], deleted["after"], deleted["version"]) == ("D", None, 3)
    assert deleted["before"]["status"] == "gone"


def test_the_log_gives_what_is_asked_for(captured: Waly) -> None:
    everything = captured("log")
    assert len(everything) == 52
    positions = [(event["lsn"], event["seq"]) for event in everything]
    assert len(set(positions)) == 52
    xid = everything[1]["xid"]
    assert len(captured("log", "--xid", str(xid))) == 50
    assert len(captured("log", "orders", "--op", "D")) == 1
    assert len(captured("log", "orders", "--column", "total")) == 50
    assert len(captured("log", "orders", "-n", "3")) == 3
    assert len(captured("log", "orders", "--since", f"xid:{xid}")) == 1
    assert len(captured("log", "orders", "--until", f"xid:{xid}^")) == 1
    assert captured("log", "customers") == []
    assert "orders id=7" in captured.text("log", "orders", "7", "--oneline")
    assert "status: new → paid" in captured.text("log", "orders", "7")
    assert "- status: new" in captured.text("log", "orders", "7", "-p")


def test_a_row_is_shown_as_it_was(captured: Waly) -> None:
    newest, older = captured("log", "orders", "7")
    (row,) = captured("show", "orders", "7", "--at", f"xid:{older['xid']}")
    assert row["row"] == older["after"]
    assert row["row_hash"] == older["row_hash"]
    (row,) = captured("show", "orders", "7", "--at", f"xid:{older['xid']}^")
    assert (row["row"], row["version"]) == (older["before"], 1)
    (row,) = captured("show", "orders", "7")
    assert row["row"] == newest["after"]
    assert "had no row" in captured.error("show", "orders", "8", code=2)["message"]
    assert len(captured("show", f"xid:{newest['xid']}")) == 50


def test_blame_names_the_transaction_that_set_each_column(captured: Waly) -> None:
    newest, older = captured("log", "orders", "7")
    (found,) = captured("blame", "orders", "7")
    assert (found["table"], found["key"], found["version"]) == ("public.orders", {"id": 7}, 3)
    columns = found["columns"]
    assert {name: column["value"] for name, column in columns.items()} == newest["after"]
    for name in ("status", "total"):
        assert columns[name]["xid"] == newest["xid"]
        assert columns[name]["lsn"] == newest["lsn"]
        assert columns[name]["committed_at"] == newest["committed_at"]
        assert columns[name]["actor"] == newest["actor"]
    assert columns["customer_id"]["xid"] is None
    (then,) = captured("blame", "orders", "7", "--at", f"xid:{older['xid']}")
    assert then["columns"]["status"]["xid"] == older["xid"]
    assert then["columns"]["total"]["xid"] is None
    shown = captured.text("blame", "orders", "7")
    assert re.search(rf"xid {newest['xid']} +status +gone", shown)
    assert "there when the archive began" in shown
    assert "known up to" in shown
    assert "had no row" in captured.error("blame", "orders", "8", code=2)["message"]
    captured.error("blame", "orders", code=2)
    captured.error("blame", "nowhere", "1", code=2)


def test_a_transaction_says_itself_who_made_it(captured: Waly) -> None:
    captured.sql(
        "begin; select pg_logical_emit_message(true, 'waly', '{\"actor\": \"carol\"}');"
        " insert into customers values (11, 'new'); commit"
    )
    captured("run", "--once")
    (event,) = captured("log", "customers")
    assert event["actor"]["user"] == "carol"
    assert event["actor"]["source"] == "message"
    assert captured("log", "--actor", "carol") == [event]
    (status,) = captured("status")
    assert status["attribution"]["message"] == 1


def test_the_difference_of_two_points_is_what_happened_between_them(captured: Waly) -> None:
    deleted = captured("log", "orders", "8")[0]["xid"]
    assert captured("diff", "--from", f"xid:{deleted}") == []
    (only,) = captured("diff", "--from", f"xid:{deleted}^", "--exit-code", code=8)
    assert (only["change"], only["key"]) == ("removed", {"id": 8})
    everything = captured("diff", "orders", "--from", f"xid:{deleted - 2}^")
    assert [d["key"]["id"] for d in everything if d["change"] == "changed"] == [
        number for number in range(1, 51) if number != 8
    ]
    (one,) = captured("diff", "orders", "9", "--from", f"xid:{deleted - 2}^")
    assert one["changed"] == {"status": ["new", "gone"], "total": [13.5, "NaN"]}
    assert captured("diff", "--from", f"xid:{deleted - 2}^", "--stat") == [
        {"table": "public.orders", "added": 0, "changed": 49, "removed": 1}
    ]


def test_queries_see_tables_history_and_transactions(captured: Waly) -> None:
    assert captured("query", "select count(*) as n from orders") == [{"n": 49}]
    deleted = captured("log", "orders", "8")[0]["xid"]
    at = ("--at", f"xid:{deleted - 2}^")
    assert captured("query", "select sum(total) as s from public.orders", *at) == [{"s": 1912.5}]
    (row,) = captured("query", "select total from orders where id = 7")
    assert row == {"total": "NaN"}
    rows = captured(
        "query",
        "select op, version, key.id as id, before.status as was, after.status as status, changed"
        ' from history.public.orders where key.id = 7 order by "position"',
    )
    assert [(row["version"], row["was"], row["status"]) for row in rows] == [
        (2, "new", "paid"),
        (3, "paid", "gone"),
    ]
    assert rows[0]["changed"] == {"status": ["new", "paid"]}
    assert captured("query", "select events from transactions order by position") == [
        {"events": 1},
        {"events": 50},
        {"events": 1},
    ]
    assert captured(
        "query",
        "select op, count(*) as n from changes where op = $op group by op",
        "--param",
        "op=U",
    ) == [{"op": "U", "n": 51}]


def test_every_query_that_comes_with_waly_runs(captured: Waly) -> None:
    listed = captured("query", "--list")
    assert len(listed) >= 5
    for query in listed:
        given = [
            f"--param={each['name']}=unknown" for each in query["parameters"] if not each["default"]
        ]
        captured("query", query["name"], *given)


@pytest.mark.parametrize(
    "statement",
    [
        "copy (select 1) to '{file}'",
        "with x as (copy (select 1) to '{file}') select 1",
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "attach '{file}'",
        "set enable_external_access = true",
        "install httpfs",
        "create table x as select 1",
        "insert into orders values (1)",
        "with x as (delete from orders returning 1) select 1",
        "drop view transactions",
        "select 1; select 2",
        "pragma database_list",
        "select * from read_parquet('{archive}/transactions/*/*.parquet')",
        "select",
        "select * from nowhere",
        "",
    ],
)
def test_a_query_can_write_nothing_and_reach_no_file(
    captured: Waly, work_dir: Path, statement: str
) -> None:
    file = work_dir / "written"
    filled = statement.format(file=file, archive=captured.archive)
    captured.error("query", filled, code=2)
    assert not file.exists()


def test_query_results_come_in_four_forms(captured: Waly, work_dir: Path) -> None:
    sql = "select id, name from customers where id < 3 order by id"
    assert captured.text("--quiet", "query", sql, "--format", "csv") == (
        "id,name\n1,customer 1\n2,customer 2\n"
    )
    assert "customer 2" in captured.text("--quiet", "query", sql)
    file = work_dir / "out.parquet"
    captured("query", sql, "--format", "parquet", "--output", str(file))
    assert file.stat().st_size > 100


def test_a_restored_database_equals_the_live_one_and_the_past(
    captured: Waly, server: TestServer, work_dir: Path
) -> None:
    tables = ("customers", "orders", "notes")
    target = server.create_database()
    other = server.create_database()
    try:
        (result,) = captured("restore", "--to", "latest", "--target", server.dsn(target))
        assert {t["table"]: t["rows"] for t in result["tables"]}["public.orders"] == 49
        assert digests(server.dsn(target), tables) == digests(captured.dsn, tables)
        refused = captured.error(
            "restore", "--to", "latest", "--target", server.dsn(target), code=1
        )
        assert "--force" in refused["hint"]
        captured("restore", "--to", "latest", "--table", "notes", "--target", server.dsn(other))
        file = work_dir / "out.duckdb"
        captured("restore", "--to", "latest", "--output", str(file))
        assert file.exists()
        (plan,) = captured("restore", "--to", "latest", "--dry-run")
        assert {t["table"] for t in plan["tables"]} == {f"public.{name}" for name in tables}
    finally:
        server.drop_database(target)
        server.drop_database(other)


def test_a_restore_has_what_was_made_without_touching_a_row(
    captured: Waly, server: TestServer
) -> None:
    captured.sql("create index made_later on orders (status)", "create view v as select 1 as one")
    captured("run", "--once")
    captured.sql("drop table notes")
    captured("run", "--once")
    target = server.create_database()
    try:
        captured("restore", "--to", "latest", "--target", server.dsn(target))
        with psycopg.connect(server.dsn(target)) as connection:
            row = connection.execute(
                "select to_regclass('made_later'), to_regclass('v'), to_regclass('notes')"
            ).fetchone()
        assert row == ("made_later", "v", None)
    finally:
        server.drop_database(target)


def test_verify_passes_and_status_remembers_it(captured: Waly) -> None:
    (report,) = captured("verify")
    assert report["result"] == "passed"
    assert report["checked"]["rows"] > 100
    (status,) = captured("status")
    assert status["last_verify"]["result"] == "passed"
    assert status["state"] == "stopped"
    assert status["archive"]["events"] == 52
    assert status["archive"]["transactions"] == 3
    assert status["slot"]["wal_status"] == "reserved"
    assert "stopped" in captured.text("status")


def test_a_flipped_byte_is_found_and_shows_in_status(captured: Waly) -> None:
    file = sorted(captured.archive.glob("events/*/*/*.parquet"))[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(content)
    (report,) = captured("verify", code=4)
    assert report["result"] == "mismatch"
    (status,) = captured("status", code=3)
    assert status["state"] == "degraded"


def test_a_sidecar_runs_until_it_is_told_to_stop(waly: Waly) -> None:
    sidecar = subprocess.Popen(
        [sys.executable, "-m", "waly_cdc", "--archive", str(waly.archive), "run", "--init"],
        env={**os.environ, "WALY_DSN": waly.dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (waly.archive / "sidecar.json").exists():
            assert time.monotonic() < deadline
            assert sidecar.poll() is None
            time.sleep(0.05)
        waly.sql("insert into notes values ('while running')")
        (status,) = waly("status")
        assert status["state"] == "running"
        assert "another" in waly.error("run", "--once", code=11)["message"]
    finally:
        sidecar.send_signal(signal.SIGTERM)
        out, err = sidecar.communicate(timeout=30)
    assert sidecar.returncode == 0, err
    assert "archived 1 transaction with 1 event;" in out
    (event,) = waly("log", "notes")
    assert event["after"] == {"body": "while running"}
    assert event["key"] is None


def test_the_slot_is_shown_and_dropped_only_when_meant(captured: Waly) -> None:
    (slot,) = captured("slot", "show")
    assert slot["publications"] == [f"{slot['name']}_all", f"{slot['name']}_keyed"]
    assert "gap" in captured.error("slot", "drop", code=2)["message"]
    (dropped,) = captured("slot", "drop", "--yes")
    assert len(dropped["dropped"]) == 3
    captured.error("run", "--once", code=13)
    (status,) = captured("status", code=3)
    assert status["slot"]["error"].startswith("there is no such slot")
    assert len(captured("log", "orders")) == 52


def test_check_reports_and_prints_what_mends(waly: Waly) -> None:
    (report,) = waly("check")
    assert report["result"] in ("pass", "warn")
    found = {finding["subject"]: finding for finding in report["findings"]}
    assert any(f["id"] == "wal_level" and f["severity"] == "pass" for f in report["findings"])
    assert any("notes" in subject for subject in found)
    assert "REPLICA IDENTITY" in waly.text("check", "--fix-sql").upper()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("log", "nothing"), 2),
        (("log", "orders", "1", "2"), 2),
        (("log", "orders", "seven"), 2),
        (("log", "notes", "1"), 2),
        (("log", "--column", "nothing"), 2),
        (("log", "--op", "X"), 2),
        (("log", "--since", "yesterday"), 2),
        (("show", "orders", "1", "--at", "0/zz"), 2),
        (("show", "orders", "1", "--at", "0/1"), 7),
        (("show", "orders", "1", "--at", "FFFF/0"), 7),
        (("show", "orders", "1", "--at", "2001-01-01T00:00:00Z"), 7),
        (("show", "orders", "1", "--at", "2999-01-01T00:00:00Z"), 7),
        (("show", "xid:1"), 7),
        (("diff", "--from", "xid:1"), 7),
        (("restore", "--to", "latest", "--table", "nothing", "--target", "dbname=x"), 2),
        (("restore", "--to", "latest", "--output", "/nonexistent/x.duckdb"), 1),
        (("restore", "--to", "latest", "--target", "host=127.0.0.1 port=1 user=x"), 1),
    ],
)
def test_bad_input_has_its_exit_code(captured: Waly, arguments: tuple[str, ...], code: int) -> None:
    assert captured.error(*arguments, code=code)["message"]


def test_an_unreachable_server_is_exit_code_12(waly: Waly) -> None:
    for verb in ("check", "init"):
        error = waly.error(verb, "--dsn", "host=127.0.0.1 port=1 user=x", code=12)
        assert "refused" in error["message"]
        assert error["hint"]


def test_a_password_is_in_no_error(waly: Waly) -> None:
    for dsn in ("postgresql://me:se@cret@127.0.0.1:1/x", "host=127.0.0.1 port=1 password=secret"):
        error = waly.error("init", "--dsn", dsn, code=12)
        assert "secret" not in json.dumps(error)
        assert "cret" not in json.dumps(error).replace("secret", "")


def test_an_archive_of_another_database_is_refused(captured: Waly, server: TestServer) -> None:
    other = server.create_database()
    try:
        error = captured.error("run", "--once", "--dsn", server.dsn(other), code=12)
        assert "belongs to database" in error["message"]
    finally:
        server.drop_database(other)


def test_a_role_without_replication_is_refused_with_the_statement_that_helps(
    waly: Waly,
) -> None:
    waly.sql("create role plain login", "grant pg_read_all_data to plain")
    dsn = waly.dsn.replace("user=postgres", "user=plain")
    assert dsn != waly.dsn
    try:
        error = waly.error("init", "--dsn", dsn, code=12)
        assert "replication" in error["message"]
        assert "ALTER ROLE plain REPLICATION;" in error["hint"]
        waly("check", "--dsn", dsn, code=6)
    finally:
        waly.sql("drop owned by plain", "drop role plain")


@pytest.fixture(scope="module")
def physical_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(settings={"wal_level": "replica"}) as server:
        yield server


def test_a_wal_level_that_is_too_low_is_refused(
    physical_server: EmbeddedServer, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waly = Waly(physical_server.dsn(), work_dir / "archive", capsys)
    error = waly.error("init", code=12)
    assert "wal_level is replica" in error["message"]
    (report,) = waly("check", code=6)
    assert report["result"] == "fail"
    assert "wal_level" in waly.text("check", "--fix-sql", code=6)


@pytest.mark.parametrize(
    "failpoint",
    [
        "journal.append=enospc",
        "journal.sync=eio",
        "seal.write=enospc",
        "seal.publish=enospc",
        "manifest.put=enospc",
    ],
)
def test_a_disk_full_while_sealing_loses_nothing(captured: Waly, failpoint: str) -> None:
    captured.sql("insert into notes values ('on a full disk')")
    before = captured("log")
    command = [sys.executable, "-m", "waly_cdc", "--archive", str(captured.archive)]
    done = subprocess.run(
        [*command, "run", "--once"],
        env={**os.environ, "WALY_DSN": captured.dsn, "WALY_FAILPOINTS": failpoint},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "No space left" in done.stderr or "Input/output error" in done.stderr
    assert "hint:" in done.stderr
    # What lies whole in the journal is in the answer, sealed or not.
    assert captured("log")[-len(before) :] == before
    captured("run", "--once")
    assert captured("log")[1:] == before
    assert captured("log")[0]["after"] == {"body": "on a full disk"}
    assert captured("verify")[0]["result"] == "passed"


def test_settings_come_from_the_environment_too(
    captured: Waly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WALY_ARCHIVE", str(captured.archive))
    monkeypatch.setenv("WALY_DSN", "postgresql://me:secret@nowhere/db")
    captured.capsys.readouterr()
    assert run(["log", "--json", "-n", "1"]) == 0
    assert len(captured.capsys.readouterr().out.splitlines()) == 1
    assert run(["config", "show", "--origin", "--json"]) == 0
    shown = json.loads(captured.capsys.readouterr().out)
    assert shown["archive"] == {
        "value": str(captured.archive),
        "origin": "environment WALY_ARCHIVE",
    }
    assert shown["dsn"]["value"] == "postgresql://me:****@nowhere/db"


def test_a_time_since_the_last_change_is_known_while_a_sidecar_watches(waly: Waly) -> None:
    waly("init")
    waly.sql("insert into notes values ('last change')")
    sidecar = subprocess.Popen(
        [sys.executable, "-m", "waly_cdc", "--archive", str(waly.archive), "run", "--quiet"],
        env={**os.environ, "WALY_DSN": waly.dsn, "WALY_SEAL_INTERVAL": "100ms"},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not waly("log", "notes"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(4)
        assert waly("diff", "--from", "2s ago") == []
        assert waly("log", "--since", "2s ago") == []
    finally:
        sidecar.kill()
        sidecar.wait()
    (status,) = waly("status", code=3)
    assert "killed" in status["reasons"][0]
    waly("run", "--once")
    assert waly("status")[0]["reasons"] == []


def test_compact_says_what_it_did_and_gives_way_to_a_sidecar(captured: Waly) -> None:
    before = captured("log")
    (done,) = captured("compact", "--baseline")
    assert done["replaced"] == done["made"] == 0
    assert {"baselines", "bytes", "horizon"} <= done.keys()
    assert captured("log") == before
    assert "nothing to compact" in captured.text("compact")
    with ArchiveWriter.open(captured.archive):
        error = captured.error("compact", code=11)
    assert "compacts by itself" in error["hint"]
