"""Tables that are made, rewritten, truncated and dropped while they are captured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.archived import archived_rows
from tests.integration.sample import live_rows
from tests.running import execute, running, wait_for
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.diff import diff
from waly_cdc.history.jsonb import Literal
from waly_cdc.history.log import LogFilter, log
from waly_cdc.history.moment import resolve
from waly_cdc.history.session import session
from waly_cdc.lsn import Lsn
from waly_cdc.points import AtLsn, Latest

SCHEMA = """
create table kept (id int primary key, v text);
create table doomed (id int primary key);
insert into kept select n, 'v' || n from generate_series(1, 50) n;
insert into doomed values (1);
"""

CHANGES = {
    "a new table": (
        "create table newborn (id int primary key, v text)",
        "insert into newborn values (1, 'a'), (2, 'b')",
        "update newborn set v = 'u' where id = 1",
        "delete from newborn where id = 2",
    ),
    "a table made from a query": ("create table made as select n from generate_series(1, 5) n",),
    "a constant default": (
        "alter table kept add column x int not null default 42",
        "update kept set v = 'touched' where id = 1",
    ),
    "a volatile default": ("alter table kept add column y uuid default gen_random_uuid()",),
    "a new type of the key": (
        "alter table kept alter id type bigint",
        "update kept set v = 'after' where id = 2",
    ),
    "a type with using": ("alter table kept alter v type text using upper(v)",),
    "the same type with using": (
        "alter table kept alter v type varchar(90) using v || '!'",
        "alter table kept alter v type varchar(90) using v || '?'",
    ),
    "a table of the same name": (
        "drop table doomed",
        "create table doomed (id int primary key, other text)",
        "insert into doomed values (7, 'other')",
        "update doomed set other = 'again'",
    ),
    "a partition": (
        "create table parts (id int, primary key (id)) partition by range (id)",
        "create table parts_1 partition of parts for values from (0) to (10)",
        "insert into parts values (3)",
        "update parts set id = 4",
    ),
    "moved to another schema": (
        "create schema other",
        "alter table kept set schema other",
        "update other.kept set v = 'moved' where id = 4",
    ),
    "vacuumed": ("vacuum full kept", "update kept set v = 'v' where id = 1"),
    "truncated": ("truncate kept", "insert into kept values (1, 'new')"),
    "a key that came later": (
        "create table keyless (id int, v text)",
        "insert into keyless values (1, 'a'), (2, 'b')",
        "alter table keyless add primary key (id)",
        "update keyless set v = 'c' where id = 1",
        "delete from keyless where id = 2",
    ),
}


@pytest.fixture
def settings(database: str, work_dir: Path) -> CaptureSettings:
    execute(database, SCHEMA)
    settings = CaptureSettings(database, work_dir / "archive", seal_interval=0.2, sample=False)
    initialise(settings)
    return settings


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_run_the_archive_has_what_the_server_has(
    settings: CaptureSettings, change: str
) -> None:
    execute(settings.dsn, *CHANGES[change])
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_a_running_sidecar_catches_up_with_all_of_it(settings: CaptureSettings) -> None:
    store = LocalStore(settings.archive)

    def caught_up() -> bool:
        contents = load(store)
        if any(gap.end is None for gap in contents.gaps):
            return False
        try:
            return archived_rows(settings) == live_rows(settings.dsn)
        except PointNotInArchive:
            return False

    with running(settings):
        for name, statements in CHANGES.items():
            if name != "moved to another schema":
                execute(settings.dsn, *statements)
                time.sleep(0.3)
        wait_for(caught_up)
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_a_truncate_takes_no_new_baseline_while_the_sidecar_runs(
    settings: CaptureSettings,
) -> None:
    store = LocalStore(settings.archive)

    def events() -> int:
        return load(store).events

    with running(settings):
        for number in range(3):
            execute(settings.dsn, "truncate kept", f"insert into kept values ({number}, 'x')")
            wait_for(lambda number=number: events() == 2 * (number + 1))
            time.sleep(2.5)
    contents = load(store)
    assert contents.gaps == []
    assert len(contents.baselines) == 2
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_between_the_change_and_the_new_baseline_nothing_is_guessed(
    settings: CaptureSettings,
) -> None:
    before = load(LocalStore(settings.archive)).horizon
    rows = live_rows(settings.dsn)
    execute(
        settings.dsn,
        "alter table kept alter v type text using upper(v)",
        "insert into doomed values (2)",
    )
    run(settings, once=True)
    contents: Contents = load(LocalStore(settings.archive))
    (gap,) = contents.gaps
    assert gap.start == before
    assert gap.end is not None
    assert archived_rows(settings, before) == rows
    assert archived_rows(settings, gap.end) == live_rows(settings.dsn)
    middle = Lsn(gap.end.value - 1)
    with pytest.raises(PointNotInArchive, match="its rows were rewritten"):
        archived_rows(settings, middle)


def test_a_dropped_table_is_gone_from_then_on_and_still_there_before(
    settings: CaptureSettings,
) -> None:
    before = load(LocalStore(settings.archive)).horizon
    execute(settings.dsn, "drop table doomed")
    run(settings, once=True)
    assert "public.doomed" not in archived_rows(settings)
    assert archived_rows(settings, before)["public.doomed"] == ["(1)"]


def test_a_kill_while_a_new_baseline_is_copied_leaves_nothing_undone(
    settings: CaptureSettings,
) -> None:
    execute(settings.dsn, *CHANGES["a new type of the key"])
    command = [sys.executable, "-m", "waly_cdc", "--archive", str(settings.archive), "run"]
    for failpoint in ("baseline.copy=kill", "seal.publish=kill", "manifest.put=kill"):
        killed = subprocess.run(
            [*command, "--once"],
            env={**os.environ, "WALY_DSN": settings.dsn, "WALY_FAILPOINTS": failpoint},
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL, failpoint
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_a_dropped_table_has_its_log_and_shows_in_a_difference(settings: CaptureSettings) -> None:
    store = LocalStore(settings.archive)
    execute(settings.dsn, "insert into doomed values (2)", "delete from doomed where id = 1")
    run(settings, once=True)
    beginning = load(store).beginning
    assert beginning is not None
    execute(
        settings.dsn,
        "drop table doomed",
        "create table doomed (id int primary key)",
        "insert into doomed values (3)",
    )
    run(settings, once=True)
    contents = load(store)
    with session() as connection:
        found = list(log(connection, contents, store, "doomed", (), LogFilter()))
        assert [(event["op"], event["key"]["id"]) for event in found] == [
            ("I", Literal("3")),
            ("D", Literal("1")),
            ("I", Literal("2")),
        ]
        (only,) = log(connection, contents, store, "doomed", ("2",), LogFilter())
        assert only["op"] == "I"
        start = resolve(contents, store, AtLsn(beginning))
        end = resolve(contents, store, Latest())
        changes = {
            (each["change"], each["key"]["id"])
            for each in diff(connection, contents, store, None, (), start, end)
            if each["table"] == "public.doomed"
        }
    assert changes == {("removed", "1"), ("added", "3")}


def test_a_table_that_is_not_published_whole_is_not_known_until_it_is(
    settings: CaptureSettings,
) -> None:
    name = f"{load(LocalStore(settings.archive)).source.slot}_keyed"  # type: ignore[union-attr]
    execute(
        settings.dsn,
        f"alter publication {name} drop table kept",
        f"alter publication {name} add table kept where (id > 10)",
        "update kept set v = 'unseen' where id = 1",
    )
    run(settings, once=True)
    with pytest.raises(PointNotInArchive, match="not published"):
        archived_rows(settings)
    execute(
        settings.dsn,
        f"alter publication {name} drop table kept",
        f"alter publication {name} add table kept",
    )
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)
