"""The rows of a table at a point, as the texts that PostgreSQL printed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from types import TracebackType

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.history.session import session
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion

BATCH_ROWS = 16_384

_CSV = pa_csv.WriteOptions(include_header=False, quoting_style="all_valid")


class Rows:
    """States of an archive's tables. Several threads may read at a time, each its own table.

    A context manager; inside it a file that cannot be read is an ArchiveCorrupt.
    """

    def __init__(self, store: LocalStore, contents: Contents) -> None:
        self._store = store
        self._contents = contents
        self._running: set[duckdb.DuckDBPyConnection] = set()
        self._lock = Lock()
        self._open = ExitStack()

    def __enter__(self) -> Rows:
        with ExitStack() as opening:
            spill = opening.enter_context(tempfile.TemporaryDirectory(prefix="waly-restore-"))
            self._connection = opening.enter_context(session())
            self._connection.execute("set temp_directory = $1", [spill])
            self._open = opening.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def state(self, version: RelationVersion, bound: Lsn) -> str:
        """SQL for the table's state: its columns under their stored names, and `_raw`."""
        return state_query(self._contents, self._store, version, bound)

    def text(self, column: Column) -> str:
        """SQL for a column of `state` as PostgreSQL's text."""
        return column_text(column)

    def query(self, version: RelationVersion, bound: Lsn) -> str:
        """SQL for the table's state: its columns in order, as texts, under the names c0, c1, …"""
        texts = [f"{self.text(column)} as c{i}" for i, column in enumerate(version.columns)]
        return f"select {', '.join(texts) or '0'} from ({self.state(version, bound)})"

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of the calling thread's own, which `interrupt` reaches."""
        cursor = self._connection.cursor()
        with self._lock:
            self._running.add(cursor)
        try:
            yield cursor
        finally:
            with self._lock:
                self._running.discard(cursor)
            cursor.close()

    def texts(self, version: RelationVersion, bound: Lsn) -> Iterator[pa.RecordBatch]:
        """The table's rows in batches of text columns, in no order."""
        with self.cursor() as cursor:
            relation = cursor.sql(self.query(version, bound))
            for batch in relation.to_arrow_reader(BATCH_ROWS):
                yield batch if version.columns else batch.select([])

    def interrupt(self) -> None:
        """Make the threads that are reading stop with an error."""
        with self._lock:
            for cursor in self._running:
                cursor.interrupt()


def csv(batch: pa.RecordBatch) -> bytes:
    """Text columns as COPY's CSV reads them: NULL is nothing at all, an empty text is quoted."""
    if not batch.num_columns:
        return b"\n" * int(batch.num_rows)
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(batch, sink, _CSV)
    return bytes(sink.getvalue().to_pybytes())
