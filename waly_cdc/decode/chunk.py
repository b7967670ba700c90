"""A chunk: consecutive replication frames, laid one after the other in memory.

Each frame keeps the header of the CopyData message that carried it, so that what comes off a socket
is a chunk as it lies there (PostgreSQL documentation, sections 53.7, CopyData, and 53.4, XLogData).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from waly_cdc.errors import DecodeError

COPYDATA_HEADER = 5
"""Bytes before a frame: `d`, and the length of all that follows the `d` (uint32, big-endian)."""

MESSAGE_AT = COPYDATA_HEADER + 25
"""Where the plugin's message begins: after XLogData's `w`, start LSN, end LSN and send time."""

COMMIT = ord("C")
_COMMIT_SIZE = 26
_COPYDATA = struct.Struct(">cI")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole frames with their CopyData headers: their bytes, and the length of each (int64)."""

    data: bytes
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, frames: Iterable[bytes | memoryview]) -> Chunk:
        """Put the headers before frames that come without."""
        parts: list[bytes | memoryview] = []
        for frame in frames:
            parts += (_COPYDATA.pack(b"d", len(frame) + 4), frame)
        lengths = np.fromiter(map(len, parts[1::2]), np.int64, len(parts) // 2)
        return cls(b"".join(parts), lengths + COPYDATA_HEADER)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each frame's CopyData header begins."""
        return np.cumsum(self.lengths) - self.lengths

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first `count` frames, and the rest."""
        size = int(self.lengths[:count].sum())
        return (
            Chunk(self.data[:size], self.lengths[:count]),
            Chunk(self.data[size:], self.lengths[count:]),
        )

    def committed(self, before: int | None = None) -> tuple[int, int]:
        """How many frames there are up to the last Commit, and that transaction's end LSN.

        `before`: up to the last one whose commit record begins before that LSN. `(0, 0)` where
        there is none. Raises DecodeError for frames too short to tell.
        """
        if (self.lengths <= MESSAGE_AT).any():
            raise DecodeError("a frame is too short")
        starts = self.starts
        kinds = np.frombuffer(self.data, np.uint8)[starts + MESSAGE_AT]
        commits = np.flatnonzero(kinds == COMMIT)
        if not len(commits):
            return 0, 0
        # Commit: kind, flags (1 byte each), commit LSN, end LSN (8 each), commit time.
        for last in commits[::-1].tolist():
            if self.lengths[last] != MESSAGE_AT + _COMMIT_SIZE:
                raise DecodeError("a Commit message has a wrong length")
            at = int(starts[last]) + MESSAGE_AT + 2
            if before is None or int.from_bytes(self.data[at : at + 8], "big") < before:
                return last + 1, int.from_bytes(self.data[at + 8 : at + 16], "big")
        return 0, 0
