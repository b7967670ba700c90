"""What `init` made on the server: looking at it, and taking all of it away again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from waly_cdc.errors import SourceError, UsageError
from waly_cdc.source import catalog as source_catalog
from waly_cdc.source import publication
from waly_cdc.source import slot as source_slot
from waly_cdc.source.connect import connect


@dataclass(frozen=True, slots=True)
class Removed:
    """What was dropped, what is left for its owner, and the statement by which that goes too."""

    slot: str
    dropped: tuple[str, ...]
    left: tuple[str, ...]
    fix_sql: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "slot": self.slot,
            "dropped": list(self.dropped),
            "left": list(self.left),
            "fix_sql": self.fix_sql,
        }


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


def remove(dsn: str, slot: str | None) -> Removed:
    """Drop the slot, and those of its publications that this role owns.

    Publications that somebody else made for the role are left: without the slot they are harmless.
    Raises SourceError where a sidecar uses the slot or the role may not drop it, UsageError where
    there is nothing to drop.
    """
    with connect(dsn, application_name="waly slot") as connection:
        name, info = _find(connection, slot)
        if info is None and not publication.existing(connection, name):
            raise UsageError(f"there is no replication slot {name}, and no publication of it")
        if info is not None and info.active:
            raise SourceError(
                f"replication slot {name} is in use by process {info.active_pid}",
                hint="stop the sidecar first",
            )
        if info is not None:
            source_slot.drop(connection, name)
        dropped, left = publication.drop(connection, name)
    return Removed(
        slot=name,
        dropped=(
            *([f"slot {name}"] if info is not None else []),
            *(f"publication {each}" for each in dropped),
        ),
        left=tuple(f"publication {each}" for each in left),
        fix_sql=publication.as_text([publication.dropping(left)])[0] if left else None,
    )


def _find(
    connection: psycopg.Connection, slot: str | None
) -> tuple[str, source_slot.SlotInfo | None]:
    name = slot or source_slot.default_name(source_catalog.server_facts(connection).database)
    return name, source_slot.info(connection, name)
