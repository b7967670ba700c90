"""Is this still the database, and is the slot still the slot, that the archive goes on from?"""

from __future__ import annotations

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Source
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.errors import NoArchive, SlotLost, SourceError
from waly_cdc.source import catalog as source_catalog
from waly_cdc.source import slot as source_slot


def require_source(contents: Contents, catalog: CatalogWatch, settings: CaptureSettings) -> Source:
    """The archive's source, if the connection leads to it.

    Raises NoArchive where the archive has no baseline yet, SourceError for another database.
    """
    source = contents.source
    if source is None or contents.beginning is None:
        raise NoArchive(
            f"the archive at {settings.archive} has no baseline",
            hint="run `waly init` (again, if it was interrupted)",
        )
    facts = source_catalog.server_facts(catalog.connection)
    if (facts.system_identifier, facts.database_oid) != (
        source.system_identifier,
        source.database_oid,
    ):
        raise SourceError(
            f"the archive belongs to database {source.database!r} of server"
            f" {source.system_identifier}, and the connection leads to {facts.database!r} of"
            f" server {facts.system_identifier}",
            hint="check --dsn and --archive: an archive holds one database",
        )
    if settings.slot not in (None, source.slot):
        raise SourceError(
            f"the archive was made with slot {source.slot}, not {settings.slot}",
            hint="leave out --slot",
        )
    return source


def require_slot(contents: Contents, catalog: CatalogWatch, slot: str) -> None:
    """Check that the slot can send all that follows the archive's horizon. Raises SlotLost."""
    info = source_slot.info(catalog.connection, slot)
    hint = (
        "what happened since is not in the archive: keep it, and begin a new one with"
        " `waly init --archive OTHER` (drop this slot first: `waly slot drop --yes`)"
    )
    if info is None:
        raise SlotLost(f"replication slot {slot} is gone", hint=hint)
    if info.lost:
        raise SlotLost(
            f"the server has removed log that slot {slot} needs (wal_status lost)", hint=hint
        )
    if info.confirmed_flush_lsn is not None and info.confirmed_flush_lsn > contents.horizon:
        raise SlotLost(
            f"slot {slot} stands at {info.confirmed_flush_lsn}, after the archive's horizon"
            f" {contents.horizon}: it was made anew, or somebody else has read from it",
            hint=hint,
        )
