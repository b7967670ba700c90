"""Row data of many messages at once: where each value lies, then one Arrow array per column.

Works column by column over all messages: the position of column *i* in every message is known once
column *i - 1* has been passed in all of them. TupleData: PostgreSQL documentation, section 53.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from waly_cdc.errors import DecodeError

Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_TEXT, _NULL, _UNCHANGED = ord("t"), ord("n"), ord("u")


class Bytes:
    """A chunk's bytes, for vectorised reads. A position outside reads some byte inside: positions
    only grow along a message, so a message that runs over its end is found by where it ends.

    The wider arrays overlap themselves, one element per byte. Indexing gathers from them in place;
    `take` would first copy them whole.
    """

    def __init__(self, data: bytes) -> None:
        if not 4 <= len(data) < 1 << 31:
            raise DecodeError(f"a chunk of {len(data)} bytes cannot be decoded")
        self.buffer = pa.py_buffer(data)
        self._uint8 = np.frombuffer(data, np.uint8)
        self._uint16 = np.ndarray((len(data) - 1,), ">u2", data, 0, (1,))
        self._uint32 = np.ndarray((len(data) - 3,), ">u4", data, 0, (1,))
        self._uint64 = np.ndarray((max(len(data) - 7, 1),), ">u8", data.ljust(8), 0, (1,))

    def uint8(self, at: Positions) -> npt.NDArray[np.uint8]:
        return self._uint8.take(at, mode="clip")

    def uint16(self, at: Positions) -> Positions:
        return self._uint16[np.minimum(at, len(self._uint16) - 1)].astype(np.int64)

    def uint32(self, at: Positions) -> Positions:
        return self._uint32[np.minimum(at, len(self._uint32) - 1)].astype(np.int64)

    def int64(self, at: Positions) -> Positions:
        values = self._uint64[np.minimum(at, len(self._uint64) - 1)]
        return values.astype(np.uint64).view(np.int64)


@dataclass(slots=True)
class Spans:
    """Where one column's value lies in each message: `[start, end)` in the chunk.

    `absent` is None where every message has a value; `unchanged` marks the absent values that are
    unchanged TOAST, the other absent ones are NULL. `start` never decreases.
    """

    start: Positions
    end: Positions
    absent: Mask | None = None
    unchanged: Mask | None = None

    def text(self, data: Bytes) -> pa.StringArray:
        """The values as text, NULL where absent. Raises DecodeError for what is not UTF-8."""
        # One array over the chunk's own bytes, values and the gaps between them in turn; then
        # every other element is copied out.
        count = len(self.start)
        bounds = np.empty(2 * count, np.int32)
        bounds[0::2] = self.start
        bounds[1::2] = self.end
        interleaved = pa.Array.from_buffers(
            pa.string(), 2 * count - 1, [None, pa.py_buffer(bounds), data.buffer]
        )
        values = pc.take(
            interleaved, pa.array(np.arange(0, 2 * count, 2), mask=self.absent), boundscheck=False
        )
        try:
            values.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DecodeError(f"a value is not valid UTF-8: {error}") from error
        return values


def parse(data: Bytes, at: Positions, columns: int) -> tuple[list[Spans], Positions]:
    """Read TupleData of `columns` columns at each position: spans by column, and where each ends.

    The spans are good only if each message turns out to end where it must: the caller checks that
    before it reads them. Raises DecodeError.
    """
    if (data.uint16(at) != columns).any():
        raise DecodeError("a row has another number of columns than its relation")
    at = at + 2
    spans: list[Spans] = []
    for _ in range(columns):
        kind = data.uint8(at)
        has_text = kind == _TEXT
        if has_text.all():
            start = at + 5
            at = start + data.uint32(at + 1)
            spans.append(Spans(start, at))
            continue
        unchanged = kind == _UNCHANGED
        if not (has_text | unchanged | (kind == _NULL)).all():
            raise DecodeError("a value is neither text, NULL nor unchanged")
        start = np.where(has_text, at + 5, at + 1)
        at = start + np.where(has_text, data.uint32(at + 1), 0)
        spans.append(Spans(start, at, ~has_text, unchanged if unchanged.any() else None))
    return spans, at


def nowhere(at: Positions) -> Spans:
    """Spans without a value: NULL at each position."""
    return Spans(at.copy(), at.copy(), np.ones(len(at), np.bool_))


def place(target: Spans, rows: Positions, source: Spans, chosen: Positions | slice) -> None:
    """Let the target's `rows` lie where the source's `chosen` rows do."""
    target.start[rows] = source.start[chosen]
    target.end[rows] = source.end[chosen]
    assert target.absent is not None
    target.absent[rows] = False if source.absent is None else source.absent[chosen]
    if source.unchanged is not None:
        if target.unchanged is None:
            target.unchanged = np.zeros(len(target.start), np.bool_)
        target.unchanged[rows] = source.unchanged[chosen]
