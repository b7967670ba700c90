"""`waly init`: the slot, the publications, the archive, and a baseline of every table.

Order, and what a crash leaves behind:

1. entry 0 (`init`) names the database and the slot: the archive is bound, and a later `init` knows
   a slot of that name for its own;
2. the publications: harmless, found again;
3. the slot, whose snapshot the baselines are copied from. A slot without a baseline is of no use
   and holds back log: an error or an interrupt drops it, and after a kill the next `init` does;
4. entry 1 (`baseline`) names all copies: from here on there is an archive.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from waly_cdc.archive.manifest import Entry, EraGap, SequenceValue, Source
from waly_cdc.archive.segments import write_schema
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.baseline import CopiedTable, Snapshot, copy_tables
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.shapes import Shapes
from waly_cdc.errors import SourceError, UsageError
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.plugins import PGOUTPUT, WAL2JSON
from waly_cdc.relations import quote_identifier
from waly_cdc.source import catalog as source_catalog
from waly_cdc.source import preflight_role, publication, wal2json
from waly_cdc.source import slot as source_slot
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect
from waly_cdc.source.copy import snapshot_transaction
from waly_cdc.source.heaps import heaps, partitions
from waly_cdc.source.slot import FAILOVER_SINCE, STANDBY_SINCE
from waly_cdc.source.timeline import timelines
from waly_cdc.tables import Gap, TableChanges

ALTERED = "it was altered while the first baseline was copied"

JOBS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class InitResult:
    """What `init` has made; `created` is false where all was there already. `gap` is what lies
    before the era that it has begun, if that is not the first."""

    archive: str
    slot: str
    lsn: Lsn
    created: bool
    tables: tuple[tuple[str, int], ...]
    era: int = 1
    gap: EraGap | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "archive": self.archive,
            "slot": self.slot,
            "lsn": str(self.lsn),
            "created": self.created,
            "tables": [{"table": table, "rows": rows} for table, rows in self.tables],
            "era": self.era,
            "gap": self.gap.to_json() if self.gap else None,
        }


def initialise(
    settings: CaptureSettings,
    *,
    if_not_exists: bool = False,
    plugin: str | None = None,
    tables: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> InitResult:
    """Make the archive of a database. `tables` and `exclude` are patterns; without `plugin` it is
    pgoutput, or that of an archive which is there.

    Raises UsageError where an archive is already (unless `if_not_exists`), ArchiveLocked,
    SourceError, StorageError. On an error nothing is left on the server but the publications.
    """
    with ArchiveWriter.open(settings.archive, create=True) as archive:
        contents = archive.contents
        if contents.beginning is not None:
            if not if_not_exists:
                raise UsageError(
                    f"there is an archive at {settings.archive} already",
                    hint="`waly run` goes on with it; --if-not-exists makes this no error",
                )
            assert contents.source is not None
            if plugin not in (None, contents.source.plugin):
                raise UsageError(
                    f"the archive at {settings.archive} is captured by {contents.source.plugin}",
                    hint="leave out --plugin, or begin another archive with another slot",
                )
            return InitResult(
                str(settings.archive),
                contents.source.slot,
                contents.beginning,
                False,
                (),
                contents.era,
            )
        with CatalogWatch(settings.dsn) as catalog:
            every_table = not tables and not exclude
            source = _bind(archive, catalog, settings, plugin, every_table=every_table)
            chosen = choose_tables(catalog, tables, exclude)
            publish(catalog, source, chosen, every_table=every_table)
            copied = take_baselines(archive, catalog, settings, source, chosen, on_progress)
    return made(archive, source, copied)


def made(archive: ArchiveWriter, source: Source, copied: Sequence[CopiedTable]) -> InitResult:
    """The result, when all is there."""
    return InitResult(
        str(archive.root),
        source.slot,
        archive.contents.horizon,
        True,
        tuple((table.relation.qualified_name, table.baseline.rows) for table in copied),
        archive.contents.era,
        archive.contents.gap,
    )


def _bind(
    archive: ArchiveWriter,
    catalog: CatalogWatch,
    settings: CaptureSettings,
    plugin: str | None,
    *,
    every_table: bool,
) -> Source:
    """Write entry 0, or check that it names this database."""
    bound = archive.contents.source
    plugin = plugin or (bound.plugin if bound else PGOUTPUT)
    facts = source_catalog.server_facts(catalog.connection)
    require_able(facts, failover=settings.failover)
    if plugin == WAL2JSON and facts.encoding != "UTF8":
        raise SourceError(
            f"wal2json sends texts in the database's encoding, {facts.encoding}, not in UTF8",
            hint="use the plugin pgoutput, or load the database into one with encoding UTF8",
        )
    slot = settings.slot or source_slot.default_name(facts.database)
    history = timelines(settings.dsn)
    source = Source(
        system_identifier=facts.system_identifier,
        database=facts.database,
        database_oid=facts.database_oid,
        timeline=history.current,
        ended=history.ended,
        server_version=facts.server_version,
        slot=slot,
        plugin=plugin,
        publications=publication.names(slot) if plugin == PGOUTPUT else (),
        failover=settings.failover,
        every_table=every_table,
    )
    if bound is None:
        if source_slot.info(catalog.connection, slot) is not None:
            raise SourceError(
                f"there is a replication slot {slot} already, which this archive did not make",
                hint="another archive may go on from it. If none does: `waly slot drop --yes`;"
                " or choose another name with --slot",
            )
        archive.commit("init", start=Lsn(0), end=Lsn(0), source=source)
    elif (bound.system_identifier, bound.database_oid, bound.slot, bound.plugin) != (
        source.system_identifier,
        source.database_oid,
        source.slot,
        source.plugin,
    ):
        raise SourceError(
            f"the archive at {archive.root} was begun for database {bound.database!r}"
            f" with slot {bound.slot} and plugin {bound.plugin}",
            hint="remove that folder, or choose another archive",
        )
    return source


def require_able(facts: source_catalog.ServerFacts, *, failover: bool) -> None:
    """Raise SourceError for a server or a role that cannot do logical replication, or have a slot
    that standbys keep a copy of."""
    version = facts.server_version // 10000
    if facts.is_in_recovery and version < STANDBY_SINCE:
        raise SourceError(
            f"this is a standby of PostgreSQL {version}, where no logical slot can be made",
            hint="connect to its primary",
        )
    if failover and (facts.is_in_recovery or version < FAILOVER_SINCE):
        raise SourceError(
            "failover slots are made on a primary, of PostgreSQL"
            f" {FAILOVER_SINCE} or newer; this is a"
            f" {'standby' if facts.is_in_recovery else 'primary'} of version {version}",
            hint="leave out --failover",
        )
    if facts.wal_level != "logical":
        raise SourceError(
            f"wal_level is {facts.wal_level}, and logical replication needs logical",
            hint="run: ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
        )
    if not facts.can_replicate:
        raise SourceError(
            f"role {facts.role} may not use replication",
            hint=f"run as a superuser: ALTER ROLE {quote_identifier(facts.role)} REPLICATION;",
        )


def choose_tables(
    catalog: CatalogWatch, patterns: Sequence[str], exclude: Sequence[str]
) -> list[Table]:
    chosen = source_catalog.tables(catalog.connection, patterns, exclude)
    if patterns and not chosen:
        raise UsageError(f"no table matches {', '.join(patterns)}")
    refused = preflight_role.reading_refused(catalog.connection, chosen)
    if refused is not None:
        raise refused
    return chosen


def publish(
    catalog: CatalogWatch, source: Source, tables: Sequence[Table], *, every_table: bool
) -> None:
    """Make the publications that are missing, where the plugin has any. Raises SourceError."""
    if source.plugin != PGOUTPUT:
        return
    facts = source_catalog.server_facts(catalog.connection)
    statements = publication.plan(
        catalog.connection, source.slot, tables, every_table=every_table and facts.is_superuser
    )
    if facts.is_in_recovery and statements:
        raise SourceError(
            "this is a standby, and its primary has no publications for it yet",
            hint="run on the primary: " + " ".join(publication.as_text(statements)),
        )
    publication.apply(catalog.connection, statements)


def take_baselines(
    archive: ArchiveWriter,
    catalog: CatalogWatch,
    settings: CaptureSettings,
    source: Source,
    tables: Sequence[Table],
    on_progress: Callable[[str], None],
    after: str | None = None,
) -> list[CopiedTable]:
    """Make the slot, and the entry that names copies of all tables at its snapshot: of the
    archive's first era, or of a new one, `after` what ended the one before. A slot of that name
    that is there is dropped first."""
    left_over = source_slot.info(catalog.connection, source.slot)
    if left_over is not None:
        source_slot.drop(catalog.connection, source.slot)
    for blocker in source_slot.blockers(catalog.connection):
        on_progress(f"waiting for {blocker.what}, open for {blocker.age}")
    with connect(settings.dsn, replication=True) as replication:
        # Commits up to here are in the snapshot; some of those up to its own time may not be.
        complete_until = source_catalog.server_facts(catalog.connection).now
        if source_catalog.server_facts(catalog.connection).is_in_recovery:
            on_progress(
                "a standby's slot waits for word from its primary: SELECT pg_log_standby_snapshot()"
                " there hastens it"
            )
        slot = source_slot.create(replication, source.slot, source.plugin, failover=source.failover)
        try:
            on_progress(f"slot {slot.name} made at {slot.consistent_point}")
            if source.plugin == WAL2JSON:
                losses = wal2json.look(catalog.connection, source.slot).losses
                source = replace(source, losses=tuple(dict.fromkeys((*source.losses, *losses))))
            facts = source_catalog.server_facts(catalog.connection)
            era = archive.contents.era + (after is not None)
            snapshot = Snapshot(slot.snapshot, era, slot.consistent_point, facts.now)
            commit = partial(archive.commit, "baseline", source=source)
            if after is not None:
                end, end_time = archive.contents.horizon, archive.contents.horizon_time
                gap = EraGap(end, end_time, snapshot.lsn, snapshot.time, after)
                commit = partial(archive.commit, "era", gap=gap, source=source)
            return _copy_and_commit(
                archive, catalog, settings, snapshot, complete_until, tables, on_progress, commit
            )
        except BaseException:
            replication.close()
            with suppress(SourceError):
                source_slot.drop(catalog.connection, source.slot)
            raise


def _copy_and_commit(
    archive: ArchiveWriter,
    catalog: CatalogWatch,
    settings: CaptureSettings,
    snapshot: Snapshot,
    complete_until: datetime,
    tables: Sequence[Table],
    on_progress: Callable[[str], None],
    commit: Callable[..., Entry],
) -> list[CopiedTable]:
    shapes = Shapes({}, catalog.table, [era.relations for era in archive.contents.eras])
    # In force from before the baseline, so that it can be asked for at its own LSN.
    since = Lsn(snapshot.lsn.value - 1)
    with snapshot_transaction(settings.dsn, snapshot.name) as inside:
        chosen = {table.oid for table in tables}
        tables = [t for t in source_catalog.tables(inside) if t.oid in chosen]
        known = heaps(inside, tables)
        linked = partitions(inside, ZERO, snapshot.lsn)
    registered = [(table, shapes.register(table, since)) for table in tables]
    fingerprint = catalog.fingerprint()
    dump = catalog.dump_schema(snapshot.name)
    copied = copy_tables(
        archive,
        settings.dsn,
        snapshot,
        registered,
        known,
        jobs=JOBS,
        on_table=lambda done: on_progress(
            f"{done.relation.qualified_name}: {done.baseline.rows} rows"
        ),
    )
    there = {table.relation.oid for table in copied}
    finished = [item for table in copied for item in table.finished]
    if dump is None:
        on_progress("no pg_dump found for this server version: the schema is not archived")
    else:
        at = snapshot.lsn
        finished.append(write_schema(archive.incoming, dump, snapshot.era, at, at))
    sequences = [SequenceValue(*value) for value in source_catalog.sequences(catalog.connection)]
    commit(
        start=snapshot.lsn,
        end=snapshot.lsn,
        horizon_time=complete_until,
        finished=finished,
        relations=shapes.take_new(),
        baselines=[table.baseline for table in copied],
        sequences=sequences,
        schema_fingerprint=None if dump is None else fingerprint,
        tables=TableChanges(
            tuple(known.values()),
            tuple(Gap(oid, since, None, ALTERED) for oid in known.keys() - there),
            partitions=tuple(linked[table.oid] for table in tables if table.oid in linked),
            looked_at=snapshot.lsn,
        ),
    )
    return copied
