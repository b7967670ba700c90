"""What the system catalogs say: the server, its tables, its sequences."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from waly_cdc.lsn import Lsn
from waly_cdc.relations import StreamColumn, StreamRelation
from waly_cdc.source.connect import source_errors


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The server and this role's place on it. `server_version` as libpq has it: 170010 is 17.10."""

    system_identifier: str
    timeline: int
    database: str
    database_oid: int
    server_version: int
    encoding: str
    wal_level: str
    current_lsn: Lsn
    now: datetime
    is_in_recovery: bool
    role: str
    is_superuser: bool
    can_replicate: bool


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column that is published: generated ones are not, and are left out everywhere."""

    attnum: int
    name: str
    type_oid: int
    typmod: int
    type_name: str
    not_null: bool
    identity: bool
    """Part of the replica identity, as a Relation message flags it."""


@dataclass(frozen=True, slots=True)
class Table:
    """An ordinary table or a leaf partition. `key` names the key's columns, in key order."""

    oid: int
    schema: str
    name: str
    replica_identity: str
    persistence: str
    columns: tuple[TableColumn, ...]
    key: tuple[str, ...]
    row_estimate: int
    bytes: int
    generated: tuple[str, ...]
    owned: bool
    readable: bool

    @property
    def followed(self) -> bool:
        """Whether the server can publish its updates and deletes."""
        return any(column.identity for column in self.columns)

    def to_stream(self) -> StreamRelation:
        """The table as a Relation message would describe it."""
        return StreamRelation(
            self.oid,
            self.schema,
            self.name,
            self.replica_identity,
            tuple(StreamColumn(c.name, c.type_oid, c.typmod, c.identity) for c in self.columns),
        )


_FACTS = """
select d.oid::bigint, current_database(), current_setting('server_version_num')::int,
       current_setting('server_encoding'), current_setting('wal_level'),
       clock_timestamp(), pg_is_in_recovery(),
       case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
            else pg_current_wal_insert_lsn() end::text,
       current_user, r.rolsuper, r.rolreplication
from pg_database d, pg_roles r
where d.datname = current_database() and r.rolname = current_user
"""

_TABLES = """
select c.oid::bigint, n.nspname, c.relname, c.relreplident::text, c.relpersistence::text,
       greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid)::bigint,
       pg_has_role(c.relowner, 'usage'), has_table_privilege(c.oid, 'select'),
       coalesce(a.columns, '[]'::jsonb), coalesce(k.columns, '{}'), coalesce(i.columns, '{}')
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
left join lateral (
    select jsonb_agg(jsonb_build_array(a.attnum, a.attname, a.atttypid::bigint, a.atttypmod,
                     format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated)
                     order by a.attnum) as columns
    from pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) a on true
left join lateral (
    select array_agg(a.attname::text order by u.ord) as columns
    from pg_index x, unnest(x.indkey::int2[]) with ordinality u(attnum, ord), pg_attribute a
    where x.indrelid = c.oid and x.indisprimary and x.indisvalid and u.ord <= x.indnkeyatts
      and a.attrelid = c.oid and a.attnum = u.attnum) k on true
left join lateral (
    select array_agg(a.attname::text order by u.ord) as columns
    from pg_index x, unnest(x.indkey::int2[]) with ordinality u(attnum, ord), pg_attribute a
    where x.indrelid = c.oid and x.indisreplident and x.indisvalid and u.ord <= x.indnkeyatts
      and a.attrelid = c.oid and a.attnum = u.attnum) i on true
where c.relkind = 'r' and c.relpersistence in ('p', 'u')
  and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
  and n.nspname !~ '^pg_(temp|toast_temp)_'
"""


def server_facts(connection: psycopg.Connection) -> ServerFacts:
    """Facts that every role may read. Raises SourceError."""
    with source_errors():
        row = connection.execute(_FACTS).fetchone()
        assert row is not None
        system_identifier, timeline = _identity(connection)
    return ServerFacts(
        system_identifier=system_identifier,
        timeline=timeline,
        database=row[1],
        database_oid=row[0],
        server_version=row[2],
        encoding=row[3],
        wal_level=row[4],
        now=row[5],
        is_in_recovery=row[6],
        current_lsn=Lsn.parse(row[7]),
        role=row[8],
        is_superuser=row[9],
        can_replicate=row[9] or row[10],
    )


def _identity(connection: psycopg.Connection) -> tuple[str, int]:
    row = connection.execute(
        "select s.system_identifier::text, c.timeline_id"
        " from pg_control_system() s, pg_control_checkpoint() c"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def tables(
    connection: psycopg.Connection,
    patterns: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    unlogged: bool = False,
) -> list[Table]:
    """The user's tables in order of schema and name: ordinary ones and leaf partitions.

    A pattern is `name` or `schema.name` with shell wildcards. Unlogged tables are not in the log
    and are given only when asked for. Raises SourceError.
    """
    with source_errors():
        rows = connection.execute(_TABLES + " order by n.nspname, c.relname").fetchall()
    found = [_table(row) for row in rows]
    return [
        table
        for table in found
        if (table.persistence == "p" or unlogged)
        and (not patterns or _matches(table, patterns))
        and not _matches(table, exclude)
    ]


def table(connection: psycopg.Connection, oid: int) -> Table | None:
    """One table; None if it is gone. Raises SourceError."""
    with source_errors():
        row = connection.execute(_TABLES + " and c.oid = %s", (oid,)).fetchone()
    return None if row is None else _table(row)


def sequences(connection: psycopg.Connection) -> list[tuple[str, str, int, bool]]:
    """Schema, name, last value and `is_called` of every sequence this role may read."""
    # pg_sequence_last_value gives NULL for a sequence that has not been called, which then
    # stands at its start value.
    with source_errors():
        rows = connection.execute(
            "select schemaname::text, sequencename::text, coalesce(last_value, start_value),"
            " last_value is not null from pg_sequences"
            " where has_sequence_privilege(format('%I.%I', schemaname, sequencename), 'select')"
            " order by 1, 2"
        ).fetchall()
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _table(row: tuple[Any, ...]) -> Table:
    (oid, schema, name, identity, persistence, estimate, size, owned, readable, attributes) = row[
        :10
    ]
    primary, index = row[10], row[11]
    members = {"d": primary, "i": index, "n": []}.get(identity)
    columns = tuple(
        TableColumn(
            attnum=attnum,
            name=column,
            type_oid=type_oid,
            typmod=typmod,
            type_name=type_name,
            not_null=not_null,
            identity=members is None or column in members,
        )
        for attnum, column, type_oid, typmod, type_name, not_null, generated in attributes
        if not generated
    )
    return Table(
        oid=oid,
        schema=schema,
        name=name,
        replica_identity=identity,
        persistence=persistence,
        columns=columns,
        key=tuple(index if identity == "i" else primary),
        row_estimate=estimate,
        bytes=size,
        generated=tuple(attribute[1] for attribute in attributes if attribute[6]),
        owned=owned,
        readable=readable,
    )


def _matches(table: Table, patterns: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(f"{table.schema}.{table.name}" if "." in pattern else table.name, pattern)
        for pattern in patterns
    )
