"""`docs/types.md`: how each PostgreSQL type is stored, read from event files that a test wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.relations import Column

PATH = Path(__file__).parents[2] / "docs" / "types.md"
WRITE_VARIABLE = "WALY_WRITE_DOCS"
"""Environment variable: write the page instead of comparing with it."""

BUILT_IN = "built-in types"
LIMITED = "with a length or a precision"
OWN = "types of your own"
EXTENSIONS = "extensions"

HEAD = """# Types

Every value comes back as the text that PostgreSQL printed, byte for byte. A typed column is used
where the typed value gives that text back; all other types are stored as their text. A value that
its typed column cannot hold is NULL there and has its text beside it, in `_raw` (see
[FORMAT.md](../archive/FORMAT.md)), which every answer, restore and comparison uses.

`make docs` writes this table from the files that the test of all types archives, reads back and
compares with the server (`tests/integration/test_value_round_trip.py`, which also has the values
that each type is tried with). The test fails when the table is stale.

| PostgreSQL | Arrow | Parquet | arrays of it | round trip |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: one type. `beside` are those of its texts that only `_raw` holds."""

    section: str
    name: str
    arrow: str
    parquet: str
    arrays: str
    beside: tuple[str, ...]

    def __str__(self) -> str:
        texts = ", ".join(f"`{text}`" for text in self.beside)
        trip = f"exact; as text beside it: {texts}" if texts else "exact"
        return f"| {self.name} | {self.arrow} | {self.parquet} | {self.arrays} | {trip} |"


def describe(
    contents: Contents,
    store: LocalStore,
    tables: Mapping[str, Sequence[str]],
    kind: Callable[[str], tuple[str, str | None]],
) -> list[Line]:
    """The lines for what was archived. `tables` gives the type of each column after the first, by
    table; `kind` its section and what to call it. `T[]` is told on the line of `T`."""
    found: dict[str, tuple[str, str, str, tuple[str, ...]]] = {}
    for table, types in tables.items():
        relation = contents.find_relation(table)
        files = [store.path(file.path) for file in contents.event_files(relation.oid)]
        for column, type_name in zip(relation.columns[1:], types, strict=True):
            found[type_name] = (
                column.type_name,
                *_stored(files[0], column),
                _beside(files, column),
            )
    lines = []
    for type_name, (name, arrow, parquet, beside) in found.items():
        if not type_name.endswith("[]"):
            section, label = kind(type_name)
            arrays = found[f"{type_name}[]"][1] if f"{type_name}[]" in found else ""
            lines.append(Line(section, label or name, arrow, parquet, arrays, beside))
    return lines


def _stored(file: Path, column: Column) -> tuple[str, str]:
    """The Arrow and the Parquet type of a column."""
    parquet = pq.ParquetFile(file)
    number = parquet.schema_arrow.names.index(column.stored)
    stored = parquet.schema.column(number)
    # What is said of how older readers see it is left out.
    logical = re.sub(r", is_from_.*\)", ")", str(stored.logical_type))
    arrow = str(parquet.schema_arrow.field(number).type)
    return arrow, stored.physical_type + ("" if logical == "None" else f", {logical}")


def _beside(files: Iterable[Path], column: Column) -> tuple[str, ...]:
    texts = [
        text
        for file in files
        for raw in pq.read_table(file, columns=["_raw"]).column("_raw").to_pylist()
        for stored, text in raw or ()
        if stored == column.stored
    ]
    return tuple(sorted(set(texts)))


def check(lines: Sequence[Line], *, whole: bool) -> None:
    """Assert that the page has these lines; and no others, where they are the `whole` of it."""
    parts = []
    for section in (BUILT_IN, LIMITED, OWN, EXTENSIONS):
        own = sorted(str(line) for line in lines if line.section == section)
        parts += [f"| **{section}** | | | | |", *own]
    page = HEAD + "\n".join(parts) + "\n"
    if os.environ.get(WRITE_VARIABLE):
        PATH.parent.mkdir(exist_ok=True)
        PATH.write_text(page)
    there = PATH.read_text()
    stale = "docs/types.md is stale: `make docs` writes it"
    assert set(parts) <= set(there.splitlines()), stale
    assert not whole or page == there, stale
