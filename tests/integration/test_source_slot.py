from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from waly_cdc.errors import SourceError
from waly_cdc.source import slot
from waly_cdc.source.connect import connect


@pytest.fixture
def plain(database: str) -> Iterator[psycopg.Connection]:
    with connect(database) as connection:
        yield connection


@pytest.fixture
def name(database: str) -> str:
    return "w_" + database.partition("test_")[2].partition(" ")[0][:12]


def test_a_slot_from_its_making_to_its_end(
    database: str, plain: psycopg.Connection, name: str
) -> None:
    assert slot.info(plain, name) is None
    with connect(database, replication=True) as replication:
        created = slot.create(replication, name)
        assert created.name == name
        assert created.snapshot
        found = slot.info(plain, name)
    assert found is not None
    assert found.confirmed_flush_lsn == created.consistent_point
    assert (found.plugin, found.active, found.temporary) == ("pgoutput", False, False)
    assert found.database == plain.info.dbname
    assert found.wal_status == "reserved"
    assert found.retained_bytes is not None
    assert not found.lost
    slot.drop(plain, name)
    assert slot.info(plain, name) is None


def test_a_temporary_slot_ends_with_its_connection(
    database: str, plain: psycopg.Connection, name: str
) -> None:
    with connect(database, replication=True) as replication:
        slot.create(replication, name, temporary=True)
        found = slot.info(plain, name)
        assert found is not None
        assert found.temporary
    for _ in range(100):
        if slot.info(plain, name) is None:
            break
        time.sleep(0.05)
    assert slot.info(plain, name) is None


def test_refusals(database: str, plain: psycopg.Connection, name: str) -> None:
    with connect(database, replication=True) as replication:
        slot.create(replication, name)
        with pytest.raises(SourceError, match="already exists") as caught:
            slot.create(replication, name)
        assert "waly slot" in (caught.value.hint or "")
        with pytest.raises(SourceError):
            slot.create(replication, name + "2", plugin="no_such_plugin")
    slot.drop(plain, name)
    with pytest.raises(SourceError, match="does not exist"):
        slot.drop(plain, name)


def test_a_wait_is_reported_and_ends_with_the_blocker(
    database: str, plain: psycopg.Connection, name: str
) -> None:
    waited: list[float] = []
    with connect(database, autocommit=False) as blocker:
        blocker.execute("CREATE TABLE public.t (a int)")
        pid = blocker.info.backend_pid

        def on_wait(seconds: float) -> None:
            waited.append(seconds)
            mine = [b for b in slot.blockers(plain) if b.pid == pid]
            assert mine
            assert "idle in transaction" in mine[0].what
            assert mine[0].age is not None
            blocker.rollback()

        with connect(database, replication=True) as replication:
            slot.create(replication, name, on_wait=on_wait)
    assert len(waited) == 1
    assert waited[0] >= 1


def test_an_interrupt_leaves_no_slot(database: str, plain: psycopg.Connection, name: str) -> None:
    with connect(database, autocommit=False) as blocker:
        blocker.execute("CREATE TABLE public.t (a int)")
        with connect(database, replication=True) as replication:
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                slot.create(replication, name)
            assert slot.info(plain, name) is None
            assert replication.execute("SELECT 1").fetchone() == (1,)
        blocker.rollback()
    assert slot.info(plain, name) is None


def test_prepared_transactions_block_too(plain: psycopg.Connection) -> None:
    if plain.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
        pytest.skip("this server allows no prepared transactions")
    plain.execute("BEGIN")
    plain.execute("CREATE TABLE public.t (a int)")
    plain.execute("PREPARE TRANSACTION 'it''s waiting'")
    found = [b for b in slot.blockers(plain) if b.pid is None]
    assert found
    assert "it''s waiting" in found[0].what
    plain.execute(found[0].end_sql.encode())
    assert not [b for b in slot.blockers(plain) if b.pid is None]
