"""Broken histories: each is found before capture goes on, and the archive goes on in a new era."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.conftest import TestServer
from tests.integration.test_cli import Waly
from tests.running import wait_for
from waly_cdc.capture.state import read_state
from waly_cdc.lsn import Lsn

SCHEMA = """
create table orders (id int primary key, status text not null);
insert into orders select i, 'new' from generate_series(1, 20) i
"""


@pytest.fixture
def waly(database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> Waly:
    waly = Waly(database, work_dir / "archive", capsys)
    waly.sql(*SCHEMA.split(";"))
    return waly


def drop_slot(waly: Waly) -> None:
    """Drop the slot, when the server has noticed that its last reader is gone."""
    wait_for(lambda: not waly("slot", "show")[0]["active"])
    waly.sql(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        " where database = current_database()"
    )


def begin_new_era(waly: Waly, code: int = 13) -> str:
    """Run what the error of `waly run` says that has to be run; the error's message."""
    error = waly.error("run", "--once", code=code)
    command = shlex.split(error["hint"].rpartition(": ")[2])
    assert command[:3] == ["waly", "init", "--new-era"]
    waly(*command[1:])
    return str(error["message"])


def rows(waly: Waly, when: str) -> dict[int, str]:
    found = waly("query", "select id, status from orders", "--at", when)
    return {row["id"]: row["status"] for row in found}


def live_rows(waly: Waly) -> dict[int, str]:
    with psycopg.connect(waly.dsn) as connection:
        return dict(connection.execute("select id, status from orders").fetchall())


def test_after_a_dropped_slot_the_archive_goes_on_in_a_new_era(
    waly: Waly, server: TestServer
) -> None:
    waly("init")
    waly.sql("update orders set status = 'paid' where id = 7")
    waly("run", "--once")
    first = live_rows(waly)
    drop_slot(waly)
    waly.sql("update orders set status = 'unseen' where id = 7", "delete from orders where id = 8")
    assert "is gone" in begin_new_era(waly)
    second = live_rows(waly)
    waly.sql("update orders set status = 'again' where id = 7")
    waly("run", "--once")

    (status,) = waly("status")
    (gap,) = status["archive"]["gaps"]
    assert status["archive"]["eras"] == 2
    assert (gap["table"], gap["era"]) == (None, 2)
    assert "is gone" in gap["reason"]
    ended, began = f"1:{gap['from']}", f"2:{gap['to']}"
    assert rows(waly, ended) == first
    assert rows(waly, gap["from_time"]) == first
    assert rows(waly, began) == second
    assert rows(waly, gap["to_time"]) == second
    assert rows(waly, "latest") == live_rows(waly)

    assert [e["changed"] for e in waly("log", "orders", "7")] == [
        {"status": ["unseen", "again"]},
        {"status": ["new", "paid"]},
    ]
    assert [(e["era"], e["version"]) for e in waly("log", "orders", "7")] == [(2, 2), (1, 2)]
    assert len(waly("log", "--since", began)) == 1
    assert len(waly("log", "--until", ended)) == 1
    (newest, oldest) = waly("log")
    for event in (newest, oldest):
        name = f"{event['era']}:{event['lsn']}"
        (row,) = waly("show", "orders", "7", "--at", name)
        assert (row["row"], row["era"]) == (event["after"], event["era"])
        assert name in waly.text("log", "--oneline")
    assert {
        (d["key"]["id"], d["change"]) for d in waly("diff", "--from", ended, "--to", began)
    } == {
        (7, "changed"),
        (8, "removed"),
    }
    assert [d["changed"] for d in waly("diff", "orders", "7", "--from", ended)] == [
        {"status": ["paid", "again"]}
    ]
    found = waly("query", "select era, op from history.public.orders order by era, position")
    assert found == [{"era": 1, "op": "U"}, {"era": 2, "op": "U"}]
    assert waly("query", "select era, count(*) n from changes group by 1 order by 1") == [
        {"era": 1, "n": 1},
        {"era": 2, "n": 1},
    ]
    assert len(waly("query", "select * from transactions", "--at", ended)) == 1

    (verified,) = waly("verify")
    assert verified["result"] == "passed"
    assert [f["id"] for f in verified["findings"]] == ["era.gap"]
    for point, expected in ((ended, first), (began, second), ("latest", live_rows(waly))):
        name = server.create_database()
        try:
            waly("restore", "--to", point, "--target", server.dsn(name))
            assert live_rows(Waly(server.dsn(name), waly.archive, waly.capsys)) == expected
        finally:
            server.drop_database(name)


def test_a_point_in_the_gap_is_refused_and_the_nearest_points_are_named(waly: Waly) -> None:
    waly("init")
    drop_slot(waly)
    waly.sql("insert into orders values (100, 'unseen')")
    with psycopg.connect(waly.dsn) as connection:
        row = connection.execute(
            "select pg_current_wal_insert_lsn()::text, clock_timestamp()::text"
        ).fetchone()
    assert row is not None
    waly.sql("insert into orders values (101, 'unseen')")
    begin_new_era(waly)
    (gap,) = waly("status")[0]["archive"]["gaps"]
    for point in row:
        error = waly.error("show", "orders", "1", "--at", point.replace(" ", "T"), code=7)
        assert "in the gap between era 1 and era 2" in error["message"]
        assert f"1:{gap['from']}" in error["hint"]
        assert f"2:{gap['to']}" in error["hint"]
    assert "no era 3" in waly.error("diff", "--from", f"3:{row[0]}", code=7)["message"]
    waly.error("diff", "--from", f"1:{row[0]}", code=7)
    waly.error("diff", "--from", f"2:{row[0]}", code=7)


def test_a_history_that_is_not_broken_is_not_ended(waly: Waly) -> None:
    waly("init")
    assert "nothing is broken" in waly.error("init", "--new-era", code=2)["message"]
    waly("run", "--once")
    assert waly("status")[0]["archive"]["eras"] == 1


def test_what_the_journal_holds_of_an_era_is_not_lost_with_it(waly: Waly) -> None:
    waly("init")
    killed = subprocess.Popen(
        [sys.executable, "-m", "waly_cdc", "--archive", str(waly.archive), "run", "--quiet"],
        env={**os.environ, "WALY_DSN": waly.dsn},
        stdout=subprocess.DEVNULL,
    )
    waly.sql("update orders set status = 'journalled' where id = 7")
    written = _written(waly)
    wait_for(lambda: _safe(waly) >= written)
    killed.kill()
    killed.wait()
    (waiting,) = waly("log")
    drop_slot(waly)
    (made,) = waly("init", "--new-era")
    (event,) = waly("log")
    assert event == waiting
    assert (event["era"], event["changed"]) == (1, {"status": ["new", "journalled"]})
    assert not list(waly.archive.glob("journal/*"))
    assert rows(waly, f"1:{made['gap']['from']}") == live_rows(waly)
    waly("run", "--once")
    assert waly("verify")[0]["result"] == "passed"


@pytest.mark.parametrize("failpoint", ["baseline.copy", "seal.publish", "manifest.put"])
def test_an_era_that_was_killed_at_its_beginning_begins_the_next_time(
    waly: Waly, failpoint: str
) -> None:
    waly("init")
    waly.sql("update orders set status = 'first' where id = 7")
    waly("run", "--once")
    drop_slot(waly)
    killed = subprocess.run(
        [sys.executable, "-m", "waly_cdc", "--archive", str(waly.archive), "init", "--new-era"],
        env={**os.environ, "WALY_DSN": waly.dsn, "WALY_FAILPOINTS": f"{failpoint}=kill"},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    wait_for(lambda: not waly("slot", "show")[0]["active"])
    waly.sql("update orders set status = 'unseen' where id = 7")
    assert "made anew" in begin_new_era(waly)
    waly("run", "--once")
    assert waly("status")[0]["archive"]["eras"] == 2
    assert rows(waly, "latest") == live_rows(waly)
    assert waly("verify")[0]["result"] == "passed"


def test_what_only_an_earlier_era_has_is_found_there(waly: Waly) -> None:
    waly.sql("create table former (id int primary key, v text)")
    waly("init")
    waly.sql("insert into former values (1, 'x')")
    waly("run", "--once")
    xid = waly("log", "former")[0]["xid"]
    drop_slot(waly)
    waly.sql("drop table former", "create table later (id int primary key, v text)")
    begin_new_era(waly)
    (event,) = waly("log", "former", "1")
    assert (event["era"], event["after"]) == (1, {"id": 1, "v": "x"})
    assert [e["after"] for e in waly("show", f"xid:{xid}")] == [event["after"]]
    assert [e["era"] for e in waly("show", f"1:xid:{xid}")] == [1]
    waly.error("show", f"2:xid:{xid}", code=7)
    assert "no table" in waly.error("log", "nothing", code=2)["message"]
    removed = waly("diff", "--from", f"xid:{xid}")
    assert [(d["table"], d["change"]) for d in removed] == [("public.former", "removed")]
    assert waly("query", "select * from later") == []


def test_a_table_that_changed_its_shape_in_the_gap_is_compared_by_its_columns(waly: Waly) -> None:
    waly.sql(
        "create table goods (id int primary key, price float8, code int, old text)",
        "insert into goods select i, 0.1, i * 10, 'x' from generate_series(1, 3) i",
    )
    waly("init")
    waly.sql("update goods set price = 0.2 where id = 1")
    waly("run", "--once")
    drop_slot(waly)
    waly.sql(
        "alter table goods alter price type text, alter code type numeric, drop old, add new int",
        "update goods set code = 31 where id = 3",
    )
    begin_new_era(waly)
    waly.sql("update goods set price = 'free' where id = 1")
    waly("run", "--once")
    (gap,) = waly("status")[0]["archive"]["gaps"]
    between = waly("diff", "goods", "--from", f"1:{gap['from']}", "--to", f"2:{gap['to']}")
    assert [(d["key"], d["changed"]) for d in between] == [({"id": 3}, {"code": [30, 31]})]
    found = waly("query", "select era, after.price as p from history.public.goods order by 1")
    assert found == [{"era": 1, "p": "0.2"}, {"era": 2, "p": "free"}]
    prices = waly("query", "select price from goods order by id", "--at", f"1:{gap['from']}")
    assert [row["price"] for row in prices] == [0.2, 0.1, 0.1]


def test_a_fault_around_the_beginning_of_an_era_is_found(waly: Waly) -> None:
    waly("init")
    waly("run", "--once")
    drop_slot(waly)
    begin_new_era(waly)
    waly.sql("update orders set status = 'x' where id = 7")
    waly("run", "--once")
    entries = sorted((waly.archive / "manifest").glob("*.json"))
    (era,) = [path for path in entries if json.loads(path.read_bytes())["kind"] == "era"]
    content = era.read_bytes()
    era.chmod(0o600)
    era.write_bytes(content.replace(b'"era":2', b'"era":3'))
    found = {f["id"] for f in waly("verify", code=4)[0]["findings"]}
    assert "manifest.era" in found
    era.unlink()
    found = {f["id"] for f in waly("verify", code=4)[0]["findings"]}
    assert "file.missing" in found
    era.write_bytes(content)
    assert waly("verify")[0]["result"] == "passed"


def _safe(waly: Waly) -> Lsn:
    """Up to where a running sidecar has everything in its journal."""
    state = read_state(waly.archive)
    return Lsn.parse(state["safe"]) if state else Lsn(0)


def _written(waly: Waly) -> Lsn:
    with psycopg.connect(waly.dsn) as connection:
        row = connection.execute("select pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    return Lsn.parse(row[0])
