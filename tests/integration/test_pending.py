"""Answers include what was received and not yet sealed, whatever a running sidecar does."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.running import execute, running, wait_for
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.state import unsealed_gaps
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history import pending
from waly_cdc.history.log import LogFilter, log
from waly_cdc.history.moment import resolve
from waly_cdc.history.pending import Known, with_pending
from waly_cdc.history.query import query
from waly_cdc.history.row import blame, show
from waly_cdc.history.session import session
from waly_cdc.points import Latest


@pytest.fixture
def settings(database: str, work_dir: Path) -> CaptureSettings:
    """An archive whose sidecar seals once an hour."""
    settings = CaptureSettings(
        database, work_dir / "archive", sample_interval=0, seal_interval=3600
    )
    execute(database, "create table t (id int primary key, n int, v text)")
    execute(database, "insert into t select i, 0, 'old' from generate_series(1, 5) i")
    initialise(settings)
    return settings


def _known(archive: Path) -> Any:
    return with_pending(LocalStore(archive))


def _waiting(archive: Path) -> int:
    with _known(archive) as known:
        return int(known.transactions)


def _log(known: Known, table: str | None = None, *key: str) -> list[dict[str, Any]]:
    with session() as connection:
        return list(log(connection, known.contents, known.store, table, key, LogFilter()))


def _rows(known: Known, statement: str) -> list[dict[str, Any]]:
    moment = resolve(known.contents, known.store, Latest())
    with query(known.contents, known.store, moment, statement, {}) as result:
        return list(result.reader.read_all().to_pylist())


def _journalled(settings: CaptureSettings, *statements: str) -> None:
    """Run statements, and stop the sidecar before it seals them: its journal keeps them."""
    with _killed(settings):
        waiting = _waiting(settings.archive)
        execute(settings.dsn, *statements)
        wait_for(lambda: _waiting(settings.archive) >= waiting + len(statements))


@contextmanager
def _killed(settings: CaptureSettings) -> Iterator[None]:
    """A sidecar at work; afterwards the archive is as if it had been killed."""
    copy = settings.archive.with_name("as it was")
    with running(settings):
        yield
        shutil.copytree(settings.archive, copy)
    shutil.rmtree(settings.archive)
    copy.rename(settings.archive)


def test_what_is_not_sealed_is_in_every_answer(settings: CaptureSettings) -> None:
    archive = settings.archive
    with running(settings):
        execute(
            settings.dsn,
            "begin; select pg_logical_emit_message(true, 'waly', '{\"actor\": \"carol\"}');"
            " update t set v = 'new' where id = 3; commit",
            "update t set n = 7 where id = 3",
            "delete from t where id = 4",
        )
        wait_for(lambda: _waiting(archive) == 3)
        assert load(LocalStore(archive)).transactions == 0
        with _known(archive) as known, session() as connection:
            newest, older = _log(known, "t", "3")
            assert newest["changed"] == {"n": ["0", "7"]}
            assert (older["actor"]["user"], older["actor"]["source"]) == ("carol", "message")
            assert (older["version"], newest["version"]) == (2, 3)
            assert _rows(known, "select sum(n)::int as n, count(*) as c from t") == [
                {"n": 7, "c": 4}
            ]
            moment = resolve(known.contents, known.store, Latest())
            row = show(connection, known.contents, known.store, "t", ["3"], moment)
            assert (row["row"]["v"], row["version"]) == ("new", 3)
            blamed = blame(connection, known.contents, known.store, "t", ["3"], moment)
            assert blamed["columns"]["v"]["actor"]["user"] == "carol"
            assert blamed["columns"]["id"]["xid"] is None
            assert known.sealed < known.contents.horizon
            pending_answer = _log(known)
    # The sidecar has sealed when it stopped: the answer is the same.
    with _known(archive) as known:
        assert known.transactions == 0
        assert _log(known) == pending_answer


def test_a_reader_of_a_sealing_sidecar_sees_whole_transactions_once(
    database: str, work_dir: Path
) -> None:
    settings = CaptureSettings(
        database, work_dir / "archive", sample_interval=0, seal_interval=0.05, seal_size=20_000
    )
    execute(database, "create table t (id bigint generated always as identity primary key, x int)")
    initialise(settings)
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute(
                    "insert into t (x) select %s from generate_series(1, 7)", (number,)
                )

    writer = threading.Thread(target=write)
    last, seen = None, 0
    with running(settings):
        writer.start()
        try:
            for _ in range(25):
                with _known(settings.archive) as known:
                    counts = _rows(known, "select x, count(*) as c from t group by x order by x")
                    assert {row["c"] for row in counts} <= {7}
                    assert [row["x"] for row in counts] == list(range(1, len(counts) + 1))
                    history = _rows(
                        known,
                        "select count(*) as n, count(distinct (lsn, seq)) as d from"
                        " history.public.t",
                    )
                    assert history == [{"n": 7 * len(counts), "d": 7 * len(counts)}]
                    assert last is None or last <= known.contents.horizon
                    last, seen = known.contents.horizon, len(counts)
        finally:
            stop.set()
            writer.join()
    assert seen > 10


def test_a_journal_torn_anywhere_gives_the_whole_transactions_before(
    settings: CaptureSettings,
) -> None:
    updates = [f"update t set n = n + 1, v = 'v{n}' where id <= {1 + n % 3}" for n in range(12)]
    _journalled(settings, *updates)
    with _known(settings.archive) as known:
        whole = _log(known)
    sizes = Counter(event["xid"] for event in whole)
    (journal,) = (settings.archive / "journal").glob("*.journal")
    content = journal.read_bytes()
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    for cut in [0, 1, len(content) - 1, *(chance.randrange(len(content)) for _ in range(12))]:
        journal.write_bytes(content[:cut])
        with _known(settings.archive) as known:
            found = _log(known)
            assert found == whole[len(whole) - len(found) :], cut
            assert all(sizes[x] == n for x, n in Counter(e["xid"] for e in found).items()), cut
            assert known.cut is None
            horizon = known.contents.horizon
            assert horizon >= known.sealed
            assert all(event["lsn"] <= str(horizon) for event in found)


def test_a_new_shape_cuts_the_tail_before_it(settings: CaptureSettings) -> None:
    with _killed(settings):
        execute(settings.dsn, "update t set n = 1 where id = 1")
        wait_for(lambda: _waiting(settings.archive) == 1)
        execute(
            settings.dsn,
            "begin; update t set n = 2 where id = 1; alter table t add more text;"
            " update t set more = 'x' where id = 1; commit",
            "update t set n = 3 where id = 2",
        )

        def is_cut() -> bool:
            with _known(settings.archive) as known:
                return known.cut is not None

        wait_for(is_cut)
    with _known(settings.archive) as known:
        assert "public.t has a new shape" in (known.cut or "")
        assert [event["changed"] for event in _log(known)] == [{"n": ["0", "1"]}]
        assert known.transactions == 1


def test_a_tail_that_is_too_long_makes_the_horizon_earlier(
    settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _killed(settings):
        for number in range(4):
            execute(settings.dsn, f"update t set n = {number + 1} where id = 1")
            wait_for(lambda n=number: _waiting(settings.archive) == n + 1)  # type: ignore[misc]
    with _known(settings.archive) as known:
        assert len(_log(known)) == 4
    monkeypatch.setattr(pending, "TAIL_BYTES", 400)
    with _known(settings.archive) as known:
        assert known.cut is not None
        shown = _log(known)
        assert 0 < len(shown) < 4
        assert shown[-1]["changed"] == {"n": ["0", "1"]}
        assert _rows(known, "select max(n) as n from t") == [{"n": len(shown)}]


def test_a_gap_that_is_not_sealed_yet_is_known(settings: CaptureSettings) -> None:
    with running(settings):
        execute(settings.dsn, "alter table t alter v type text using 'other'", "update t set n = 5")
        wait_for(lambda: bool(unsealed_gaps(settings.archive)))
        wait_for(lambda: _waiting(settings.archive) == 1)
        assert load(LocalStore(settings.archive)).gaps == []
        gaps = unsealed_gaps(settings.archive)
        with with_pending(LocalStore(settings.archive), gaps) as known:
            moment = resolve(known.contents, known.store, Latest())
            with session() as connection, pytest.raises(PointNotInArchive):
                show(connection, known.contents, known.store, "t", ["1"], moment)
            assert {tuple(event["unknown"]) for event in _log(known)} == {("n", "v")}
