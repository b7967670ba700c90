"""The heaps of all tables and the partitions among them, as the catalog has them now."""

from __future__ import annotations

import psycopg

from waly_cdc.lsn import Lsn
from waly_cdc.source.connect import source_errors
from waly_cdc.tables import Heap, Partition


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


def partitions(connection: psycopg.Connection, after: Lsn, by: Lsn) -> dict[int, Partition]:
    """Every leaf partition by oid, as found by a look at `by`, after one at `after`. Raises
    SourceError."""
    with source_errors():
        rows = connection.execute(_PARTITIONS).fetchall()
    return {
        oid: Partition(
            oid, tuple((schema, name) for schema, name in parents), tuple(columns), after, by
        )
        for oid, parents, columns in rows
    }


_PARTITIONS = """
WITH RECURSIVE above (oid, parent, depth) AS (
    SELECT i.inhrelid, i.inhparent, 1 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE c.relispartition AND c.relkind = 'r' AND c.relpersistence = 'p'
          AND NOT i.inhdetachpending
    UNION ALL
    SELECT a.oid, i.inhparent, a.depth + 1 FROM above a JOIN pg_inherits i ON i.inhrelid = a.parent
)
SELECT a.oid::bigint, array_agg(ARRAY[n.nspname::text, p.relname::text] ORDER BY a.depth),
       coalesce((SELECT array_agg(DISTINCT c.attname::text)
                 FROM above b JOIN pg_partitioned_table t ON t.partrelid = b.parent
                 JOIN pg_attribute c ON c.attrelid = b.parent
                                        AND c.attnum = ANY (t.partattrs::int2[])
                 WHERE b.oid = a.oid), '{}')
FROM above a JOIN pg_class p ON p.oid = a.parent JOIN pg_namespace n ON n.oid = p.relnamespace
GROUP BY a.oid
"""
