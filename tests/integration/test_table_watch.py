"""Tables that are made, rewritten, truncated and dropped while they are captured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest

from tests.integration.archived import archived_rows
from tests.integration.sample import live_rows
from tests.running import execute, require, running, wait_for
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.baseline import Snapshot, copy_tables
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.shapes import Shapes
from waly_cdc.capture.sidecar import run
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.diff import diff
from waly_cdc.history.jsonb import Literal
from waly_cdc.history.log import LogFilter, log
from waly_cdc.history.moment import resolve
from waly_cdc.history.session import session
from waly_cdc.lsn import Lsn
from waly_cdc.points import AtLsn, Latest
from waly_cdc.source import catalog, slot
from waly_cdc.source.connect import connect
from waly_cdc.source.copy import snapshot_transaction
from waly_cdc.source.heaps import heaps

SCHEMA = """
create table kept (id int primary key, v text);
create table doomed (id int primary key);
create table wide (id int primary key, a text, b text, n numeric(5, 2), at timestamptz,
                   spare text);
create table computed (id int primary key, made text generated always as ('x') stored);
create table whole (id int primary key, v text);
alter table whole replica identity full;
create table loose (id int, v text);
create table told_apart (id int not null, v text);
create type mood as enum ('sad', 'ok');
create type place as (street text, feeling mood);
create table felt (id int primary key, plain mood, many mood[], whole place);
insert into kept select n, 'v' || n from generate_series(1, 50) n;
insert into doomed values (1);
insert into wide values (1, 'a1', 'b1', 1.50, '2026-11-24 14:00+00'), (2, 'a2', 'b2', 2, null);
insert into whole values (1, 'one'), (2, 'two');
insert into loose values (1, 'one'), (2, 'two');
insert into told_apart values (1, 'a'), (2, 'b'), (3, 'c');
insert into felt values (1, 'sad', '{sad,ok}', '(a,sad)'), (2, 'ok', '{}', '(b,ok)');
"""


def _altering_the_publication(what: str) -> str:
    """A statement that alters it as to a table, where there is one and the sidecar has not done so
    by itself."""
    return (
        f"do $$ declare altering text; begin for altering in"
        f" select format('alter publication %I {what} kept', pubname) from pg_publication"
        " where pubname like '%_keyed' loop execute altering; end loop;"
        " exception when duplicate_object then null; end $$"
    )


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
    "truncated and rewritten": (
        "truncate kept",
        "insert into kept values (1, 'new')",
        "alter table kept alter v type text using upper(v)",
    ),
    "truncated, and filled without being logged": (
        "truncate loose",
        "alter table loose set unlogged",
        "insert into loose values (1, 'new')",
        "alter table loose set logged",
    ),
    "truncated in a savepoint": (
        "begin; insert into kept values (99, 'x'); savepoint s; truncate kept; release s; commit",
        "insert into kept values (1, 'new')",
    ),
    "a column less": ("alter table wide drop column spare",),
    "a column more": ("alter table wide add column c text",),
    "a column gone and there again": (
        "alter table wide drop column b",
        "alter table wide add column b text",
        "update wide set b = 'new' where id = 1",
    ),
    "two columns exchanged": (
        "alter table wide rename b to other",
        "alter table wide rename a to b",
        "alter table wide rename other to a",
        "update wide set a = 'new' where id = 1",
    ),
    "a longer numeric": (
        "alter table wide alter n type numeric(9, 2)",
        "update wide set n = 1234567.89 where id = 1",
    ),
    "another type without a rewrite": ("alter table wide alter at type timestamp",),
    "a generated column made an ordinary one": (
        "alter table computed alter made drop expression",
        "insert into computed values (2, 'y')",
    ),
    "another key under identity full": (
        "alter table whole drop constraint whole_pkey",
        "insert into whole values (1, 'one more'), (3, 'three')",
        "delete from whole where v = 'one'",
        "alter table whole add primary key (v)",
        "update whole set id = 3 where v = 'two'",
    ),
    "an identity after updates": (
        "update loose set v = 'lost' where id = 1",
        "alter table loose replica identity full",
        "update loose set v = 'seen' where id = 2",
    ),
    "a value of an enum by another name": (
        "alter type mood rename value 'sad' to 'blue'",
        "update felt set many = '{blue}' where id = 2",
    ),
    "a composite type with more fields": ("alter type place add attribute number int",),
    "there between two looks only": (
        "create table passing (id int primary key)",
        "insert into passing values (1)",
        "drop table passing",
    ),
    "a key for rows that nobody could tell apart": (
        "delete from told_apart where id = 1",
        "update told_apart set v = 'unseen' where id = 2",
        "alter table told_apart add primary key (id)",
        "update told_apart set v = 'too early' where id = 3",
    ),
    "left out of a publication for a while": (
        _altering_the_publication("drop table"),
        "update kept set v = 'unseen' where id = 1",
        _altering_the_publication("add table"),
        "update kept set v = 'seen' where id = 2",
    ),
    "a column with a default, in one transaction with rows": (
        "begin; update kept set v = 'a' where id = 1; alter table kept add z int default 1;"
        " update kept set z = 2 where id = 2; delete from kept where id = 3; commit",
    ),
    "another name and no event": ("alter table kept rename to kept_on",),
    "other columns and no event": (
        "alter table told_apart rename v to w",
        "alter table told_apart add x int",
    ),
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
    settings = CaptureSettings(database, work_dir / "archive", seal_interval=0.2, sample_interval=0)
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
            if name not in ("moved to another schema", "another name and no event"):
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
    assert {baseline.lsn for baseline in contents.baselines} == {contents.beginning}
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


def test_columns_have_the_names_that_the_server_has(settings: CaptureSettings) -> None:
    execute(
        settings.dsn,
        "alter table wide rename a to renamed",
        "alter table wide drop column n",
        "alter table doomed rename to alive",
    )
    run(settings, once=True)
    contents = load(LocalStore(settings.archive))
    assert [c.name for c in contents.find_relation("wide").columns] == [
        *("id", "renamed", "b", "at", "spare")
    ]
    assert contents.find_relation("alive").name == "alive"


def test_a_change_of_shape_is_a_gap_only_between_the_events_that_show_it(
    settings: CaptureSettings,
) -> None:
    execute(
        settings.dsn,
        "update wide set b = 'before' where id = 1",
        "alter table wide rename a to renamed",
        "update wide set b = 'after' where id = 1",
    )
    run(settings, once=True)
    contents = load(LocalStore(settings.archive))
    (gap,) = contents.gaps
    (before, after) = sorted(
        row["_lsn"]
        for file in contents.files
        if file.kind == "events"
        for row in pq.read_table(settings.archive / file.path, partitioning=None).to_pylist()
    )
    assert (gap.start, gap.end) == (Lsn(before), Lsn(after + 1))
    names = [c.name for v in contents.relations[gap.oid] for c in v.columns if c.stored == "a"]
    assert names == ["a", "renamed"]


def test_names_are_right_though_a_change_from_before_is_committed_after(
    settings: CaptureSettings,
) -> None:
    execute(
        settings.dsn,
        "create schema old",
        "create table old.t (id int primary key)",
        "insert into old.t values (1)",
    )
    run(settings, once=True)
    with psycopg.connect(settings.dsn) as slow:
        slow.execute("insert into old.t values (2)")
        execute(settings.dsn, "alter schema old rename to new")
        run(settings, once=True)
        slow.commit()
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)
    assert load(LocalStore(settings.archive)).find_relation("new.t").schema == "new"


def test_a_table_that_is_named_back_has_its_name_again(settings: CaptureSettings) -> None:
    execute(
        settings.dsn,
        "alter table kept rename to other",
        "update other set v = 'seen' where id = 1",
        "alter table other rename to kept",
    )
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_what_no_state_depends_on_is_no_gap(settings: CaptureSettings) -> None:
    execute(
        settings.dsn,
        "alter table wide alter b set not null, alter b set default 'x'",
        "alter table wide alter b set storage external, alter n set statistics 7",
        "create index on wide (b)",
        "grant select (a) on wide to public",
        "analyze wide",
        "alter type mood add value 'happy'",
    )
    run(settings, once=True)
    assert load(LocalStore(settings.archive)).gaps == []


@pytest.mark.parametrize(
    "change",
    [
        "truncate kept",
        "alter table kept alter v type text using upper(v)",
        "alter table kept rename v to w",
        "alter table kept rename to other",
        "drop table kept",
    ],
)
def test_a_table_that_changes_under_the_copy_is_not_copied(
    settings: CaptureSettings, change: str
) -> None:
    """No snapshot hides such a change: the table would seem empty, or have other names."""
    with (
        connect(settings.dsn, replication=True) as replication,
        ArchiveWriter.open(settings.archive) as archive,
    ):
        created = slot.create(replication, "copying", temporary=True)
        with snapshot_transaction(settings.dsn, created.snapshot) as inside:
            tables = catalog.tables(inside, ["kept", "wide"])
            known = heaps(inside, tables)
        execute(settings.dsn, change)
        shapes = Shapes(archive.contents.relations, lambda _: None)
        proposed = [(table, shapes.propose(table, Lsn(1))) for table in tables]
        copied = copy_tables(
            archive,
            settings.dsn,
            Snapshot(created.snapshot, 1, created.consistent_point, datetime.now(UTC)),
            proposed,
            known,
            jobs=1,
            on_table=lambda _: None,
        )
    assert [table.relation.name for table in copied] == ["wide"]


def test_a_table_that_somebody_has_locked_holds_up_no_entry(settings: CaptureSettings) -> None:
    store = LocalStore(settings.archive)
    with running(settings), psycopg.connect(settings.dsn) as owner:
        owner.execute("alter table wide add column made_slowly int default 1")
        execute(settings.dsn, "insert into kept values (99, 'seen')")
        wait_for(lambda: load(store).events == 1, 10)


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
    require(settings.dsn, 150_000, "row filters")
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
