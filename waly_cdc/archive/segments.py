"""Writing segments: Parquet files of events and of transactions.

A file is written under `incoming/`, hashed as it is written, synced and closed; then it can be
published under its final name. Until a manifest entry names it, it does not exist (rule 2).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waly_cdc import durable, failpoints
from waly_cdc.archive import layout
from waly_cdc.archive.manifest import File
from waly_cdc.archive.store import LocalStore
from waly_cdc.decode.events import COMMITTED_AT, EventBatch
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion

ROW_GROUP_ROWS = 131_072
ROW_GROUP_BYTES = 32 << 20
BUFFER_BYTES = 64 << 20
"""Arrow bytes that all open segments together may hold before the largest is written out."""

_NUMBERS = itertools.count()
"""Numbers for temporary names: the sets of several threads share a folder."""

ACTOR = pa.struct(
    [
        pa.field("source", pa.string()),
        pa.field("user", pa.string()),
        pa.field("application_name", pa.string()),
        pa.field("client_addr", pa.string()),
        pa.field("client_port", pa.int32()),
        pa.field("pid", pa.int32()),
        pa.field("backend_start", pa.timestamp("us", tz="UTC")),
        pa.field("query", pa.string()),
        pa.field("context", pa.string()),
    ]
)
"""What one source tells of who made a transaction."""

TRANSACTIONS = pa.schema(
    [
        pa.field("_era", pa.int32(), nullable=False),
        pa.field("lsn", pa.int64(), nullable=False),
        pa.field("end_lsn", pa.int64(), nullable=False),
        pa.field("xid", pa.int64(), nullable=False),
        pa.field("committed_at", COMMITTED_AT, nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        *(pa.field(f"actor_{field.name}", field.type) for field in ACTOR),
        pa.field("actor_sources", pa.list_(ACTOR)),
        pa.field("day", pa.date32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Finished:
    """A file that is written and durable under a temporary name; `file` describes it."""

    temporary: Path
    file: File

    def publish(self, store: LocalStore) -> File:
        """Give it its final name. It exists only when a manifest entry names it."""
        failpoints.reach("seal.publish")
        store.publish(self.temporary, self.file.path)
        return self.file


class HashingFile:
    """A file to write that knows its size and SHA-256 when it is closed. `point` is the failure
    point that each write passes."""

    def __init__(self, path: Path, *, lasting: bool, point: str = "seal.write") -> None:
        self._lasting = lasting
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, durable.FILE_MODE)
        self._path = path
        self._point = point
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        with durable.storage_errors(self._path):
            failpoints.reach(self._point)
            while view:
                view = view[os.write(self._descriptor, view) :]
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        return None

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            with durable.storage_errors(self._path):
                if self._lasting:
                    durable.sync_file(self._descriptor)
        finally:
            os.close(self._descriptor)

    def abandon(self) -> None:
        """Close without making anything durable."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class SegmentWriter:
    """One event file on its way: one relation version, one UTC day."""

    def __init__(
        self,
        temporary: Path,
        relation: RelationVersion,
        day: date,
        kind: str,
        *,
        lasting: bool,
        sorted_by: tuple[str, ...] = (),
    ) -> None:
        self._lasting = lasting
        self._sorted_by = sorted_by
        self._temporary = temporary
        self._relation = relation
        self._day = day
        self._kind = kind
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self.pending_bytes = 0
        self._file: HashingFile | None = None
        self._parquet: pq.ParquetWriter | None = None
        self._ops: Counter[str] = Counter()
        self._rows = self._unchanged = self._rekeyed = 0
        self._era = 0
        self._first = self._last = Lsn(0)
        self._first_time: datetime | None = None
        self._last_time: datetime | None = None

    def add(self, events: pa.RecordBatch) -> None:
        """Add events that follow those added before."""
        self._pending.append(events)
        self._pending_rows += events.num_rows
        self.pending_bytes += events.nbytes
        lsn = events.column("_lsn")
        if not self._rows:
            self._era = events.column("_era")[0].as_py()
            self._first = Lsn(lsn[0].as_py())
        self._last = Lsn(lsn[-1].as_py())
        self._rows += events.num_rows
        times = pc.min_max(events.column("_committed_at")).as_py()
        self._first_time = min(filter(None, (self._first_time, times["min"])))
        self._last_time = max(filter(None, (self._last_time, times["max"])))
        for count in pc.value_counts(events.column("_op")).tolist():
            self._ops[count["values"]] += count["counts"]
        self._unchanged += events.num_rows - events.column("_unchanged").null_count
        if "_before" in events.schema.names and "U" in self._ops:
            updates = events.filter(pc.equal(events.column("_op"), "U")).column("_before")
            self._rekeyed += len(updates) - updates.null_count
        if self._pending_rows >= ROW_GROUP_ROWS or self.pending_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the pending events out as a row group."""
        if not self._pending:
            return
        table = pa.Table.from_batches(self._pending)
        if self._parquet is None:
            self._file = HashingFile(self._temporary, lasting=self._lasting)
            self._parquet = parquet_writer(
                self._file, table.schema, lookup=self._sorted_by, sorted_by=self._sorted_by
            )
        self._parquet.write_table(table, row_group_size=len(table))
        self._pending, self._pending_rows, self.pending_bytes = [], 0, 0

    def finish(self) -> Finished:
        """Write what is pending, sync and close."""
        self.flush()
        assert self._parquet is not None
        assert self._file is not None
        self._parquet.close()
        self._file.close()
        path = layout.events_path(self._relation, self._day, self._era, self._first, self._last)
        return Finished(
            self._temporary,
            File(
                kind=self._kind,
                path=path,
                sha256=self._file.hexdigest(),
                bytes=self._file.size,
                rows=self._rows,
                first_lsn=self._first,
                last_lsn=self._last,
                first_time=_utc(self._first_time),
                last_time=_utc(self._last_time),
                oid=self._relation.oid,
                version=self._relation.version,
                ops=dict(self._ops),
                unchanged=self._unchanged,
                rekeyed=self._rekeyed,
                sorted_by=self._sorted_by,
            ),
        )

    def abandon(self) -> None:
        if self._file is not None:
            self._file.abandon()
        self._temporary.unlink(missing_ok=True)


class SegmentSet:
    """The segments of one seal or baseline, one writer per relation version and day. Files that are
    not `lasting` are not synced. `sorted_by` names the key by which rows come sorted; their
    positions must ascend all the same."""

    def __init__(
        self,
        incoming: Path,
        kind: str = "events",
        *,
        lasting: bool = True,
        sorted_by: tuple[str, ...] = (),
    ) -> None:
        self._sorted_by = sorted_by
        self._incoming = incoming
        self._kind = kind
        self._lasting = lasting
        self._writers: dict[tuple[int, int, date], SegmentWriter] = {}

    def add(self, batch: EventBatch) -> None:
        key = (batch.relation.oid, batch.relation.version, batch.day)
        writer = self._writers.get(key)
        if writer is None:
            writer = SegmentWriter(
                self._next_path(),
                batch.relation,
                batch.day,
                self._kind,
                lasting=self._lasting,
                sorted_by=self._sorted_by,
            )
            self._writers[key] = writer
        writer.add(batch.events)
        while sum(w.pending_bytes for w in self._writers.values()) > BUFFER_BYTES:
            max(self._writers.values(), key=lambda w: w.pending_bytes).flush()

    def finish(self) -> list[Finished]:
        """Close all files. The set is empty afterwards."""
        finished = [writer.finish() for writer in self._writers.values()]
        self._writers.clear()
        return finished

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()
        self._writers.clear()

    def _next_path(self) -> Path:
        return self._incoming / f"{self._kind}-{next(_NUMBERS)}.parquet"


def write_transactions(
    incoming: Path, transactions: pa.Table, *, lasting: bool = True
) -> list[Finished]:
    """Write transactions (schema `TRANSACTIONS`, in commit order), a file per UTC day."""
    finished = []
    for number, day in enumerate(sorted(set(transactions.column("day").to_pylist()))):
        mine = transactions.filter(pc.equal(transactions.column("day"), pa.scalar(day)))
        temporary = incoming / f"transactions-{number}.parquet"
        file = HashingFile(temporary, lasting=lasting)
        writer = parquet_writer(file, mine.schema)
        writer.write_table(mine)
        writer.close()
        file.close()
        lsn, times = mine.column("lsn"), pc.min_max(mine.column("committed_at")).as_py()
        first, last = Lsn(lsn[0].as_py()), Lsn(lsn[-1].as_py())
        era = mine.column("_era")[0].as_py()
        described = File(
            kind="transactions",
            path=layout.transactions_path(day, era, first, last),
            sha256=file.hexdigest(),
            bytes=file.size,
            rows=len(mine),
            first_lsn=first,
            last_lsn=last,
            first_time=_utc(times["min"]),
            last_time=_utc(times["max"]),
        )
        finished.append(Finished(temporary, described))
    return finished


def write_schema(incoming: Path, dump: bytes, era: int, at: Lsn, dumped_by: Lsn) -> Finished:
    """Write a schema dump (pg_dump's custom format) that was taken at `at` or later, and by
    `dumped_by`."""
    temporary = incoming / "schema.dump"
    file = HashingFile(temporary, lasting=True)
    file.write(dump)
    file.close()
    path = layout.schema_path(era, at)
    described = File("schema", path, file.hexdigest(), file.size, 0, at, dumped_by)
    return Finished(temporary, replace(described))


_DICTIONARY = ("_op", "_era", "_lsn", "_xid", "_committed_at", "_relation", "day", "actor_source")


def parquet_writer(
    sink: object,
    schema: pa.Schema,
    *,
    lookup: Sequence[str] = (),
    sorted_by: Sequence[str] = (),
    group_rows: int = ROW_GROUP_ROWS,
) -> pq.ParquetWriter:
    """A Parquet writer with the settings every file of an archive has.

    Columns of `lookup` get Bloom filters, for row groups of so many rows, and all columns a page
    index then. `sorted_by` says by which columns the rows are sorted, before their position.
    """
    order = [(name, "ascending") for name in (*sorted_by, "_lsn", "_seq")] if sorted_by else []
    blooms = {
        name: {"ndv": group_rows, "fpp": 0.01}
        for name in lookup
        if not pa.types.is_boolean(schema.field(name).type)
    }
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        # The user's columns compress as well without one, and much faster.
        use_dictionary=[name for name in _DICTIONARY if name in schema.names],
        write_statistics=True,
        write_page_index=bool(lookup),
        bloom_filter_options=blooms or None,
        sorting_columns=pq.SortingColumn.from_ordering(schema, order, "at_end") if order else None,
    )


def _utc(time: datetime | None) -> datetime | None:
    return time.astimezone(UTC) if time is not None else None
