"""Compaction: many small files become few large ones, with the same rows.

plan (`tiers`) → merge and prove (`merging`) → commit an entry `compact` → an hour later, delete.

Crash windows, and what is left behind in each:

* while files are merged: temporary files in `incoming/`, which the next writer removes;
* after their rename, before the entry: files that no entry names, which the next writer removes;
  the files that they were to replace are named still, and nothing has changed;
* after the entry, the sole commit point: the new files exist, and the replaced ones no longer do.
  They lie on disk for `contents.GRACE` more, for readers that opened the manifest before: what
  these answer from the old files is the same;
* while replaced files are deleted, before the entry that forgets them: some are gone and the
  manifest says still that they may be there; nobody misses them, and the rest is deleted later.

A reader that has held a manifest for longer than that meets a missing file, and reads the manifest
anew (`contents.at_hand`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from waly_cdc.archive.merging import Merged, merge
from waly_cdc.archive.tiers import Merge, merges
from waly_cdc.archive.writer import ArchiveWriter

BATCH_BYTES = 256 << 20
BATCH_FILES = 256
"""Bytes and files that are replaced before an entry is written."""


@dataclass(slots=True)
class Compacted:
    """What a compaction did: `replaced` files became `made`, and `bytes` were read for it."""

    replaced: int = 0
    made: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"replaced": self.replaced, "made": self.made, "bytes": self.bytes}


def compact(
    archive: ArchiveWriter,
    *,
    stopping: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] | None = None,
) -> Compacted:
    """Merge all that is worth it, until nothing is or `stopping` says so; what was done by then is
    committed. `progress` is told the bytes done and the bytes known to be in all.

    Other threads may commit meanwhile. Raises ArchiveCorrupt for a damaged file, StorageError,
    ArchiveLocked.
    """
    done = Compacted()
    archive.delete_replaced()
    while (planned := _plan(archive)) and not stopping():
        total = done.bytes + sum(each.bytes for each in planned)
        batch: list[Merged] = []
        try:
            for wanted in planned:
                if stopping():
                    break
                if batch and (batch[0].era != wanted.era or _full(batch)):
                    _commit(archive, batch, done)
                    batch = []
                batch.append(merge(archive.store, archive.incoming, wanted, _key(archive, wanted)))
                done.bytes += wanted.bytes
                if progress is not None:
                    progress(done.bytes, total)
            if batch:
                _commit(archive, batch, done)
        except BaseException:
            for merged in batch:
                merged.finished.temporary.unlink(missing_ok=True)
            raise
    return done


def _plan(archive: ArchiveWriter) -> list[Merge]:
    return [wanted for era in archive.contents.eras for wanted in merges(era)]


def _key(archive: ArchiveWriter, wanted: Merge) -> tuple[str, ...]:
    first = wanted.files[0]
    if first.oid is None or first.version is None:
        return ("lsn",)
    return archive.contents.in_era(wanted.era).version(first.oid, first.version).key


def _full(batch: list[Merged]) -> bool:
    files = sum(len(each.removed) for each in batch)
    return files >= BATCH_FILES or sum(m.finished.file.bytes for m in batch) >= BATCH_BYTES


def _commit(archive: ArchiveWriter, batch: list[Merged], done: Compacted) -> None:
    removed = [each for merged in batch for each in merged.removed]
    archive.replace(batch[0].era, [merged.finished for merged in batch], removed)
    done.replaced += len(removed)
    done.made += len(batch)
