from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from waly_cdc.history.floats import float_text, float_texts

EDGES = [
    *(0.0, -0.0, 1.0, 1e-4, 9.999e-5, 0.1, 123456.5, 999999.9, 1e6, 1e10, 1e15, 1e16, 9e15),
    *(5e-324, 1.7976931348623157e308, 9007199254740993.0, 2.0**60, -(2.0**24) - 2, 3.4e38),
    *(float("nan"), float("inf"), float("-inf"), 33554434.0, 8388608.5),
]


@pytest.mark.parametrize(("storage", "kind"), [("float32", np.float32), ("float64", np.float64)])
def test_a_column_of_numbers_is_printed_as_each_of_them_is(
    storage: str, kind: type[np.floating]
) -> None:
    seed = random.randrange(1 << 30)
    print(f"{seed=}")
    chance = random.Random(seed)
    numbers = EDGES + [chance.uniform(-1, 1) * 10 ** chance.randint(-12, 20) for _ in range(3000)]
    numbers += [round(chance.uniform(-1e6, 1e6), chance.randint(0, 4)) for _ in range(3000)]
    with np.errstate(over="ignore"):
        values = np.array(numbers).astype(kind)
    texts = float_texts(storage, pa.array([None, *values])).to_pylist()
    assert texts[0] is None
    for value, text in zip(values, texts[1:], strict=True):
        assert text == float_text(storage, f"{value:.17g}"), value
