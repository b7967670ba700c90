"""Which files are merged: few are left, and no row is rewritten often."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import log

import pytest

from waly_cdc.archive import tiers
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.tiers import FAN, Merge, merges
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ID = Column("id", "id", "int64", 20, -1, "bigint", True)
KEYED = RelationVersion(1, 1, "public", "t", "d", (ID,), ("id",), Lsn(1))


def file(number: int, size: int, **more: object) -> File:
    first = number * 100
    path = f"events/public.t~1/day=2026-11-24/0001-{first:016x}-{first + 50:016x}-v1.parquet"
    made = File("events", path, "", size, size, Lsn(first), Lsn(first + 50), NOON, NOON, 1, 1)
    return replace(made, **more)  # type: ignore[arg-type]


def archive(*files: File, now: datetime = NOON) -> Contents:
    return Contents(horizon_time=now, files=list(files), relations={1: [KEYED]})


def merge(contents: Contents, wanted: Merge) -> None:
    first, last = wanted.files[0], wanted.files[-1]
    merged = replace(
        first,
        bytes=wanted.bytes,
        rows=sum(each.rows for each in wanted.files),
        last_lsn=last.last_lsn,
        sorted_by=wanted.sort_by,
    )
    at = contents.files.index(first)
    contents.files[at : at + len(wanted.files)] = [merged]


@pytest.mark.parametrize("size", [2_000, 300_000])
def test_the_number_of_files_grows_with_the_logarithm_of_time(size: int) -> None:
    contents = archive()
    rewritten: Counter[str] = Counter()
    for number in range(1, 3_000):
        contents.files.append(file(number, size + number % 7 * size))
        while planned := merges(contents):
            for wanted in planned:
                rewritten["bytes"] += wanted.bytes
                merge(contents, wanted)
        levels = 2 + log(sum(f.bytes for f in contents.files) / tiers.SMALLEST + 1, FAN)
        largest = sum(f.bytes > tiers.LARGEST / FAN for f in contents.files)
        assert len(contents.files) <= FAN * levels + largest
    assert rewritten["bytes"] < 40 * sum(f.bytes for f in contents.files)


def test_neighbours_only_are_merged_and_in_order() -> None:
    contents = archive(*(file(number, 1_000) for number in (5, 3, 1, 2, 4, 8, 7, 6)))
    (wanted,) = merges(contents)
    assert [each.first_lsn for each in wanted.files] == [Lsn(n * 100) for n in range(1, 9)]
    assert wanted.sort_by == ()


def test_a_day_that_has_ended_becomes_one_file_by_key_and_stays_so() -> None:
    contents = archive(file(1, 1_000), file(2, 90_000_000), now=NOON + timedelta(days=1))
    (wanted,) = merges(contents)
    assert (len(wanted.files), wanted.sort_by) == (2, ("id",))
    merge(contents, wanted)
    assert merges(contents) == []
    late = file(3, 1_000)
    contents.files.append(late)
    (again,) = merges(contents)
    assert again.files == (late,), "what is sorted is not sorted again for a commit that came late"


def test_files_of_different_kinds_days_versions_and_tables_stay_apart() -> None:
    others = [
        file(1, 10, kind="baseline"),
        file(2, 10, kind="baseline"),
        file(3, 10, version=2),
        file(4, 10, path=file(4, 10).path.replace("24/", "23/")),
        file(5, 10),
    ]
    contents = archive(*others, now=NOON + timedelta(days=1))
    contents.relations[1].append(replace(KEYED, version=2))
    assert sorted(len(wanted.files) for wanted in merges(contents)) == [1, 1, 1, 1, 1]


def test_files_that_are_large_enough_are_left_alone() -> None:
    large = [file(number, tiers.LARGEST // 2 + 1) for number in range(1, 20)]
    assert merges(archive(*large)) == []
