"""Making one file of several, and the proof that it holds the same rows.

Three passes, each in bounded memory: the files to replace are read, their SHA-256 compared with the
manifest's and their fingerprints taken; they are read again and written as one, in order of
position or sorted by key (by DuckDB, which sorts on disk what memory does not hold); the new file
is read back, and its fingerprint must be the sum of theirs.

Nothing here is visible to anybody: the file lies in `incoming/` until an entry names it.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from waly_cdc import durable
from waly_cdc.archive import fingerprint, layout
from waly_cdc.archive.manifest import File, Removed
from waly_cdc.archive.segments import Finished, HashingFile, parquet_writer
from waly_cdc.archive.store import LocalStore
from waly_cdc.archive.tiers import Merge
from waly_cdc.errors import ArchiveCorrupt, StorageError, WalyError

BATCH_ROWS = 16_384
SORTED_GROUP_ROWS = 65_536
"""Rows of a row group: what a lookup of one key reads of a file that is sorted by key."""
GROUP_BYTES = 32 << 20
MEMORY_LIMIT = "128MB"

_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Merged:
    """A finished file, and those in whose place it may be put."""

    era: int
    finished: Finished
    removed: tuple[Removed, ...]


def merge(store: LocalStore, incoming: Path, wanted: Merge, key: Sequence[str]) -> Merged:
    """Write the files of a merge as one. `key` are the columns that lookups go by.

    Raises ArchiveCorrupt where a file is not what the manifest says, StorageError, and WalyError
    where the outcome does not hold the same rows; nothing is left behind then.
    """
    parts = [_read(store, file) for file in wanted.files]
    temporary = incoming / f"compact-{next(_NUMBERS)}.parquet"
    try:
        file = HashingFile(temporary, lasting=True, point="compact.write")
        try:
            schema = pq.read_schema(store.path(wanted.files[0].path))
            _write(file, schema, _batches(store, incoming, wanted, schema), wanted, key)
            file.close()
        finally:
            file.abandon()
        total = fingerprint.add(parts)
        rows, found = _fingerprint(temporary)
        described = _describe(wanted, file, fingerprint.to_text(total))
        if (rows, found) != (described.rows, total):
            raise WalyError(
                f"{described.path} would not hold the same rows as the files it replaces",
                hint="the archive is as it was; please report this",
            )
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    removed = (
        Removed(each.path, fingerprint.to_text(part))
        for each, part in zip(wanted.files, parts, strict=True)
    )
    return Merged(wanted.era, Finished(temporary, described), tuple(removed))


def _read(store: LocalStore, file: File) -> int:
    """The fingerprint of a file that is what the manifest says. Raises ArchiveCorrupt."""
    path = store.path(file.path)
    try:
        with path.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        if sha256 != file.sha256:
            raise ArchiveCorrupt(f"{file.path} was changed", hint="run: waly verify")
        if file.fingerprint is not None:
            return fingerprint.from_text(file.fingerprint)
        rows, found = _fingerprint(path)
    except (OSError, pa.ArrowException) as error:
        raise ArchiveCorrupt(
            f"{file.path} cannot be read: {error}", hint="run: waly verify"
        ) from error
    if rows != file.rows:
        raise ArchiveCorrupt(f"{file.path} has {rows} rows, and the manifest says {file.rows}")
    return found


def _fingerprint(path: Path) -> tuple[int, int]:
    rows, parts = 0, []
    with pq.ParquetFile(path, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS):
            rows += batch.num_rows
            parts.append(fingerprint.fingerprint(batch))
    return rows, fingerprint.add(parts)


def _batches(
    store: LocalStore, incoming: Path, wanted: Merge, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    paths = [store.path(file.path) for file in wanted.files]
    if wanted.sort_by:
        yield from _sorted(paths, incoming, wanted.sort_by, schema)
        return
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as parquet:
            yield from parquet.iter_batches(BATCH_ROWS)


def _sorted(
    paths: Sequence[Path], incoming: Path, key: Sequence[str], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The files' rows by key, those of one key by position."""
    names = ", ".join(f'"{name.replace(chr(34), chr(34) * 2)}"' for name in key)
    spill = incoming / f"spill-{next(_NUMBERS)}"
    durable.make_folder(spill)
    try:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(spill),
            "threads": "1",
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(config=config) as connection:
            connection.execute("set timezone = 'UTC'")
            relation = connection.sql(
                "select * from read_parquet($paths, hive_partitioning = false)"
                f" order by {names}, _lsn, _seq",
                params={"paths": [str(path) for path in paths]},
            )
            for batch in relation.to_arrow_reader(BATCH_ROWS):
                yield from pa.Table.from_batches([batch]).cast(schema).to_batches()
    except duckdb.Error as error:
        raise StorageError(
            f"sorting in {spill} failed: {str(error).splitlines()[0]}",
            hint="is there space on the archive's disk?",
        ) from error
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _write(
    file: HashingFile,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    wanted: Merge,
    key: Sequence[str],
) -> None:
    most = SORTED_GROUP_ROWS if wanted.sort_by else 2 * SORTED_GROUP_ROWS
    writer = parquet_writer(file, schema, lookup=key, sorted_by=wanted.sort_by, group_rows=most)
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        pending.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= most or size >= GROUP_BYTES:
            writer.write_table(pa.Table.from_batches(pending), row_group_size=rows)
            pending, rows, size = [], 0, 0
    if pending:
        writer.write_table(pa.Table.from_batches(pending), row_group_size=rows)
    writer.close()


def _describe(wanted: Merge, file: HashingFile, total: str) -> File:
    """What the manifest says of the new file: the sum of what it says of the old ones, which the
    fingerprint proves right."""
    files = wanted.files
    ops: Counter[str] = Counter()
    for each in files:
        ops.update(each.ops)
    first_times = [each.first_time for each in files if each.first_time is not None]
    last_times = [each.last_time for each in files if each.last_time is not None]
    return File(
        kind=files[0].kind,
        path=layout.compacted_path(files[0].path, files[-1].path, by_key=bool(wanted.sort_by)),
        sha256=file.hexdigest(),
        bytes=file.size,
        rows=sum(each.rows for each in files),
        first_lsn=min(each.first_lsn for each in files),
        last_lsn=max(each.last_lsn for each in files),
        first_time=min(first_times, default=None),
        last_time=max(last_times, default=None),
        oid=files[0].oid,
        version=files[0].version,
        ops=dict(ops),
        unchanged=sum(each.unchanged for each in files),
        rekeyed=sum(each.rekeyed for each in files),
        sorted_by=wanted.sort_by,
        fingerprint=total,
    )
