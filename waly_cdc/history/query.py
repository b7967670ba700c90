"""`waly query`: SQL of the user's over the archive.

The statement is not trusted: it may read the archive's tables and nothing else. DuckDB's own
lock-down is not enough, because with a folder allowed a COPY inside a WITH writes to it. So no path
is allowed at all: event files are opened by us and registered as Arrow datasets, views over them are
made, and only then is all access to the outside turned off, for good, and the statement prepared. A
statement that is no single SELECT is refused, so that it cannot change the session either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.segments import TRANSACTIONS
from waly_cdc.archive.store import LocalStore
from waly_cdc.decode.events import schema as event_schema
from waly_cdc.errors import PointNotInArchive, UsageError
from waly_cdc.history.events import sql_type
from waly_cdc.history.moment import Moment
from waly_cdc.history.session import MEMORY_LIMIT, identifier
from waly_cdc.history.state import state_query
from waly_cdc.relations import RelationVersion

_ACTOR = (
    "struct_pack(user := t.actor_user, application_name := t.actor_application_name,"
    " client_addr := t.actor_client_addr, pid := t.actor_pid, query := t.actor_query,"
    " context := t.actor_context, source := coalesce(t.actor_source, 'unknown'))"
)


@contextmanager
def query(
    contents: Contents,
    store: LocalStore,
    moment: Moment,
    statement: str,
    parameters: Mapping[str, Any],
) -> Iterator[pa.RecordBatchReader]:
    """Run a SELECT over the tables as of a moment, their history and the transactions.

    Tables have their own names and schemas; a typed column is NULL where only its exact text could
    be kept (`infinity`, `NaN` in a numeric). `history.<schema>.<table>` has a row per event,
    `transactions` one per transaction. Raises UsageError for a statement that is wrong or that does
    anything but read.
    """
    with duckdb.connect(":memory:") as connection:
        try:
            connection.execute("set memory_limit = $1", [MEMORY_LIMIT])
            connection.execute("set python_enable_replacements = false")
            _Catalog(connection, contents, store, moment).create()
            connection.execute("set temp_directory = ''")
            connection.execute("set autoinstall_known_extensions = false")
            connection.execute("set autoload_known_extensions = false")
            connection.execute("set enable_external_access = false")
            connection.execute("set lock_configuration = true")
            _require_select(connection, statement)
            with connection.cursor() as cursor:
                cursor.execute(statement, dict(parameters) or None)
                yield cursor.to_arrow_reader(65_536)
        except duckdb.Error as error:
            raise UsageError(f"the query failed: {error}", hint=_hint(contents, error)) from error


def _require_select(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    statements = connection.extract_statements(statement)
    if len(statements) != 1 or statements[0].type not in (
        duckdb.StatementType.SELECT,
        duckdb.StatementType.EXPLAIN,
    ):
        raise UsageError(
            "only a single SELECT is allowed", hint="a query can write nothing and change nothing"
        )


def _hint(contents: Contents, error: duckdb.Error) -> str | None:
    if isinstance(error, duckdb.CatalogException):
        names = sorted({v[-1].qualified_name for v in contents.relations.values()})
        return "tables: " + ", ".join(names[:20]) + "; and transactions, history.<schema>.<table>"
    return None


class _Catalog:
    """Makes the views that a query sees. History lies in a database of its own called `history`."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        contents: Contents,
        store: LocalStore,
        moment: Moment,
    ) -> None:
        self._connection = connection
        self._contents = contents
        self._store = store
        self._moment = moment

    def create(self) -> None:
        self._register("waly_transactions", self._contents.transaction_files(), TRANSACTIONS)
        self._connection.execute("attach ':memory:' as history")
        self._connection.execute(
            "create view transactions as select t.xid, t.lsn as commit_lsn, t.end_lsn as lsn,"
            f" t.committed_at, t.events, {_ACTOR} as actor from waly_transactions t"
            f" where t.lsn < {self._moment.bound.value}"
        )
        for oid in self._contents.relations:
            relation = self._contents.version_at(oid, self._moment.bound)
            if relation is not None:
                self._table(relation)

    def _table(self, relation: RelationVersion) -> None:
        try:
            state = state_query(
                self._contents, _Registered(self, relation), relation, self._moment.bound
            )
        except PointNotInArchive:
            return
        columns = ", ".join(
            f"{identifier(c.stored)} as {identifier(c.name)}" for c in relation.columns
        )
        schema = identifier(relation.schema)
        name = f"{schema}.{identifier(relation.name)}"
        self._connection.execute(f"create schema if not exists {schema}")
        self._connection.execute(
            f"create or replace view {name} as select {columns} from ({state})"
        )
        if relation.schema == "public":
            self._connection.execute("create schema if not exists main")

    def _register(self, name: str, files: list[File], schema: pa.Schema) -> None:
        paths = [str(self._store.path(file.path)) for file in files]
        dataset = ds.dataset(paths, schema=schema, format="parquet", partitioning=None)
        self._connection.register(name, dataset)


class _Registered:
    """Stands in for the store where a statement names files: gives registered tables instead."""

    def __init__(self, catalog: _Catalog, relation: RelationVersion) -> None:
        self.catalog = catalog
        self.relation = relation


__all__ = ["event_schema", "query", "sql_type"]
