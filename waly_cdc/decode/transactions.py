"""The transactions of a chunk: which of them each message belongs to, and which of them end in it.

A message's kind is a letter that the plugins share: `B` begins a transaction, `C` commits it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from waly_cdc.decode import events
from waly_cdc.decode.tuples import Positions
from waly_cdc.errors import DecodeError

BEGIN, COMMIT = b"BC"
Kinds = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction whose Commit has not been seen, and how much of it has: `seq` is that of its
    next row, `truncated` where the log has its last message, if that is a truncate (else -1)."""

    lsn: int
    committed_at: int
    xid: int
    seq: int = 0
    events: int = 0
    truncated: int = -1


@dataclass(slots=True)
class Transactions:
    """The transactions of a chunk. Element 0 is the one that was open before it, if any.

    `of` gives the element for each message of the chunk; an element's `seq` is what to subtract
    from a row's ordinal in the chunk to get its `_seq`. Times are microseconds since 1970.
    """

    before: OpenTransaction | None
    kind: Kinds
    of: Positions
    lsn: Positions
    committed_at: Positions
    xid: Positions
    seq: Positions

    @classmethod
    def of_chunk(
        cls,
        before: OpenTransaction | None,
        kind: Kinds,
        lsn: Positions,
        committed_at: Positions,
        xid: Positions,
    ) -> Transactions:
        """From the kinds of all messages, and what each Begin says."""
        known = before or OpenTransaction(0, 0, 0)
        return cls(
            before=before,
            kind=kind,
            of=np.cumsum(kind == BEGIN),
            lsn=np.append(known.lsn, lsn),
            committed_at=np.append(known.committed_at, committed_at),
            xid=np.append(known.xid, xid),
            seq=np.append(-known.seq, np.zeros(len(lsn), np.int64)),
        )

    def number(self, rows: Positions) -> Positions:
        """The `_seq` of each message; good for `rows`, which are numbered, only."""
        self.seq[1:] = np.searchsorted(rows, np.flatnonzero(self.kind == BEGIN))
        seq = np.zeros(len(self.kind), np.int64)
        seq[rows] = np.arange(len(rows)) - self.seq[self.of[rows]]
        return seq

    def check_inside(self, messages: Positions) -> None:
        """Raises DecodeError unless each of the messages belongs to a transaction."""
        depth = np.cumsum(self.kind == BEGIN) - np.cumsum(self.kind == COMMIT)
        if (depth[messages] + (self.before is not None) != 1).any():
            raise DecodeError("a message lies outside of a transaction")

    def committed(self, end_lsn: Positions, counts: Positions) -> pa.RecordBatch:
        """The transactions that commit in the chunk; `end_lsn` is given for each of them, `counts`
        are the events that the chunk has of each transaction."""
        of = self.of[self.kind == COMMIT]
        counts = self._totals(counts)
        return pa.RecordBatch.from_arrays(
            [
                pa.array(self.lsn[of]),
                pa.array(end_lsn),
                pa.array(self.xid[of]),
                pa.array(self.committed_at[of]).cast(events.COMMITTED_AT),
                pa.array(counts[of]),
            ],
            schema=events.TRANSACTIONS,
        )

    def still_open(
        self, counts: Positions, rows: int, truncated: int = -1
    ) -> OpenTransaction | None:
        """The transaction that is open at the end of the chunk, which has so many numbered rows."""
        bounds = self.kind[(self.kind == BEGIN) | (self.kind == COMMIT)]
        if bounds[-1] == COMMIT if len(bounds) else self.before is None:
            return None
        return OpenTransaction(
            lsn=int(self.lsn[-1]),
            committed_at=int(self.committed_at[-1]),
            xid=int(self.xid[-1]),
            seq=rows - int(self.seq[-1]),
            events=int(self._totals(counts)[-1]),
            truncated=truncated,
        )

    def _totals(self, counts: Positions) -> Positions:
        counts = counts.astype(np.int64)
        counts[0] += self.before.events if self.before else 0
        return counts


def check_turns(before: OpenTransaction | None, kind: Kinds) -> None:
    """Raises DecodeError unless Begin and Commit take turns."""
    bounds = kind[(kind == BEGIN) | (kind == COMMIT)]
    first = COMMIT if before else BEGIN
    expected = np.where(np.arange(len(bounds)) % 2 == 0, first, BEGIN + COMMIT - first)
    if (bounds != expected).any():
        raise DecodeError("Begin and Commit do not take turns")
