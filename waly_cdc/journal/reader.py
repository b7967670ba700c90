"""Reading the journal back: after a crash, and for answers about what is not yet sealed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.journal.chunks import (
    CHECKED_FROM,
    HEADER,
    MAGIC,
    JournalChunk,
    checksum,
    journal_files,
)
from waly_cdc.lsn import Lsn


def read(folder: Path, sealed: Lsn) -> Iterator[JournalChunk]:
    """The chunks not yet sealed, in the order they were written.

    A torn chunk ends the newest file: it was never acknowledged, because that happens only after a
    sync. Raises ArchiveCorrupt for a damaged chunk anywhere else.
    """
    files = [(start, path) for start, path in journal_files(folder) if start >= sealed]
    for number, (_, path) in enumerate(files):
        yield from _read_file(path, newest=number == len(files) - 1)


def _read_file(path: Path, *, newest: bool) -> Iterator[JournalChunk]:
    size = path.stat().st_size
    with path.open("rb") as file:
        while (at := file.tell()) < size:
            chunk, end = _read_chunk(file, size)
            if chunk is not None:
                yield chunk
                continue
            grown = os.fstat(file.fileno()).st_size
            if grown > size:
                # A sidecar is writing: what was torn may be whole by now.
                size = grown
                file.seek(at)
                continue
            if newest and not _magic_follows(file, at + 1, size):
                return
            raise ArchiveCorrupt(
                f"{path} is damaged at byte {at} of {size}"
                + (f"; the chunk should end at byte {end}" if end else ""),
                hint="what it holds may still be in PostgreSQL: restore the file from a copy, or "
                "see the chapter on a damaged journal in the documentation",
            )


def _read_chunk(file: BinaryIO, size: int) -> tuple[JournalChunk | None, int | None]:
    """The chunk at the file's position, or None if it is not whole; and where it should end."""
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        return None, None
    magic, crc, count, length, committed, sightings = HEADER.unpack(header)
    end = file.tell() + 4 * count + length + sightings
    if magic != MAGIC or end > size:
        return None, end
    body = file.read(4 * count), file.read(length), file.read(sightings)
    if checksum(header[CHECKED_FROM:], *body) != crc:
        return None, end
    return JournalChunk(body[1], body[0], Lsn(committed), body[2]), end


def _magic_follows(file: BinaryIO, start: int, size: int) -> bool:
    """Whether a whole chunk begins anywhere from `start` on: then the damage is not a torn tail."""
    file.seek(start)
    rest = file.read(size - start)
    at = -1
    while (at := rest.find(MAGIC, at + 1)) >= 0:
        file.seek(start + at)
        if _read_chunk(file, size)[0] is not None:
            return True
    return False
