"""Baselines: complete copies of tables, as they were at the slot's consistent point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from queue import SimpleQueue

import psycopg
from psycopg import sql

from waly_cdc import durable, failpoints
from waly_cdc.archive.manifest import Baseline
from waly_cdc.archive.segments import Finished, SegmentSet
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.decode.copytext import baseline_batch
from waly_cdc.errors import SourceError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect, source_errors
from waly_cdc.source.copy import copy_table, snapshot_transaction
from waly_cdc.source.heaps import current
from waly_cdc.tables import Heap


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a slot's snapshot sees: the state at `lsn` of an era, taken at `time`."""

    name: str
    era: int
    lsn: Lsn
    time: datetime


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """A table's finished files, not yet published, and the baseline that they make."""

    relation: RelationVersion
    baseline: Baseline
    finished: list[Finished]


def copy_tables(
    archive: ArchiveWriter,
    dsn: str,
    snapshot: Snapshot,
    tables: Sequence[tuple[Table, RelationVersion]],
    known: Mapping[int, Heap],
    *,
    jobs: int,
    on_table: Callable[[CopiedTable], None],
    stopping: Callable[[], bool] = lambda: False,
) -> list[CopiedTable]:
    """Copy tables over `jobs` connections at a time, the largest first, until `stopping` says so.

    `known` are their heaps in the snapshot. A table that was altered or truncated since is left
    out: neither is hidden from a snapshot, and what it shows of such a table is not what was there.
    The snapshot must stay exported until this returns. Raises SourceError, StorageError; nothing is
    published then.
    """
    work: SimpleQueue[tuple[Table, RelationVersion]] = SimpleQueue()
    for item in sorted(tables, key=lambda item: -item[0].bytes):
        work.put(item)
    copied: list[CopiedTable] = []
    stopped = False

    def is_stopping() -> bool:
        return stopped or stopping()

    def worker() -> None:
        with (
            snapshot_transaction(dsn, snapshot.name) as connection,
            connect(dsn, application_name="waly baseline") as outside,
        ):
            while not work.empty() and not is_stopping():
                table, relation = work.get()
                if not _hold(connection, outside, table, known[table.oid]):
                    continue
                done = _copy(archive, connection, snapshot, table, relation, is_stopping)
                copied.append(done)
                on_table(done)

    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="baseline") as pool:
        running: list[Future[None]] = [pool.submit(worker) for _ in range(min(jobs, len(tables)))]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stopped = True
    return sorted(copied, key=lambda table: table.relation.oid)


def _hold(
    connection: psycopg.Connection, outside: psycopg.Connection, table: Table, heap: Heap
) -> bool:
    """Lock a table against being altered or truncated, as reading it does; False if it was since
    the snapshot that `connection` sees. `outside` sees the catalog as it is."""
    name = sql.Identifier(table.schema, table.name)
    with source_errors():
        connection.execute("SAVEPOINT hold")
        try:
            connection.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(name))
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            connection.execute("ROLLBACK TO SAVEPOINT hold")
            return False
    if current(outside, table.oid) == heap:
        return True
    with source_errors():
        connection.execute("ROLLBACK TO SAVEPOINT hold")
    return False


def _copy(
    archive: ArchiveWriter,
    connection: psycopg.Connection,
    snapshot: Snapshot,
    table: Table,
    relation: RelationVersion,
    stopping: Callable[[], bool],
) -> CopiedTable:
    segments = SegmentSet(archive.incoming, "baseline")
    taken_at = int(snapshot.time.timestamp() * 1_000_000)
    # A baseline at X is the state made by all commits that begin before X: see FORMAT.md.
    lsn = Lsn(snapshot.lsn.value - 1)
    rows = 0
    try:
        for block in copy_table(connection, table):
            if stopping():
                raise SourceError("the copy was interrupted")
            with durable.storage_errors(archive.incoming):
                failpoints.reach("baseline.copy")
            batch = baseline_batch(relation, block, snapshot.era, lsn, rows, taken_at)
            segments.add(batch)
            rows += batch.events.num_rows
        return CopiedTable(
            relation,
            Baseline(relation.oid, relation.version, snapshot.lsn, rows),
            segments.finish(),
        )
    except BaseException:
        segments.abandon()
        raise
