"""Which files are worth merging.

Files of one kind, relation version and day follow each other in the log, and only neighbours are
merged, so that each holds one contiguous range of LSNs.

* Of a day that goes on, `FAN` neighbours of about one size are merged into one of the next, as in a
  log-structured merge tree: a row is rewritten as often as the day has levels, and the number of
  files grows with the logarithm of their sizes.
* Of a day that has ended, neighbours are merged up to `LARGEST`, sorted by key where the table has
  one. Baselines are whole from the beginning: each is sorted by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.layout import day_of
from waly_cdc.archive.manifest import File

FAN = 8
SMALLEST = 256 << 10
"""Bytes below which all files are of the lowest level."""
LARGEST = 512 << 20
"""Bytes that files which are merged have together at most."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Files, in order, that are to become one; sorted by the key columns of that stored name."""

    era: int
    files: tuple[File, ...]
    sort_by: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def merges(contents: Contents) -> list[Merge]:
    """What is worth doing in one era now."""
    found = []
    for files in _groups(contents):
        first = files[0]
        key: tuple[str, ...] = ()
        if first.oid is not None and first.version is not None:
            key = contents.version(first.oid, first.version).key
        if _ended(contents, day_of(first.path)):
            chosen = _of_ended_day(files, key)
        else:
            key, chosen = (), _of_open_day(files)
        found += [Merge(contents.era, run, key) for run in chosen]
    return found


def _groups(contents: Contents) -> Iterator[list[File]]:
    groups: dict[tuple[object, ...], list[File]] = defaultdict(list)
    for file in list(contents.files):
        if file.kind != "schema":
            # Baselines are told apart by their LSN, and never merged.
            baseline = file.first_lsn if file.kind == "baseline" else None
            groups[file.kind, baseline, file.oid, file.version, day_of(file.path)].append(file)
    for files in groups.values():
        yield sorted(files, key=lambda file: file.first_lsn)


def _ended(contents: Contents, day: date) -> bool:
    """Whether the archive has seen the next day begin. Commits of that day that come still, by a
    clock that was put back, make files of their own."""
    return contents.horizon_time is not None and day < contents.horizon_time.date()


def _of_open_day(files: Sequence[File]) -> Iterator[tuple[File, ...]]:
    """As many neighbours as `FAN`, none of a higher level than the largest of those from the first
    of them on: small ones between larger ones count with these."""
    start = 0
    while start < len(files):
        highest = max(map(_level, files[start:]))
        end = max(n for n, file in enumerate(files) if _level(file) == highest) + 1
        while end - start >= FAN:
            run = tuple(files[start : start + FAN])
            if sum(file.bytes for file in run) <= LARGEST:
                yield run
            start += FAN
        start = end


def _level(file: File) -> int:
    level, limit = 0, SMALLEST
    while file.bytes >= limit:
        level, limit = level + 1, limit * FAN
    return level


def _of_ended_day(files: Sequence[File], key: tuple[str, ...]) -> Iterator[tuple[File, ...]]:
    """Neighbours that fit together, less those that are sorted already."""
    for run in _packed(files, key):
        if len(run) > 1 or (key and run[0].sorted_by != key):
            yield tuple(run)


def _packed(files: Sequence[File], key: tuple[str, ...]) -> Iterator[list[File]]:
    run: list[File] = []
    for file in files:
        done = bool(key) and file.sorted_by == key
        if run and (done or sum(f.bytes for f in run) + file.bytes > LARGEST):
            yield run
            run = []
        if not done:
            run.append(file)
    if run:
        yield run
