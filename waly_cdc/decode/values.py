"""How values are stored: PostgreSQL type → storage → Arrow type, from the text PostgreSQL prints.

The exact-text rule: a typed column is used only where the typed value gives back the very text that
PostgreSQL prints (under the rendering settings of `waly_cdc.source.connect`). Every other type is
stored as that text. A value that its typed column cannot hold (`NaN` in a numeric, `infinity`, dates
BC or after 9999) is NULL there, and its text goes to the event's `_raw`.

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
        if precision <= 38 and 0 <= scale <= precision:
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
    try:
        return _convert(storage, text), raw
    except pa.ArrowInvalid:
        every = np.ones(len(text), dtype=np.bool_) if present is None else present
        if raw is not None:
            every = every | raw
        return pa.nulls(len(text), arrow_type(storage)), every


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
        self.start, self.end = bounds[:-1], bounds[1:]
        self.length = self.end - self.start
        self._data = (
            np.frombuffer(data, dtype=np.uint8)
            if data is not None and data.size
            else np.zeros(1, dtype=np.uint8)
        )

    def byte(self, position: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """The byte at each absolute position; some byte of another text where it lies outside."""
        return self._data[np.clip(position, 0, len(self._data) - 1)]


def _unfit_bool(texts: _Texts) -> Mask:
    first = texts.byte(texts.start)
    return (texts.length != 1) | ((first != ord("t")) & (first != ord("f")))


def _unfit_date(texts: _Texts) -> Mask:
    return texts.length != len("2026-11-23")


def _unfit_time(texts: _Texts) -> Mask:
    midnight_after = (texts.byte(texts.start) == ord("2")) & (
        texts.byte(texts.start + 1) == ord("4")
    )
    return (
        (texts.length < len("14:02:11")) | (texts.length > len("14:02:11.123456")) | midnight_after
    )


def _unfit_timestamp(texts: _Texts, zone: str = "") -> Mask:
    shortest = len("2026-11-23 14:02:11") + len(zone)
    return (
        (texts.length < shortest)
        | (texts.length > shortest + len(".123456"))
        | (texts.byte(texts.start + 4) != ord("-"))
        | (texts.byte(texts.end - 1) == ord("C"))
    )


def _unfit_timestamptz(texts: _Texts) -> Mask:
    return _unfit_timestamp(texts, "+00") | (texts.byte(texts.end - 3) != ord("+"))


def _unfit_decimal(texts: _Texts, scale: int) -> Mask:
    last = texts.byte(texts.end - 1)
    unfit = (last < ord("0")) | (last > ord("9"))
    if scale:
        unfit |= texts.byte(texts.end - 1 - scale) != ord(".")
    return unfit


def _unfit_bytes(texts: _Texts) -> Mask:
    return (
        (texts.length < 2)
        | (texts.length % 2 != 0)
        | (texts.byte(texts.start) != ord("\\"))
        | (texts.byte(texts.start + 1) != ord("x"))
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
    digits = pc.binary_slice(pc.cast(text, pa.binary()), 2)
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
