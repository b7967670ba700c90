"""A chunk: consecutive replication frames, laid one after the other in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from waly_cdc.errors import DecodeError

XLOGDATA_HEADER = 25
"""Bytes before the message in an XLogData frame: `w`, start LSN, end LSN, send time."""

COMMIT = ord("C")
_COMMIT_SIZE = 26


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole XLogData frames: their bytes, and the length of each (int64, in bytes)."""

    data: bytes
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, frames: Sequence[bytes | memoryview]) -> Chunk:
        return cls(b"".join(frames), np.fromiter(map(len, frames), np.int64, len(frames)))

    def __len__(self) -> int:
        return len(self.lengths)

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first `count` frames, and the rest."""
        size = int(self.lengths[:count].sum())
        return (
            Chunk(self.data[:size], self.lengths[:count]),
            Chunk(self.data[size:], self.lengths[count:]),
        )

    def committed(self) -> tuple[int, int]:
        """How many frames there are up to the last Commit, and that transaction's end LSN.

        `(0, 0)` where there is none. Raises DecodeError for frames too short to tell.
        """
        if (self.lengths <= XLOGDATA_HEADER).any():
            raise DecodeError("a frame is too short")
        starts = np.cumsum(self.lengths) - self.lengths
        kinds = np.frombuffer(self.data, np.uint8)[starts + XLOGDATA_HEADER]
        commits = np.flatnonzero(kinds == COMMIT)
        if not len(commits):
            return 0, 0
        last = int(commits[-1])
        if self.lengths[last] != XLOGDATA_HEADER + _COMMIT_SIZE:
            raise DecodeError("a Commit message has a wrong length")
        # Commit: kind, flags (1 byte each), commit LSN, end LSN (8 each), commit time.
        position = int(starts[last]) + XLOGDATA_HEADER + 10
        return last + 1, int.from_bytes(self.data[position : position + 8], "big")
