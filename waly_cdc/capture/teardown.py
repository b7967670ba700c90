"""What `init` made on the server: looking at it, and taking all of it away again."""

from __future__ import annotations

from typing import Any

import psycopg

from waly_cdc.errors import SourceError, UsageError
from waly_cdc.source import catalog as source_catalog
from waly_cdc.source import publication
from waly_cdc.source import slot as source_slot
from waly_cdc.source.connect import connect


def describe(dsn: str, slot: str | None) -> dict[str, Any]:
    """The slot (default: the one named after the database) and its publications.

    Raises SourceError, UsageError where there is no such slot.
    """
    with connect(dsn, application_name="waly slot") as connection:
        name, info = _find(connection, slot)
        publications = sorted(publication.existing(connection, name))
    if info is None:
        raise UsageError(f"there is no replication slot {name}", hint="`waly init` makes one")
    return {
        "name": info.name,
        "plugin": info.plugin,
        "database": info.database,
        "active": info.active,
        "active_pid": info.active_pid,
        "wal_status": info.wal_status,
        "restart_lsn": str(info.restart_lsn) if info.restart_lsn else None,
        "confirmed_flush_lsn": str(info.confirmed_flush_lsn) if info.confirmed_flush_lsn else None,
        "retained_bytes": info.retained_bytes,
        "safe_wal_size": info.safe_wal_size,
        "publications": publications,
    }


def remove(dsn: str, slot: str | None) -> list[str]:
    """Drop the slot and its publications; the names of what was dropped.

    Raises SourceError where a sidecar uses the slot, UsageError where there is nothing to drop.
    """
    with connect(dsn, application_name="waly slot") as connection:
        name, info = _find(connection, slot)
        publications = sorted(publication.existing(connection, name))
        if info is None and not publications:
            raise UsageError(f"there is no replication slot {name}, and no publication of it")
        if info is not None and info.active:
            raise SourceError(
                f"replication slot {name} is in use by process {info.active_pid}",
                hint="stop the sidecar first",
            )
        if info is not None:
            source_slot.drop(connection, name)
        publication.drop(connection, name)
    return ([f"slot {name}"] if info else []) + [f"publication {p}" for p in publications]


def _find(
    connection: psycopg.Connection, slot: str | None
) -> tuple[str, source_slot.SlotInfo | None]:
    name = slot or source_slot.default_name(source_catalog.server_facts(connection).database)
    return name, source_slot.info(connection, name)
