"""What breaks a history on the server's side, on servers of their own: it is always found."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.integration.test_cli import Waly
from tests.integration.test_eras import SCHEMA, begin_new_era, drop_slot, live_rows, rows
from tests.running import running, wait_for
from tests.servers import promote, put_back, set_aside, standby_of
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.status import is_locked
from waly_cdc.embedded import EmbeddedServer
from waly_cdc.errors import SlotLost
from waly_cdc.source.slot import FAILOVER_SINCE, STANDBY_SINCE


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server that may be stopped."""
    with EmbeddedServer.start(settings={"max_slot_wal_keep_size": "16MB"}) as server:
        yield server


@pytest.fixture
def waly(own_server: EmbeddedServer, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> Waly:
    waly = Waly(own_server.dsn(), work_dir / "archive", capsys)
    waly.sql(*SCHEMA.split(";"))
    waly("init")
    waly.sql("update orders set status = 'archived' where id = 7")
    waly("run", "--once")
    return waly


def require_version(server: EmbeddedServer, oldest: int) -> None:
    with psycopg.connect(server.dsn()) as connection:
        if connection.info.server_version // 10000 < oldest:
            pytest.skip(f"PostgreSQL {oldest} is the first that can do this")


def goes_on(waly: Waly, eras: int) -> None:
    """The archive is in its newest era what the database is, and whole."""
    waly.sql("update orders set status = status || '!' where id < 3")
    waly("run", "--once")
    assert waly("status")[0]["archive"]["eras"] == eras
    assert rows(waly, "latest") == live_rows(waly)
    assert waly("verify")[0]["result"] == "passed"


def write_log(waly: Waly) -> None:
    """Four segments of log in which nothing is for us."""
    for _ in range(4):
        waly.sql("select pg_logical_emit_message(false, '', ''), pg_switch_wal()")


def test_a_slot_that_lost_its_log_ends_an_era(waly: Waly) -> None:
    write_log(waly)
    waly.sql("checkpoint")
    assert "is lost" in begin_new_era(waly)
    goes_on(waly, eras=2)


def test_a_slot_made_anew_under_our_name_ends_an_era(waly: Waly) -> None:
    drop_slot(waly)
    waly.sql("update orders set status = 'unseen' where id = 1")
    waly.sql("select pg_create_logical_replication_slot('waly_postgres', 'pgoutput')")
    assert "made anew" in begin_new_era(waly)
    goes_on(waly, eras=2)
    drop_slot(waly)
    waly.sql("select pg_create_logical_replication_slot('waly_postgres', 'test_decoding')")
    assert "made anew" in begin_new_era(waly)
    goes_on(waly, eras=3)


def test_a_slot_that_goes_while_the_sidecar_runs_ends_it(waly: Waly) -> None:
    settings = CaptureSettings(waly.dsn, waly.archive, sample_interval=0)
    with pytest.raises(SlotLost, match="is gone"), running(settings):  # noqa: PT012 - it runs beside
        wait_for(lambda: waly("slot", "show")[0]["active"])
        wait_for(lambda: _takes_away_slot(waly))
        wait_for(lambda: not is_locked(waly.archive))
    assert "--new-era" in waly.error("run", "--once", code=13)["hint"]


def _takes_away_slot(waly: Waly) -> bool:
    with psycopg.connect(waly.dsn, autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid) from pg_stat_replication")
        try:
            connection.execute("select pg_drop_replication_slot('waly_postgres')")
        except psycopg.errors.ObjectInUse:
            return False
    return True


def test_a_server_that_is_put_back_to_an_older_state_ends_an_era(
    waly: Waly, own_server: EmbeddedServer
) -> None:
    with set_aside(own_server) as copy:
        waly.sql("update orders set status = 'lost on the server' where id = 1")
        waly("run", "--once")
        archived = rows(waly, "latest")
        put_back(own_server, copy)
    error = waly.error("run", "--once", code=13)
    assert "the server was put back" in error["message"]
    horizon = load(LocalStore(waly.archive)).horizon
    # It goes on past the archive's horizon: the LSN alone would tell nothing any more.
    waly.sql(
        "insert into orders select i, 'after' from generate_series(1000, 1100) i",
        "create table filler as select generate_series(1, 1000)",
    )
    assert "other transactions" in begin_new_era(waly)
    assert rows(waly, f"1:{horizon}") == archived
    goes_on(waly, eras=2)


def test_a_server_that_was_put_back_before_anything_else_happened_goes_on(
    waly: Waly, own_server: EmbeddedServer
) -> None:
    with set_aside(own_server) as copy:
        waly("run", "--once")
        put_back(own_server, copy)
    waly.sql("create table filler as select generate_series(1, 10000)")
    goes_on(waly, eras=1)


def test_a_promoted_standby_without_our_last_log_ends_an_era(
    waly: Waly, own_server: EmbeddedServer
) -> None:
    with standby_of(own_server) as standby:
        standby.stop()
        waly.sql("update orders set status = 'not on the standby' where id = 1")
        waly("run", "--once")
        own_server.stop()
        standby.restart()
        promote(standby)
        after = Waly(standby.dsn(), waly.archive, waly.capsys)
        after.sql("insert into orders select i, 'after' from generate_series(1000, 1100) i")
        assert "timeline 2" in begin_new_era(after)
        assert rows(after, f"1:{load(LocalStore(waly.archive)).earlier[0].horizon}")[1] != "new"
        goes_on(after, eras=2)
        (source,) = [load(LocalStore(waly.archive)).source]
        assert source is not None
        assert (source.timeline, len(source.ended)) == (2, 1)


def test_after_dump_and_restore_into_another_server_an_era_begins_that_was_confirmed(
    waly: Waly, own_server: EmbeddedServer
) -> None:
    write_log(waly)
    waly("run", "--once")
    with EmbeddedServer.start() as upgraded:
        new = Waly(upgraded.dsn(), waly.archive, waly.capsys)
        error = new.error("run", "--once", code=12)
        assert "leads to" in error["message"]
        assert "check --dsn" in error["hint"]
        new.sql("create table other ()")
        new.sql("drop table other")
        dump = subprocess.run(
            [own_server.bindir / "pg_dump", waly.dsn], check=True, capture_output=True
        ).stdout
        subprocess.run(
            [own_server.bindir / "psql", "-q", "-v", "ON_ERROR_STOP=1", new.dsn],
            input=dump,
            check=True,
            capture_output=True,
        )
        assert "--confirm-source" in new.error("init", "--new-era", code=13)["hint"]
        refused = new.error("init", "--new-era", "--confirm-source", "1/2", code=13)
        assert "pg_upgrade" in refused["message"]
        assert "pg_upgrade" in begin_new_era(new)
        new.sql("update orders set status = 'upgraded' where id = 7")
        new("run", "--once")
        newest, older = new("log", "orders", "7")
        assert newest["changed"] == {"status": ["archived", "upgraded"]}
        assert older["changed"] == {"status": ["new", "archived"]}
        # The new server's log began again: its LSNs are the old one's too.
        first = load(LocalStore(new.archive)).earlier[0]
        assert str(first.beginning) < newest["lsn"] < str(first.horizon)
        assert f"at 2:{newest['lsn']}" in new.text("show", "orders", "7", "--at", newest["lsn"])
        assert rows(new, newest["lsn"])[7] == "upgraded"
        assert rows(new, f"1:{newest['lsn']}")[7] == "archived"
        changes = new("diff", "--from", f"1:{first.horizon}")
        assert len(changes) == 1, changes
        assert changes[0]["changed"] == {"status": ["archived", "upgraded"]}
        found = new("query", "select era, after.status as s from history.public.orders order by 1")
        assert found == [{"era": 1, "s": "archived"}, {"era": 2, "s": "upgraded"}]
        goes_on(new, eras=2)


def test_a_failover_slot_goes_on_in_the_same_era_on_the_promoted_standby(
    own_server: EmbeddedServer, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_version(own_server, FAILOVER_SINCE)
    waly = Waly(own_server.dsn(), work_dir / "archive", capsys)
    waly.sql(*SCHEMA.split(";"))
    waly("init", "--failover")
    (finding,) = [f for f in waly("check")[0]["findings"] if f["id"] == "failover"]
    assert finding["severity"] == "warn"
    assert "synchronized_standby_slots" in finding["fix_sql"]
    follows = {"hot_standby_feedback": "on", "sync_replication_slots": "on"}
    with standby_of(own_server, follows) as standby:
        waly.sql("alter system set synchronized_standby_slots = 'standby_1'")
        waly.sql("select pg_reload_conf()")
        waly.sql("update orders set status = 'before' where id = 7")
        waly("run", "--once")
        after = Waly(standby.dsn(), waly.archive, capsys)
        wait_for(lambda: _synced(after, waly))
        own_server.stop()
        promote(standby)
        goes_on(after, eras=1)
        assert [e["after"]["status"] for e in after("log", "orders", "7")] == ["before"]
        source = load(LocalStore(waly.archive)).source
        assert source is not None
        assert source.timeline == 2
        # And the slot that the standby has kept is as good as the first.
        goes_on(after, eras=1)


def _synced(standby: Waly, primary: Waly) -> bool:
    query = (
        "select confirmed_flush_lsn::text from pg_replication_slots"
        " where slot_name = 'waly_postgres' and not temporary"
    )
    with psycopg.connect(primary.dsn) as one, psycopg.connect(standby.dsn) as other:
        return one.execute(query).fetchone() == other.execute(query).fetchone()


def test_a_standby_is_captured_and_goes_on_when_it_is_promoted(
    own_server: EmbeddedServer, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_version(own_server, STANDBY_SINCE)
    primary = Waly(own_server.dsn(), work_dir / "archive", capsys)
    primary.sql(*SCHEMA.split(";"))
    with standby_of(own_server, {"hot_standby_feedback": "on"}) as standby:
        waly = Waly(standby.dsn(), work_dir / "archive", capsys)
        settings = CaptureSettings(waly.dsn, waly.archive, sample_interval=0, seal_interval=0.2)
        assert "on a primary" in waly.error("init", "--failover", code=12)["message"]
        hint = waly.error("init", code=12)["hint"]
        primary.sql(*hint.partition(": ")[2].split(";")[:-1])
        wait_for(lambda: _count(waly, "pg_publication") == 2)
        with ThreadPoolExecutor(1) as pool:
            making = pool.submit(initialise, settings)
            while not making.done():
                primary.sql("select pg_log_standby_snapshot()")
                time.sleep(0.2)
        assert making.result().created
        primary.sql("update orders set status = 'from the standby' where id = 7")
        wait_for(lambda: live_rows(waly) == live_rows(primary))
        waly("run", "--once")
        assert rows(waly, "latest") == live_rows(primary)
        with running(settings):
            primary.sql("update orders set status = 'streamed' where id = 7")
            wait_for(lambda: _events(waly) == 2)
            own_server.stop()
            promote(standby)
            waly.sql("update orders set status = 'after the promotion' where id = 7")
            wait_for(lambda: _events(waly) == 3)
            wait_for(lambda: _timeline(waly) == 2)
        goes_on(waly, eras=1)


def _count(waly: Waly, table: str) -> int:
    with psycopg.connect(waly.dsn) as connection:
        row = connection.execute(f"select count(*) from {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def _events(waly: Waly) -> int:
    return load(LocalStore(waly.archive)).events


def _timeline(waly: Waly) -> int:
    source = load(LocalStore(waly.archive)).source
    assert source is not None
    return source.timeline
