"""Heaps: where a table's rows lie, which tells what no event does.

A statement that rewrites a table (ALTER COLUMN … TYPE, ADD COLUMN with a volatile default, …) gives
it a new heap and sends no event for the rows in it. ADD COLUMN with a constant default leaves the
heap alone: rows from before have the default without holding it (PostgreSQL documentation, section
51.7, `pg_attribute.attmissingval`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from waly_cdc.source.connect import source_errors


@dataclass(frozen=True, slots=True)
class Heap:
    """A table's heap by its file, and the attnums of columns that older rows have a default for
    without holding it."""

    oid: int
    filenode: int
    filled: tuple[int, ...]

    def to_json(self) -> list[Any]:
        return [self.oid, self.filenode, list(self.filled)]

    @classmethod
    def from_json(cls, data: list[Any]) -> Heap:
        oid, filenode, filled = data
        return cls(oid, filenode, tuple(filled))


def heaps(connection: psycopg.Connection) -> dict[int, Heap]:
    """The heap of every table whose changes are logged, by oid. Raises SourceError."""
    with source_errors():
        rows = connection.execute(_HEAPS).fetchall()
    return {oid: Heap(oid, filenode, tuple(filled)) for oid, filenode, filled in rows}


_HEAPS = """
SELECT c.oid, c.relfilenode::bigint,
       coalesce((SELECT array_agg(a.attnum::int ORDER BY a.attnum) FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.atthasmissing
                       AND NOT a.attisdropped), '{}')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
