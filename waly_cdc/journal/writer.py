"""Appending to the journal.

Invariants:

* what `append` has written is durable only after `sync`; nothing else makes it so;
* a file `<lsn>.journal` holds what was received from that LSN on; `rotate` starts the next one;
* `trim` removes whole files, and only those that lie before an LSN the archive has sealed.

Crash windows: in `append`, a torn chunk at the end of the newest file, which the reader cuts;
between `rotate` and the first `append`, nothing; in `trim` and `restart`, some files remain whose
transactions are sealed or not whole, and are removed later.
"""

from __future__ import annotations

import os
from pathlib import Path

from waly_cdc import durable, failpoints
from waly_cdc.journal.chunks import SUFFIX, JournalChunk, journal_files
from waly_cdc.lsn import Lsn


class JournalWriter:
    """The one writer of a journal folder. Raises StorageError when the disk refuses."""

    def __init__(self, folder: Path, start: Lsn) -> None:
        durable.make_folder(folder)
        self.folder = self._folder = folder
        self._path = self._path_for(start)
        self._descriptor: int | None = None
        self.unsynced = 0
        """Bytes appended since the last `sync`."""

    def append(self, chunk: JournalChunk) -> None:
        """Write a chunk at the end of the current file. Not yet durable."""
        with durable.storage_errors(self._path):
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._descriptor = os.open(self._path, flags, durable.FILE_MODE)
                durable.sync_folder(self._folder)
            failpoints.reach("journal.append")
            size = os.fstat(self._descriptor).st_size
            try:
                for buffer in chunk.to_buffers():
                    view = memoryview(buffer)
                    while view:
                        written = os.write(self._descriptor, view)
                        view = view[written:]
                        self.unsynced += written
            except OSError:
                os.ftruncate(self._descriptor, size)
                raise

    def sync(self) -> None:
        """Make everything appended so far durable."""
        if self._descriptor is None or not self.unsynced:
            return
        with durable.storage_errors(self._path):
            failpoints.reach("journal.sync")
            durable.sync_file(self._descriptor)
        self.unsynced = 0

    def rotate(self, start: Lsn) -> None:
        """Sync the current file; what is appended from now on goes to another, from `start` on."""
        self.sync()
        self.close()
        self._path = self._path_for(start)

    def trim(self, sealed: Lsn) -> None:
        """Remove the files before the current one: they hold nothing that begins at `sealed` or
        after it."""
        with durable.storage_errors(self._folder):
            failpoints.reach("journal.trim")
            for start, path in journal_files(self._folder):
                if start < sealed and path != self._path:
                    path.unlink()

    def restart(self, start: Lsn) -> None:
        """Remove all files, the current one too: what they held is sealed, or comes again."""
        self.close()
        self.unsynced = 0
        self._path = self._path_for(start)
        with durable.storage_errors(self._folder):
            failpoints.reach("journal.trim")
            for _, path in journal_files(self._folder):
                path.unlink()
            durable.sync_folder(self._folder)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _path_for(self, start: Lsn) -> Path:
        return self._folder / f"{start.hex}{SUFFIX}"
