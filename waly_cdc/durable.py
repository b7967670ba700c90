"""Durable writes: the only place that calls fsync or rename.

A write goes temp file → write → fsync → rename or link → fsync of the folder. After a crash the
final name holds either the whole content or does not exist.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waly_cdc.errors import StorageError

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def make_folder(path: Path) -> None:
    """Create a folder and its parents for the owner alone, and make their names durable."""
    missing: list[Path] = []
    folder = path
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        with storage_errors(folder):
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            sync_folder(folder.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet. Raises FileExistsError when it does.

    `link` gives the name only if nobody else has it: of two writers, one fails.
    """
    temporary = path.with_name(f"incoming-{os.getpid()}-{path.name}")
    with storage_errors(path):
        try:
            _write(temporary, content)
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def replace(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole, over an older one if there is one; readers see the old or the new."""
    temporary = path.with_name(f"incoming-{os.getpid()}-{path.name}")
    with storage_errors(path):
        _write(temporary, content, durable=durable)
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished, already synced file its final name, and make the name durable."""
    with storage_errors(path):
        os.replace(temporary, path)
        sync_folder(path.parent)


def sync_file(descriptor: int) -> None:
    """Flush a file's data, and as much metadata as reading it back needs."""
    os.fdatasync(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes, *, durable: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        if durable:
            sync_file(descriptor)
    finally:
        os.close(descriptor)


_HINTS = {
    errno.ENOSPC: "free space on that disk and start again; nothing acknowledged is lost",
    errno.EDQUOT: "raise the quota and start again; nothing acknowledged is lost",
    errno.EFBIG: "raise the file size limit (ulimit -f) and start again",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "give the user that runs waly write permission there",
    errno.EPERM: "give the user that runs waly write permission there",
    errno.EIO: "the disk reported a fault: check the system log before going on",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a StorageError; FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"cannot write {path}: {reason}", hint=_HINTS.get(error.errno or 0)
        ) from error
