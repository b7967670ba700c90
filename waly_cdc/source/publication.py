"""Publications: which changes the server sends.

There are two, because a publication that publishes updates of a table without a replica identity
makes the application's own UPDATE fail. `<slot>_all` publishes inserts and truncates of all tables,
`<slot>_keyed` updates and deletes of those that have an identity. Of two publications of one table
pgoutput sends what either publishes.

Publications that are there already, made by an owner for a role that may not make them, are used as
they are. They must exist before the slot does: pgoutput looks them up as of the change it decodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from waly_cdc.errors import SourceError
from waly_cdc.source import catalog
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import source_errors

_ALL_ACTIONS = frozenset({"insert", "truncate"})
_KEYED_ACTIONS = frozenset({"update", "delete"})
_NAME_LIMIT = 63


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as the catalog shows it.

    `tables` holds schema and name of each, `restricted` those of which it leaves out rows or
    columns.
    """

    name: str
    actions: frozenset[str]
    every_table: bool
    via_root: bool
    owned: bool
    tables: frozenset[tuple[str, str]]
    restricted: frozenset[tuple[str, str]]


def names(slot: str) -> tuple[str, str]:
    """The two publications of a slot: for all tables, and for those with an identity."""
    room = _NAME_LIMIT - len("_keyed")
    if len(slot) > room:
        slot = f"{slot[: room - 9]}_{hashlib.sha256(slot.encode()).hexdigest()[:8]}"
    return f"{slot}_all", f"{slot}_keyed"


def look(
    connection: psycopg.Connection, slot: str
) -> tuple[Publication | None, Publication | None]:
    """The two publications of a slot, as far as they exist. Raises SourceError."""
    with source_errors():
        by_schema = _BY_SCHEMA if connection.info.server_version >= 150000 else ""
        query = _LOOK.replace("{by_schema}", by_schema)
        rows = connection.execute(query.encode(), (list(names(slot)),)).fetchall()
    found = {
        row[0]: Publication(
            name=row[0],
            actions=frozenset(row[1]),
            every_table=row[2],
            via_root=row[3],
            owned=row[4],
            tables=frozenset((schema, table) for schema, table in row[5]),
            restricted=frozenset((schema, table) for schema, table in row[6]),
        )
        for row in rows
    }
    everything, keyed = names(slot)
    return found.get(everything), found.get(keyed)


def require(connection: psycopg.Connection, slot: str) -> None:
    """Check that both publications are there. Raises SourceError.

    From PostgreSQL 18 on the server itself leaves out one that is not, with a word in its own log.
    """
    there = existing(connection, slot)
    missing = [name for name in names(slot) if name not in there]
    if missing:
        statements = plan(connection, slot, catalog.tables(connection), every_table=True)
        raise SourceError(
            f"publication {missing[0]} does not exist",
            hint="make it again, and every table is copied anew:"
            f" {' '.join(as_text(statements))} Servers before PostgreSQL 18 cannot send what was"
            " written without it: there, begin a new era if the error stays",
        )


def existing(connection: psycopg.Connection, slot: str) -> set[str]:
    """The names of those of the slot's publications that exist. Raises SourceError."""
    return {publication.name for publication in look(connection, slot) if publication}


def plan(
    connection: psycopg.Connection, slot: str, tables: Sequence[Table], *, every_table: bool
) -> list[sql.Composed]:
    """The statements that make what is missing, in order; none if both are there.

    With `every_table`, inserts into tables made later are published as well, which takes a
    superuser; else only `tables` are, which takes their owner. Raises SourceError where one exists
    that does not publish what it should.
    """
    there = look(connection, slot)
    _check_fit(there)
    statements = creation(slot, tables, every_table=every_table)
    return [statement for statement, found in zip(statements, there, strict=True) if found is None]


def creation(slot: str, tables: Sequence[Table], *, every_table: bool) -> list[sql.Composed]:
    """The statements that make both publications where there are none."""
    everything, keyed = names(slot)
    which = sql.SQL("FOR ALL TABLES ") if every_table else _for_tables(tables)
    return [
        _create(everything, which, "insert, truncate"),
        _create(keyed, _for_tables([t for t in tables if t.followed]), "update, delete"),
    ]


def changes(
    there: tuple[Publication | None, Publication | None], tables: Sequence[Table]
) -> list[sql.Composed]:
    """The statements that bring publications up to date with tables made or altered since."""
    everything, keyed = there
    statements = []
    if everything and not everything.every_table:
        missing = [table for table in tables if _id(table) not in everything.tables]
        statements += [addition(everything.name, missing)] if missing else []
    if keyed:
        broken = [t for t in tables if not t.followed and _id(t) in keyed.tables]
        missing = [t for t in tables if t.followed and _id(t) not in keyed.tables]
        statements += [removal(keyed.name, broken)] if broken else []
        statements += [addition(keyed.name, missing)] if missing else []
    return statements


def sends_all(there: tuple[Publication | None, Publication | None], table: Table) -> bool:
    """Whether all changes of a table are published that can be."""
    everything, keyed = there
    if everything is None or misfit(everything) or _id(table) in everything.restricted:
        return False
    if not table.followed:
        return True
    return (
        keyed is not None
        and misfit(keyed) is None
        and _id(table) in keyed.tables - keyed.restricted
    )


def addition(name: str, tables: Sequence[Table]) -> sql.Composed:
    """The statement that adds tables to a publication."""
    return sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(
        sql.Identifier(name), _listed(tables)
    )


def removal(name: str, tables: Sequence[Table]) -> sql.Composed:
    """The statement that takes tables out of a publication."""
    return sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(
        sql.Identifier(name), _listed(tables)
    )


def ensure(
    connection: psycopg.Connection, slot: str, tables: Sequence[Table], *, every_table: bool
) -> list[str]:
    """Make the publications that are missing. Returns the statements that this took."""
    statements = plan(connection, slot, tables, every_table=every_table)
    apply(connection, statements)
    return as_text(statements)


def apply(connection: psycopg.Connection, statements: Sequence[sql.Composed]) -> None:
    """Run the statements in one transaction. Raises SourceError."""
    with source_errors(), connection.transaction():
        for statement in statements:
            connection.execute(statement)


def as_text(statements: Sequence[sql.Composed]) -> list[str]:
    """The statements as SQL for people, each with its semicolon."""
    return [statement.as_string() + ";" for statement in statements]


def drop(connection: psycopg.Connection, slot: str) -> tuple[list[str], list[str]]:
    """Drop those of the slot's publications that this role owns. Raises SourceError.

    Returns the names of what was dropped, and of what is left for its owner.
    """
    found = [publication for publication in look(connection, slot) if publication]
    apply(connection, [dropping([each.name]) for each in found if each.owned])
    return (
        [each.name for each in found if each.owned],
        [each.name for each in found if not each.owned],
    )


def dropping(names: Sequence[str]) -> sql.Composed:
    """The statement that drops publications."""
    listed = sql.SQL(", ").join(map(sql.Identifier, names))
    return sql.SQL("DROP PUBLICATION {}").format(listed)


# Not from pg_publication_tables, which waits for everybody who has a table locked. Row filters,
# column lists and publications of schemas came with PostgreSQL 15.
_LOOK = """
SELECT p.pubname::text,
       array_remove(ARRAY[CASE WHEN p.pubinsert THEN 'insert' END,
                          CASE WHEN p.pubupdate THEN 'update' END,
                          CASE WHEN p.pubdelete THEN 'delete' END,
                          CASE WHEN p.pubtruncate THEN 'truncate' END], NULL),
       p.puballtables, p.pubviaroot, pg_has_role(p.pubowner, 'USAGE'),
       coalesce((SELECT jsonb_agg(jsonb_build_array(n.nspname, c.relname))
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
                       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
                       AND (p.puballtables OR EXISTS (
                           SELECT FROM pg_publication_rel r
                           WHERE r.prpubid = p.oid AND (r.prrelid = c.oid OR r.prrelid IN (
                               SELECT relid FROM pg_partition_ancestors(c.oid)))){by_schema})),
                '[]'),
       coalesce((SELECT jsonb_agg(jsonb_build_array(n.nspname, c.relname))
                 FROM pg_publication_rel r
                 JOIN pg_class c ON c.oid = r.prrelid
                 JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE r.prpubid = p.oid
                       AND coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs')
                           IS NOT NULL), '[]')
FROM pg_publication p WHERE p.pubname = ANY(%s)
"""

_BY_SCHEMA = """ OR EXISTS (
                           SELECT FROM pg_publication_namespace s JOIN pg_class o
                               ON o.relnamespace = s.pnnspid
                           WHERE s.pnpubid = p.oid AND (o.oid = c.oid OR o.oid IN (
                               SELECT relid FROM pg_partition_ancestors(c.oid))))"""


def _check_fit(there: tuple[Publication | None, Publication | None]) -> None:
    for publication, wanted in zip(there, (_ALL_ACTIONS, _KEYED_ACTIONS), strict=True):
        problem = None if publication is None else misfit(publication, wanted)
        if publication is not None and problem is not None:
            raise SourceError(
                f"publication {publication.name} {problem}",
                hint="drop it, so that it is made anew, or have its owner alter it:"
                " `waly check --fix-sql` prints the statement",
            )


def misfit(publication: Publication, wanted: frozenset[str] | None = None) -> str | None:
    """Why a publication cannot be used; None if it can."""
    if wanted is None:
        wanted = _KEYED_ACTIONS if publication.name.endswith("_keyed") else _ALL_ACTIONS
    if publication.actions != wanted:
        published = ", ".join(sorted(publication.actions)) or "nothing"
        return f"publishes {published} instead of {', '.join(sorted(wanted))}"
    if publication.via_root:
        return "publishes partitions as their root (publish_via_partition_root)"
    return None


def repair(publication: Publication) -> sql.Composed:
    """The statement that mends a misfit."""
    keyed = publication.name.endswith("_keyed")
    return sql.SQL(
        "ALTER PUBLICATION {} SET (publish = {}, publish_via_partition_root = false)"
    ).format(
        sql.Identifier(publication.name),
        sql.Literal("update, delete" if keyed else "insert, truncate"),
    )


def _create(name: str, which: sql.Composable, actions: str) -> sql.Composed:
    return sql.SQL("CREATE PUBLICATION {} {}WITH (publish = {})").format(
        sql.Identifier(name), which, sql.Literal(actions)
    )


def _for_tables(tables: Sequence[Table]) -> sql.Composable:
    # A publication without a table is one: it publishes nothing yet.
    return sql.SQL("FOR TABLE {} ").format(_listed(tables)) if tables else sql.SQL("")


def _listed(tables: Sequence[Table]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("ONLY {}").format(sql.Identifier(table.schema, table.name)) for table in tables
    )


def _id(table: Table) -> tuple[str, str]:
    return table.schema, table.name
