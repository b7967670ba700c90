"""How values are stored: PostgreSQL type → storage → Arrow type, from the text PostgreSQL prints.

The exact-text rule: a typed column is used only where the typed value gives back the very text that
PostgreSQL prints (under the rendering settings of `waly_cdc.source.connect`). Every other type is
stored as that text. A value that its typed column cannot hold (`NaN` in a numeric, `infinity`,
dates BC or after 9999) is NULL there, and its text goes to the event's `_raw`.

| storage          | PostgreSQL types                              | Arrow type            |
|------------------|-----------------------------------------------|-----------------------|
| bool             | boolean                                       | bool                  |
| int16 int32 int64| smallint, integer, bigint; oid as int64       | int16, int32, int64   |
| float32 float64  | real, double precision                        | float32, float64      |
| decimal(p,s)     | numeric(p,s) with p ≤ 38 and 0 ≤ s ≤ p        | decimal128(p, s)      |
| date             | date                                          | date32                |
| time             | time without time zone                        | time64[us]            |
| timestamp        | timestamp without time zone                   | timestamp[us]         |
| timestamptz      | timestamp with time zone                      | timestamp[us, UTC]    |
| bytes            | bytea                                         | binary                |
| text             | all others                                    | string                |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Mask = npt.NDArray[np.bool_]

TEXT = "text"

_STORAGE_BY_OID = {
    16: "bool",
    17: "bytes",
    20: "int64",
    21: "int16",
    23: "int32",
    26: "int64",
    700: "float32",
    701: "float64",
    1082: "date",
    1083: "time",
    1114: "timestamp",
    1184: "timestamptz",
}
_NUMERIC_OID = 1700
_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")

_ARROW_BY_STORAGE: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "bytes": pa.binary(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    TEXT: pa.string(),
}


def storage_of(type_oid: int, typmod: int) -> str:
    """The storage of a PostgreSQL type; `text` for every type not known here."""
    if type_oid == _NUMERIC_OID and typmod >= 4:
        # numeric's typmod: precision in the upper 16 bits, scale in the lower 11, signed since 15.
        precision = (typmod - 4) >> 16 & 0xFFFF
        scale = ((typmod - 4 & 0x7FF) ^ 1024) - 1024
        if 1 <= precision <= 38 and 0 <= scale <= precision:
            return f"decimal({precision},{scale})"
    return _STORAGE_BY_OID.get(type_oid, TEXT)


@cache
def arrow_type(storage: str) -> pa.DataType:
    """The Arrow type of a storage. Raises KeyError for an unknown one."""
    match = _DECIMAL.fullmatch(storage)
    if match:
        return pa.decimal128(int(match[1]), int(match[2]))
    return _ARROW_BY_STORAGE[storage]


def may_be_raw(storage: str) -> bool:
    """Whether the typed column may be NULL although the row has a value, kept in `_raw`.

    True for every typed storage, because a text that a column's type refuses is kept there too.
    """
    return storage != TEXT


def from_text(storage: str, text: pa.StringArray) -> tuple[pa.Array, Mask | None]:
    """Typed values of the texts, and which of them only the text can hold (None: none of them).

    `text` may hold NULLs, which stay NULL. The result is as long as `text`.
    """
    if storage == TEXT:
        return text, None
    present = None if text.null_count == 0 else pc.is_valid(text).to_numpy(zero_copy_only=False)
    raw = _unfit(storage, text)
    if raw is not None and present is not None:
        raw &= present
    if raw is not None and not raw.any():
        raw = None
    if raw is not None:
        text = pc.if_else(pa.array(raw), pa.scalar(None, pa.string()), text)
    array, refused = _convert_each(storage, text)
    if refused is not None:
        raw = refused if raw is None else raw | refused
    return array, raw


def _convert_each(storage: str, text: pa.StringArray) -> tuple[pa.Array, Mask | None]:
    """Typed values, and which texts are refused: those alone, whatever lies beside them."""
    try:
        return _convert(storage, text), None
    except pa.ArrowInvalid:
        if len(text) == 1:
            return pa.nulls(1, arrow_type(storage)), np.ones(1, np.bool_)
    half = len(text) // 2
    parts = [_convert_each(storage, text[:half]), _convert_each(storage, text[half:])]
    masks = [
        np.zeros(len(array), np.bool_) if refused is None else refused for array, refused in parts
    ]
    return pa.concat_arrays([array for array, _ in parts]), np.concatenate(masks)


def _convert(storage: str, text: pa.StringArray) -> pa.Array:
    if storage == "bool":
        return pc.equal(text, "t")
    if storage == "bytes":
        return _unhex(text)
    if storage == "time":
        moment = pc.binary_join_element_wise("1970-01-01", text, " ")
        return pc.cast(pc.cast(moment, pa.timestamp("us")), pa.time64("us"))
    return pc.cast(text, arrow_type(storage))


# Which texts do not fit the typed column. Each rule looks at lengths and single bytes only.


def _unfit(storage: str, text: pa.StringArray) -> Mask | None:
    rule = _UNFIT.get(storage)
    if rule is not None:
        return rule(_Texts(text))
    match = _DECIMAL.fullmatch(storage)
    if match:
        return _unfit_decimal(_Texts(text), int(match[2]))
    return None


class _Texts:
    """Start, end and bytes of every text of an array, as numpy arrays."""

    def __init__(self, text: pa.StringArray) -> None:
        _, offsets, data = text.buffers()
        span = slice(text.offset, text.offset + len(text) + 1)
        bounds = np.frombuffer(offsets, dtype=np.int32)[span]
        self.start: npt.NDArray[np.int32] = bounds[:-1]
        self.end: npt.NDArray[np.int32] = bounds[1:]
        self.length: npt.NDArray[np.int32] = self.end - self.start
        self._data = (
            np.frombuffer(data, dtype=np.uint8)
            if data is not None and data.size
            else np.zeros(1, dtype=np.uint8)
        )

    def byte(self, position: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """The byte at each absolute position; some byte of another text where it lies outside."""
        return self._data[np.clip(position, 0, len(self._data) - 1)]

    def has(self, position: npt.NDArray[np.int32], character: str) -> Mask:
        """Whether the byte at each absolute position is that character."""
        found: Mask = self.byte(position) == ord(character)
        return found

    def shorter_or_longer(self, shortest: int, longest: int) -> Mask:
        """Whether each length lies outside of the bounds, which are lengths that fit."""
        return (self.length < shortest) | (self.length > longest)


def _unfit_bool(texts: _Texts) -> Mask:
    known = texts.has(texts.start, "t") | texts.has(texts.start, "f")
    return texts.shorter_or_longer(1, 1) | ~known


def _unfit_date(texts: _Texts) -> Mask:
    return texts.shorter_or_longer(len("2026-11-23"), len("2026-11-23"))


def _unfit_time(texts: _Texts) -> Mask:
    midnight_after = texts.has(texts.start, "2") & texts.has(texts.start + 1, "4")
    return texts.shorter_or_longer(len("14:02:11"), len("14:02:11.123456")) | midnight_after


def _unfit_timestamp(texts: _Texts, zone: str = "") -> Mask:
    shortest = len("2026-11-23 14:02:11") + len(zone)
    return (
        texts.shorter_or_longer(shortest, shortest + len(".123456"))
        | ~texts.has(texts.start + 4, "-")
        | texts.has(texts.end - 1, "C")
    )


def _unfit_timestamptz(texts: _Texts) -> Mask:
    return _unfit_timestamp(texts, "+00") | ~texts.has(texts.end - 3, "+")


def _unfit_decimal(texts: _Texts, scale: int) -> Mask:
    last = texts.byte(texts.end - 1)
    unfit = (last < ord("0")) | (last > ord("9"))
    if scale:
        unfit |= ~texts.has(texts.end - 1 - scale, ".")
    return unfit


def _unfit_bytes(texts: _Texts) -> Mask:
    return (
        (texts.length < 2)
        | (texts.length % 2 > 0)
        | ~texts.has(texts.start, "\\")
        | ~texts.has(texts.start + 1, "x")
    )


_UNFIT: dict[str, Callable[[_Texts], Mask]] = {
    "bool": _unfit_bool,
    "date": _unfit_date,
    "time": _unfit_time,
    "timestamp": _unfit_timestamp,
    "timestamptz": _unfit_timestamptz,
    "bytes": _unfit_bytes,
}

_NIBBLES = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16, dtype=np.uint8)


def _unhex(text: pa.StringArray) -> pa.Array:
    """Bytes from their hexadecimal text `\\x00ff` (PostgreSQL documentation, section 8.4.1)."""
    # Arrow multiplies the slice's length by the number of values: without a stop that overflows.
    digits = pc.binary_slice(pc.cast(text, pa.binary()), 2, 1 << 31)
    _, offsets, data = digits.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int32)[digits.offset : digits.offset + len(digits) + 1]
    hexes = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, np.uint8)
    nibbles = _NIBBLES[hexes[bounds[0] : bounds[-1]]]
    if (nibbles == 255).any():
        raise pa.ArrowInvalid("not hexadecimal")
    values = nibbles[0::2] << 4 | nibbles[1::2]
    validity = digits.buffers()[0]
    if digits.offset and validity is not None:
        validity = pa.concat_arrays([digits]).buffers()[0]
    lengths = (bounds - bounds[0]) // 2
    return pa.Array.from_buffers(
        pa.binary(),
        len(digits),
        [validity, pa.py_buffer(lengths.astype(np.int32)), pa.py_buffer(values)],
        digits.null_count,
    )
