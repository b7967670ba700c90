"""Where pgoutput's transactions begin and end in a chunk, told without decoding any row.

Messages: PostgreSQL documentation, section 53.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from waly_cdc.decode.chunk import Chunk
from waly_cdc.lsn import ZERO, Lsn

_BEGIN, _COMMIT = b"BC"
_XID_AT = 17
"""In Begin: kind (1 byte), LSN of the commit record, commit time (8 each), xid (4)."""

_END_LSN_AT = 10
"""In Commit: kind, flags (1 byte each), LSN of the commit record, end LSN (8 each)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`begun`: the xids of the transactions that begin in a chunk, in order. `committed`: the end
    LSN of the last one that commits in it, or zero. `inside`: whether it ends in a transaction."""

    begun: list[int]
    committed: Lsn
    inside: bool

    @classmethod
    def of(cls, chunk: Chunk, inside: bool) -> Bounds:
        """Of a chunk, given whether the one before it ended `inside` a transaction. Raises
        DecodeError for what is not XLogData frames."""
        at, _ = chunk.messages()
        kinds = np.frombuffer(chunk.data, np.uint8)[at]
        begins, commits = at[kinds == _BEGIN].tolist(), at[kinds == _COMMIT].tolist()
        if begins or commits:
            # Lists, for either may be empty: then it comes before the other.
            inside = begins[-1:] > commits[-1:]
        return cls(
            [_number(chunk, begin + _XID_AT, 4) for begin in begins],
            Lsn(_number(chunk, commits[-1] + _END_LSN_AT, 8)) if commits else ZERO,
            inside,
        )


def _number(chunk: Chunk, at: int, size: int) -> int:
    return int.from_bytes(chunk.data[at : at + size], "big")
