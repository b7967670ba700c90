"""Broken histories: each is found before capture goes on, and the archive goes on in a new era."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.conftest import TestServer
from tests.integration.test_cli import Waly
from tests.running import wait_for

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
    wait_for(lambda: any(path.stat().st_size for path in waly.archive.glob("journal/*")))
    wait_for(lambda: _safe(waly) == _written(waly))
    killed.kill()
    killed.wait()
    assert waly("log") == []
    wait_for(lambda: not waly("slot", "show")[0]["active"])
    drop_slot(waly)
    (made,) = waly("init", "--new-era")
    (event,) = waly("log")
    assert (event["era"], event["changed"]) == (1, {"status": ["new", "journalled"]})
    assert not list(waly.archive.glob("journal/*"))
    assert rows(waly, f"1:{made['gap']['from']}") == live_rows(waly)
    waly("run", "--once")
    assert waly("verify")[0]["result"] == "passed"


def _safe(waly: Waly) -> str | None:
    (status,) = waly("status")
    return status["sidecar"] and status["sidecar"]["safe"]


def _written(waly: Waly) -> str:
    with psycopg.connect(waly.dsn) as connection:
        row = connection.execute("select pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    return str(row[0])
