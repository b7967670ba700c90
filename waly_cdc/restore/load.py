"""Copying rows into a PostgreSQL target, several tables at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import duckdb
import psycopg
from psycopg import sql

from waly_cdc.errors import TargetError
from waly_cdc.lsn import Lsn
from waly_cdc.restore import target
from waly_cdc.restore.plan import PlannedTable
from waly_cdc.restore.rows import Rows, csv

_CANCEL_SECONDS = 5


class _StoppedError(Exception):
    """Another table failed, or the restore was interrupted."""


@dataclass(slots=True)
class Loader:
    """Loads tables as of `bound`. `on_rows` is told a table's name and the rows that went in.

    `counts` holds the rows per oid, `notes` what could not be done as it should, `violated` the
    constraints that were dropped because rows do not satisfy them.
    """

    rows: Rows
    dsn: str
    bound: Lsn
    on_rows: Callable[[str, int], None]
    counts: dict[int, int] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    violated: list[str] = field(default_factory=list)
    _stopping: bool = False
    _connections: list[psycopg.Connection] = field(default_factory=list)

    def load(self, tables: Sequence[PlannedTable], jobs: int) -> None:
        """Load all tables over `jobs` connections, the largest first.

        Every table is one COPY, a transaction of its own. Raises TargetError, ArchiveCorrupt.
        """
        work: SimpleQueue[PlannedTable] = SimpleQueue()
        for table in sorted(tables, key=lambda table: -table.bytes):
            work.put(table)
        with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="restore") as pool:
            running = [
                pool.submit(self._work, work, number) for number in range(min(jobs, len(tables)))
            ]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
            except BaseException:
                self._stop()
                raise
            if any(future.exception() for future in done):
                self._stop()
        errors = [error for future in running if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, _StoppedError):
                raise error

    def _stop(self) -> None:
        self._stopping = True
        self.rows.interrupt()
        for connection in self._connections:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=_CANCEL_SECONDS)

    def _work(self, work: SimpleQueue[PlannedTable], number: int) -> None:
        with target.session(self.dsn) as connection:
            self._connections.append(connection)
            refusal = target.tag(connection, number)
            if refusal is not None:
                self.notes.add(f"restored rows carry no replication origin: {refusal}")
            try:
                while not self._stopping:
                    self._load(connection, work.get_nowait())
            except Empty:
                pass
            if refusal is None and not self._stopping:
                target.untag(connection, number)

    def _load(self, connection: psycopg.Connection, table: PlannedTable) -> None:
        """Load a table; again without a constraint that its rows do not satisfy. It was dropped
        since the schema was archived, and rows are worth more than it."""
        while True:
            try:
                return self._copy(connection, table)
            except TargetError as error:
                relaxed = target.relax(connection, error.__cause__)
                if relaxed is None:
                    raise
                self.violated.append(relaxed)

    def _copy(self, connection: psycopg.Connection, table: PlannedTable) -> None:
        name = table.name.qualified_name
        columns = [sql.Identifier(column.name) for column in table.version.columns]
        statement = sql.SQL("copy {}{} from stdin (format csv)").format(
            sql.Identifier(table.made_as.schema, table.made_as.name),
            sql.SQL(" ({})").format(sql.SQL(", ").join(columns)) if columns else sql.SQL(""),
        )
        count = 0
        try:
            with (
                target.target_errors(f"rows of {name}"),
                connection.transaction(),
                connection.cursor() as cursor,
            ):
                target.stamp(connection, str(self.bound))
                with cursor.copy(statement) as copy:
                    for batch in self.rows.texts(table.version, self.bound):
                        if self._stopping:
                            raise _StoppedError
                        copy.write(csv(batch))
                        count += batch.num_rows
                        self.on_rows(name, batch.num_rows)
                stored = cursor.rowcount
        # Arrow passes DuckDB's interrupt on as an OSError.
        except (TargetError, duckdb.InterruptException, OSError) as error:
            self.on_rows(name, -count)
            # What broke because it was told to stop is not what went wrong.
            if self._stopping:
                raise _StoppedError from error
            raise
        if stored != count:
            raise TargetError(f"target: {name} took {stored} of {count} rows")
        self.counts[table.name.oid] = count
