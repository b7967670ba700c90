"""The one process that may write an archive, and the commit of an entry.

Invariants:

* the lock is held from `open` to `close`, so that nobody else commits in between;
* `contents` is what the manifest says, entry for entry; entries are committed one at a time,
  whatever threads they come from;
* `incoming/` and files that no entry names hold nothing that anybody may read.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from waly_cdc import durable, failpoints
from waly_cdc.archive import contents as archive_contents
from waly_cdc.archive import layout
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Baseline, Entry, EraGap, Removed, SequenceValue, Source
from waly_cdc.archive.segments import Finished
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveLocked, NoArchive
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.tables import NO_CHANGES, TableChanges

CHECKPOINT_EVERY = 64
"""Entries between two checkpoints."""


class ArchiveWriter:
    """An archive opened for writing. A context manager that gives the lock back."""

    def __init__(self, root: Path, contents: Contents, lock: int) -> None:
        self.root = root
        self.store = LocalStore(root)
        self.contents = contents
        self.incoming = root / layout.INCOMING
        self.journal = root / layout.JOURNAL
        self._lock = lock
        self._committing = threading.RLock()
        self._closed = False
        self.calm = threading.Event()
        """Set while capture keeps up with the server: what can wait may be done."""
        self.calm.set()

    @classmethod
    def open(cls, root: Path, *, create: bool = False) -> ArchiveWriter:
        """Take the lock, read the manifest and sweep what a crash left.

        Raises ArchiveLocked when another process holds it; NoArchive where there is none, unless
        `create`.
        """
        if create:
            durable.make_folder(root)
        elif not (root / layout.MANIFEST).is_dir():
            raise NoArchive(
                f"no archive at {root}",
                hint="create one with `waly init`, or name another with --archive",
            )
        lock = _take_lock(root)
        try:
            try:
                contents = archive_contents.load(LocalStore(root))
            except NoArchive:
                if not create:
                    raise
                contents = Contents()
            writer = cls(root, contents, lock)
            writer.sweep()
        except BaseException:
            os.close(lock)
            raise
        return writer

    def sweep(self) -> None:
        """Remove what no entry names: unfinished files, and finished ones without an entry. What
        was replaced lately stays."""
        with durable.storage_errors(self.incoming):
            shutil.rmtree(self.incoming, ignore_errors=True)
            durable.make_folder(self.incoming)
        self.delete_replaced()
        named = {file.path for era in self.contents.eras for file in era.files}
        named |= {each.path for each in self.contents.replaced}
        for folder in layout.DATA_FOLDERS:
            for path in list(self.store.list(folder)):
                if path not in named:
                    self.store.delete(path)
        for path in list(self.store.list(layout.MANIFEST)):
            if path.rpartition("/")[2].startswith("incoming-"):
                self.store.delete(path)

    def delete_replaced(self, now: datetime | None = None) -> None:
        """Delete the files that were replaced so long ago that no reader needs them. An entry
        written `now` or later forgets them; what is left of them by a crash, or because the disk
        refuses, is removed by the next writer."""
        now = now or datetime.now(UTC)
        with self._committing:
            for each in self.contents.replaced:
                if each.expired(now):
                    with suppress(OSError):
                        failpoints.reach("compact.delete")
                        self.store.delete(each.path)

    def commit(
        self,
        kind: str,
        *,
        end: Lsn,
        start: Lsn | None = None,
        horizon_time: datetime | None = None,
        finished: Iterable[Finished] = (),
        relations: Iterable[RelationVersion] = (),
        baselines: Iterable[Baseline] = (),
        sequences: Iterable[SequenceValue] = (),
        source: Source | None = None,
        gap: EraGap | None = None,
        schema_fingerprint: str | None = None,
        tables: TableChanges = NO_CHANGES,
        transactions: int = 0,
        events: int = 0,
    ) -> Entry:
        """Publish the finished files and write the entry that names them, which makes them exist.

        `start` is given only where the covered range does not begin at the horizon (the baselines
        of an era), `gap` begins an era. Raises ArchiveLocked when somebody else wrote the entry of
        that number.
        """
        with self._committing:
            return self._commit(
                kind=kind,
                era=self.contents.era if gap is None else self.contents.era + 1,
                start=self.contents.horizon if start is None else start,
                end=end,
                horizon_time=horizon_time,
                files=tuple(item.publish(self.store) for item in finished),
                relations=tuple(relations),
                baselines=tuple(baselines),
                sequences=tuple(sequences),
                source=source,
                gap=gap,
                schema_fingerprint=schema_fingerprint,
                tables=tables,
                transactions=transactions,
                events=events,
            )

    def replace(self, era: int, finished: Iterable[Finished], removed: Iterable[Removed]) -> Entry:
        """Put finished files in the place of others of an era, whose rows they hold: an entry
        `compact`. Raises ArchiveLocked as `commit` does."""
        with self._committing:
            horizon = self.contents.horizon
            return self._commit(
                kind="compact",
                era=era,
                start=horizon,
                end=horizon,
                horizon_time=None,
                files=tuple(item.publish(self.store) for item in finished),
                removed=tuple(removed),
            )

    def fold(self, finished: Iterable[Finished], baselines: Iterable[Baseline]) -> Entry:
        """Add baselines that were computed from the archive: an entry `fold`."""
        with self._committing:
            horizon = self.contents.horizon
            return self.commit("fold", end=horizon, finished=finished, baselines=baselines)

    def _commit(self, **facts: Any) -> Entry:
        entry = Entry(
            number=self.contents.entries,
            previous=self.contents.head,
            written_at=datetime.now(UTC),
            **facts,
        )
        self._put(entry)
        return entry

    def _put(self, entry: Entry) -> None:
        if self._closed:
            raise ArchiveLocked(f"{self.root} is not open for writing any more")
        self.delete_replaced(entry.written_at)
        content = entry.to_bytes()
        path = layout.entry_path(entry.number)
        with durable.storage_errors(self.root / path):
            failpoints.reach("manifest.put")
        try:
            # Rule 2, commit point: before this call the archive does not have these files, after
            # it the archive has all of them.
            self.store.put_new(path, content)
        except FileExistsError:
            raise ArchiveLocked(
                f"another writer has committed {path}",
                hint="run one sidecar per archive; stop the other one",
            ) from None
        self.contents.apply(entry, content)
        if self.contents.entries % CHECKPOINT_EVERY == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        number = self.contents.entries - 1
        self.store.put(layout.checkpoint_path(number), self.contents.to_checkpoint())
        for path in list(self.store.list(layout.MANIFEST)):
            older = layout.checkpoint_number(path)
            if older is not None and older < number - CHECKPOINT_EVERY:
                self.store.delete(path)

    def close(self) -> None:
        """Give the lock back. Nothing is committed from here on."""
        with self._committing:
            self._closed = True
            os.close(self._lock)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _take_lock(root: Path) -> int:
    path = root / layout.LOCK
    with durable.storage_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, durable.FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise ArchiveLocked(
            f"{root} is in use by another writer" + (f" (process {holder})" if holder else ""),
            hint="stop that process, or use another archive",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
