"""What was received and is not sealed yet, as further files of the archive.

The one reader that knows the journal (DESIGN: "pending"): it decodes the journal's tail with the
sidecar's own decoder into files of a temporary folder, and gives contents that name them beside the
sealed ones, with a later horizon. All other readers then answer from those as from any contents.

Invariants, whatever a running sidecar does meanwhile:

* every transaction is there whole or not at all: the horizon is the end of the last one that was
  read whole, and readers take nothing from it on;
* none is there twice: only what commits from the sealed horizon on is taken, and contents and tail
  fit together, or both are read again. A seal writes its entry before it trims the journal, so a
  tail has no hole if no newer entry is there after it was read;
* a table's shape is one that the manifest names: the tail is cut before a transaction that needs
  another, and where it is longer than `TAIL_BYTES` or damaged. The horizon is then earlier, and
  `cut` says why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waly_cdc.archive import layout
from waly_cdc.archive.actors import KnownActors
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.manifest import File
from waly_cdc.archive.segments import SegmentSet, write_transactions
from waly_cdc.archive.store import LocalStore
from waly_cdc.archive.transactions import transactions_table
from waly_cdc.decode.chunk import Chunk
from waly_cdc.decode.events import EventBatch
from waly_cdc.decode.pgoutput import ColumnarDecoder
from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.journal import reader
from waly_cdc.journal.chunks import JournalChunk
from waly_cdc.lsn import Lsn
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.relations import RelationVersion, StreamRelation
from waly_cdc.tables import Gap

TAIL_BYTES = 128 << 20
"""Bytes of frames that one answer decodes at most."""

TRIES = 5
"""How often contents and tail are read while a sidecar seals; then the sealed part must do."""

_FOLDER = "pending"


@dataclass(frozen=True, slots=True)
class Known:
    """All that can be answered from: `sealed` is the archive's own horizon. `cut` tells why the
    tail was not taken whole, if it was not."""

    contents: Contents
    store: LocalStore
    sealed: Lsn
    cut: str | None = None

    @property
    def transactions(self) -> int:
        """Transactions that are not sealed yet."""
        return sum(
            file.rows
            for file in self.contents.transaction_files()
            if file.path.startswith(f"{_FOLDER}/")
        )


class _TailStore(LocalStore):
    """An archive with the files of a tail beside its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        super().__init__(root)
        self._folder = folder

    def path(self, path: str) -> Path:
        folder, _, name = path.partition("/")
        return self._folder / name if folder == _FOLDER else super().path(path)


@contextmanager
def with_pending(store: LocalStore, gaps: Sequence[Gap] = ()) -> Iterator[Known]:
    """The archive with its journal's tail; the tail's files are there within the context only.
    `gaps` are those that the sidecar has found and no entry may hold yet.

    Raises NoArchive, ArchiveCorrupt for the archive itself.
    """
    for _ in range(TRIES):
        contents = load(store)
        with tempfile.TemporaryDirectory(prefix="waly-pending-") as folder:
            try:
                tail = _Tail(contents, Path(folder))
                tail.read(store.path(layout.JOURNAL))
            except FileNotFoundError:
                continue
            if not store.path(layout.entry_path(contents.entries)).exists():
                extended = tail.contents(gaps)
                store = _TailStore(store.root, Path(folder))
                yield Known(extended, store, contents.horizon, tail.cut)
                return
    contents = load(store)
    yield Known(contents, store, contents.horizon, "the sidecar seals too often to be read")


class _NewShape(Exception):
    """A table has a shape that no entry names yet; in the transaction that commits at `lsn`."""

    def __init__(self, relation: StreamRelation, lsn: Lsn) -> None:
        super().__init__(relation, lsn)
        self.table = f"{relation.schema}.{relation.name}"
        self.lsn = lsn


class _Tail:
    """Decodes a journal's tail into files of a folder."""

    def __init__(self, contents: Contents, folder: Path) -> None:
        self._sealed = contents
        self._folder = folder
        self._segments = SegmentSet(folder, lasting=False)
        newest = [versions[-1] for versions in contents.relations.values()]
        self._decoder = ColumnarDecoder(self._resolve, contents.era, newest)
        self._transactions: list[pa.RecordBatch] = []
        self._actors = KnownActors()
        self._horizon = contents.horizon
        self.cut: str | None = None

    def read(self, journal: Path) -> None:
        """Take as much as there is and can be. Raises FileNotFoundError where a file was trimmed
        meanwhile."""
        source = self._sealed.source
        if source is None:
            return
        size = 0
        try:
            if source.plugin != PGOUTPUT:
                if any(stored.lengths for stored in reader.read(journal, self._sealed.horizon)):
                    self.cut = f"what {source.plugin} sends tells too little before it is sealed"
                return
            for stored in reader.read(journal, self._sealed.horizon):
                size += len(stored.data)
                if size > TAIL_BYTES:
                    self.cut = f"more than {TAIL_BYTES >> 20} MiB wait to be sealed"
                    return
                self._add(stored)
        except _NewShape as shape:
            self.cut = f"{shape.table} has a new shape, which the next seal records"
        except ArchiveCorrupt as error:
            self.cut = error.message
        except PermissionError:
            self.cut = "the journal may not be read"

    def _add(self, stored: JournalChunk) -> None:
        chunk = Chunk(stored.data, np.frombuffer(stored.lengths, "<u4").astype(np.int64))
        self._actors.add_sightings(stored.sightings)
        try:
            self._decode(chunk)
        except _NewShape as shape:
            count, _ = self._decoder.committed(chunk, shape.lsn)
            if count:
                self._decode(chunk.split(count)[0])
            self._horizon = max(self._horizon, shape.lsn)
            raise
        self._horizon = max(self._horizon, stored.committed)

    def _decode(self, chunk: Chunk) -> None:
        decoded = self._decoder.decode(chunk)
        first = self._sealed.horizon.value
        for batch in decoded.batches:
            events = batch.events.filter(pc.greater_equal(batch.events.column("_lsn"), first))
            if events.num_rows:
                self._segments.add(EventBatch(batch.relation, batch.day, events))
        committed = decoded.transactions
        changed = committed.filter(
            pc.and_(
                pc.greater(committed.column("events"), 0),
                pc.greater_equal(committed.column("lsn"), first),
            )
        )
        if changed.num_rows:
            self._transactions.append(changed)
        self._actors.add_messages(decoded.messages)

    def _resolve(self, relation: StreamRelation, lsn: Lsn) -> RelationVersion:
        versions = self._sealed.relations.get(relation.oid)
        if not versions or not versions[-1].matches(relation):
            raise _NewShape(relation, lsn)
        return versions[-1]

    def contents(self, gaps: Sequence[Gap]) -> Contents:
        """The archive's contents with the tail's files, and gaps that they do not name."""
        finished = self._segments.finish()
        sealed = self._sealed
        time: datetime | None = sealed.horizon_time
        transactions = events = 0
        if self._transactions:
            table = self._transactions_table()
            transactions, events = len(table), pc.sum(table.column("events")).as_py()
            finished += write_transactions(self._folder, table, lasting=False)
            time = max(filter(None, (time, *(item.file.last_time for item in finished))))
        known = {(gap.oid, gap.start) for gap in sealed.gaps}
        files: Iterable[File] = (
            replace(item.file, path=f"{_FOLDER}/{item.temporary.name}") for item in finished
        )
        return replace(
            sealed,
            files=list(chain(sealed.files, files)),
            gaps=[*sealed.gaps, *(gap for gap in gaps if (gap.oid, gap.start) not in known)],
            horizon=self._horizon,
            horizon_time=time,
            transactions=sealed.transactions + transactions,
            events=sealed.events + events,
        )

    def _transactions_table(self) -> pa.Table:
        xids = [xid for batch in self._transactions for xid in batch.column("xid").to_pylist()]
        sources = self._actors.sources(xids, sampled={})
        return transactions_table(self._transactions, sources, self._sealed.era)
