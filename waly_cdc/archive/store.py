"""Where an archive's files are kept.

`put_new` is the primitive that everything hangs on: it gives a name to exactly one writer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from waly_cdc import durable
from waly_cdc.errors import ArchiveCorrupt


class LocalStore:
    """Files below a folder of a local disk. Paths are relative, with `/` between folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, path: str) -> Path:
        """The file's place on disk. Raises ArchiveCorrupt for a path that leaves the archive."""
        parts = path.split("/")
        if not path or any(part in ("", ".", "..") for part in parts) or "\0" in path:
            raise ArchiveCorrupt(f"a manifest entry names a path outside the archive: {path!r}")
        return self.root.joinpath(*parts)

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError."""
        return self.path(path).read_bytes()

    def put_new(self, path: str, content: bytes) -> None:
        """Write a file durably. Raises FileExistsError when the name is taken."""
        target = self.path(path)
        durable.make_folder(target.parent)
        durable.write_new(target, content)

    def put(self, path: str, content: bytes) -> None:
        """Write a file durably, whether or not it exists."""
        target = self.path(path)
        durable.make_folder(target.parent)
        durable.replace(target, content)

    def publish(self, temporary: Path, path: str) -> None:
        """Move a finished, synced file to its final name."""
        target = self.path(path)
        durable.make_folder(target.parent)
        durable.publish(temporary, target)

    def delete(self, path: str) -> None:
        self.path(path).unlink(missing_ok=True)

    def list(self, folder: str) -> Iterator[str]:
        """All files below a folder, in no order. Nothing for a missing folder."""
        for parent, _, names in os.walk(self.root / folder):
            relative = Path(parent).relative_to(self.root).as_posix()
            for name in names:
                yield f"{relative}/{name}"
