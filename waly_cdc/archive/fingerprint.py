"""The fingerprint of rows: a 64-bit sum that does not depend on their order (FORMAT.md, section 7).

It tells whether files hold the same rows as others, whichever way they are divided and sorted: the
fingerprints of files add up. It guards against mistakes; against forgery each file has its SHA-256.

All is arithmetic modulo 2⁶⁴, over whole columns at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_BASE = 0x100000001B3
_NULL = 0x6E756C6C
_BLOCK = 1 << 16
"""Bytes that are multiplied and summed at a time: their powers fit into a processor's cache."""


def fingerprint(batch: pa.RecordBatch) -> int:
    """The sum of the hashes of the rows of a batch."""
    return int(_mix(_fields(batch.columns, batch.num_rows)).sum(dtype=np.uint64))


def add(values: Iterable[int]) -> int:
    """The fingerprint of all rows, from those of their parts."""
    return sum(values) & _MASK


def to_text(value: int) -> str:
    """As the manifest writes it: 16 hexadecimal digits."""
    return f"{value:016x}"


def from_text(text: str) -> int:
    """Raises ValueError."""
    return int(text, 16)


def _mix(words: Words) -> Words:
    """The last steps of splitmix64 (Steele, Lea, Flood 2014), which spread every bit over all."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _fields(columns: Sequence[pa.Array], rows: int) -> Words:
    total = np.zeros(rows, np.uint64)
    for number, column in enumerate(columns, start=1):
        total += _mix(_values(column) + np.uint64(number * _STEP & _MASK))
    return total


def _values(array: pa.Array) -> Words:
    """A hash of each value; `_NULL` for NULL."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        words = _bytes(array)
    elif pa.types.is_struct(kind):
        words = _mix(_fields(array.flatten(), len(array)))
    elif pa.types.is_map(kind):
        words = _lists(array, lambda start, size: _entries(array, start, size))
    elif pa.types.is_list(kind):
        words = _lists(array, lambda start, size: _values(array.values.slice(start, size)))
    elif pa.types.is_decimal(kind):
        words = _decimals(array)
    else:
        words = _mix(_integers(array))
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        words = np.where(valid, words, np.uint64(_NULL))
    return words


def _integers(array: pa.Array) -> Words:
    """Numbers, times and truth values as 64 bits: floats are their bits."""
    kind = array.type
    if pa.types.is_float32(kind) or pa.types.is_date32(kind):
        array = array.view(pa.int32())
    elif pa.types.is_float64(kind) or pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        array = array.view(pa.int64())
    numbers = array.cast(pa.int64()).fill_null(0).to_numpy()
    return np.ascontiguousarray(numbers).view(np.uint64)


def _decimals(array: pa.Array) -> Words:
    words = np.frombuffer(array.buffers()[1], "<u8")
    words = words[2 * array.offset : 2 * (array.offset + len(array))].reshape(-1, 2)
    return _mix(_mix(words[:, 0]) + words[:, 1])


def _entries(array: pa.MapArray, start: int, size: int) -> Words:
    parts = [array.keys.slice(start, size), array.items.slice(start, size)]
    return _mix(_fields(parts, size))


def _lists(array: pa.ListArray, elements: Callable[[int, int], Words]) -> Words:
    """Hashes of lists from those of their elements, which are told by their places."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    first, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    lengths = np.diff(offsets)
    places = np.arange(size) - np.repeat(offsets[:-1] - first, lengths) + 1
    words = _mix(elements(first, size) + places.astype(np.uint64) * np.uint64(_STEP))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words, dtype=np.uint64)])
    totals = sums[offsets[1:] - first] - sums[offsets[:-1] - first]
    return _mix(totals + lengths.astype(np.uint64) * np.uint64(_STEP))


def _bytes(array: pa.Array) -> Words:
    """Each text or bytea as a polynomial: the sum of (byte + 1) · base^place."""
    if not len(array):
        return np.zeros(0, np.uint64)
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, "<i4")[array.offset : array.offset + len(array) + 1]
    offsets = offsets.astype(np.int64)
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    sums = _prefix_sums(data, offsets)
    # A power's inverse takes back that a text begins in the middle of the data.
    low, high = _inverse_powers(_BLOCK), _block_powers(pow(_BASE, -_BLOCK, 1 << 64), data)
    starts = offsets[:-1]
    polynomials = (sums[1:] - sums[:-1]) * low[starts % _BLOCK] * high[starts // _BLOCK]
    lengths = np.diff(offsets).astype(np.uint64)
    return _mix(polynomials + lengths * np.uint64(_STEP))


def _prefix_sums(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> Words:
    """For each of the ascending `ends` the polynomial of the data before it."""
    sums = np.zeros(len(ends), np.uint64)
    powers, scales = _powers(_BLOCK), _block_powers(pow(_BASE, _BLOCK, 1 << 64), data)
    edges = np.searchsorted(ends, np.arange(0, len(data) + _BLOCK, _BLOCK), side="right")
    before = np.zeros(1, np.uint64)
    for number, start in enumerate(range(0, len(data), _BLOCK)):
        block = data[start : start + _BLOCK].astype(np.uint64) + np.uint64(1)
        block *= powers[: len(block)]
        np.cumsum(block, out=block)
        inside = slice(edges[number], edges[number + 1])
        sums[inside] = before + block[ends[inside] - start - 1] * scales[number]
        before = before + block[-1:] * scales[number]
    return sums


@cache
def _powers(count: int, base: int = _BASE) -> Words:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


@cache
def _inverse_powers(count: int) -> Words:
    return _powers(count, pow(_BASE, -1, 1 << 64))


def _block_powers(base: int, data: npt.NDArray[np.uint8]) -> Words:
    """Powers of the base for every block of the data, and for its end."""
    return _powers(len(data) // _BLOCK + 1, base)
