"""What the system catalogs say: the server, its tables, its sequences.

Plain queries that every role may run, on PostgreSQL 14 to 18. None of them waits for a lock that
somebody else holds on a table, but for `sequences`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg import pq, sql

from waly_cdc.errors import SourceError, UsageError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import (
    IDENTITY_DEFAULT,
    IDENTITY_FULL,
    IDENTITY_INDEX,
    StreamColumn,
    StreamRelation,
    quote_identifier,
)
from waly_cdc.source.connect import source_errors
from waly_cdc.source.selection import Selection


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server and this role's place on it.

    `server_version` as libpq has it: 170010 is 17.10. `current_lsn` is where the server writes
    next: every transaction that had committed by then lies before it.
    """

    system_identifier: str
    database: str
    database_oid: int
    server_version: int
    encoding: str
    wal_level: str
    max_replication_slots: int
    max_wal_senders: int
    current_lsn: Lsn
    now: datetime
    is_in_recovery: bool
    role: str
    is_superuser: bool
    can_replicate: bool


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column that pgoutput publishes.

    Generated columns are not published before PostgreSQL 18, and not by default since: they are
    left out here as the Relation message leaves them out. `identity` is the flag that it carries.
    """

    attnum: int
    name: str
    type_oid: int
    typmod: int
    type_name: str
    not_null: bool
    identity: bool


@dataclass(frozen=True, slots=True)
class Table:
    """An ordinary table or a leaf partition.

    `key` names the columns that identify a row, in key order: those of the replica identity's index
    where one is set, else of the primary key. It is empty where there is none that the stream could
    tell rows apart by: a deferrable key (rows may swap it within a transaction), or one over a
    generated column. `followed` says whether the server can publish updates and deletes: publishing
    them for other tables makes the application's own statements fail. `generated` names
    generated columns by attnum. `row_estimate` and `bytes`
    are as of the last VACUUM or ANALYZE, or 0.
    """

    oid: int
    schema: str
    name: str
    replica_identity: str
    persistence: str
    columns: tuple[TableColumn, ...]
    generated: Mapping[int, str]
    key: tuple[str, ...]
    followed: bool
    row_estimate: int
    bytes: int
    owned: bool
    readable: bool

    @property
    def qualified_name(self) -> str:
        """`schema.name`, quoted as in SQL where it needs quoting."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"

    def to_stream(self) -> StreamRelation:
        """The table as a Relation message would describe it."""
        return StreamRelation(
            self.oid,
            self.schema,
            self.name,
            self.replica_identity,
            tuple(StreamColumn(c.name, c.type_oid, c.typmod, c.identity) for c in self.columns),
        )


class SequenceState(NamedTuple):
    """A sequence: `nextval` gives `last_value` itself before the first call, else what follows."""

    schema: str
    name: str
    last_value: int
    is_called: bool


_FACTS = """
SELECT d.oid, d.datname, current_setting('server_version_num')::int,
       current_setting('server_encoding'), current_setting('wal_level'),
       current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
            ELSE pg_current_wal_insert_lsn() END::text,
       clock_timestamp(), pg_is_in_recovery(), r.rolname, r.rolsuper,
       -- Amazon's service grants replication by this role's membership, not by the attribute.
       r.rolsuper OR r.rolreplication OR EXISTS (
           SELECT FROM pg_roles a
           WHERE a.rolname = 'rds_replication' AND pg_has_role(a.oid, 'MEMBER')),
       has_function_privilege('pg_control_system()', 'EXECUTE')
FROM pg_database d, pg_roles r
WHERE d.datname = current_database() AND r.rolname = current_user
"""

_IDENTITY = "SELECT system_identifier::text FROM pg_control_system()"

# An index counts as RelationGetIndexList in PostgreSQL's relcache.c has it. Sizes come from the
# catalog, because pg_table_size() waits for whoever has the table locked.
_TABLES: LiteralString = """
SELECT c.oid, n.nspname, c.relname, c.relreplident::text, c.relpersistence::text,
       coalesce((SELECT jsonb_agg(jsonb_build_array(
                            a.attnum, a.attname, a.atttypid::bigint, a.atttypmod,
                            format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated)
                            ORDER BY a.attnum)
                 FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
       (string_to_array(p.indkey::text, ' ')::int[])[:p.indnkeyatts],
       (string_to_array(i.indkey::text, ' ')::int[])[:i.indnkeyatts],
       greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0)::bigint,
       (c.relpages + coalesce(t.relpages, 0)) * current_setting('block_size')::bigint,
       pg_has_role(c.relowner, 'USAGE'),
       coalesce(has_table_privilege(c.oid, 'SELECT'), false)
           AND has_schema_privilege(n.oid, 'USAGE') AND NOT row_security_active(c.oid)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
LEFT JOIN pg_index p ON p.indrelid = c.oid AND p.indisprimary AND p.indisvalid AND p.indimmediate
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisreplident AND i.indisvalid
                        AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
"""
_ALL: LiteralString = """
WHERE c.relkind = 'r' AND c.relpersistence IN ('p', 'u') AND c.oid >= 16384
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY n.nspname, c.relname
"""
_ONE: LiteralString = "WHERE c.oid = %s"
_NAMED: LiteralString = "WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'r'"

_SEQUENCES = """
SELECT n.nspname, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND c.oid >= 16384
      -- Asked of anything but a sequence it is an error, and the planner may ask first.
      AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT') END
      AND has_schema_privilege(n.oid, 'USAGE')
ORDER BY n.nspname, c.relname
"""
_SEQUENCE_BATCH = 200
_SEQUENCE_TRIES = 5

FIRST_USER_OID = 16384
"""Tables with a smaller oid are the server's own (`FirstNormalObjectId`)."""

GENERATED_REFUSED = 180000
"""From this version on the server refuses to update a published table whose replica identity has a
generated column that is not published."""


def server_facts(connection: psycopg.Connection) -> ServerFacts:
    """Facts that every role may read. Raises SourceError."""
    with source_errors():
        row = connection.execute(_FACTS).fetchone()
        assert row is not None
        if not row[13]:
            raise SourceError(
                f"role {row[10]} may not ask which server this is",
                hint="as a superuser: GRANT EXECUTE ON FUNCTION pg_control_system()"
                f" TO {quote_identifier(row[10])}",
            )
        identity = connection.execute(_IDENTITY).fetchone()
        assert identity is not None
    return ServerFacts(
        system_identifier=identity[0],
        database=row[1],
        database_oid=row[0],
        server_version=row[2],
        encoding=row[3],
        wal_level=row[4],
        max_replication_slots=row[5],
        max_wal_senders=row[6],
        current_lsn=Lsn.parse(row[7]),
        now=row[8],
        is_in_recovery=row[9],
        role=row[10],
        is_superuser=row[11],
        can_replicate=row[12],
    )


def tables(
    connection: psycopg.Connection,
    patterns: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    unlogged: bool = False,
) -> list[Table]:
    """The user's tables in order of schema and name: ordinary ones and leaf partitions.

    For patterns see `Selection`. Unlogged tables are not in the log, and are given only when asked
    for. Raises UsageError for a pattern that matches nothing, SourceError.
    """
    selection = Selection(patterns, exclude)
    with source_errors():
        rows = connection.execute(_TABLES + _ALL).fetchall()
    version = connection.info.server_version
    found = [_table(row, version) for row in rows]
    missed = selection.unmatched([(table.schema, table.name) for table in found])
    if missed:
        raise UsageError(
            f"no table matches {', '.join(missed)}",
            hint="name, schema.name or a pattern such as sales.*, quoted as in SQL where needed",
        )
    return [
        table
        for table in found
        if (unlogged or table.persistence == "p") and selection.includes(table.schema, table.name)
    ]


def table(connection: psycopg.Connection, oid: int) -> Table | None:
    """One table as it is now; None if it is gone. Raises SourceError."""
    with source_errors():
        row = connection.execute(_TABLES + _ONE, (oid,)).fetchone()
    return None if row is None else _table(row, connection.info.server_version)


def named_table(connection: psycopg.Connection, schema: str, name: str) -> Table | None:
    """The ordinary table or leaf partition that has a name now; None if there is none, or it is not
    one of the user's that are logged. Raises SourceError."""
    with source_errors():
        row = connection.execute(_TABLES + _NAMED, (schema, name)).fetchone()
    if row is None or row[0] < FIRST_USER_OID or row[4] != "p":
        return None
    return _table(row, connection.info.server_version)


def typmod_of(connection: psycopg.Connection, type_oid: int, type_name: str) -> int:
    """The typmod of a type by its name, which `format_type` gave; -1 where there is none, or the
    type is gone. Nothing is executed: the server describes a query. Raises SourceError."""
    pgconn = connection.pgconn
    with source_errors():
        made = pgconn.prepare(b"", f"SELECT NULL::{type_name}".encode())
        if made.status != pq.ExecStatus.COMMAND_OK:
            return -1
        described = pgconn.describe_prepared(b"")
        # A domain is described as the type below it, and has no typmod of its own.
        same = described.nfields == 1 and described.ftype(0) == type_oid
        return described.fmod(0) if same else -1


def sequences(connection: psycopg.Connection) -> list[SequenceState]:
    """Every sequence that this role may read, exactly as it stands now.

    The sequences themselves are read, some hundred at a time: `pg_sequences` cannot tell where one
    stands that `setval(…, false)` has set. Needs an autocommit connection. Raises SourceError.
    """
    with source_errors():
        for attempt in range(1, _SEQUENCE_TRIES + 1):
            names = connection.execute(_SEQUENCES).fetchall()
            try:
                return [
                    state
                    for start in range(0, len(names), _SEQUENCE_BATCH)
                    for state in _read_sequences(connection, names[start : start + _SEQUENCE_BATCH])
                ]
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                # Dropped since it was listed.
                if attempt == _SEQUENCE_TRIES:
                    raise
    raise AssertionError("the loop returns or raises")


def _read_sequences(
    connection: psycopg.Connection, names: Sequence[tuple[str, str]]
) -> list[SequenceState]:
    query = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {}::int, last_value, is_called FROM {}").format(
            sql.Literal(number), sql.Identifier(schema, name)
        )
        for number, (schema, name) in enumerate(names)
    )
    return [
        SequenceState(*names[number], last_value, is_called)
        for number, last_value, is_called in connection.execute(query)
    ]


def _table(row: tuple[Any, ...], server_version: int) -> Table:
    oid, schema, name, replica_identity, persistence, attributes, primary, index = row[:8]
    names = {attribute[0]: attribute[1] for attribute in attributes}
    generated = {attribute[0] for attribute in attributes if attribute[6]}
    identity = {
        IDENTITY_DEFAULT: set(primary or ()),
        IDENTITY_INDEX: set(index or ()),
        IDENTITY_FULL: set(names),
    }.get(replica_identity, set())
    if replica_identity == IDENTITY_FULL and server_version < GENERATED_REFUSED:
        publishable = bool(identity - generated)
    else:
        publishable = bool(identity) and not identity & generated
    key = (index if replica_identity == IDENTITY_INDEX else None) or primary or ()
    return Table(
        oid=oid,
        schema=schema,
        name=name,
        replica_identity=replica_identity,
        persistence=persistence,
        columns=tuple(
            TableColumn(
                attnum, column, type_oid, typmod, type_name, not_null, identity=attnum in identity
            )
            for attnum, column, type_oid, typmod, type_name, not_null, generation in attributes
            if not generation
        ),
        generated={attnum: names[attnum] for attnum in sorted(generated)},
        key=() if generated.intersection(key) else tuple(names[attnum] for attnum in key),
        followed=publishable,
        row_estimate=row[8],
        bytes=row[9],
        owned=row[10],
        readable=row[11],
    )
