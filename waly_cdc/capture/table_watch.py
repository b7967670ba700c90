"""The table watch: what happens to tables without events, and the new baselines that this takes.

It looks at the catalog about every second, beside the stream, and once more for every entry
(`vouch`), so that an entry knows of all that happened before its end. What it finds:

* a new table: it joins the publications, and its rows from before that are not known;
* a table whose rows were rewritten, or which older rows are now read otherwise: rows changed
  without events;
* a table whose columns, name or key changed: the stream shows that with the next event only;
* a table that was dropped;
* which tables are partitions of which.

From the look before on until its end such a table has a *gap*: states of it are refused. Where rows
changed, it ends with a new baseline, copied at the exact LSN of a temporary slot's snapshot; else
where two looks saw the same shape. Gaps, heaps and drops reach the manifest with the next entry; a
gap's end with the first entry that covers its LSN. What a crash loses is found again: the manifest
tells which heaps are known, and up to where somebody has looked.

A TRUNCATE also gives a table a new heap, and is an event: it is told by its transaction. Until it
has come by in the stream there is a gap, which is withdrawn.
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
from waly_cdc.capture.alterations import Alteration, alteration
from waly_cdc.capture.gaps import Gaps, Ready
from waly_cdc.capture.names import TableNames
from waly_cdc.capture.new_baselines import NewBaselines
from waly_cdc.capture.publishing import Publishing
from waly_cdc.capture.shapes import Shapes
from waly_cdc.errors import SourceError, SourceLost, WalyError
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.relations import RelationVersion
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect
from waly_cdc.source.heaps import Look, SeenTable, look
from waly_cdc.tables import Drop, Gap, Heap, Partition, TableChanges

LOOK_EVERY = 1.0
SHARE = 20
"""Looks take at most one part in so many of the time: they cost the server something."""

LONGEST_WAIT = 10.0
"""Seconds that `catch_up` waits for open transactions, to leave tables without a baseline then."""

SETTLED = 1.0
"""Seconds by which a look may miss a transaction whose commit lies in the log already."""

LONG_AGO = float("-inf")

FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds before a copy that failed is tried again: doubled each time, until one succeeds."""

NEW = "the table is new"
DROPPED = "the table was dropped"
PASSING = "the table was there between two looks only"
DOUBTFUL = "its name passed to or from another table, or a column is no longer generated"
UNPUBLISHED = "its changes are not published, or not all of them"


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A new heap that a truncate may explain. `was` is the one before, `seen` what a look found
    that ended at `ended`; `alone` says that the table's gap began with it."""

    was: Heap
    seen: SeenTable
    after: Lsn
    ended: Lsn
    alone: bool


class TableWatch(threading.Thread):
    """Looks and takes baselines on a thread of its own; `vouch`, `take`, `passed` and `refuse` are
    the keeper's. An error in it is told and tried again later: capture goes on."""

    def __init__(
        self,
        dsn: str,
        source: Source,
        archive: ArchiveWriter,
        shapes: Shapes,
        on_event: Callable[[str], None],
        names: TableNames | None = None,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """`names` is told which table has which name, where the stream tells tables by name.
        `is_ours` says whether the server is still the one of the archive's history: what another
        one's catalog says tells nothing of it."""
        super().__init__(name="table watch", daemon=True)
        self._dsn = dsn
        self._source = source
        self._names = names
        self._archive = archive
        self._shapes = shapes
        self._on_event = on_event
        self._is_ours = is_ours
        self._stopping = threading.Event()
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._retry_at, self._retry_delay = 0.0, FIRST_RETRY
        contents: Contents = archive.contents
        self._known = dict(contents.heaps)
        self._last: Look | None = None
        self._looks = [(LONG_AGO, contents.looked_at)]
        self._dropped = dict(contents.drops)
        self._gaps = Gaps.of(contents.gaps)
        self._suspects: dict[int, _Suspect] = {}
        self._reshaped: dict[int, tuple[SeenTable, Lsn]] = {}
        self._agreed: dict[int, tuple[Table, RelationVersion]] = {}
        self._truncates: dict[int, dict[int, Lsn]] = {}
        self._streamed = ZERO
        self._heaps: dict[int, Heap] = {}
        self._drops: list[Drop] = []
        self._partitions = {each.oid: each for each in contents.partitions}
        self._new_partitions: list[Partition] = []
        published = source.plugin == PGOUTPUT
        self._publishing = Publishing(source.slot, on_event, self._tell) if published else None
        self._unpublished: set[int] = set()
        self._vouching: psycopg.Connection | None = None

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self._dsn, application_name="waly watch") as connection:
                    pause = LOOK_EVERY
                    while not self._stopping.wait(pause):
                        began = time.monotonic()
                        self._publish(connection)
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
        if self._vouching is not None:
            self._vouching.close()
        for ready in self._gaps.ready:
            ready.discard()

    def catch_up(self) -> None:
        """Look, and take the baselines that are missing, in the calling thread. Raises
        SourceError."""
        with connect(self._dsn, application_name="waly watch") as connection:
            self._publish(connection)
            self.look(connection)
            # What has another shape is known once it is seen twice.
            self.look(connection)
            self.take_baselines(connection)

    def vouch(self) -> None:
        """Look once more, in the calling thread, so that all is known which changed before now.

        Raises SourceError, SourceLost.
        """
        if not self._is_ours():
            return
        if self._vouching is None or self._vouching.closed:
            self._vouching = connect(self._dsn, application_name="waly watch")
        try:
            self.look(self._vouching)
        except SourceLost:
            # This connection may be the only one that broke.
            self._vouching.close()
            self._vouching = connect(self._dsn, application_name="waly watch")
            self.look(self._vouching)

    @property
    def unfinished(self) -> bool:
        """Whether a baseline is missing that could be taken now."""
        with self._lock:
            return bool(self._gaps.open.keys() - self._unpublished)

    @property
    def unsealed_gaps(self) -> tuple[Gap, ...]:
        """The gaps that no entry holds yet."""
        with self._lock:
            return tuple(self._gaps.found)

    def look(self, connection: psycopg.Connection) -> None:
        """Compare the catalog with what is known. Raises SourceError."""
        with self._looking:
            slot = self._source.slot if self._publishing else None
            self._last = look(connection, slot, self._last)
            now, doubtful = self._look_at_names(self._last)
            with self._lock:
                after = self._looked_at()
                for oid in doubtful & self._known.keys() & now.tables.keys():
                    self._gaps.begin(oid, after, DOUBTFUL, copy=True)
                self._unpublished = {oid for oid, seen in now.tables.items() if not seen.published}
                for oid, seen in now.tables.items():
                    self._compare(oid, self._known.get(oid), seen, after, now)
                    self._reconcile(oid, seen, now)
                self._find_drops(now, after)
                self._find_partitions(now, after)
                self._settle()
                seen_at = LONG_AGO if now.complete else time.monotonic()
                self._looks.append((seen_at, now.begun))

    def take_baselines(self, connection: psycopg.Connection) -> None:
        """Copy the tables that have a gap and no new baseline yet. What fails is tried again."""
        with self._lock:
            wanted = self._gaps.wanted()
            wanted = {oid: gap for oid, gap in wanted.items() if oid not in self._unpublished}
        if not wanted or time.monotonic() < self._retry_at:
            return
        try:
            self._copy(connection, wanted)
            self._retry_delay = FIRST_RETRY
        except WalyError as error:
            self._retry_at = time.monotonic() + self._retry_delay
            self._retry_delay = min(2 * self._retry_delay, LAST_RETRY)
            self._tell(f"a new baseline could not be taken: {error.message}")

    def passed(self, streamed: Lsn, truncates: Mapping[int, Mapping[int, Lsn]]) -> None:
        """The stream has everything that commits before `streamed`; `truncates` tells the xids and
        LSNs of each table's since it was last told."""
        with self._lock:
            self._streamed = max(self._streamed, streamed)
            recent = min([self._looked_at(), *(s.after for s in self._suspects.values())])
            for oid, xids in truncates.items():
                known = {**self._truncates.get(oid, {}), **xids}
                self._truncates[oid] = {x: lsn for x, lsn in known.items() if lsn >= recent}
            self._settle()

    def has_found(self, end: Lsn) -> bool:
        """Whether `take` has more to give than where somebody has looked."""
        with self._lock:
            ready = any(item.lsn <= end for item in self._gaps.ready)
            found = self._heaps or self._gaps.found or self._drops or self._new_partitions
            return ready or bool(found)

    def take(self, end: Lsn) -> tuple[TableChanges, list[Ready]]:
        """What an entry that covers up to `end` should hold."""
        with self._lock:
            gaps, ready = self._gaps.take(end)
            changes = TableChanges(
                tuple(self._heaps.values()),
                gaps,
                tuple(self._drops),
                tuple(self._new_partitions),
                self._looked_at(),
            )
            self._heaps, self._drops, self._new_partitions = {}, [], []
            return changes, ready

    def refuse(self, ready: Ready) -> None:
        """What does not fit what the stream has shown meanwhile: it takes another baseline."""
        with self._lock:
            self._gaps.reopen(ready)

    # What a look finds; all under the lock

    def _looked_at(self) -> Lsn:
        """A position before which everything that changed is known."""
        settled = time.monotonic() - SETTLED
        newest = max(n for n, (seen_at, _) in enumerate(self._looks) if seen_at <= settled)
        del self._looks[:newest]
        return self._looks[0][1]

    def _compare(self, oid: int, was: Heap | None, seen: SeenTable, after: Lsn, now: Look) -> None:
        if was and not seen.published and oid not in self._gaps.to_copy:
            self._gaps.begin(oid, after, UNPUBLISHED, copy=True)
        change = self._alteration(was, seen.heap) if was else None
        if was is None:
            drop = self._dropped.pop(oid, None)
            self._gaps.begin(oid, drop.after if drop else after, NEW, copy=True)
            self._know(seen.heap)
        elif change is Alteration.MOVED:
            self._suspect(was, seen, after, now.ended)
        elif change is not None:
            self._alter(seen, after, now.ended, change)
        elif was != seen.heap:
            self._know(seen.heap)
        elif oid in self._reshaped and oid not in self._suspects:
            self._confirm(oid, *self._reshaped.pop(oid))

    def _alteration(self, was: Heap, now: Heap) -> Alteration | None:
        return alteration(was, now, self._source.publications)

    def _reconcile(self, oid: int, seen: SeenTable, now: Look) -> None:
        """Where there is no gap, the version that the stream showed last is what the catalog says.
        It need not be: changes that were made before the schema had its new name can be committed
        after it; and a table can have been renamed, and named back without another event."""
        newest = self._shapes.newest_of(oid)
        if newest is None or newest.since >= now.begun or oid in self._gaps.open:
            return
        if self._agreed.get(oid) == (seen.table, newest):
            return
        if self._shapes.propose(seen.table, now.begun) is newest:
            self._agreed[oid] = seen.table, newest
        else:
            self._alter(seen, newest.since, now.ended, Alteration.RESHAPED)

    def _alter(self, seen: SeenTable, after: Lsn, ended: Lsn, change: Alteration) -> None:
        oid = seen.heap.oid
        self._suspects.pop(oid, None)
        self._gaps.begin(oid, after, change.value, copy=change.changes_rows)
        self._reshaped[oid] = seen, ended
        self._know(seen.heap)

    def _confirm(self, oid: int, seen: SeenTable, ended: Lsn) -> None:
        """Two looks saw this shape: it was in force where the first one ended."""
        gap = self._gaps.open.get(oid)
        if gap is not None and oid not in self._gaps.to_copy:
            relation = self._shapes.propose(seen.table, Lsn(ended.value - 1))
            self._gaps.ready.append(Ready(relation, replace(gap, end=ended), ended))

    def _suspect(self, was: Heap, seen: SeenTable, after: Lsn, ended: Lsn) -> None:
        oid = was.oid
        before = self._suspects.get(oid)
        if before is not None and before.seen.heap == seen.heap:
            return
        alone = oid not in self._gaps.open
        if alone:
            self._gaps.begin(oid, after, Alteration.REWRITTEN.value, copy=False)
        if before is not None:
            after, alone = before.after, before.alone
        self._suspects[oid] = _Suspect(was, seen, after, ended, alone)

    def _settle(self) -> None:
        for oid, suspect in list(self._suspects.items()):
            truncated = self._is_truncated(suspect)
            if not truncated and self._streamed < suspect.ended:
                continue
            del self._suspects[oid]
            heap = suspect.seen.heap
            if not truncated:
                self._alter(suspect.seen, suspect.after, suspect.ended, Alteration.REWRITTEN)
                continue
            if suspect.alone and oid in self._gaps.open and oid not in self._gaps.to_copy:
                self._gaps.withdraw(oid)
            change = self._alteration(replace(suspect.was, filenode=heap.filenode), heap)
            if change is not None:
                self._alter(suspect.seen, suspect.after, suspect.ended, change)
            self._know(heap)

    def _is_truncated(self, suspect: _Suspect) -> bool:
        """Whether a truncate explains the heap: its transaction wrote it. A savepoint within that
        has an xid of its own; then any truncate will do, if the table cannot have been unlogged
        meanwhile: the server refuses that for a table in a publication of its own."""
        seen, truncates = suspect.seen, self._truncates.get(suspect.was.oid, {})
        listed = suspect.was.followed and seen.heap.followed and seen.published
        return seen.written_by in truncates or (
            listed and any(suspect.after <= lsn < suspect.ended for lsn in truncates.values())
        )

    def _find_drops(self, now: Look, after: Lsn) -> None:
        for oid in self._known.keys() - now.tables.keys():
            self._drop(Drop(oid, after, now.ended), DROPPED)
            del self._known[oid]
        for oid, since in self._shapes.since().items():
            if oid not in now.tables and oid not in self._dropped:
                self._drop(Drop(oid, Lsn(max(since.value - 1, 0)), now.ended), PASSING)

    def _find_partitions(self, now: Look, after: Lsn) -> None:
        for oid in now.tables.keys() & (now.linked.keys() | self._partitions.keys()):
            found = now.linked.get(oid, Partition(oid, (), (), after, now.ended))
            was = self._partitions.get(oid)
            if was is None or (was.parents, was.columns) != (found.parents, found.columns):
                self._partitions[oid] = replace(found, after=after)
                self._new_partitions.append(self._partitions[oid])

    def _drop(self, drop: Drop, reason: str) -> None:
        self._dropped[drop.oid] = drop
        self._drops.append(drop)
        self._gaps.drop(drop.oid, drop.after, drop.by, reason)
        self._suspects.pop(drop.oid, None)
        self._reshaped.pop(drop.oid, None)

    def _know(self, heap: Heap) -> None:
        self._known[heap.oid] = self._heaps[heap.oid] = heap

    def _look_at_names(self, now: Look) -> tuple[Look, set[int]]:
        """Of a stream that tells tables by name, those that are captured; and which tables' changes
        may have been filed wrongly since the look before."""
        if self._names is None:
            return now, set()
        tables = [seen.table for seen in now.tables.values()]
        doubtful = self._names.look(tables, lambda: now.ended)
        if not self._source.every_table:
            known = self._shapes.since()
            now = replace(now, tables={o: seen for o, seen in now.tables.items() if o in known})
        return now, doubtful

    # What is done about it

    def _publish(self, connection: psycopg.Connection) -> None:
        if self._publishing is not None:
            self._publishing.keep(connection)

    def _copy(self, connection: psycopg.Connection, wanted: dict[int, Gap]) -> None:
        with self._lock:
            known = dict(self._known)
        copies = NewBaselines(self._archive, self._dsn, self._source.plugin, self._shapes)
        for ready in copies.take(
            connection,
            wanted,
            known,
            self._stopping.is_set,
            lambda waited: self._go_on(connection, waited),
        ):
            oid = ready.gap.oid
            with self._lock:
                # Another look may have found a change meanwhile.
                fits = self._known.get(oid) == known[oid] and oid in self._gaps.wanted()
                if fits:
                    self._gaps.ready.append(ready)
                else:
                    ready.discard()
            if fits and ready.copied is not None:
                self._on_event(
                    f"new baseline of {ready.relation.qualified_name} at {ready.lsn},"
                    f" {ready.copied.baseline.rows} rows: {ready.gap.reason}"
                )

    def _go_on(self, connection: psycopg.Connection, waited: float) -> None:
        """Look, while a new baseline waits for transactions that are open."""
        if self._stopping.is_set():
            raise SourceError("interrupted")
        if not self.is_alive() and waited > LONGEST_WAIT:
            raise SourceError(f"transactions are open for more than {LONGEST_WAIT:.0f} s")
        self._publish(connection)
        self.look(connection)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_event(text)
