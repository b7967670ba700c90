"""What the application may do while it is captured: everything that it may do without us, but for
what PostgreSQL refuses for any table in a publication that publishes updates."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest

from tests.integration.archived import archived_rows
from tests.integration.sample import live_rows
from tests.running import execute, require, running, wait_for
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.errors import PointNotInArchive
from waly_cdc.lsn import Lsn
from waly_cdc.source.publication import names


@pytest.fixture
def settings(database: str, work_dir: Path) -> CaptureSettings:
    execute(
        database,
        "create table t (id int primary key, v text)",
        "insert into t values (1, 'a'), (2, 'b'), (3, 'c')",
        "create table loose (v text)",
    )
    settings = CaptureSettings(database, work_dir / "archive", seal_interval=0.2, sample_interval=0)
    initialise(settings)
    return settings


def _is_up_to_date(settings: CaptureSettings) -> bool:
    try:
        return archived_rows(settings) == live_rows(settings.dsn)
    except PointNotInArchive:
        return False


def _keyed(settings: CaptureSettings) -> str:
    source = load(LocalStore(settings.archive)).source
    assert source is not None
    return names(source.slot)[1]


def _succeeds(settings: CaptureSettings, statement: str) -> bool:
    try:
        execute(settings.dsn, statement)
    except psycopg.errors.ObjectNotInPrerequisiteState:
        return False
    return True


@pytest.mark.parametrize(
    ("loss", "gain"),
    [
        ("alter table t replica identity nothing", "alter table t replica identity default"),
        ("alter table t drop constraint t_pkey", "alter table t add primary key (id)"),
        (
            "alter table t alter v set not null; create unique index by_v on t (v);"
            " alter table t replica identity using index by_v; drop index by_v",
            "alter table t replica identity default",
        ),
    ],
)
def test_a_table_that_loses_its_identity_can_soon_be_updated_again(
    settings: CaptureSettings, loss: str, gain: str
) -> None:
    with running(settings):
        execute(settings.dsn, "update t set v = 'x' where id = 1", loss)
        # PostgreSQL refuses it until the watch has taken the table out of the publication.
        wait_for(lambda: _succeeds(settings, "update t set v = 'unseen' where id = 2"))
        execute(settings.dsn, gain, "update t set v = 'y' where id = 3")
        wait_for(lambda: _is_up_to_date(settings))


def test_a_new_table_can_be_updated_from_the_start(settings: CaptureSettings) -> None:
    with running(settings):
        for number in range(3):
            execute(
                settings.dsn,
                f"create table new_{number} (v int); insert into new_{number} values (1)",
                f"update new_{number} set v = 2",
                f"delete from new_{number} where v = 3",
                f"alter table new_{number} add primary key (v)",
                f"update new_{number} set v = 4",
                f"truncate new_{number}",
                f"insert into new_{number} values (5)",
            )
            time.sleep(0.7)
        wait_for(lambda: _is_up_to_date(settings))


def test_unlogged_is_refused_only_for_tables_whose_updates_are_published(
    settings: CaptureSettings,
) -> None:
    execute(settings.dsn, "insert into loose values ('x')", "alter table loose set unlogged")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="part of a publication"):
        execute(settings.dsn, "alter table t set unlogged")
    with running(settings):
        execute(
            settings.dsn,
            f"begin; alter publication {_keyed(settings)} drop table t;"
            " alter table t set unlogged; commit",
            "update t set v = 'not logged'",
        )
        wait_for(lambda: _is_up_to_date(settings))
        execute(settings.dsn, "alter table t set logged", "alter table loose set logged")
        execute(settings.dsn, "update t set v = 'logged' where id = 1")
        wait_for(lambda: _is_up_to_date(settings))


def test_what_was_written_without_a_publication_is_not_known(settings: CaptureSettings) -> None:
    require(settings.dsn, 180_000, "leaving out publications that are gone")
    store = LocalStore(settings.archive)
    keyed = _keyed(settings)
    with running(settings):
        execute(settings.dsn, "update t set v = 'seen' where id = 1")
        wait_for(lambda: load(store).events == 1)
        execute(settings.dsn, f"drop publication {keyed}", "update t set v = 'unseen'")
        wait_for(lambda: any(gap.end is None for gap in load(store).gaps))
        execute(
            settings.dsn,
            f"create publication {keyed} for table only t with (publish = 'update, delete')",
            "update t set v = 'seen' where id = 1",
        )
        wait_for(lambda: _is_up_to_date(settings))
    (gap,) = (gap for gap in load(store).gaps if "not published" in gap.reason)
    assert gap.end is not None
    with pytest.raises(PointNotInArchive, match="not published"):
        archived_rows(settings, Lsn(gap.end.value - 1))
