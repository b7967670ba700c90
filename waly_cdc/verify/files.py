"""One file of an archive against what the manifest says of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waly_cdc.archive import fingerprint, segments
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.store import LocalStore
from waly_cdc.decode import events
from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.findings import Finding
from waly_cdc.restore.dump import read_items
from waly_cdc.verify.chain import read_file, refused

BATCH_ROWS = 65_536


def check_file(store: LocalStore, file: File, contents: Contents) -> list[Finding]:
    """What is wrong with a file: missing, changed, unreadable, or other than the manifest says.

    Every byte is read, and every value of a Parquet file decoded, in bounded memory. Raises
    CouldNotVerify where reading is refused.
    """
    try:
        faults = _check_bytes(store, file)
    except FileNotFoundError:
        return [Finding("file.missing", "fail", file.path, "the file is missing")]
    except PermissionError as error:
        raise refused(file.path) from error
    except OSError as error:
        message = f"the file cannot be read: {error.strerror}"
        return [Finding("file.unreadable", "fail", file.path, message)]
    if faults:
        return faults
    if file.kind == "schema":
        return _check_dump(store, file)
    return _check_parquet(store, file, contents)


def _check_bytes(store: LocalStore, file: File) -> list[Finding]:
    with store.path(file.path).open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        size = opened.tell()
    if size != file.bytes:
        message = f"{size} bytes, and the manifest says {file.bytes}"
        return [Finding("file.size", "fail", file.path, message)]
    if sha256 != file.sha256:
        message = f"changed: its SHA-256 is {sha256}, and the manifest says {file.sha256}"
        return [Finding("file.sha256", "fail", file.path, message)]
    return []


def _check_dump(store: LocalStore, file: File) -> list[Finding]:
    content = read_file(store, file.path)
    if isinstance(content, Finding):
        return [content]
    try:
        read_items(content)
    except ArchiveCorrupt as error:
        return [Finding("file.schema_dump", "fail", file.path, error.message)]
    return []


@dataclass(slots=True)
class _Facts:
    """What the rows of a file say."""

    rows: int = 0
    first_lsn: int | None = None
    last_lsn: int | None = None
    first_time: datetime | None = None
    last_time: datetime | None = None
    ops: Counter[str] = field(default_factory=Counter)
    unchanged: int = 0
    rekeyed: int = 0
    in_order: bool = True
    days: set[str] = field(default_factory=set)
    versions: set[int] = field(default_factory=set)
    last: tuple[int, int] = (-1, -1)
    sorted_by: tuple[str, ...] = ()
    last_row: pa.Table | None = None
    fingerprint: int | None = None


def _check_parquet(store: LocalStore, file: File, contents: Contents) -> list[Finding]:
    add: Callable[[_Facts, pa.RecordBatch], None] = _add_events
    if file.kind == "transactions":
        expected, add = segments.TRANSACTIONS, _add_transactions
    else:
        known = [v for v in contents.relations.get(file.oid or 0, ()) if v.version == file.version]
        if not known:
            message = f"no entry describes version {file.version} of relation {file.oid}"
            return [Finding("file.relation", "fail", file.path, message)]
        expected = events.schema(known[0])
    facts = _Facts(sorted_by=file.sorted_by)
    if file.fingerprint is not None:
        facts.fingerprint = 0
    try:
        with pq.ParquetFile(store.path(file.path), pre_buffer=False) as parquet:
            shape = _shape(parquet.schema_arrow)
            if shape == _shape(expected):
                for batch in parquet.iter_batches(BATCH_ROWS):
                    add(facts, batch)
                    if facts.fingerprint is not None:
                        parts = (facts.fingerprint, fingerprint.fingerprint(batch))
                        facts.fingerprint = fingerprint.add(parts)
    except (pa.ArrowException, OSError) as error:
        message = f"cannot be read as Parquet: {error}"
        return [Finding("file.parquet", "fail", file.path, message)]
    if shape != _shape(expected):
        message = "its columns are not those of the relation version that the manifest names"
        return [Finding("file.columns", "fail", file.path, message)]
    return _compare(file, facts)


def _shape(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(column.name, column.type) for column in schema]


def _compare(file: File, facts: _Facts) -> list[Finding]:
    pairs: list[tuple[str, object, object]] = [
        ("rows", file.rows, facts.rows),
        ("first LSN", file.first_lsn.value, facts.first_lsn),
        ("last LSN", file.last_lsn.value, facts.last_lsn),
        ("first time", file.first_time, facts.first_time),
        ("last time", file.last_time, facts.last_time),
        ("day", {_partition(file.path)}, facts.days),
    ]
    if file.kind != "transactions":
        pairs += [
            ("events by kind", dict(file.ops), dict(facts.ops)),
            ("events with unchanged values", file.unchanged, facts.unchanged),
            ("changes of key", file.rekeyed, facts.rekeyed),
            ("relation version", {file.version}, facts.versions),
        ]
    faults = [
        Finding("file.facts", "fail", file.path, f"{what}: {found}, and the manifest says {stated}")
        for what, stated, found in pairs
        if stated != found
    ]
    if facts.fingerprint is not None:
        found = fingerprint.to_text(facts.fingerprint)
        if found != file.fingerprint:
            message = (
                f"its rows have the fingerprint {found}, and the manifest says {file.fingerprint}"
            )
            faults.append(Finding("file.fingerprint", "fail", file.path, message))
    if not facts.in_order and file.sorted_by:
        message = f"its rows are not sorted by {', '.join(file.sorted_by)} and their positions"
        faults.append(Finding("file.order", "fail", file.path, message))
    elif not facts.in_order:
        message = "its rows are not in the order of their positions, or a position stands twice"
        faults.append(Finding("file.order", "fail", file.path, message))
    return faults


def _partition(path: str) -> str:
    return path.rpartition("/day=")[2].partition("/")[0]


def _add_events(facts: _Facts, batch: pa.RecordBatch) -> None:
    _add(facts, batch, batch.column("_lsn"), batch.column("_seq"), batch.column("_committed_at"))
    if facts.sorted_by:
        names = [*facts.sorted_by, "_lsn", "_seq"]
        rows = pa.Table.from_batches([batch.select(names)])
        if facts.last_row is not None:
            rows = pa.concat_tables([facts.last_row, rows])
        facts.in_order = facts.in_order and ascending(rows)
        facts.last_row = rows.slice(len(rows) - 1)
    for count in pc.value_counts(batch.column("_op")).tolist():
        facts.ops[count["values"]] += count["counts"]
    facts.versions.update(pc.unique(batch.column("_relation")).to_pylist())
    facts.unchanged += len(batch) - batch.column("_unchanged").null_count
    if "_before" in batch.schema.names:
        updates = batch.filter(pc.equal(batch.column("_op"), "U")).column("_before")
        facts.rekeyed += len(updates) - updates.null_count


def _add_transactions(facts: _Facts, batch: pa.RecordBatch) -> None:
    zeros = pa.array(np.zeros(len(batch), np.int64))
    _add(facts, batch, batch.column("lsn"), zeros, batch.column("committed_at"))


def _add(
    facts: _Facts, batch: pa.RecordBatch, lsn: pa.Array, seq: pa.Array, times: pa.Array
) -> None:
    if not len(batch):
        return
    if not facts.sorted_by:
        _add_order(facts, lsn, seq)
    facts.rows += len(batch)
    lsns, span = pc.min_max(lsn).as_py(), pc.min_max(times).as_py()
    facts.first_lsn = min(
        lsns["min"], facts.first_lsn if facts.first_lsn is not None else lsns["min"]
    )
    facts.last_lsn = max(lsns["max"], facts.last_lsn or 0)
    facts.first_time = min(filter(None, (facts.first_time, span["min"])))
    facts.last_time = max(filter(None, (facts.last_time, span["max"])))
    facts.days.update(day.isoformat() for day in pc.unique(batch.column("day")).to_pylist())


def _add_order(facts: _Facts, lsn: pa.Array, seq: pa.Array) -> None:
    high = np.concatenate([[facts.last[0]], lsn.to_numpy()])
    low = np.concatenate([[facts.last[1]], seq.to_numpy()])
    ascending = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    facts.in_order = facts.in_order and bool(ascending.all())
    facts.last = (int(high[-1]), int(low[-1]))


def ascending(rows: pa.Table) -> bool:
    """Whether rows ascend by all their columns, the first one first, NULL behind every value."""
    undecided = pa.array(np.ones(max(len(rows) - 1, 0), bool))
    for column in rows.combine_chunks().columns:
        one, next_ = column.slice(0, len(rows) - 1), column.slice(1)
        # NaN is neither less nor greater: DuckDB sorts it behind all numbers.
        falls = pc.or_kleene(pc.and_(pc.is_null(one), pc.is_valid(next_)), pc.greater(one, next_))
        if pc.any(pc.and_kleene(undecided, falls)).as_py():
            return False
        same = pc.or_kleene(pc.and_(pc.is_null(one), pc.is_null(next_)), pc.equal(one, next_))
        undecided = pc.and_(undecided, same.fill_null(False))
    return True
