"""COPY's text format, decoded by columns: a block of whole rows becomes Arrow arrays.

Format: PostgreSQL documentation, "COPY", section "Text Format". Tabs and newlines are delimiters
wherever they stand, because inside a value they are escaped; NULL is `\\N`.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from waly_cdc.decode import events
from waly_cdc.decode.events import EventBatch, Header, Texts
from waly_cdc.decode.tuples import Bytes, Spans
from waly_cdc.errors import DecodeError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion

_TAB, _NEWLINE, _BACKSLASH, _N = b"\t\n\\N"

_ESCAPED = np.arange(256, dtype=np.uint8)
for _letter, _byte in zip(b"bfnrtv", b"\b\f\n\r\t\v", strict=True):
    _ESCAPED[_letter] = _byte


def read_rows(block: bytes, columns: int) -> tuple[int, list[pa.StringArray]]:
    """The rows of a block, as their number and one text array per column.

    Raises DecodeError for a block that is not whole rows of so many columns.
    """
    data = np.frombuffer(block, np.uint8)
    if not len(data) or data[-1] != _NEWLINE:
        raise DecodeError("a block of COPY data does not end with a row")
    ends = np.flatnonzero((data == _NEWLINE) | (data == _TAB))
    per_row = max(columns, 1)
    if len(ends) % per_row:
        raise DecodeError("COPY data has rows of different width")
    rows = len(ends) // per_row
    if (data[ends[per_row - 1 :: per_row]] != _NEWLINE).any() or rows != int(
        np.count_nonzero(data == _NEWLINE)
    ):
        raise DecodeError("COPY data has rows of different width")
    if not columns:
        return rows, []
    starts = np.concatenate([[0], ends[:-1] + 1])
    null = (ends - starts == 2) & (data[starts] == _BACKSLASH)
    null &= data[np.minimum(starts + 1, len(data) - 1)] == _N
    if (data == _BACKSLASH).any():
        data, starts, ends = _unescape(data, starts, ends)
    source = Bytes(data.tobytes().ljust(4))
    texts = []
    for column in range(columns):
        mine = slice(column, None, columns)
        absent = null[mine] if null[mine].any() else None
        texts.append(Spans(starts[mine], ends[mine], absent).text(source))
    return rows, texts


def baseline_batch(
    relation: RelationVersion, block: bytes, era: int, lsn: Lsn, first_seq: int, taken_at: int
) -> EventBatch:
    """A block of a table's copy as baseline events (op `R`).

    `lsn` is what their `_lsn` says, `taken_at` the snapshot's time in microseconds since 1970.
    """
    rows, columns = read_rows(block, len(relation.columns))
    texts = Texts(rows)
    own = [
        texts.typed(column.stored, column.storage, text)
        for column, text in zip(relation.columns, columns, strict=True)
    ]
    header = Header(
        op=np.full(rows, ord("R"), np.uint8),
        lsn=np.full(rows, lsn.value, np.int64),
        seq=np.arange(first_seq, first_seq + rows, dtype=np.int64),
        xid=np.zeros(rows, np.int64),
        committed_at=np.full(rows, taken_at, np.int64),
    )
    kind = events.before_type(relation)
    batch = events.batch(
        relation,
        era,
        header,
        own,
        pa.nulls(rows, pa.list_(pa.string())),
        None if kind is None else pa.nulls(rows, kind),
        texts.raw(),
    )
    return EventBatch(
        relation, date.fromordinal(date(1970, 1, 1).toordinal() + taken_at // 86_400_000_000), batch
    )


_Data = npt.NDArray[np.uint8]
_Positions = npt.NDArray[np.int64]


def _unescape(
    data: _Data, starts: _Positions, ends: _Positions
) -> tuple[_Data, _Positions, _Positions]:
    """Replace each escape by the byte it means, and move the positions along."""
    backslash = np.flatnonzero(data == _BACKSLASH)
    # In a run of backslashes every other one begins an escape. A run starts after a gap.
    new_run = np.concatenate([[True], np.diff(backslash) != 1])
    index = np.arange(len(backslash))
    in_run = index - np.maximum.accumulate(np.where(new_run, index, 0))
    begins = backslash[in_run % 2 == 0]
    values = data.copy()
    values[begins + 1] = _ESCAPED[data[begins + 1]]
    dropped = np.zeros(len(data) + 1, np.int64)
    dropped[begins + 1] = 1
    before = np.cumsum(dropped)
    keep = np.ones(len(data), np.bool_)
    keep[begins] = False
    return values[keep], starts - before[starts], ends - before[ends]
