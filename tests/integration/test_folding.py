"""Baselines that are computed from the archive: every answer stays what it was."""

from __future__ import annotations

import os
import random
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.answers import answers, random_points, states
from tests.integration.sample import Sample
from waly_cdc.archive import tiers
from waly_cdc.archive.compaction import compact
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.history.state import state_files
from waly_cdc.lsn import Lsn
from waly_cdc.upkeep.folding import When, fold
from waly_cdc.verify.integrity import verify_integrity

SEED = int(os.environ.get("WALY_SEED", str(random.randrange(1 << 32))))


@pytest.fixture
def archive(sample: Sample, work_dir: Path) -> Path:
    copy = work_dir / "archive"
    shutil.copytree(sample.archive, copy)
    return copy


def fold_at(archive: Path, bound: Lsn) -> Contents:
    """Fold all tables at a point, as if that were the last look at the catalog."""
    with ArchiveWriter.open(archive) as writer:
        writer.contents.looked_at = bound
        assert fold(writer)
    return load(LocalStore(archive))


def test_answers_are_the_same_before_and_after_new_baselines(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"WALY_SEED={SEED}")
    points = random_points(archive, random.Random(SEED), 3)
    expected = answers(archive, points)
    fold_at(archive, points[1])
    assert answers(archive, points) == expected, f"folded at {points[1]}"
    report = verify_integrity(LocalStore(archive))
    assert (report.result, report.findings) == ("passed", ())
    monkeypatch.setattr(tiers, "_ended", lambda *_: True)
    with ArchiveWriter.open(archive) as writer:
        compact(writer)
    assert answers(archive, points) == expected, "compacted"
    assert verify_integrity(LocalStore(archive)).result == "passed"


def test_a_state_after_it_reads_nothing_from_before_it(archive: Path) -> None:
    before = load(LocalStore(archive))
    bound = random_points(archive, random.Random(SEED), 3)[1]
    expected = states(archive, [before.horizon], before)
    contents = fold_at(archive, bound)
    assert states(archive, [before.horizon], contents) == expected
    folded = [baseline for baseline in contents.baselines if baseline.lsn == bound]
    assert len(folded) > 5
    for baseline in folded:
        version = contents.version_at(baseline.oid, bound)
        assert version is not None
        files = state_files(contents, version, bound + 1)
        assert all(file.last_lsn + 1 >= bound for file in files)
        assert sum(file.rows for file in files if file.kind == "baseline") == baseline.rows
        assert all(file.sorted_by == version.key for file in files if file.kind == "baseline")


def test_only_tables_whose_state_is_exact_get_one(archive: Path) -> None:
    contents = load(LocalStore(archive))
    with ArchiveWriter.open(archive) as writer:
        writer.contents.looked_at = writer.contents.horizon
        folded = {each.relation.oid for each in fold(writer)}
    bound = contents.horizon
    assert folded
    for oid in folded:
        version = contents.version_at(oid, bound)
        assert version is not None
        assert version.followed
        assert contents.gap_at(oid, bound) is None
    unfollowed = contents.find_relation("inserted_only")
    assert unfollowed.oid not in folded


def test_a_table_deserves_one_after_so_many_events_or_at_that_age(archive: Path) -> None:
    never, always = timedelta(days=9), timedelta(0)
    with ArchiveWriter.open(archive) as writer:
        writer.contents.looked_at = writer.contents.horizon
        assert fold(writer, when=When(1_000_000, never)) == []
        counted = fold(writer, when=When(20, never))
        events = {f.oid: 0 for f in writer.contents.files}
        for file in writer.contents.files:
            events[file.oid] += file.rows if file.kind == "events" else 0
        assert counted
        assert all(events[each.relation.oid] >= 20 for each in counted)
        assert fold(writer, when=When(1_000_000, always))
        assert fold(writer, when=When(1, always)) == [], "there were no events since"
