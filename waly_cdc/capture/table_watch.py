"""The table watch: what happens to tables without events, and the new baselines that this takes.

It looks at the catalog about every second, beside the stream. What it finds:

* a new table: it joins the publications, and its rows from before that are not known;
* a table whose rows were rewritten, or that gained a column with a default: rows changed without
  events;
* a table that was dropped;
* which tables are partitions of which.

Where rows changed without events there is a *gap*: states of that table are refused from the look
before on, until a new baseline is there, copied at the exact LSN of a temporary slot's snapshot.
Gaps, heaps and drops reach the manifest with the next entry; a baseline with the first entry that
covers its LSN. What a crash loses is found again: the manifest tells which heaps are known, and up
to where somebody has looked.

A TRUNCATE also gives a table a new heap, and is an event: a new heap is held back until the stream
has passed the look that found it, and is no gap if a truncate came by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import psycopg

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Source
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.baseline import CopiedTable, Snapshot, copy_tables
from waly_cdc.capture.names import TableNames
from waly_cdc.capture.shapes import Shapes
from waly_cdc.errors import SourceError, WalyError
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.source import catalog, publication, schema_dump
from waly_cdc.source import slot as source_slot
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect
from waly_cdc.source.copy import snapshot_transaction
from waly_cdc.source.heaps import heaps, partitions
from waly_cdc.source.position import insert_position
from waly_cdc.tables import Drop, Gap, Heap, Partition, TableChanges

LOOK_EVERY = 1.0
SHARE = 20
"""Looks take at most one part in so many of the time: they cost the server something."""

PUBLICATIONS_EVERY = 10.0
RETRY_EVERY = 30.0
LOCK_WAIT = "2s"
"""How long joining a publication may wait for a lock on the table; then it is tried again."""

NEW = "the table is new"
REWRITTEN = "its rows were rewritten"
FILLED = "a column with a default was added"
DOUBTFUL = "its name passed to or from another table, or a column is no longer generated"
UNSENT = "its updates and deletes were not sent before it had a replica identity"
UNPUBLISHED = "its updates and deletes are not published, or not all of them"


@dataclass(frozen=True, slots=True)
class Ready:
    """A new baseline that waits for an entry that covers its LSN."""

    copied: CopiedTable
    gap: Gap
    lsn: Lsn


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A new heap that a truncate may explain, found by a look at `seen`."""

    heap: Heap
    after: Lsn
    seen: Lsn


class TableWatch(threading.Thread):
    """Looks and takes baselines on a thread of its own; `take`, `passed` and `refuse` are the
    keeper's. An error in it is told and tried again later: capture goes on."""

    def __init__(
        self,
        dsn: str,
        source: Source,
        archive: ArchiveWriter,
        shapes: Shapes,
        on_event: Callable[[str], None],
        names: TableNames | None = None,
    ) -> None:
        """`names` is told which table has which name, where the stream tells tables by name."""
        super().__init__(name="table watch", daemon=True)
        self._dsn = dsn
        self._source = source
        self._names = names
        self._archive = archive
        self._shapes = shapes
        self._on_event = on_event
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._retry_at = 0.0
        contents: Contents = archive.contents
        self._known = dict(contents.heaps)
        self._looked_at = self._previous = contents.looked_at
        self._dropped = dict(contents.drops)
        self._open = {gap.oid: gap for gap in contents.gaps if gap.end is None}
        self._suspects: dict[int, _Suspect] = {}
        self._truncates = {
            file.oid: file.last_lsn
            for file in contents.files
            if file.oid is not None and file.ops.get("T") and file.last_lsn >= contents.looked_at
        }
        self._streamed = ZERO
        self._heaps: dict[int, Heap] = {}
        self._gaps: list[Gap] = []
        self._drops: list[Drop] = []
        self._partitions = {each.oid: each for each in contents.partitions}
        self._new_partitions: list[Partition] = []
        self._ready: list[Ready] = []
        self._fingerprint: str | None = None
        self._published_at = 0.0
        self._captured: set[int] = set()
        self._unpublished: set[int] = set()
        self._doubtful: set[int] = set()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self._dsn, application_name="waly watch") as connection:
                    pause = LOOK_EVERY
                    while not self._stopping.wait(pause):
                        began = time.monotonic()
                        self.look(connection)
                        pause = max(LOOK_EVERY, SHARE * (time.monotonic() - began))
                        self.take_baselines(connection)
            except (WalyError, psycopg.Error) as error:
                if not self._stopping.is_set():
                    self._tell(f"looking at the tables failed: {error}")
                    self._stopping.wait(LOOK_EVERY)

    def stop(self) -> None:
        """End the thread, and remove baselines that no entry has taken."""
        self._stopping.set()
        if self.is_alive():
            self.join()
        for ready in self._ready:
            _discard(ready)

    def catch_up(self) -> None:
        """Look once, and take the baselines that are missing, in the calling thread. Raises
        SourceError."""
        with connect(self._dsn, application_name="waly watch") as connection:
            self.look(connection)
            self.take_baselines(connection)

    @property
    def unfinished(self) -> bool:
        """Whether a baseline is missing that could be taken now."""
        with self._lock:
            return bool(self._open.keys() - self._unpublished)

    @property
    def unsealed_gaps(self) -> tuple[Gap, ...]:
        """The gaps that no entry holds yet."""
        with self._lock:
            return tuple(self._gaps)

    def look(self, connection: psycopg.Connection) -> None:
        """Compare the catalog with what is known. Raises SourceError."""
        if self._source.plugin == PGOUTPUT:
            self._publish(connection)
        position = insert_position(connection)
        unsent = self._look_at_names(connection)
        now = {oid: heap for oid, heap in heaps(connection).items() if oid in self._captured}
        linked = partitions(connection, self._previous, position)
        with self._lock:
            # What the look before did not see can have been committed a little before it.
            after = self._previous
            for oid, heap in now.items():
                self._compare(self._known.get(oid), heap, after, position)
                if oid in self._unpublished and oid not in self._open:
                    self._begin_gap(oid, after, UNPUBLISHED)
                if oid in self._doubtful:
                    self._begin_gap(oid, after, DOUBTFUL)
                if oid in unsent and oid not in self._open:
                    self._begin_gap(oid, after, UNSENT)
            for oid in self._known.keys() - now.keys():
                self._dropped[oid] = Drop(oid, after, position)
                self._drops.append(self._dropped[oid])
                del self._known[oid]
                self._open.pop(oid, None)
                self._suspects.pop(oid, None)
            for oid in now.keys() & (linked.keys() | self._partitions.keys()):
                self._link(oid, linked.get(oid, Partition(oid, (), (), after, position)))
            self._doubtful.clear()
            self._previous, self._looked_at = self._looked_at, position

    def take_baselines(self, connection: psycopg.Connection) -> None:
        """Copy the tables that have a gap and no new baseline yet. What fails is tried again."""
        with self._lock:
            waiting = {ready.gap.oid for ready in self._ready} | self._unpublished
            wanted = {oid: gap for oid, gap in self._open.items() if oid not in waiting}
        if not wanted or time.monotonic() < self._retry_at:
            return
        try:
            self._copy(connection, wanted)
        except WalyError as error:
            self._retry_at = time.monotonic() + RETRY_EVERY
            self._tell(f"a new baseline could not be taken: {error.message}")

    def passed(self, streamed: Lsn, truncates: Mapping[int, Lsn]) -> None:
        """The stream has everything that commits before `streamed`; `truncates` tells the last one
        of each table since it was last told."""
        with self._lock:
            self._streamed = max(self._streamed, streamed)
            self._truncates.update(truncates)
            self._settle_suspects()

    def has_found(self, end: Lsn) -> bool:
        """Whether `take` has more to give than where somebody has looked."""
        with self._lock:
            ready = any(item.lsn <= end for item in self._ready)
            found = self._heaps or self._gaps or self._drops or self._new_partitions
            return ready or bool(found)

    def take(self, end: Lsn) -> tuple[TableChanges, list[Ready]]:
        """What an entry that covers up to `end` should hold."""
        with self._lock:
            ready = [item for item in self._ready if item.lsn <= end]
            self._ready = [item for item in self._ready if item.lsn > end]
            looked_at = min([self._previous, *(s.after for s in self._suspects.values())])
            changes = TableChanges(
                tuple(self._heaps.values()),
                tuple(self._gaps),
                tuple(self._drops),
                tuple(self._new_partitions),
                looked_at,
            )
            self._heaps, self._gaps, self._drops, self._new_partitions = {}, [], [], []
            for item in ready:
                self._open.pop(item.gap.oid, None)
            return changes, ready

    def refuse(self, ready: Ready) -> None:
        """A baseline that does not fit what the stream has shown meanwhile: take another."""
        _discard(ready)
        with self._lock:
            self._open.setdefault(ready.gap.oid, replace(ready.gap, end=None))

    def _compare(self, was: Heap | None, heap: Heap, after: Lsn, seen: Lsn) -> None:
        if was == heap:
            return
        if was is None:
            drop = self._dropped.pop(heap.oid, None)
            self._begin_gap(heap.oid, drop.after if drop else after, NEW)
        elif set(heap.filled) - set(was.filled):
            self._begin_gap(heap.oid, after, FILLED)
        elif was.filenode != heap.filenode:
            self._suspects.setdefault(heap.oid, _Suspect(heap, after, seen))
            return
        self._know(heap)

    def _settle_suspects(self) -> None:
        for oid, suspect in list(self._suspects.items()):
            if self._streamed < suspect.seen:
                continue
            del self._suspects[oid]
            if not suspect.after <= self._truncates.get(oid, ZERO) < suspect.seen:
                self._begin_gap(oid, suspect.after, REWRITTEN)
            self._know(suspect.heap)

    def _know(self, heap: Heap) -> None:
        self._known[heap.oid] = self._heaps[heap.oid] = heap

    def _link(self, oid: int, now: Partition) -> None:
        """Remember which tables a table is a partition of, if that has changed."""
        was = self._partitions.get(oid)
        if was is None or (was.parents, was.columns) != (now.parents, now.columns):
            self._partitions[oid] = now
            self._new_partitions.append(now)

    def _begin_gap(self, oid: int, after: Lsn, reason: str) -> None:
        """Rows changed: what was copied before is not enough, and an open gap stays open."""
        for ready in [item for item in self._ready if item.gap.oid == oid]:
            self._ready.remove(ready)
            _discard(ready)
        if oid not in self._open:
            self._open[oid] = Gap(oid, after, None, reason)
            self._gaps.append(self._open[oid])

    def _look_at_names(self, connection: psycopg.Connection) -> set[int]:
        """Of a stream that tells tables by name: note those whose changes may have been filed
        wrongly since the look before. Returns those whose updates and deletes were not sent."""
        if self._names is None:
            return set()
        tables = catalog.tables(connection)
        # Kept until there is a gap for them: the look may fail before.
        self._doubtful |= self._names.look(tables, lambda: insert_position(connection))
        known = {relation.oid: relation for relation in self._shapes.newest()}
        self._captured = {t.oid for t in tables if self._source.every_table or t.oid in known}
        unsent = {t.oid for t in tables if t.followed and t.oid in known}
        return {oid for oid in unsent if not known[oid].followed}

    def _find_captured(self, connection: psycopg.Connection) -> list[Table]:
        everything, _ = publication.look(connection, self._source.slot)
        tables = catalog.tables(connection)
        if everything is None or everything.every_table:
            return tables
        return [table for table in tables if (table.schema, table.name) in everything.tables]

    def _publish(self, connection: psycopg.Connection) -> None:
        """Let new tables join the publications, and those leave whose updates would fail there."""
        fingerprint = schema_dump.fingerprint(connection)
        due = time.monotonic() - self._published_at >= PUBLICATIONS_EVERY
        if fingerprint == self._fingerprint and not due:
            return
        tables = self._find_captured(connection)
        connection.execute("select set_config('lock_timeout', %s, false)", (LOCK_WAIT,))
        for statement in publication.changes(
            publication.look(connection, self._source.slot), tables
        ):
            text = publication.as_text([statement])[0]
            try:
                publication.apply(connection, [statement])
                self._on_event(text)
            except SourceError as error:
                self._tell(f"somebody who may has to run: {text} ({error.message})")
        everything, keyed = publication.look(connection, self._source.slot)
        there = keyed.tables - keyed.restricted if keyed else frozenset()
        if everything:
            there -= everything.restricted
        self._captured = {table.oid for table in tables}
        self._unpublished = {
            table.oid
            for table in tables
            if table.followed and (table.schema, table.name) not in there
        }
        self._fingerprint = fingerprint
        self._published_at = time.monotonic()

    def _copy(self, connection: psycopg.Connection, wanted: dict[int, Gap]) -> None:
        name = f"waly_baseline_{connection.info.backend_pid}"
        with connect(self._dsn, replication=True, application_name="waly watch") as replication:
            slot = source_slot.create(
                replication, name, self._source.plugin, temporary=True, on_wait=self._on_wait
            )
            facts = catalog.server_facts(connection)
            era = self._archive.contents.era
            snapshot = Snapshot(slot.snapshot, era, slot.consistent_point, facts.now)
            with snapshot_transaction(self._dsn, slot.snapshot) as inside:
                there = heaps(inside)
                tables = [t for t in catalog.tables(inside) if t.oid in wanted and t.readable]
            with self._lock:
                # A heap that changed since the look is for the next one.
                tables = [t for t in tables if there.get(t.oid) == self._known.get(t.oid)]
            since = Lsn(snapshot.lsn.value - 1)
            proposed = [(table, self._shapes.propose(table, since)) for table in tables]
            for copied in copy_tables(
                self._archive,
                self._dsn,
                snapshot,
                proposed,
                jobs=1,
                on_table=lambda _: None,
                stopping=self._stopping.is_set,
            ):
                gap = replace(wanted[copied.relation.oid], end=snapshot.lsn)
                self._on_event(
                    f"new baseline of {copied.relation.qualified_name} at {snapshot.lsn},"
                    f" {copied.baseline.rows} rows: {gap.reason}"
                )
                with self._lock:
                    self._ready.append(Ready(copied, gap, snapshot.lsn))

    def _on_wait(self, _: float) -> None:
        if self._stopping.is_set():
            raise SourceError("interrupted")

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_event(text)


def _discard(ready: Ready) -> None:
    for finished in ready.copied.finished:
        finished.temporary.unlink(missing_ok=True)
