"""The journal's on-disk chunks (FORMAT.md, section 5)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from waly_cdc.lsn import Lsn

MAGIC = b"WJ1\n"
HEADER = struct.Struct("<4sIIQQI")
"""Magic, CRC-32 of everything after it, messages, bytes of all messages, last commit's end LSN,
bytes of the sightings."""

CHECKED_FROM = 8
"""Where in a chunk the bytes begin that its CRC covers."""

SUFFIX = ".journal"


@dataclass(frozen=True, slots=True)
class JournalChunk:
    """Frames as received: their bytes one after the other, and each one's length (uint32, `<u4`).

    Everything that commits before `committed` is in this chunk or those before it; a chunk without
    frames tells only that. `sightings` is JSON: sessions in which transactions of this chunk or
    of those before it were seen; empty where there are none.
    """

    data: bytes
    lengths: bytes
    committed: Lsn
    sightings: bytes = b""

    def to_buffers(self) -> Sequence[bytes]:
        """What is written, in order."""
        sizes = len(self.lengths) // 4, len(self.data), self.committed.value, len(self.sightings)
        header = HEADER.pack(MAGIC, 0, *sizes)[CHECKED_FROM:]
        body = self.lengths, self.data, self.sightings
        return MAGIC + checksum(header, *body).to_bytes(4, "little") + header, *body


def checksum(*parts: bytes) -> int:
    """CRC-32 of the parts, one after the other."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def journal_files(folder: Path) -> list[tuple[Lsn, Path]]:
    """The journal's files with the LSN each begins at, in order."""
    files = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            files.append((Lsn.from_hex(path.name.removesuffix(SUFFIX)), path))
        except ValueError:
            continue
    return sorted(files)
