"""Floating-point numbers as PostgreSQL prints them.

PostgreSQL prints the shortest digits that read back the same (src/common/f2s.c, d2s.c), with an
exponent below 1e-4 and from 1e6 (real) or 1e15 (double precision) on.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_LIMITS = {"float32": 6, "float64": 15}
"""From which exponent on an exponent is printed."""

_PLAIN_BELOW = {"float32": 1e6, "float64": 1e10}
"""Below it, and from 1e-4 on, Arrow's text of a number is PostgreSQL's."""

_FUNCTIONS = {"float32": ("waly_real", "FLOAT"), "float64": ("waly_double", "DOUBLE")}


def float_text(storage: str, text: str) -> str:
    """PostgreSQL's text of a number that is given as any text of it."""
    if text.lower() in _SPECIAL:
        return _SPECIAL[text.lower()]
    return _printed(storage, np.float32(text) if storage == "float32" else np.float64(text))


def float_texts(storage: str, numbers: pa.Array) -> pa.Array:
    """PostgreSQL's texts of an array of numbers; only the rare ones one at a time."""
    texts = numbers.cast(pa.string())
    values = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    sizes = np.abs(values)
    plain = (values == 0) | ((sizes >= 1e-4) & (sizes < _PLAIN_BELOW[storage]))
    if plain.all():
        return texts
    rare = [_printed(storage, number) for number in values[~plain]]
    return pc.replace_with_mask(texts, pa.array(~plain), pa.array(rare, pa.string()))


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the functions of `float_function` known to a session."""
    for storage, (name, kind) in _FUNCTIONS.items():
        connection.create_function(  # type: ignore[call-overload]
            name, _function(storage), [kind], "VARCHAR", type="arrow"
        )


def float_function(storage: str) -> str:
    """The name of the SQL function that prints numbers of a storage."""
    return _FUNCTIONS[storage][0]


def _function(storage: str) -> Any:
    def texts(numbers: pa.ChunkedArray) -> pa.Array:
        return float_texts(storage, pa.chunked_array(numbers).combine_chunks())

    return texts


def _printed(storage: str, number: np.floating[Any]) -> str:
    if not np.isfinite(number):
        return _SPECIAL[str(number)]
    mantissa, exponent = _shortest(number).split("e")
    if -4 <= int(exponent) < _LIMITS[storage]:
        return f"{Decimal(mantissa).scaleb(int(exponent)):f}"
    return f"{mantissa}e{exponent}"


def _shortest(number: np.floating[Any]) -> str:
    """The shortest digits that lie nearer to the number than to any other.

    numpy also takes digits that lie halfway between two numbers and are rounded to the right one;
    the algorithm of PostgreSQL does not (Ulf Adams, "Ryū: fast float-to-string conversion", 2018).
    """
    digits = np.format_float_scientific(number, unique=True, trim="-", exp_digits=2)
    precision = len(Decimal(digits).as_tuple().digits)
    while _halfway(number, Decimal(digits)):
        digits = np.format_float_scientific(
            number, precision=precision, unique=False, trim="-", exp_digits=2
        )
        precision += 1
    return digits


def _halfway(number: np.floating[Any], shown: Decimal) -> bool:
    """Whether digits lie exactly between the number and the next one."""
    exact = Decimal(float(number))
    if shown == exact:
        return False
    with np.errstate(over="ignore"):
        following = np.nextafter(number, number.dtype.type("inf" if shown > exact else "-inf"))
    return bool(np.isfinite(following)) and shown - exact == Decimal(float(following)) - shown
