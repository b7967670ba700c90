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

LSN_BEFORE_MESSAGE = 24
"""Bytes from a frame's start LSN, which tells where the log has the change, to its message."""

_XLOGDATA = ord("w")
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

    def messages(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the plugin's message in each frame begins and ends, in bytes of `data`. Raises
        DecodeError for what is not XLogData frames."""
        starts = self.starts
        if not len(self):
            return starts, starts
        if (self.lengths <= MESSAGE_AT).any() or int(self.lengths.sum()) != len(self.data):
            raise DecodeError("a frame is too short")
        if (np.frombuffer(self.data, np.uint8)[starts + COPYDATA_HEADER] != _XLOGDATA).any():
            raise DecodeError("a frame is not XLogData")
        return starts + MESSAGE_AT, starts + self.lengths
