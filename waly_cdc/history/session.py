"""A DuckDB session for statements of our own over the archive's files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from waly_cdc.archive.manifest import File
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.history import floats

MEMORY_LIMIT = "1GB"


@contextmanager
def session() -> Iterator[duckdb.DuckDBPyConnection]:
    """A private in-memory database. Raises ArchiveCorrupt for files that cannot be read."""
    with (
        tempfile.TemporaryDirectory(prefix="waly-spill-") as folder,
        duckdb.connect(":memory:") as connection,
    ):
        connection.execute("set memory_limit = $1", [MEMORY_LIMIT])
        # What does not fit in memory would else be written to where the user happens to be.
        connection.execute("set temp_directory = $1", [folder])
        connection.execute("set python_enable_replacements = false")
        connection.execute("set preserve_insertion_order = false")
        floats.register(connection)
        try:
            yield connection
        except duckdb.Error as error:
            # What a damaged file brings about; the last stands for what DuckDB has no class for.
            damage = isinstance(error, duckdb.IOException | duckdb.InvalidInputException)
            if not (damage or type(error) is duckdb.Error):
                raise
            raise ArchiveCorrupt(
                f"a file of the archive cannot be read: {error}", hint="run: waly verify"
            ) from error


def rows(connection: duckdb.DuckDBPyConnection, statement: str) -> list[dict[str, Any]]:
    """The statement's answer as dictionaries, in a cursor of its own."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def arrow(connection: duckdb.DuckDBPyConnection, statement: str) -> pa.Table:
    """The statement's answer as an Arrow table."""
    with connection.cursor() as cursor:
        return cursor.sql(statement).to_arrow_table()


def read_files(store: LocalStore, files: Sequence[File]) -> str:
    """A table function over exactly these files, which have one schema. Never a pattern."""
    listed = ", ".join(literal(str(store.path(file.path))) for file in files)
    return f"read_parquet([{listed}], hive_partitioning = false, union_by_name = true)"


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
