"""The heaps of all tables, as the catalog has them now."""

from __future__ import annotations

import psycopg

from waly_cdc.source.connect import source_errors
from waly_cdc.tables import Heap


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
