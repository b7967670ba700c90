from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from waly_cdc.decode import values
from waly_cdc.decode.reference import typed

RAW = object()
"""Stands for a value that only its text can hold."""


def _typmod(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


def _convert(storage: str, texts: list[str | None]) -> list[object]:
    """The typed values of texts, with `RAW` for those that are not typed."""
    array, raw = values.from_text(storage, pa.array(texts, pa.string()))
    array.validate(full=True)
    assert array.type == values.arrow_type(storage)
    assert len(array) == len(texts)
    mask = np.zeros(len(texts), np.bool_) if raw is None else raw
    assert raw is None or raw.any()
    assert all(text is not None for text, only in zip(texts, mask, strict=True) if only)
    assert all(value is None for value, only in zip(array.to_pylist(), mask, strict=True) if only)
    return [RAW if only else value for value, only in zip(array.to_pylist(), mask, strict=True)]


@pytest.mark.parametrize(
    ("oid", "storage"),
    [
        (16, "bool"),
        (17, "bytes"),
        (20, "int64"),
        (21, "int16"),
        (23, "int32"),
        (26, "int64"),
        (700, "float32"),
        (701, "float64"),
        (1082, "date"),
        (1083, "time"),
        (1114, "timestamp"),
        (1184, "timestamptz"),
    ],
)
def test_these_types_have_a_typed_column(oid: int, storage: str) -> None:
    assert values.storage_of(oid, -1) == storage


@pytest.mark.parametrize(
    "oid",
    [
        18,  # "char"
        19,  # name
        25,  # text
        28,  # xid
        114,  # json
        142,  # xml
        600,  # point
        790,  # money
        869,  # inet
        1007,  # integer[]
        1042,  # character(n)
        1043,  # character varying
        1186,  # interval
        1266,  # time with time zone
        1560,  # bit
        1700,  # numeric without precision
        2950,  # uuid
        3802,  # jsonb
        3904,  # int4range
        5069,  # xid8
        16384,  # a type of the user's own
        0,
    ],
)
def test_all_other_types_are_stored_as_text(oid: int) -> None:
    assert values.storage_of(oid, -1) == values.TEXT


@pytest.mark.parametrize(
    ("precision", "scale", "storage"),
    [
        (1, 0, "decimal(1,0)"),
        (10, 2, "decimal(10,2)"),
        (38, 0, "decimal(38,0)"),
        (38, 38, "decimal(38,38)"),
        (39, 2, "text"),
        (1000, 500, "text"),
        (3, 5, "text"),
        (5, -2, "text"),
        (0, 0, "text"),
    ],
)
def test_a_numeric_is_decimal_where_decimal128_holds_all_its_values(
    precision: int, scale: int, storage: str
) -> None:
    assert values.storage_of(1700, _typmod(precision, scale)) == storage
    values.arrow_type(storage)


def test_a_typmod_means_nothing_to_other_types() -> None:
    assert values.storage_of(1114, 0) == "timestamp"
    assert values.storage_of(1043, 14) == "text"


@pytest.mark.parametrize("storage", ["decimal", "decimal(1)", "integer", ""])
def test_an_unknown_storage_has_no_arrow_type(storage: str) -> None:
    with pytest.raises(KeyError):
        values.arrow_type(storage)


UTC = dt.UTC

CASES: dict[str, list[tuple[str, object]]] = {
    "text": [("", ""), ("NULL", "NULL"), ("é😀", "é😀"), ("\\N\t\n", "\\N\t\n")],
    "bool": [("t", True), ("f", False)],
    "int16": [("0", 0), ("-32768", -32768), ("32767", 32767)],
    "int32": [("-2147483648", -(2**31)), ("2147483647", 2**31 - 1)],
    "int64": [
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775807", 2**63 - 1),
        ("4294967295", 2**32 - 1),
    ],
    "decimal(5,2)": [
        ("0.00", Decimal("0.00")),
        ("-0.01", Decimal("-0.01")),
        ("999.99", Decimal("999.99")),
        ("-999.99", Decimal("-999.99")),
        ("NaN", RAW),
    ],
    "decimal(38,0)": [("9" * 38, Decimal("9" * 38)), ("-" + "9" * 38, Decimal("-" + "9" * 38))],
    "decimal(38,38)": [("0." + "9" * 38, Decimal("0." + "9" * 38)), ("NaN", RAW)],
    "date": [
        ("2026-11-23", dt.date(2026, 11, 23)),
        ("0001-01-01", dt.date(1, 1, 1)),
        ("9999-12-31", dt.date(9999, 12, 31)),
        ("2000-02-29", dt.date(2000, 2, 29)),
        ("10000-01-01", RAW),
        ("5874897-12-31", RAW),
        ("0044-03-15 BC", RAW),
        ("infinity", RAW),
        ("-infinity", RAW),
    ],
    "time": [
        ("00:00:00", dt.time()),
        ("14:02:11.5", dt.time(14, 2, 11, 500_000)),
        ("20:00:00", dt.time(20)),
        ("23:59:59.999999", dt.time(23, 59, 59, 999_999)),
        ("24:00:00", RAW),
    ],
    "timestamp": [
        ("2026-11-23 14:02:11", dt.datetime(2026, 11, 23, 14, 2, 11)),
        ("1969-12-31 23:59:59.999999", dt.datetime(1969, 12, 31, 23, 59, 59, 999_999)),
        ("0001-01-01 00:00:00", dt.datetime(1, 1, 1)),
        ("9999-12-31 23:59:59.999999", dt.datetime(9999, 12, 31, 23, 59, 59, 999_999)),
        ("10000-01-01 00:00:00", RAW),
        ("294276-12-31 23:59:59.999999", RAW),
        ("0044-03-15 12:00:00 BC", RAW),
        ("0044-03-15 12:00:00.5 BC", RAW),
        ("infinity", RAW),
        ("-infinity", RAW),
    ],
    "timestamptz": [
        ("2026-11-23 14:02:11.1+00", dt.datetime(2026, 11, 23, 14, 2, 11, 100_000, UTC)),
        ("0001-01-01 00:00:00+00", dt.datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31 23:59:59.999999+00", dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
        ("10000-01-01 00:00:00+00", RAW),
        ("0044-03-15 12:00:00+00 BC", RAW),
        ("infinity", RAW),
        ("-infinity", RAW),
    ],
    "bytes": [("\\x", b""), ("\\x00", b"\0"), ("\\xdeadbeef00ff", bytes.fromhex("deadbeef00ff"))],
}


@pytest.mark.parametrize("storage", CASES)
def test_values_are_typed_or_kept_as_text(storage: str) -> None:
    texts = [text for text, _ in CASES[storage]]
    expected = [value for _, value in CASES[storage]]
    assert _convert(storage, [*texts, None]) == [*expected, None]


@pytest.mark.parametrize("storage", CASES)
def test_a_value_is_converted_alike_whatever_lies_beside_it(storage: str) -> None:
    for text, expected in CASES[storage]:
        for beside in ([], [None], [text], [None, None, text]):
            assert _convert(storage, [text, *beside])[0] == expected
    sliced = pa.array([None, *(text for text, _ in CASES[storage]), None], pa.string())[1:-1]
    array, raw = values.from_text(storage, sliced)
    found = array.to_pylist() if raw is None else np.where(raw, RAW, array.to_pylist()).tolist()
    assert found == [value for _, value in CASES[storage]]


@pytest.mark.parametrize("storage", CASES)
def test_a_typed_value_gives_back_its_text(storage: str) -> None:
    for text, expected in CASES[storage]:
        if expected is RAW:
            with pytest.raises((ValueError, ArithmeticError)):
                typed(storage, text)
        else:
            assert typed(storage, text) == expected


@pytest.mark.parametrize(
    ("storage", "width", "texts"),
    [
        ("float32", "<f4", ["0", "-0", "0.1", "1e-45", "3.4028235e+38", "1.1754944e-38"]),
        ("float64", "<f8", ["0", "-0", "0.1", "5e-324", "1.7976931348623157e+308", "1e+23"]),
        ("float32", "<f4", ["NaN", "Infinity", "-Infinity"]),
        ("float64", "<f8", ["NaN", "Infinity", "-Infinity"]),
    ],
)
def test_floats_keep_every_bit(storage: str, width: str, texts: list[str]) -> None:
    array, raw = values.from_text(storage, pa.array(texts))
    assert raw is None
    expected = np.array([float(text) for text in texts]).astype(width)
    assert array.to_numpy().astype(width).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("storage", "strange"),
    [
        ("bool", "true"),
        ("bool", ""),
        ("int16", "32768"),
        ("int32", "1.0"),
        ("int64", "9223372036854775808"),
        ("int64", ""),
        ("float64", "one"),
        ("decimal(5,2)", "1000.00"),
        ("decimal(5,2)", "1.5"),
        ("decimal(5,2)", ""),
        ("date", "2026-02-30"),
        ("time", "25:00:00"),
        ("timestamp", "2026-11-23T14:02:11x"),
        ("timestamptz", "2026-11-23 14:02:11+01:00"),
        ("bytes", "\\xzz"),
        ("bytes", "\\x0"),
        ("bytes", "abc"),
        ("bytes", ""),
    ],
)
def test_a_text_that_no_value_has_is_kept_and_harms_no_other(storage: str, strange: str) -> None:
    good, value = next((text, value) for text, value in _good(storage))
    assert _convert(storage, [good, strange, None, good]) == [value, RAW, None, value]


def _good(storage: str) -> list[tuple[str, object]]:
    return [("1.5", 1.5)] if storage == "float64" else CASES[storage]


@pytest.mark.parametrize("storage", [*CASES, "float32", "float64"])
def test_nothing_and_nulls_convert_to_nothing_and_nulls(storage: str) -> None:
    assert _convert(storage, []) == []
    assert _convert(storage, [None, None]) == [None, None]


def test_many_byteas_of_all_lengths_keep_their_place() -> None:
    data = [bytes(range(length)) for length in range(200)]
    texts = ["\\x" + value.hex() for value in data]
    for count in (1, 2, 3, 199, 200):
        assert _convert("bytes", texts[:count]) == data[:count]


def test_only_typed_storages_may_be_raw() -> None:
    assert not values.may_be_raw("text")
    assert all(values.may_be_raw(storage) for storage in CASES if storage != "text")
