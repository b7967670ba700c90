from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from waly_cdc.cli.results import values
from waly_cdc.history.jsonb import dumps


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (pa.array([1, None, -(2**63)]), "[1,null,-9223372036854775808]"),
        (
            pa.array([Decimal("12345678901234567890.50"), None, Decimal("0.00")]),
            "[12345678901234567890.50,null,0.00]",
        ),
        (pa.array([Decimal("0E-12")], pa.decimal128(38, 12)), "[0.000000000000]"),
        (
            pa.array([0.1, None, float("nan"), float("inf"), float("-inf")]),
            '[0.1,null,"NaN","Infinity","-Infinity"]',
        ),
        (pa.array([True, None, False]), "[true,null,false]"),
        (pa.array(["é\n", None, ""]), '["é\\n",null,""]'),
        (pa.array([b"\x00\xff", None, b""]), '["\\\\x00ff",null,"\\\\x"]'),
        (pa.array([date(2026, 1, 2), None]), '["2026-01-02",null]'),
        (pa.array([time(1, 2, 3, 400)]), '["01:02:03.000400"]'),
        (
            pa.array([datetime(2026, 1, 2, 3, 4, 5, 600_000), None]),
            '["2026-01-02T03:04:05.6",null]',
        ),
        (
            pa.array([datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)], pa.timestamp("us", "Etc/UTC")),
            '["2026-01-02T03:04:05+00:00"]',
        ),
        (pa.array([[1, None], None, []]), "[[1,null],null,[]]"),
        (
            pa.array(
                [{"a": 1, "b": "x"}, None], pa.struct([("a", pa.int32()), ("b", pa.string())])
            ),
            '[{"a":1,"b":"x"},null]',
        ),
        (
            pa.array([[("k", ["1", None])], None], pa.map_(pa.string(), pa.list_(pa.string()))),
            '[{"k":["1",null]},null]',
        ),
        (pa.nulls(2), "[null,null]"),
        (pa.array([(1, 2, 3_500_000_000)], pa.month_day_nano_interval()), '["P1M2DT3.5S"]'),
    ],
)
def test_values_are_exact_in_json(array: pa.Array, shown: str) -> None:
    assert dumps(values(array)) == shown


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_slice_shows_its_own_values(start: int) -> None:
    everything: list[Any] = [[1], None, [2, 3], []]
    nested = pa.array([{"l": each} for each in everything])
    expected = [{"l": each} for each in everything[start:]]
    assert dumps(values(nested.slice(start))) == dumps(expected)
