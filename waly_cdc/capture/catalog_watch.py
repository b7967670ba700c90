"""The catalog beside the stream: what the stream does not tell, asked over a second connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from types import TracebackType

from waly_cdc import embedded
from waly_cdc.archive.manifest import SequenceValue
from waly_cdc.capture.sealing import CatalogFacts
from waly_cdc.errors import SourceError, SourceMoved
from waly_cdc.lsn import Lsn
from waly_cdc.source import catalog, schema_dump
from waly_cdc.source.connect import connect, despite_ddl, source_errors
from waly_cdc.source.position import insert_position

_CLOCK = """
select clock_timestamp(), pg_is_in_recovery(), (select received_tli from pg_stat_wal_receiver)
"""


class CatalogWatch:
    """A connection for looks at the catalog and at the server's clock.

    Shared by threads: one look at a time.
    """

    def __init__(self, dsn: str, on_event: Callable[[str], None] = lambda _: None) -> None:
        self.dsn = dsn
        self._on_event = on_event
        self.connection = connect(dsn)
        self._lock = threading.Lock()
        self._observed: list[tuple[Lsn, datetime]] = []
        self._followed: tuple[bool, int | None] | None = None

    def table(self, oid: int) -> catalog.Table | None:
        """The table as it is now; None if it is gone."""
        with self._lock:
            return despite_ddl(catalog.table)(self.connection, oid)

    def named_table(self, schema: str, name: str) -> catalog.Table | None:
        """The table of that name as it is now; None if there is none that is captured."""
        with self._lock, source_errors():
            return catalog.named_table(self.connection, schema, name)

    def typmod_of(self, type_oid: int, type_name: str) -> int:
        """See `waly_cdc.source.catalog.typmod_of`."""
        with self._lock:
            return catalog.typmod_of(self.connection, type_oid, type_name)

    def observe(self) -> Lsn:
        """Note the server's clock and the position of its log. Returns the position.

        All transactions whose commit the server has finished by then commit before it. Raises
        SourceMoved for a standby that is on another timeline than at the look before, or none now.
        """
        with self._lock:
            # The clock first: what it has not seen, the position has.
            with source_errors():
                row = self.connection.execute(_CLOCK).fetchone()
            assert row is not None
            self._follow(row[1], row[2])
            lsn = insert_position(self.connection)
        self._observed.append((lsn, row[0]))
        return lsn

    def _follow(self, in_recovery: bool, timeline: int | None) -> None:
        was, self._followed = self._followed, (in_recovery, timeline)
        if was is None or not was[0]:
            return
        if not in_recovery:
            raise SourceMoved("the standby was promoted")
        if timeline is None:
            # Its receiver is gone for now, or the role may not see it.
            self._followed = was
        elif was[1] not in (None, timeline):
            raise SourceMoved(f"the standby went on to timeline {timeline}")

    def seen_at(self, lsn: Lsn) -> datetime | None:
        """The newest clock reading whose position lies at or before `lsn`: who has everything up
        to `lsn` has everything up to that time."""
        while len(self._observed) > 1 and self._observed[1][0] <= lsn:
            self._observed.pop(0)
        first = self._observed[0] if self._observed else None
        return first[1] if first is not None and first[0] <= lsn else None

    def facts(self, known: str | None) -> CatalogFacts:
        """What a manifest entry records of the catalog; with a schema dump, if the fingerprint of
        the schema is no longer the known one.

        A dump that fails, because a table is locked or may not be read, is tried again for the next
        entry: capture goes on.
        """
        fingerprint = self.fingerprint()
        with self._lock, source_errors():
            sequences = tuple(SequenceValue(*value) for value in catalog.sequences(self.connection))
        if fingerprint == known:
            return CatalogFacts(sequences)
        try:
            dump = self.dump_schema()
        except SourceError as error:
            self._on_event(f"the schema could not be archived: {error.message}")
            dump = None
        if dump is None:
            return CatalogFacts(sequences)
        return CatalogFacts(sequences, dump, fingerprint, self.observe())

    def fingerprint(self) -> str:
        """The fingerprint of the schema as it is now."""
        with self._lock:
            return schema_dump.fingerprint(self.connection)

    def dump_schema(self, snapshot: str | None = None) -> bytes | None:
        """A schema dump, or None where no pg_dump is at hand that knows the server's version."""
        major = self.connection.info.server_version // 10000
        program = embedded.find_program("pg_dump", major)
        if program is None:
            return None
        return schema_dump.dump_schema(self.dsn, snapshot=snapshot, program=program)

    def __enter__(self) -> CatalogWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()
