"""Sealing: journalled frames become segments, and an entry of the manifest names them.

The work is done as frames arrive: every chunk is decoded at once into open segment files, so that a
seal only has to close them. A transaction may be larger than memory: what is decoded of it lies in
unfinished files, which nobody can see before the entry that follows its commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from waly_cdc.archive.actors import Actor, KnownActors
from waly_cdc.archive.manifest import Entry, SequenceValue
from waly_cdc.archive.segments import Finished, SegmentSet, write_schema, write_transactions
from waly_cdc.archive.transactions import transactions_table
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.gaps import Ready
from waly_cdc.capture.shapes import Shapes
from waly_cdc.capture.table_watch import TableWatch
from waly_cdc.decode.chunk import Chunk
from waly_cdc.decode.decoder import Decoder
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.tables import Gap, TableChanges


@dataclass(frozen=True, slots=True)
class CatalogFacts:
    """What an entry records from the catalog, read when it is written. A schema dump is there where
    the schema has changed; it shows nothing from after `dumped_by`, and all that made the
    `schema_fingerprint`."""

    sequences: Sequence[SequenceValue]
    schema_dump: bytes | None = None
    schema_fingerprint: str | None = None
    dumped_by: Lsn = ZERO


class Sealer:
    """Decodes chunks into segments and commits them. Used by one thread.

    `catalog_facts` is asked once per entry; its argument is the fingerprint of the newest schema
    dump in the archive. `make_decoder` gives a decoder that begins where the archive's last entry
    ended; `sampled` what a sampler has seen of transactions, by xid.
    """

    def __init__(
        self,
        archive: ArchiveWriter,
        shapes: Shapes,
        catalog_facts: Callable[[str | None], CatalogFacts],
        watch: TableWatch,
        make_decoder: Callable[[], Decoder],
        sampled: Callable[[Sequence[int]], Mapping[int, Actor]] = lambda _: {},
    ) -> None:
        self._archive = archive
        self._shapes = shapes
        self._sampled = sampled
        self._catalog_facts = catalog_facts
        self._watch = watch
        self._truncates: dict[int, dict[int, Lsn]] = {}
        # The last event of each relation version, by oid and number, as far as this run has seen.
        self._last: dict[tuple[int, int], Lsn] = {}
        source = archive.contents.source
        self._shows_shapes = source is not None and source.plugin == PGOUTPUT
        self._make_decoder = make_decoder
        self._decoder = make_decoder()
        self._segments = SegmentSet(archive.incoming)
        self._transactions: list[pa.RecordBatch] = []
        self._actors = KnownActors()
        self.bytes = 0
        """Bytes of frames decoded since the last entry."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun whose Commit has not been added."""
        return self._decoder.in_transaction

    @property
    def transactions(self) -> int:
        """Transactions with events that wait for the next entry."""
        return sum(batch.num_rows for batch in self._transactions)

    @property
    def unsealed_gaps(self) -> tuple[Gap, ...]:
        """Gaps that wait for the next entry."""
        return self._watch.unsealed_gaps

    def has_something(self, end: Lsn) -> bool:
        """Whether an entry that covers up to `end` would hold anything."""
        return bool(self._transactions) or self._watch.has_found(end)

    def committed(self, chunk: Chunk) -> tuple[int, int]:
        """How many of the frames end with the last Commit among them, and that transaction's end
        LSN; `(0, 0)` where there is none. Raises DecodeError."""
        return self._decoder.committed(chunk)

    def add(self, chunk: Chunk) -> None:
        """Decode a chunk into the open segments. Raises DecodeError, StorageError."""
        decoded = self._decoder.decode(chunk)
        for batch in decoded.batches:
            self._segments.add(batch)
            version = batch.relation.oid, batch.relation.version
            self._last[version] = Lsn(batch.events.column("_lsn")[-1].as_py())
            truncates = pc.equal(batch.events.column("_op"), "T")
            if truncates.true_count:
                found = batch.events.select(["_xid", "_lsn"]).filter(truncates).to_pydict()
                known = self._truncates.setdefault(batch.relation.oid, {})
                known.update(zip(found["_xid"], map(Lsn, found["_lsn"]), strict=True))
        committed = decoded.transactions
        if committed.num_rows:
            changed = committed.filter(pc.greater(committed.column("events"), 0))
            if changed.num_rows:
                self._transactions.append(changed)
        self._actors.add_messages(decoded.messages)
        self.bytes += len(chunk.data)

    def add_sightings(self, journalled: Iterable[bytes]) -> None:
        """Take what chunks of the journal have of sessions."""
        for each in journalled:
            self._actors.add_sightings(each)

    def seal(self, end: Lsn, horizon_time: datetime | None) -> Entry:
        """Commit everything added as one entry that covers up to `end`.

        The caller sees to it that no transaction is open and that all that commits before `end`
        has been added.
        """
        assert not self._decoder.in_transaction
        facts = self._catalog_facts(self._archive.contents.schema_fingerprint)
        finished: list[Finished] = self._segments.finish()
        tables, baselines = self._new_baselines(end)
        copies = [ready.copied for ready in baselines if ready.copied is not None]
        finished += [item for copied in copies for item in copied.finished]
        transactions = events = 0
        if self._transactions:
            table = self._transactions_table()
            last_commit = pc.max(table.column("committed_at")).as_py().astimezone(UTC)
            horizon_time = max(last_commit, horizon_time or last_commit)
            transactions = table.num_rows
            events = int(table.column("events").to_numpy().sum())
            finished += write_transactions(self._archive.incoming, table)
        if facts.schema_dump is not None:
            dumped_by = max(facts.dumped_by, end)
            era, incoming = self._archive.contents.era, self._archive.incoming
            finished.append(write_schema(incoming, facts.schema_dump, era, end, dumped_by))
        entry = self._archive.commit(
            "seal",
            end=end,
            horizon_time=horizon_time,
            finished=finished,
            relations=self._shapes.take_new(),
            baselines=[copied.baseline for copied in copies],
            tables=tables,
            sequences=facts.sequences,
            schema_fingerprint=facts.schema_fingerprint,
            transactions=transactions,
            events=events,
        )
        self._transactions.clear()
        self._actors.clear()
        self.bytes = 0
        return entry

    def passed(self, streamed: Lsn) -> None:
        """Everything that commits before `streamed` has been added."""
        self._watch.passed(streamed, self._truncates)
        self._truncates.clear()

    def _new_baselines(self, end: Lsn) -> tuple[TableChanges, list[Ready]]:
        """What the table watch has found, with the ends of gaps up to `end` that fit the stream."""
        self._watch.vouch()
        tables, found = self._watch.take(end)
        fitting = []
        for ready in found:
            after = None if ready.copied else ready.gap.start
            if self._shapes.adopt(ready.relation, ready.lsn, end, after):
                fitting.append(ready)
            else:
                self._watch.refuse(ready)
        if found:
            self._decoder.know(self._shapes.newest())
        closed = [gap for ready in fitting for gap in self._closed(ready)]
        return replace(tables, gaps=(*tables.gaps, *closed)), fitting

    def _closed(self, ready: Ready) -> list[Gap]:
        """How a gap ends. Where only the table's shape changed, and the stream has shown it do so,
        nothing is unknown but from the last event of the old shape to the first of the new one.
        wal2json's messages do not show every column: there both may be later than it seems."""
        gap, oid = ready.gap, ready.relation.oid
        if ready.copied:
            return [gap]
        start, end = gap.start, ready.lsn
        shown = self._shapes.shown(oid, start, end)
        if len(shown) == 1 and self._shows_shapes:
            start = max(start, self._last.get((oid, shown[0].version - 1), start))
            end = shown[0].since + 1
        return [replace(gap, end=gap.start), Gap(oid, start, end, gap.reason, rows=False)]

    def abandon(self) -> None:
        """Drop what is not sealed, and go back to where the archive's last entry ended."""
        self._segments.abandon()
        self._transactions.clear()
        self._actors.clear()
        self.bytes = 0
        self._decoder = self._make_decoder()

    def _transactions_table(self) -> pa.Table:
        xids = [xid for batch in self._transactions for xid in batch.column("xid").to_pylist()]
        sources = self._actors.sources(xids, self._sampled(xids))
        return transactions_table(self._transactions, sources, self._archive.contents.era)
