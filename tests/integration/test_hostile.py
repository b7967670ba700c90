"""What an unkind application, an unkind terminal or an unkind disk does to the commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.integration.test_cli import Waly
from tests.running import running
from waly_cdc.capture.settings import CaptureSettings


@pytest.fixture
def waly(database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> Waly:
    return Waly(database, work_dir / "archive", capsys)


def _archived(waly: Waly, *statements: str) -> Waly:
    waly.sql(*statements)
    waly("init")
    return waly


def test_a_query_never_takes_one_table_for_another_of_different_case(waly: Waly) -> None:
    _archived(
        waly,
        'create table plain (id int primary key); create table "Plain" (id int primary key)',
        'insert into plain values (1), (2); insert into "Plain" values (3)',
    )
    for name in ("plain", '"Plain"', "public.plain"):
        assert "ambiguous" in waly.error("query", f"select * from {name}", code=2)["message"]
    with psycopg.connect(waly.dsn) as connection:
        (oid,) = connection.execute("select '\"Plain\"'::regclass::oid").fetchone() or (0,)
    assert waly("query", f'select * from "Plain~{oid}"') == [{"id": 3}]


def test_a_query_never_takes_one_column_for_another_of_different_case(waly: Waly) -> None:
    _archived(
        waly,
        'create table cased (id int primary key, "A" text, a text)',
        "insert into cased values (1, 'upper', 'lower')",
    )
    assert waly("query", "select * from cased") == [{"id": 1, "A~2": "upper", "a~3": "lower"}]
    assert "not found" in waly.error("query", "select a from cased", code=2)["message"]


def test_schemas_and_tables_may_have_the_names_that_a_query_uses_itself(waly: Waly) -> None:
    _archived(
        waly,
        "create schema history; create table history.t (id int primary key)",
        "create schema memory; create table memory.t (id int primary key)",
        "create table transactions (id int primary key); create table changes (id int)",
        "create table t (id int primary key); insert into t values (1)",
        "insert into history.t values (2); insert into memory.t values (3)",
        "insert into transactions values (4)",
    )
    waly.sql("update t set id = 5")
    waly("run", "--once")
    assert waly("query", "select * from t") == [{"id": 5}]
    assert waly("query", "select * from memory.history.t") == [{"id": 2}]
    assert waly("query", "select * from memory.memory.t") == [{"id": 3}]
    assert waly("query", "select * from transactions") == [{"id": 4}]
    assert "main.transactions" in waly.text("query", "select * from transactions")
    assert waly("query", "select events from main.transactions") == [{"events": 1}]
    assert [row["op"] for row in waly("query", "select op from history.public.t")] == ["U"]
    assert [row["table"] for row in waly("query", "hot-tables")] == ["public.t"]
    assert len(waly("query", "applications")) == 1


def test_a_query_says_so_where_updates_and_deletes_are_not_archived(waly: Waly) -> None:
    _archived(waly, "create table loose (a int); insert into loose values (1)")
    waly.sql("delete from loose")
    waly("run", "--once")
    assert "not archived" in waly.text("query", "select * from loose")


def test_columns_of_one_name_are_all_in_a_query_s_json(waly: Waly) -> None:
    _archived(waly, "create table t (id int primary key)")
    assert waly("query", "select 1 a, 2 a, 3 a_1") == [{"a": 1, "a_2": 2, "a_1": 3}]


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        ("boolean", "true", ("true", "t", "TRUE")),
        ("character(5)", "ab", ("ab", "ab   ")),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", ("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",)),
        ("double precision", "0.1", ("0.1", "1e-1", "0.10")),
        ("double precision", "-Infinity", ("-Infinity", "-inf")),
        ("real", "0.1", ("0.1",)),
        ("bigint", "-7", ("-7", "-07")),
    ],
)
def test_a_key_is_found_in_each_form_that_postgresql_takes(
    waly: Waly, kind: str, value: str, written: tuple[str, ...]
) -> None:
    _archived(
        waly,
        f"create table t (k {kind} primary key, v int)",
        f"insert into t values ('{value}', 1)",
    )
    waly.sql("update t set v = 2")
    waly("run", "--once")
    for text in written:
        (shown,) = waly("show", "t", "--", text)
        assert shown["row"]["v"] == 2
        assert [event["op"] for event in waly("log", "t", "--", text)] == ["U"]


def test_arrays_of_boxes_have_their_own_delimiter(waly: Waly) -> None:
    _archived(waly, "create table t (id int primary key, v box[])")
    waly.sql("insert into t values (1, '{(1,1),(0,0);(2,2),(1,1)}')")
    waly("run", "--once")
    (shown,) = waly("show", "t", "1")
    assert shown["row"]["v"] == ["(1,1),(0,0)", "(2,2),(1,1)"]


@pytest.mark.parametrize(
    "message",
    ['{"user":"\\ud800"}', '{"user":"\\u0000"}', "{", "null", "[" * 20_000, '{"user":["a"]}', ""],
)
@pytest.mark.parametrize("transactional", [True, False])
def test_no_logical_message_stops_capture(waly: Waly, message: str, transactional: bool) -> None:
    _archived(waly, "create table t (id int primary key)")
    with psycopg.connect(waly.dsn) as connection:
        connection.execute("insert into t values (1)")
        connection.execute(
            "select pg_logical_emit_message(%s, 'waly', %s)", (transactional, message)
        )
    waly("run", "--once")
    (event,) = waly("log", "t")
    assert event["after"] == {"id": 1}


def test_text_for_people_holds_nothing_that_steers_a_terminal(waly: Waly) -> None:
    _archived(waly, "create table t (id int primary key, v text)")
    waly.sql(
        "begin; insert into t values (1, E'\\x1b[2Jx');"
        """ select pg_logical_emit_message(true, 'waly', '{"user":"\\u001b[31mroot\\n"}'); commit"""
    )
    waly("run", "--once")
    for arguments in (("log",), ("log", "-p"), ("log", "--oneline"), ("show", "t", "1")):
        shown = waly.text(*arguments)
        assert "\x1b[2J" not in shown
        assert "\x1b[31m" not in shown
    assert len(waly.text("log", "--oneline", "--quiet").splitlines()) == 1
    assert waly("show", "t", "1")[0]["row"]["v"] == "\x1b[2Jx"


def test_a_file_that_is_gone_or_damaged_is_the_archive_s_fault(waly: Waly) -> None:
    _archived(waly, "create table t (id int primary key); insert into t values (1)")
    (file,) = (waly.archive / "events").rglob("*.parquet")
    whole = file.read_bytes()
    file.chmod(0o600)
    for damaged in (whole[:-20], b"", whole[:60] + bytes([whole[60] ^ 0xFF]) + whole[61:]):
        file.write_bytes(damaged)
        assert "verify" in waly.error("query", "select * from t", code=4)["hint"]
    file.unlink()
    assert "verify" in waly.error("query", "select * from t", code=4)["hint"]


def test_the_server_s_reason_for_ending_the_stream_is_told(waly: Waly) -> None:
    _archived(waly, "create table t (id int primary key); insert into t values (1)")
    with psycopg.connect(waly.dsn) as connection:
        (name,) = connection.execute("select current_database()").fetchone() or ("",)
    waly.sql(f"drop publication waly_{name}_keyed", "update t set id = 2")
    assert "publication" in waly.error("run", "--once", code=12)["message"]


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "utf-8"])
def test_data_is_utf_8_whatever_the_locale(waly: Waly, encoding: str) -> None:
    _archived(
        waly,
        'create table "täble" (id int primary key, v text); insert into "täble" values (1, \'🐘\')',
    )
    statement = 'select v from "täble"'
    program = str(Path(sys.executable).with_name("waly"))
    environment = {"PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run(
        [program, "query", statement, "--json", "--archive", str(waly.archive)],
        capture_output=True,
        env=environment,
        check=True,
    )
    assert json.loads(done.stdout.decode()) == {"v": "🐘"}


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_who_reads_no_further_makes_no_error(waly: Waly, form: str) -> None:
    _archived(waly, "create table t (id int primary key)")
    program = Path(sys.executable).with_name("waly")
    query = f"'select * from range(200000)' --format {form} --archive '{waly.archive}'"
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"'{program}' query {query} | head -c 10 >/dev/null; echo ${{PIPESTATUS[0]}}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"x" * (8 << 20),
        b'{"actor":"' + b"y" * (2 << 20) + b'"}',
        b"\xff\xfe\x00",
        b'{"actor": "*/; drop table t; --", "x": "\\u0000"}',
    ],
    ids=["8 MB", "2 MB of name", "no UTF-8", "a comment"],
)
def test_no_context_stops_capture_or_is_kept_whole(waly: Waly, content: bytes) -> None:
    _archived(waly, "create table t (id int primary key)")
    with psycopg.connect(waly.dsn) as connection:
        connection.execute("insert into t values (1)")
        for _ in range(3):
            connection.execute(
                "select pg_logical_emit_message(true, 'waly', %b::bytea)", (content,)
            )
        # Not ours: other prefixes, and what is not part of the transaction.
        for prefix, transactional in (("walyx", True), ("WALY", True), ("", True), ("waly", False)):
            connection.execute(
                'select pg_logical_emit_message(%s, %s, \'{"actor":"forged"}\')',
                (transactional, prefix),
            )
    waly("run", "--once")
    (event,) = waly("log", "t")
    actor = event["actor"]
    assert actor["user"] != "forged"
    assert len(actor["context"].encode()) <= 3 * 16_384
    assert [source["source"] for source in actor["sources"]] == ["message"]


def test_a_message_that_names_another_role_is_a_finding(waly: Waly) -> None:
    _archived(waly, "create table t (id int primary key)")
    for role in ("alice", "batch_job"):
        waly.sql(
            f"do $$ begin create role {role} login superuser;"
            " exception when duplicate_object then null; end $$"
        )
    with (
        psycopg.connect(waly.dsn, user="alice", application_name="psql") as alice,
        psycopg.connect(waly.dsn, user="batch_job", application_name="cron") as job,
        running(CaptureSettings(waly.dsn, waly.archive, sample_interval=0.01)),
    ):
        alice.execute("insert into t values (1)")
        job.execute("insert into t values (2)")
        for name in ("carol", "alice"):
            job.execute(
                "select pg_logical_emit_message(true, 'waly', %s)",
                (json.dumps({"actor": name}),),
            )
        # Many times the interval.
        time.sleep(1)
        alice.commit()
        job.commit()
    waly("run", "--once")
    named = {event["key"]["id"]: event["actor"] for event in waly("log", "t")}
    assert named[1]["user"] == "alice"
    assert (named[2]["user"], named[2]["application_name"]) == ("alice", "cron")
    assert [source["user"] for source in named[2]["sources"]] == ["alice", "batch_job"]
    found = [{"says": "alice", "session": "batch_job", "transactions": 1}]
    assert waly("status")[0]["contradictions"] == found
    (finding,) = (f for f in waly("verify")[0]["findings"] if f["id"] == "transactions.actor")
    assert "batch_job" in finding["message"]
    (row,) = waly("query", "contradictions")
    assert (row["says"], row["session"]) == ("alice", "batch_job")
