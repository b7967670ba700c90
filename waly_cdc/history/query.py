"""`waly query`: SQL of the user's over the archive.

The statement is not trusted: it may read the archive's tables and nothing else. So no file is ever
open to it: files are registered as Arrow datasets of ours, views over them are made, and only then
is all access to the outside turned off, for good, and the statement run. It must be a single
SELECT; what a SELECT can smuggle in (a COPY or an INSERT inside a WITH) finds neither files nor
tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt, UsageError
from waly_cdc.history.moment import Moment
from waly_cdc.history.session import session
from waly_cdc.history.views import Views

BATCH_ROWS = 65_536
_LOCK_DOWN = (
    "set autoinstall_known_extensions = false",
    "set autoload_known_extensions = false",
    "set enable_external_access = false",
    "set lock_configuration = true",
)


@dataclass(frozen=True, slots=True)
class Result:
    """A query's rows as they come, and what is worth knowing about the tables it reads."""

    reader: pa.RecordBatchReader
    notes: tuple[str, ...]


@contextmanager
def query(
    contents: Contents,
    store: LocalStore,
    moment: Moment,
    statement: str,
    parameters: Mapping[str, str],
) -> Iterator[Result]:
    """Run a SELECT over the tables as of a moment, their history up to it, `transactions` and
    `changes` (see `Views`). `parameters` are the values of its `$name`s.

    Raises UsageError for a statement that is wrong or that does anything but read.
    """
    with session() as connection:
        _require_select(connection, statement)
        views = Views(connection, contents, store, moment)
        try:
            views.create(statement)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise _unreadable(error) from error
        connection.execute("set timezone = 'UTC'")
        for setting in _LOCK_DOWN:
            connection.execute(setting)
        try:
            relation = connection.sql(statement, params=dict(parameters) or None)
            yield Result(relation.to_arrow_reader(BATCH_ROWS), tuple(views.notes))
        except duckdb.Error as error:
            if "the stream registered as" in str(error):
                raise _unreadable(error) from error
            if isinstance(error, duckdb.CatalogException):
                views.raise_unknown(statement)
            raise UsageError(f"the query failed: {error}", hint=_hint(error, views)) from error


def _unreadable(error: Exception) -> ArchiveCorrupt:
    return ArchiveCorrupt(f"a file of the archive cannot be read: {error}", hint="run: waly verify")


def _hint(error: duckdb.Error, views: Views) -> str | None:
    if isinstance(error, duckdb.CatalogException):
        return "tables: " + ", ".join(views.names[:20])
    if isinstance(error, duckdb.BinderException) and "VARCHAR" in str(error):
        return (
            "what has no exact type in DuckDB is VARCHAR, a numeric without precision for one:"
            " cast it, as in total::DECIMAL(38, 2)"
        )
    return None


def _require_select(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    try:
        statements = connection.extract_statements(statement)
    except duckdb.Error as error:
        raise UsageError(f"the query failed: {error}") from error
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(statements) != 1 or statements[0].type not in allowed:
        raise UsageError(
            "a query must be a single SELECT", hint="it can write nothing and change nothing"
        )
