"""JSON text as PostgreSQL writes it, scanned for many messages at once: quotes and escapes.

PostgreSQL's `escape_json` writes `\\b \\f \\n \\r \\t \\" \\\\` and, for other bytes below 32,
`\\u00xx`; everything else stands for itself. Whatever is written differently is refused, so that a
text has one reading.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from waly_cdc.decode.tuples import Bytes, Mask, Positions
from waly_cdc.errors import DecodeError

QUOTE, _BACKSLASH, _U, _LAST = b'"\\u}'
_SPACE = 32

_MEANING = np.zeros(256, np.uint8)
"""What the letter of an escape stands for; 0 for one that is none."""
for _letter, _byte in zip(b'bfnrt"\\', b'\b\f\n\r\t"\\', strict=True):
    _MEANING[_letter] = _byte

_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
_LONG = len("\\u001f")


class Scan:
    """The messages of a chunk: their bytes, and where the quotes are that begin and end strings.

    `begin` and `end` bound each message in `data`, `header` bytes lie before each. Raises
    DecodeError for control characters, and for escapes that PostgreSQL does not write.
    """

    def __init__(self, data: bytes, begin: Positions, end: Positions, header: int) -> None:
        self.bytes = Bytes(data)
        self.begin = begin
        self.end = end
        text = bytearray(data)
        self._data = np.frombuffer(text, np.uint8)
        # A header must not be taken for a part of the text.
        self._data[begin[:, None] - np.arange(1, header + 1)] = _SPACE
        if (self._data[end - 1] != _LAST).any():
            raise DecodeError("a message does not end with its object")
        if self._data.min() < _SPACE:
            raise DecodeError("a message holds a control character")
        is_quote = self._data == QUOTE
        if text.find(b"\\") >= 0:
            escapes = escape_starts(np.flatnonzero(self._data == _BACKSLASH))
            _check_escapes(self._data, escapes)
            is_quote[escapes + 1] = False
        self._quotes = np.flatnonzero(is_quote)
        if not len(self._quotes):
            raise DecodeError("a message has no quotes")
        self.first_quote = np.searchsorted(self._quotes, begin)

    def quote(self, number: Positions) -> Positions:
        """Where each of the quotes lies, counted over the chunk; the last one for all beyond."""
        found: Positions = self._quotes.take(number, mode="clip")
        return found

    def byte(self, at: Positions) -> npt.NDArray[np.uint8]:
        """The byte at each position, as `Bytes` reads them."""
        return self.bytes.uint8(at)

    def matches(self, at: Positions, literal: bytes) -> Mask:
        """Whether the literal stands at each position."""
        last = len(self._data) - len(literal)
        if last < 0:
            return np.zeros(len(at), np.bool_)
        # Pieces of the literal's length from each position on, overlapping.
        pieces = np.ndarray((last + 1,), f"V{len(literal)}", self._data.data, 0, (1,))
        found: Mask = (pieces[np.clip(at, 0, last)] == np.void(literal)) & (at >= 0) & (at <= last)
        return found


def escape_starts(backslash: Positions) -> Positions:
    """The backslashes that begin an escape: every other one in a run."""
    new_run = np.concatenate([[True], np.diff(backslash) != 1])
    index = np.arange(len(backslash))
    in_run = index - np.maximum.accumulate(np.where(new_run, index, 0))
    starts: Positions = backslash[in_run % 2 == 0]
    return starts


def _check_escapes(data: npt.NDArray[np.uint8], escapes: Positions) -> None:
    letter = data.take(escapes + 1, mode="clip")
    long = escapes[letter == _U]
    if not (_MEANING[letter] | (letter == _U)).all():
        raise DecodeError("an escape is none that PostgreSQL writes")
    zero, high = data.take(long + 2, mode="clip"), data.take(long + 3, mode="clip")
    code = _long_code(data, long)
    short = np.isin(code, np.frombuffer(b"\b\f\n\r\t", np.uint8))
    if ((zero != ord("0")) | (high != ord("0")) | (code >= _SPACE) | short).any():
        raise DecodeError("an escape is none that PostgreSQL writes")


def _long_code(data: npt.NDArray[np.uint8], escapes: Positions) -> npt.NDArray[np.uint8]:
    """The byte that each `\\u00xx` stands for; 255 where it is none."""
    high = _NIBBLES[data.take(escapes + 4, mode="clip")]
    low = _NIBBLES[data.take(escapes + 5, mode="clip")]
    return np.where((high < 16) & (low < 16), high << 4 | low & 15, 255).astype(np.uint8)


def unescape(text: pa.StringArray) -> pa.StringArray:
    """The texts, with each escape replaced by what it stands for. Expects escapes that a `Scan` has
    checked."""
    _, offsets, content = text.buffers()
    if content is None:
        return text
    bounds = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
    data = np.frombuffer(content, np.uint8)[bounds[0] : bounds[-1]]
    backslash = np.flatnonzero(data == _BACKSLASH)
    if not len(backslash):
        return text
    escapes = escape_starts(backslash)
    letter = data[escapes + 1]
    long = escapes[letter == _U]
    values = data.copy()
    values[escapes + 1] = _MEANING[letter]
    values[long + _LONG - 1] = _long_code(data, long)
    keep = np.ones(len(data), np.bool_)
    keep[escapes] = False
    for offset in range(1, _LONG - 1):
        keep[long + offset] = False
    kept = np.concatenate([[0], np.cumsum(keep)])
    validity = None
    if text.null_count:
        validity = text.is_valid().buffers()[1]
    return pa.Array.from_buffers(
        pa.string(),
        len(text),
        [
            validity,
            pa.py_buffer(kept[bounds - bounds[0]].astype(np.int32)),
            pa.py_buffer(values[keep]),
        ],
        text.null_count,
    )
