"""`waly init --new-era`: where the history does not go on, the archive does.

Order, and what a crash leaves behind:

1. what the journal holds of the era that ends is sealed, and the journal is emptied: the archive as
   `run` would have left it;
2. the publications and the slot, in place of the broken one, as in `initialise`; an error or an
   interrupt drops the slot, and after a kill the next `init --new-era` does;
3. one entry (`era`) records the gap and names the baselines of all tables: from here on the new era
   is there. It is also the first one that names the new slot's server, so until then `run` stops as
   it did before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from waly_cdc.archive.manifest import Source
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture import plugin
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.continuity import Break, Continuity
from waly_cdc.capture.initialise import (
    InitResult,
    choose_tables,
    made,
    publish,
    require_able,
    take_baselines,
)
from waly_cdc.capture.keeper import Keeper
from waly_cdc.capture.sealing import CatalogFacts, Sealer
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.shapes import Shapes
from waly_cdc.capture.state import forget_state
from waly_cdc.capture.table_watch import TableWatch
from waly_cdc.errors import UsageError
from waly_cdc.lsn import Lsn
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.source import publication
from waly_cdc.source.catalog import Table


def begin_era(
    settings: CaptureSettings,
    *,
    confirmed: str | None = None,
    tables: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> InitResult:
    """Begin a new era of an archive whose history is broken. `confirmed` is the identity of another
    database, as the error told it that refused to go on there.

    Raises UsageError where the history is not broken, SlotLost or SourceError where a database must
    be confirmed, NoArchive, ArchiveLocked, StorageError. On an error nothing is left on the server
    but the publications.
    """
    with ArchiveWriter.open(settings.archive) as archive, CatalogWatch(settings.dsn) as catalog:
        continuity = Continuity(archive, catalog, settings)
        broken = _seal_journal(archive, catalog, settings, continuity)
        if broken.confirm != confirmed:
            if broken.confirm is None:
                raise UsageError("the database is the archive's: leave out --confirm-source")
            raise continuity.error(broken)
        source = continuity.describe()
        every_table = not tables and not exclude
        source = replace(
            source,
            failover=source.failover or settings.failover,
            every_table=source.every_table and every_table,
        )
        require_able(continuity.facts, failover=source.failover)
        chosen = _captured(archive, catalog, source, choose_tables(catalog, tables, exclude))
        publish(catalog, source, chosen, every_table=every_table)
        copied = take_baselines(
            archive, catalog, settings, source, chosen, on_progress, after=broken.reason
        )
        forget_state(archive.root)
        return made(archive, source, copied)


def _seal_journal(
    archive: ArchiveWriter,
    catalog: CatalogWatch,
    settings: CaptureSettings,
    continuity: Continuity,
) -> Break:
    """Seal what was received of the era that ends, and empty the journal; why it ends. The catalog
    is asked about it only where it is still the one of that history."""
    contents = archive.contents
    broken = continuity.other_database()

    def look(reach: Lsn) -> None:
        nonlocal broken
        broken = broken or continuity.other_log(reach)

    shapes = Shapes(
        contents.relations,
        lambda oid: catalog.table(oid) if broken is None else None,
        [era.relations for era in contents.earlier],
    )
    chosen = plugin.of(
        continuity.source, contents, shapes, lambda: catalog if broken is None else None
    )
    watch = TableWatch(
        settings.dsn,
        continuity.source,
        archive,
        shapes,
        lambda _: None,
        is_ours=lambda: broken is None,
    )
    sealer = Sealer(
        archive,
        shapes,
        lambda known: catalog.facts(known) if broken is None else CatalogFacts(()),
        watch,
        chosen.make_decoder,
    )
    try:
        Keeper(archive, sealer, settings, catalog).recover(look)
    finally:
        watch.stop()
    broken = broken or continuity.unfit_slot()
    if broken is None:
        raise UsageError(
            f"nothing is broken: the archive goes on from {contents.horizon}",
            hint="`waly run` goes on with it",
        )
    return broken


def _captured(
    archive: ArchiveWriter, catalog: CatalogWatch, source: Source, tables: list[Table]
) -> list[Table]:
    """Of the tables those that are captured: that the publications, where they are there, let
    through; without publications those that the archive has, if it does not have all."""
    contents = archive.contents
    if source.plugin != PGOUTPUT:
        had = contents.source is None or contents.source.every_table
        names = {(v[-1].schema, v[-1].name) for v in contents.relations.values()}
        return [table for table in tables if had or (table.schema, table.name) in names]
    everything, _ = publication.look(catalog.connection, source.slot)
    if everything is None or everything.every_table:
        return tables
    return [table for table in tables if (table.schema, table.name) in everything.tables]
