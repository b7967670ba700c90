"""Compaction on an archive that has one of everything: answers stay, files become few."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.answers import Answers, answers, random_points, states
from tests.integration.sample import Sample
from waly_cdc.archive import contents as archive_contents
from waly_cdc.archive import tiers
from waly_cdc.archive.compaction import compact
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.lsn import Lsn
from waly_cdc.verify.files import check_file
from waly_cdc.verify.integrity import verify_integrity

SEED = int(os.environ.get("WALY_SEED", str(random.randrange(1 << 32))))


@pytest.fixture(scope="module")
def before(sample: Sample) -> tuple[list[Lsn], Answers]:
    """Random points, and what the archive answers at them as it was sealed."""
    print(f"WALY_SEED={SEED}")
    points = random_points(sample.archive, random.Random(SEED), 2)
    return points, answers(sample.archive, points)


@pytest.fixture
def archive(sample: Sample, work_dir: Path) -> Path:
    copy = work_dir / "archive"
    shutil.copytree(sample.archive, copy)
    return copy


@pytest.fixture(params=["a day that goes on", "a day that has ended"])
def day(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Merging two at a time, as if the sample's day were such a one."""
    monkeypatch.setattr(tiers, "FAN", 2)
    ended = request.param == "a day that has ended"
    monkeypatch.setattr(tiers, "_ended", lambda *_: ended)
    return str(request.param)


@pytest.fixture
def ended_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "_ended", lambda *_: True)


def compacted(archive: Path) -> int:
    with ArchiveWriter.open(archive) as writer:
        done = compact(writer)
        assert compact(writer).replaced == 0, "a second time there is nothing to do"
    return done.replaced


@pytest.mark.usefixtures("day")
def test_answers_are_the_same_after_it(archive: Path, before: tuple[list[Lsn], Answers]) -> None:
    points, expected = before
    files = len(load(LocalStore(archive)).files)
    assert compacted(archive) > 10
    assert len(load(LocalStore(archive)).files) < files
    assert answers(archive, points) == expected
    report = verify_integrity(LocalStore(archive))
    assert (report.result, report.findings) == ("passed", ())


@pytest.mark.usefixtures("ended_day")
def test_a_reader_that_opened_the_manifest_before_is_undisturbed(
    archive: Path, before: tuple[list[Lsn], Answers]
) -> None:
    points, expected = before
    opened = load(LocalStore(archive))
    compacted(archive)
    assert answers(archive, points, contents=opened) == expected


@pytest.mark.usefixtures("ended_day")
def test_a_reader_that_finds_its_files_deleted_reads_the_manifest_anew(
    archive: Path, before: tuple[list[Lsn], Answers]
) -> None:
    points, expected = before
    opened = load(LocalStore(archive))
    compacted(archive)
    for replaced in load(LocalStore(archive)).replaced:
        (archive / replaced.path).unlink()
    assert states(archive, points, opened) == expected.states


@pytest.mark.usefixtures("ended_day")
def test_replaced_files_are_deleted_an_hour_later(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compacted(archive)
    replaced = load(LocalStore(archive)).replaced
    assert replaced
    assert all((archive / each.path).exists() for each in replaced)
    assert compacted(archive) == 0
    assert all((archive / each.path).exists() for each in replaced)
    monkeypatch.setattr(archive_contents, "GRACE", timedelta(0))
    assert compacted(archive) == 0
    assert not any((archive / each.path).exists() for each in replaced)
    assert verify_integrity(LocalStore(archive)).result == "passed"


@pytest.mark.usefixtures("ended_day")
def test_files_of_an_ended_day_are_sorted_by_key_and_say_so(archive: Path) -> None:
    compacted(archive)
    contents = load(LocalStore(archive))
    keyed = [file for file in contents.files if file.sorted_by]
    assert {file.kind for file in keyed} == {"events", "baseline"}
    for file in contents.files:
        if file.oid is None or file.version is None:
            continue
        assert file.sorted_by == contents.version(file.oid, file.version).key
        if not file.sorted_by:
            continue
        with pq.ParquetFile(archive / file.path) as parquet:
            group = parquet.metadata.row_group(0)
            names = [parquet.schema.column(c.column_index).path for c in group.sorting_columns]
            assert names == [*file.sorted_by, "_lsn", "_seq"]
            assert group.column(0).has_offset_index


@pytest.fixture
def damaged(archive: Path, ended_day: None) -> Iterator[Path]:  # noqa: ARG001 - for its effect
    path = next(
        archive / file.path
        for file in load(LocalStore(archive)).files
        if file.kind == "baseline" and file.rows > 1
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return archive


def test_a_damaged_file_is_never_merged(damaged: Path) -> None:
    entries = load(LocalStore(damaged)).entries
    with (
        ArchiveWriter.open(damaged) as writer,
        pytest.raises(archive_contents.ArchiveCorrupt, match="was changed"),
    ):
        compact(writer)
    assert load(LocalStore(damaged)).entries == entries


def test_an_entry_that_states_other_rows_than_it_removed_is_found(
    archive: Path,
    ended_day: None,  # noqa: ARG001 - for its effect
) -> None:
    compacted(archive)
    last = sorted(archive.glob("manifest/0*.json"))[-1]
    data = json.loads(last.read_bytes())
    data["removed"][0][1] = "0" * 16
    last.write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")
    found = {(f.id, f.severity) for f in verify_integrity(LocalStore(archive)).findings}
    assert ("manifest.fingerprint", "fail") in found
    data["removed"][0][0] += ".other"
    last.write_text(json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n")
    found = {(f.id, f.severity) for f in verify_integrity(LocalStore(archive)).findings}
    assert ("manifest.replaced", "fail") in found


def test_a_sorted_file_that_lost_its_order_or_a_row_is_found(
    archive: Path,
    ended_day: None,  # noqa: ARG001 - for its effect
) -> None:
    compacted(archive)
    contents = load(LocalStore(archive))
    file = next(f for f in contents.files if f.sorted_by and f.rows > 3)
    rows = pq.read_table(archive / file.path, partitioning=None)
    assert file.fingerprint is not None
    for changed, fault in (
        (rows.take(list(reversed(range(len(rows))))), "file.order"),
        (pa.concat_tables([rows.slice(0, len(rows) - 1), rows.slice(0, 1)]), "file.fingerprint"),
    ):
        pq.write_table(changed, archive / file.path)
        content = (archive / file.path).read_bytes()
        stated = replace(file, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        assert fault in {f.id for f in check_file(LocalStore(archive), stated, contents)}
