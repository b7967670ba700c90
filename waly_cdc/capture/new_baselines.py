"""New baselines of tables whose rows have changed without events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import psycopg

from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.baseline import Snapshot, copy_tables
from waly_cdc.capture.gaps import Ready
from waly_cdc.capture.shapes import Shapes
from waly_cdc.lsn import Lsn
from waly_cdc.source import catalog
from waly_cdc.source import slot as source_slot
from waly_cdc.source.connect import connect
from waly_cdc.source.copy import snapshot_transaction
from waly_cdc.source.heaps import heaps
from waly_cdc.tables import Gap, Heap


@dataclass(frozen=True, slots=True)
class NewBaselines:
    """Copies tables at the exact LSN of a temporary slot of an output plugin."""

    archive: ArchiveWriter
    dsn: str
    plugin: str
    shapes: Shapes

    def take(
        self,
        connection: psycopg.Connection,
        wanted: Mapping[int, Gap],
        known: Mapping[int, Heap],
        stopping: Callable[[], bool],
        on_wait: Callable[[float], None],
    ) -> Iterator[Ready]:
        """The ends of gaps, by oid. A table whose heap is not the known one is left out.

        While transactions are open that the slot has to wait for, `on_wait` is called with the
        seconds waited so far; it may use the connection, and raise to give up. Raises SourceError,
        StorageError.
        """
        name = f"waly_baseline_{connection.info.backend_pid}"
        with connect(self.dsn, replication=True, application_name="waly watch") as replication:
            slot = source_slot.create(
                replication, name, self.plugin, temporary=True, on_wait=on_wait
            )
            facts = catalog.server_facts(connection)
            era = self.archive.contents.era
            snapshot = Snapshot(slot.snapshot, era, slot.consistent_point, facts.now)
            with snapshot_transaction(self.dsn, slot.snapshot) as inside:
                tables = [t for t in catalog.tables(inside) if t.oid in wanted and t.readable]
                there = heaps(inside, tables)
            since = Lsn(snapshot.lsn.value - 1)
            for copied in copy_tables(
                self.archive,
                self.dsn,
                snapshot,
                [
                    (table, self.shapes.propose(table, since))
                    for table in tables
                    if there.get(table.oid) == known.get(table.oid)
                ],
                there,
                jobs=1,
                on_table=lambda _: None,
                stopping=stopping,
            ):
                gap = replace(wanted[copied.relation.oid], end=snapshot.lsn)
                yield Ready(copied.relation, gap, snapshot.lsn, copied)
