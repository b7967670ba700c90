from __future__ import annotations

import os
import random
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from waly_cdc.archive.fingerprint import add, fingerprint, from_text, to_text

SEED = int(os.environ.get("WALY_SEED", str(random.randrange(1 << 32))))
MASK = (1 << 64) - 1
STEP, BASE = 0x9E3779B97F4A7C15, 0x100000001B3

SCHEMA = pa.schema(
    [
        ("flag", pa.bool_()),
        ("small", pa.int16()),
        ("large", pa.int64()),
        ("real", pa.float32()),
        ("double", pa.float64()),
        ("money", pa.decimal128(38, 3)),
        ("day", pa.date32()),
        ("clock", pa.time64("us")),
        ("at", pa.timestamp("us", "UTC")),
        ("text", pa.string()),
        ("bytes", pa.binary()),
        ("_unchanged", pa.list_(pa.string())),
        ("_before", pa.struct([("id", pa.int64()), ("note", pa.string())])),
        ("_raw", pa.map_(pa.string(), pa.string())),
    ]
)


def mix(word: int) -> int:
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def fields(values: list[Any], types: list[pa.DataType]) -> int:
    pairs = enumerate(zip(values, types, strict=True), start=1)
    return sum(mix(plain(v, t) + n * STEP & MASK) for n, (v, t) in pairs) & MASK


def plain(value: Any, kind: pa.DataType) -> int:
    """FORMAT.md's definition, a value at a time."""
    if value is None:
        return 0x6E756C6C
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        polynomial, power = 0, 1
        for byte in value:
            polynomial, power = polynomial + (byte + 1) * power, power * BASE & MASK
        return mix(polynomial + len(value) * STEP & MASK)
    if pa.types.is_struct(kind):
        return mix(fields([value[f.name] for f in kind], [f.type for f in kind]))
    if pa.types.is_map(kind):
        types = [kind.key_type, kind.item_type]
        return listed([mix(fields(list(entry), types)) for entry in value])
    if pa.types.is_list(kind):
        return listed([plain(each, kind.value_type) for each in value])
    if pa.types.is_decimal(kind):
        number = int(value.scaleb(kind.scale)) & (1 << 128) - 1
        return mix(mix(number & MASK) + (number >> 64) & MASK)
    return mix(bits(value, kind) & MASK)


def listed(elements: list[int]) -> int:
    total = sum(mix(each + n * STEP & MASK) for n, each in enumerate(elements, start=1))
    return mix(total + len(elements) * STEP & MASK)


def bits(value: Any, kind: pa.DataType) -> int:
    if isinstance(value, float):
        single = pa.types.is_float32(kind)
        array = np.array([value], np.float32 if single else np.float64)
        return int(array.view(np.int32 if single else np.int64)[0])
    return (
        int(pa.scalar(value, kind).cast(pa.int64()).as_py())
        if kind != pa.date32()
        else ((value - date(1970, 1, 1)).days)
    )


def random_rows(dice: random.Random, count: int) -> pa.RecordBatch:
    def text() -> str:
        return dice.choice(["", "a", "é\n", "x" * dice.randrange(5), "long" * dice.randrange(9000)])

    def row() -> dict[str, Any]:
        values = {
            "flag": dice.random() < 0.5,
            "small": dice.randrange(-(1 << 15), 1 << 15),
            "large": dice.randrange(-(1 << 63), 1 << 63),
            "real": dice.choice([0.0, -0.0, float("nan"), 1.5]),
            "double": dice.choice([0.0, -0.0, float("inf"), dice.random()]),
            "money": Decimal(dice.randrange(-(10**30), 10**30)).scaleb(-3),
            "day": date(1970, 1, 1) + timedelta(dice.randrange(-9000, 90000)),
            "clock": time(dice.randrange(24), 5, 6, dice.randrange(1_000_000)),
            "at": datetime(1960, 1, 1, tzinfo=UTC)
            + timedelta(microseconds=dice.randrange(1 << 51)),
            "text": text(),
            "bytes": text().encode(),
            "_unchanged": [text() for _ in range(dice.randrange(3))],
            "_before": {"id": dice.choice([None, 5]), "note": text()},
            "_raw": [(text(), text()) for _ in range(dice.randrange(3))],
        }
        return {name: None if dice.random() < 0.2 else value for name, value in values.items()}

    return pa.RecordBatch.from_pylist([row() for _ in range(count)], SCHEMA)


def test_it_is_what_the_plain_definition_gives() -> None:
    print(f"WALY_SEED={SEED}")
    batch = random_rows(random.Random(SEED), 60)
    types = [column.type for column in SCHEMA]
    for rows in (batch, batch.slice(7, 40), batch.slice(3, 0)):
        expected = [mix(fields(list(row.values()), types)) for row in rows.to_pylist()]
        assert fingerprint(rows) == sum(expected) & MASK


def test_order_and_division_do_not_matter() -> None:
    print(f"WALY_SEED={SEED}")
    dice = random.Random(SEED)
    batch = random_rows(dice, 500)
    shuffled = batch.take(pa.array(dice.sample(range(500), 500)))
    parts = [fingerprint(shuffled.slice(start, 77)) for start in range(0, 500, 77)]
    assert fingerprint(batch) == add(parts) == from_text(to_text(add(parts)))


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_value_that_changes_or_is_gone_changes_it(name: str) -> None:
    print(f"WALY_SEED={SEED}")
    batch = random_rows(random.Random(SEED), 40)
    values = batch.column(name).to_pylist()
    for place, value in enumerate(values):
        other = next((each for each in values if not _same(each, value)), None)
        for replacement in (other, None):
            if _same(replacement, value):
                continue
            changed = [*values[:place], replacement, *values[place + 1 :]]
            column = pa.array(changed, SCHEMA.field(name).type)
            edited = batch.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
            assert fingerprint(edited) != fingerprint(batch), (value, replacement)
        if place > 20:
            break


def _same(one: Any, other: Any) -> bool:
    return str(one) == str(other)


def test_values_that_swap_their_columns_change_it() -> None:
    one = pa.record_batch({"a": ["x"], "b": ["y"]})
    other = pa.record_batch({"a": ["y"], "b": ["x"]})
    assert fingerprint(one) != fingerprint(other)
