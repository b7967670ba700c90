"""Keeping the publications up to date: tables that are new or have gained a replica identity join,
and those leave whose updates would fail in them."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from waly_cdc.errors import SourceError
from waly_cdc.source import catalog, publication, schema_dump
from waly_cdc.source.catalog import Table

AT_LEAST_EVERY = 10.0
"""Seconds after which the publications are looked at although the schema has not changed."""

LOCK_WAIT = "2s"
"""How long a change may wait for a lock on a table; then it is tried again."""


class Publishing:
    """The publications of a slot. `tell` is told once of what takes somebody who may."""

    def __init__(
        self, slot: str, on_event: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        self._slot = slot
        self._on_event = on_event
        self._tell = tell
        self._fingerprint: str | None = None
        self._kept_at = 0.0

    def keep(self, connection: psycopg.Connection) -> None:
        """Bring the publications up to date, if anything could have changed. Raises SourceError."""
        fingerprint = schema_dump.fingerprint(connection)
        due = time.monotonic() - self._kept_at >= AT_LEAST_EVERY
        if fingerprint == self._fingerprint and not due:
            return
        there = publication.look(connection, self._slot)
        connection.execute("select set_config('lock_timeout', %s, false)", (LOCK_WAIT,))
        done = True
        for statement in publication.changes(there, self._captured(connection)):
            text = publication.as_text([statement])[0]
            try:
                publication.apply(connection, [statement])
                self._on_event(text)
            except SourceError as error:
                done = False
                self._tell(f"somebody who may has to run: {text} ({error.message})")
        self._fingerprint = fingerprint if done else None
        self._kept_at = time.monotonic()

    def _captured(self, connection: psycopg.Connection) -> list[Table]:
        everything, _ = publication.look(connection, self._slot)
        tables = catalog.tables(connection)
        if everything is None or everything.every_table:
            return tables
        return [table for table in tables if (table.schema, table.name) in everything.tables]
