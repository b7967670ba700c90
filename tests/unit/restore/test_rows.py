from __future__ import annotations

import pyarrow as pa

from waly_cdc.restore.rows import csv


def batch(*columns: list[str | None]) -> pa.RecordBatch:
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, names=[f"c{i}" for i in range(len(arrays))])


def test_null_is_nothing_and_an_empty_text_is_quoted() -> None:
    assert csv(batch([None, "", "x"], ["1", None, None])) == b',"1"\n"",\n"x",\n'


def test_whatever_stands_in_a_text_is_quoted() -> None:
    assert csv(batch(['a"b', "c\nd", "\\.", "e,f"])) == b'"a""b"\n"c\nd"\n"\\."\n"e,f"\n'


def test_rows_without_columns_are_empty_lines() -> None:
    assert csv(batch(["x", "y"]).select([])) == b"\n\n"
