"""Results of a query, in the four forms that they can be had."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import count, pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from waly_cdc.cli.output import Output, table
from waly_cdc.cli.rendering import value_text
from waly_cdc.errors import StorageError, UsageError
from waly_cdc.history.jsonb import Literal, dumps

if TYPE_CHECKING:
    from rich.console import Console


def write(reader: pa.RecordBatchReader, form: str, path: Path | None, output: Output) -> None:
    """Write a result as `table`, `json` (lines), `csv` or `parquet` to a file, or to stdout.

    Raises StorageError where the file cannot be written."""
    if path is not None and path.exists():
        raise UsageError(f"{path} exists already", hint="choose another name, or remove it")
    try:
        match form:
            case "parquet":
                _parquet(reader, path)
            case "table":
                with _opened(path) as file:
                    _table(reader, output.console, file if path else None)
            case "json":
                names = _distinct(reader.schema.names)
                with _opened(path) as file:
                    for batch in reader:
                        for row in _rows(batch):
                            file.write(dumps(dict(zip(names, row, strict=True))) + "\n")
            case _:
                with _opened(path) as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(reader.schema.names)
                    for batch in reader:
                        writer.writerows([_cell(value) for value in row] for row in _rows(batch))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"{path or 'stdout'} cannot be written: {error.strerror}") from error


def _distinct(names: Sequence[str]) -> list[str]:
    """Names for an object, which can hold only one value of a name: id, id_1, …"""
    found: list[str] = []
    for name in names:
        others = (f"{name}_{number}" for number in count(1))
        found.append(name if name not in found else next(n for n in others if n not in names))
        names = [*names, found[-1]]
    return found


def values(array: pa.Array) -> list[Any]:
    """An Arrow array's values for JSON: decimals keep their digits, times are ISO 8601."""
    kind = array.type
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        children = [values(child) for child in array.flatten()]
        rows = zip(*children, strict=True) if children else iter([()] * len(array))
        shown: list[Any] = [dict(zip(names, row, strict=True)) for row in rows]
    elif pa.types.is_map(kind):
        keys, items = values(array.keys), values(array.items)
        spans = _spans(array)
        shown = [dict(zip(map(str, keys[a:b]), items[a:b], strict=True)) for a, b in spans]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = values(array.values)
        shown = [inner[a:b] for a, b in _spans(array)]
    elif pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(array.to_pylist())
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        shown = ["" if value is None else f"\\x{value.hex()}" for value in array.to_pylist()]
    elif pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        shown = [Literal(f"{Decimal(text):f}" if "E" in text else text) for text in _texts(array)]
    elif pa.types.is_floating(kind):
        # JSON has no token for these; PostgreSQL writes them as texts.
        shown = [float(text) for text in _texts(array)]
        shown = [value if abs(value) < float("inf") else _not_finite(value) for value in shown]
    elif pa.types.is_timestamp(kind):
        zoned = kind.tz is not None
        utc = array.cast(pa.timestamp("us", "UTC" if zoned else None))
        shown = [_timestamp(text, zoned) for text in _texts(utc)]
    else:
        shown = _texts(array)
    return [value if valid else None for value, valid in zip(shown, array.is_valid(), strict=True)]


def _texts(array: pa.Array) -> list[str]:
    if pa.types.is_null(array.type):
        return [""] * len(array)
    if pa.types.is_interval(array.type):
        return ["" if value is None else _interval(*value) for value in array.to_pylist()]
    try:
        texts = array.cast(pa.string()).to_pylist()
    except pa.ArrowNotImplementedError:
        # A type of DuckDB's that Arrow has no text for; Arrow cannot be asked beforehand.
        texts = [str(value) for value in array.to_pylist()]
    return [text or "0" for text in texts]


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """An interval as ISO 8601 writes durations."""
    seconds = f"{nanoseconds / 1_000_000_000:f}".rstrip("0").rstrip(".")
    return f"P{months}M{days}DT{seconds}S"


def _spans(array: pa.Array) -> list[tuple[int, int]]:
    offsets = array.offsets.to_pylist()
    return list(pairwise(offsets))


def _timestamp(text: str, zoned: bool) -> str:
    text = text.removesuffix("Z").replace(" ", "T", 1)
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text + "+00:00" if zoned else text


def _not_finite(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    return zip(*(values(column) for column in batch.columns), strict=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else dumps(value)


def _table(reader: pa.RecordBatchReader, console: Console, file: IO[str] | None) -> None:
    rows = [[value_text(value, None) for value in row] for batch in reader for row in _rows(batch)]
    right = [
        number
        for number, kind in enumerate(reader.schema.types)
        if pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind)
    ]
    if file is not None:
        from rich.console import Console

        console = Console(file=file, width=max(80, console.width), highlight=False)
    table(console, reader.schema.names, rows, right=right)
    console.print(f"{len(rows):,} row{'' if len(rows) == 1 else 's'}")


def _parquet(reader: pa.RecordBatchReader, path: Path | None) -> None:
    if path is None:
        raise UsageError("Parquet needs a file", hint="name one with --output")
    with pq.ParquetWriter(str(path), reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


@contextmanager
def _opened(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
