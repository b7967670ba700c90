"""Preflight: what its checks look at, each thing asked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, LiteralString

import psycopg

from waly_cdc.plugins import PGOUTPUT, WAL2JSON
from waly_cdc.source import publication, slot
from waly_cdc.source.catalog import ServerFacts, Table


@dataclass(frozen=True)
class Look:
    """What the checks look at. `tables` includes unlogged ones; `wanted_plugin` None means that of
    the slot, if it exists, else pgoutput."""

    connection: psycopg.Connection
    facts: ServerFacts
    slot_name: str
    tables: list[Table]
    wanted_plugin: str | None = None

    @cached_property
    def slot_info(self) -> slot.SlotInfo | None:
        return slot.info(self.connection, self.slot_name)

    @cached_property
    def plugin(self) -> str:
        """The output plugin that changes come by."""
        existing = self.slot_info.plugin if self.slot_info else None
        return self.wanted_plugin or (existing if existing == WAL2JSON else PGOUTPUT)

    @cached_property
    def publications(
        self,
    ) -> tuple[publication.Publication | None, publication.Publication | None]:
        return publication.look(self.connection, self.slot_name)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The server's settings that this role may see, in their base units."""
        return dict(self.rows("SELECT name, setting FROM pg_settings"))

    @cached_property
    def waiting(self) -> set[str]:
        """The settings whose new value waits for a restart of the server."""
        return {name for (name,) in self.rows("SELECT name FROM pg_settings WHERE pending_restart")}

    @cached_property
    def may_not_publish(self) -> str | None:
        """Why this role may not create the publications; None if it may."""
        if self.facts.is_superuser:
            return None
        foreign = [table.qualified_name for table in self.logged if not table.owned]
        if foreign:
            return f"it does not own {some(foreign)}"
        (creates,) = self.row("SELECT has_database_privilege(current_database(), 'CREATE')")
        return None if creates else "it has not the CREATE privilege on the database"

    @cached_property
    def is_kept_by_trigger(self) -> bool:
        """Whether docker/init-waly.sql was run here: its event trigger has every table published
        that has a replica identity, as soon as it has it."""
        if self.slot_name != slot.default_name(self.facts.database):
            return False
        (kept,) = self.row(
            "SELECT EXISTS (SELECT FROM pg_event_trigger"
            " WHERE evtname = 'waly_publish_keyed_tables' AND evtenabled IN ('O', 'A'))"
        )
        return bool(kept)

    @property
    def logged(self) -> list[Table]:
        """The tables whose changes are in the server's log."""
        return [table for table in self.tables if table.persistence == "p"]

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()

    def row(self, query: LiteralString) -> tuple[Any, ...]:
        """The one row that the query gives."""
        return self.rows(query)[0]


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
