"""A look at all tables: what the catalog says at one moment that the stream does not tell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg

from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.source import catalog, publication
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import despite_ddl, source_errors
from waly_cdc.source.position import insert_position
from waly_cdc.tables import Heap, HeapColumn, Partition


@dataclass(frozen=True, slots=True)
class SeenTable:
    """A captured table. `written_by` is the transaction that last wrote its row in `pg_class`, as
    one that gives it a new heap does; `published` says whether all its changes are sent that
    can be."""

    table: Table
    heap: Heap
    written_by: int
    published: bool


@dataclass(frozen=True, slots=True)
class Look:
    """The captured tables by oid, and which of them are partitions, as they were at some moment
    between two positions.

    `complete` says that no transaction was about to end then: else one whose commit lies in the log
    before `begun` may not have been seen yet. `fingerprint` is another whenever `tables` could be.
    """

    begun: Lsn
    ended: Lsn
    complete: bool
    fingerprint: tuple[object, ...]
    tables: dict[int, SeenTable]
    linked: dict[int, Partition]


@despite_ddl
def look(connection: psycopg.Connection, slot: str | None, before: Look | None = None) -> Look:
    """Look at all tables that the slot's publications have, or at all that are logged where there
    is no slot with publications; `before` is an earlier look, which
    saves most of the work where nothing has changed since. Raises SourceError."""
    begun = insert_position(connection)
    with source_errors(), connection.transaction():
        _keep_snapshot(connection)
        row = connection.execute(_FINGERPRINT).fetchone()
        assert row is not None
        complete, *fingerprint = row
        if before is not None and before.fingerprint == tuple(fingerprint):
            tables, linked = before.tables, before.linked
        else:
            tables = _tables(connection, slot)
            linked = partitions(connection, ZERO, ZERO)
    ended = insert_position(connection)
    linked = {oid: replace(each, by=ended) for oid, each in linked.items()}
    return Look(begun, ended, complete, tuple(fingerprint), tables, linked)


def _tables(connection: psycopg.Connection, slot: str | None) -> dict[int, SeenTable]:
    tables = catalog.tables(connection)
    facts = _facts(connection)
    if slot is not None:
        there = publication.look(connection, slot)
        everything, _ = there
        if everything is not None and not everything.every_table:
            tables = [table for table in tables if (table.schema, table.name) in everything.tables]
    return {
        table.oid: SeenTable(
            table,
            _heap(table, facts[table.oid]),
            facts[table.oid].written_by,
            slot is None or publication.sends_all(there, table),
        )
        for table in tables
        if table.oid in facts
    }


def heaps(connection: psycopg.Connection, tables: Sequence[Table]) -> dict[int, Heap]:
    """The heaps of tables, by oid, in the caller's transaction. Raises SourceError."""
    with source_errors():
        facts = _facts(connection)
    return {table.oid: _heap(table, facts[table.oid]) for table in tables if table.oid in facts}


@despite_ddl
def current(connection: psycopg.Connection, oid: int) -> Heap | None:
    """The heap of one table as it is now; None if it is gone. Raises SourceError."""
    with source_errors(), connection.transaction():
        _keep_snapshot(connection)
        table = catalog.table(connection, oid)
        facts = _facts(connection, oid)
    return None if table is None or oid not in facts else _heap(table, facts[oid])


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


@dataclass(frozen=True, slots=True)
class _Facts:
    filenode: int
    filled: tuple[int, ...]
    attributes: int
    columns: tuple[HeapColumn, ...]
    written_by: int
    texts: tuple[tuple[str, str], ...]
    published: tuple[tuple[str, str], ...]


def _keep_snapshot(connection: psycopg.Connection) -> None:
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _facts(connection: psycopg.Connection, oid: int | None = None) -> dict[int, _Facts]:
    rows = connection.execute(_FACTS, {"oid": oid}).fetchall()
    return {
        row[0]: _Facts(
            row[1],
            tuple(row[2]),
            row[3],
            tuple(HeapColumn(*column) for column in row[4]),
            row[5],
            tuple(sorted((what, text) for what, text in row[6])),
            tuple((name, text) for name, text in row[7]),
        )
        for row in rows
    }


def _heap(table: Table, facts: _Facts) -> Heap:
    form = (
        table.schema,
        table.name,
        table.replica_identity,
        table.key,
        tuple(column.name for column in table.columns if column.identity),
    )
    return Heap(
        table.oid,
        facts.filenode,
        facts.filled,
        facts.attributes,
        facts.columns,
        facts.texts,
        hashlib.sha256(repr(form).encode()).hexdigest()[:16],
        table.followed,
        facts.published,
    )


# Rows of the catalog by who wrote them; the server updates some of pg_class by itself, in place.
_FINGERPRINT = """
WITH kept AS (
    SELECT oid, xmin, relfilenode FROM pg_class
    WHERE relkind IN ('r', 'i', 'p', 'c') AND relpersistence <> 't' AND oid >= 16384
)
SELECT (SELECT pg_snapshot_xmin(s) = pg_snapshot_xmax(s) FROM pg_current_snapshot() s),
       (SELECT sum(hash_record_extended((oid, xmin::text::bigint, relfilenode), 0)::numeric)
        FROM kept),
       (SELECT sum(hash_record_extended((attrelid, attnum, a.xmin::text::bigint), 0)::numeric)
        FROM pg_attribute a JOIN kept ON attrelid = kept.oid WHERE attnum > 0),
       (SELECT sum(hash_record_extended((indexrelid, i.xmin::text::bigint), 0)::numeric)
        FROM pg_index i JOIN kept ON indexrelid = kept.oid),
       (SELECT sum(hash_record_extended((oid, xmin::text::bigint), 0)::numeric)
        FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'),
       (SELECT sum(hash_record_extended((oid, xmin::text::bigint), 0)::numeric) FROM pg_enum),
       (SELECT sum(hash_record_extended((inhrelid, xmin::text::bigint), 0)::numeric)
        FROM pg_inherits),
       (SELECT sum(hash_record_extended((oid, xmin::text::bigint), 0)::numeric)
        FROM pg_publication),
       (SELECT sum(hash_record_extended((oid, xmin::text::bigint), 0)::numeric)
        FROM pg_publication_rel)
"""

# The row of a publication is written anew when what it publishes is altered; that of a table in it
# when the table is taken out and added again, which is also how a row filter comes and goes. What
# of a type's definition the texts of its values depend on, for the types of our users' making
# that columns have, and those that these are made of.
_FACTS = """
WITH RECURSIVE used (root, type) AS (
    SELECT DISTINCT a.atttypid, a.atttypid
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE a.atttypid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind = 'r'
          AND (%(oid)s::oid IS NULL OR c.oid = %(oid)s::oid)
    UNION
    SELECT u.root, part.oid
    FROM used u JOIN pg_type t ON t.oid = u.type
    CROSS JOIN LATERAL (
        SELECT t.typelem UNION ALL SELECT t.typbasetype
        UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL SELECT a.atttypid FROM pg_attribute a
                  WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part (oid)
    WHERE part.oid >= 16384
), texts (root, what, text) AS (
    SELECT u.root, 'label ' || e.oid, e.enumlabel::text
    FROM used u JOIN pg_enum e ON e.enumtypid = u.type
    UNION ALL
    SELECT u.root, 'fields ' || t.typrelid,
           string_agg(a.attnum || ' ' || a.atttypid, ', ' ORDER BY a.attnum)
    FROM used u JOIN pg_type t ON t.oid = u.type
    JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY u.root, t.typrelid
)
SELECT c.oid, c.relfilenode::bigint, f.filled, c.relnatts::int, f.columns,
       c.xmin::text::bigint,
       coalesce((SELECT jsonb_agg(DISTINCT jsonb_build_array(what, text))
                 FROM texts JOIN pg_attribute a ON a.atttypid = root
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
       coalesce((SELECT jsonb_agg(jsonb_build_array(p.pubname, format('%%s %%s %%s', p.oid, p.xmin,
                                                                      r.oid)) ORDER BY p.pubname)
                 FROM pg_publication p
                 LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
                 WHERE p.puballtables OR r.oid IS NOT NULL), '[]')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
LATERAL (
    SELECT coalesce(array_agg(a.attnum::int ORDER BY a.attnum) FILTER (WHERE a.atthasmissing),
                    '{}') AS filled,
           coalesce(jsonb_agg(jsonb_build_array(
                        a.attnum, a.attname, a.atttypid::bigint, a.atttypmod,
                        a.attgenerated <> '', a.xmin::text::bigint,
                        concat_ws(' ', a.attnotnull, a.atthasdef, a.attidentity, a.attstorage,
                                  a.attcompression, a.attstattarget, a.attinhcount, a.attislocal,
                                  a.attoptions, md5(a.attacl::text)))
                    ORDER BY a.attnum),
                    '[]') AS columns
    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) f
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND (%(oid)s::oid IS NULL OR c.oid = %(oid)s::oid)
"""

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
