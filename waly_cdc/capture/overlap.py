"""What a server sends again of what the archive has: the same transactions, or others."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waly_cdc.archive.manifest import Source
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture import plugin
from waly_cdc.capture.shapes import Shapes
from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.lsn import Lsn
from waly_cdc.source.connect import connect
from waly_cdc.source.stream import ReplicationStream

Commits = set[tuple[int, int, datetime]]
"""LSN of the commit record, xid and commit time."""

_COLUMNS = ["lsn", "xid", "committed_at"]


def differs(archive: ArchiveWriter, dsn: str, source: Source, start: Lsn) -> bool:
    """Whether the transactions from `start` to the horizon, as the slot sends them once more, are
    not those of the archive. Nothing is acknowledged. Raises SourceError, SourceLost, DecodeError,
    ArchiveCorrupt."""
    return _sent(archive, dsn, source, start) != _archived(archive, start)


def _sent(archive: ArchiveWriter, dsn: str, source: Source, start: Lsn) -> Commits:
    contents = archive.contents
    shapes = Shapes(contents.relations, lambda _: None)
    decoder = plugin.of(source, contents, shapes, lambda: None).make_decoder()
    commits: Commits = set()
    with connect(dsn) as connection:
        options, _ = plugin.stream_options(source, connection)
    stream = ReplicationStream(dsn, source.slot, start, options)
    try:
        complete = False
        while not complete:
            received = stream.receive()
            complete = received.server_end >= contents.horizon
            if len(received.chunk):
                decoded = decoder.decode(received.chunk).transactions
                changed = decoded.filter(pc.greater(decoded.column("events"), 0))
                commits |= _commits(changed, start, contents.horizon)
                complete = complete or _reaches(decoded, contents.horizon)
            elif not complete:
                stream.send_status()
    finally:
        stream.close()
    return commits


def _archived(archive: ArchiveWriter, start: Lsn) -> Commits:
    contents = archive.contents
    commits: Commits = set()
    for file in contents.transaction_files():
        if file.last_lsn < start:
            continue
        try:
            path = archive.store.path(file.path)
            table = pq.read_table(path, columns=_COLUMNS, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveCorrupt(
                f"{file.path} cannot be read: {error}", hint="run: waly verify"
            ) from error
        commits |= _commits(table, start, contents.horizon)
    return commits


def _commits(found: pa.Table | pa.RecordBatch, start: Lsn, end: Lsn) -> Commits:
    lsn = found.column("lsn")
    inside = pc.and_(pc.greater_equal(lsn, start.value), pc.less(lsn, end.value))
    columns = [found.filter(inside).column(name).to_pylist() for name in _COLUMNS]
    return set(zip(*columns, strict=True))


def _reaches(decoded: pa.RecordBatch, end: Lsn) -> bool:
    """Whether a commit at `end` or after it has come: they come in order."""
    return bool(len(decoded)) and decoded.column("lsn")[-1].as_py() >= end.value
