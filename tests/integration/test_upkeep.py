"""Compaction and folding beside a sidecar that is at work, and readers meanwhile."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from tests.integration.answers import states
from tests.integration.sample import photograph
from tests.running import running, wait_for
from waly_cdc.archive import tiers
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.errors import ArchiveLocked
from waly_cdc.restore.rows import Rows
from waly_cdc.upkeep.beside import Upkeep, UpkeepSettings
from waly_cdc.upkeep.folding import When
from waly_cdc.verify.integrity import verify_integrity

SCHEMA = """
create table items (id int primary key, n int not null, note text);
alter table items alter note set storage external;
insert into items select i, 0, repeat('x', 3000) from generate_series(1, 20) i
"""
UPKEEP = UpkeepSettings(0.3, When(60, timedelta(days=1)))


def test_few_files_are_left_and_every_answer_is_the_servers(
    database: str, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "FAN", 3)
    settings = CaptureSettings(database, work_dir / "archive", seal_interval=0.1, sample_interval=0)
    store = LocalStore(settings.archive)
    told: list[str] = []
    photos = []
    done = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        """Answer from a manifest as it was opened, while files are replaced under it."""
        while not done.is_set():
            opened = load(store)
            oid = opened.find_relation("items").oid
            once = states(settings.archive, [opened.horizon], opened)[str(opened.horizon), str(oid)]
            again = states(settings.archive, [opened.horizon], load(store))
            if again[str(opened.horizon), str(oid)] != once:
                wrong.append((opened.horizon, once))

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SCHEMA.encode())
        initialise(settings)
        reader = threading.Thread(target=read)
        with running(settings, lambda archive: Upkeep(archive, UPKEEP, told.append)):
            reader.start()
            try:
                for number in range(240):
                    connection.execute(
                        "update items set n = n + 1 where id = %s", (number % 20 + 1,)
                    )
                    connection.execute("select pg_sleep(0.02)")
                    if number % 60 == 59:
                        photos.append(photograph(database))
                wait_for(lambda: load(store).horizon > photos[-1].lsn)
                wait_for(lambda: any("baseline of public.items" in line for line in told))
                wait_for(lambda: any("compacted" in line for line in told))
            finally:
                done.set()
                reader.join()
    assert not wrong
    assert not [line for line in told if "failed" in line]
    contents = load(store)
    sealed = sum(file.rows > 0 for file in contents.files if file.kind == "events")
    assert sealed < contents.entries / 2
    assert any(baseline.folded for baseline in contents.baselines)
    version = contents.find_relation("items")
    for photo in photos:
        with Rows(store, contents) as rows:
            batches = list(rows.texts(version, photo.lsn))
        found = sorted(f"({','.join(row.values())})" for b in batches for row in b.to_pylist())
        assert found == photo.rows["public.items"]
    assert verify_integrity(store).findings == ()


def test_one_that_is_left_behind_at_the_end_commits_nothing(database: str, work_dir: Path) -> None:
    settings = CaptureSettings(database, work_dir / "archive", sample_interval=0)
    initialise(settings)
    with ArchiveWriter.open(settings.archive) as archive:
        pass
    with pytest.raises(ArchiveLocked, match="not open for writing"):
        archive.commit("seal", end=archive.contents.horizon + 8)
