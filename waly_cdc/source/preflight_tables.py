"""Preflight, second half: the tables, what may be read of them, and the publications."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, LiteralString

import psycopg

from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.relations import (
    IDENTITY_DEFAULT,
    IDENTITY_FULL,
    IDENTITY_NOTHING,
    quote_identifier,
)
from waly_cdc.source import publication, slot
from waly_cdc.source.catalog import GENERATED_REFUSED, ServerFacts, Table


@dataclass(frozen=True)
class Look:
    """What the checks look at. `tables` includes unlogged ones."""

    connection: psycopg.Connection
    facts: ServerFacts
    slot_name: str
    tables: list[Table]

    @cached_property
    def slot_info(self) -> slot.SlotInfo | None:
        return slot.info(self.connection, self.slot_name)

    @cached_property
    def publications(
        self,
    ) -> tuple[publication.Publication | None, publication.Publication | None]:
        return publication.look(self.connection, self.slot_name)

    @cached_property
    def settings(self) -> dict[str, str]:
        """The server's settings that this role may see, in their base units."""
        return dict(self.rows("SELECT name, setting FROM pg_settings"))

    @property
    def logged(self) -> list[Table]:
        """The tables whose changes are in the server's log."""
        return [table for table in self.tables if table.persistence == "p"]

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()

    def row(self, query: LiteralString) -> tuple[Any, ...]:
        """The one row that the query gives."""
        return self.rows(query)[0]


def _privileges(look: Look) -> Iterator[Finding]:
    """The baseline reads every table, and pg_dump locks every one of them."""
    role = quote_identifier(look.facts.role)
    schemas, relations, sequences = set(), 0, 0
    for kind, schema, name, in_schema, readable, hidden in look.rows(_READABLE):
        subject = f"{quote_identifier(schema)}.{quote_identifier(name)}"
        grants = []
        if not in_schema and schema not in schemas:
            schemas.add(schema)
            grants.append(f"GRANT USAGE ON SCHEMA {quote_identifier(schema)} TO {role};")
        if kind == "S":
            grants.append(f"GRANT SELECT ON SEQUENCE {subject} TO {role};")
            sequences += 1
            message = "its value cannot be read: a restored sequence begins at its start value"
            yield Finding("sequence_privilege", WARN, subject, message, " ".join(grants))
        elif not readable or not in_schema:
            relations += 1
            grants.append(f"GRANT SELECT ON {subject} TO {role};")
            message = f"role {look.facts.role} may not read it, as the copy and pg_dump must"
            yield Finding("table_privilege", FAIL, subject, message, " ".join(grants))
        elif hidden:
            relations += 1
            yield Finding(
                "row_security",
                FAIL,
                subject,
                f"row level security hides rows from role {look.facts.role}",
                f"ALTER ROLE {role} BYPASSRLS;",
            )
    if not relations:
        message = f"role {look.facts.role} may read all tables"
        yield Finding("table_privilege", PASS, "tables", message)
    if not sequences:
        message = "are recorded with each seal, because the stream does not carry them"
        yield Finding("sequence_privilege", PASS, "sequences", message)


def _identities(look: Look) -> Iterator[Finding]:
    """Tables of which only inserts and truncates can be followed."""
    tables = [table for table in look.logged if not table.followed]
    indexes: dict[int, str] = dict(look.rows(_UNIQUE_INDEXES)) if tables else {}
    for table in tables:
        full_fits = not table.generated or look.facts.server_version < GENERATED_REFUSED
        reason, fix = _lack_of_identity(table, indexes.get(table.oid), full_fits)
        cost = " (the log then holds the whole old row of each)" if fix == "FULL" else ""
        yield Finding(
            "replica_identity",
            WARN,
            table.qualified_name,
            f"{reason}: its inserts and truncates are archived, its updates and deletes are not"
            + (f" until this has run{cost}" if fix else ""),
            fix and f"ALTER TABLE {table.qualified_name} REPLICA IDENTITY {fix};",
        )
    if not tables:
        message = f"all {len(look.logged)} tables have a replica identity"
        yield Finding("replica_identity", PASS, "tables", message)


def _lack_of_identity(table: Table, index: str | None, full_fits: bool) -> tuple[str, str | None]:
    """Why a table has no usable replica identity, and which one would do."""
    keyed = bool(table.key)
    better = "DEFAULT" if keyed else f"USING INDEX {quote_identifier(index)}" if index else None
    if table.replica_identity == IDENTITY_FULL:
        return (
            "replica identity FULL includes generated columns, which are not published, so that"
            " publishing its updates would make them fail",
            better,
        )
    # FULL costs the whole old row in the log for every update and delete, but needs no key.
    better = better or ("FULL" if full_fits else None)
    if table.replica_identity == IDENTITY_NOTHING:
        return "its replica identity is NOTHING", better
    if table.replica_identity == IDENTITY_DEFAULT:
        return "it has no primary key that could identify rows", better
    return "the index of its replica identity is gone", better


def _publications(look: Look) -> Iterator[Finding]:
    wanted = publication.creation(look.slot_name, look.logged, every_table=look.facts.is_superuser)
    creatable = _may_create(look)
    for name, found, statement in zip(
        publication.names(look.slot_name), look.publications, wanted, strict=True
    ):
        if found is None and creatable is None:
            message = "does not exist yet: `waly init` makes it"
            yield Finding("publication", PASS, name, message)
        elif found is None:
            # An administrator who runs the statement can as well publish later tables.
            admins = publication.creation(look.slot_name, look.logged, every_table=True)
            if name == publication.names(look.slot_name)[0]:
                statement = admins[0]
            (text,) = publication.as_text([statement])
            message = f"does not exist, and role {look.facts.role} may not make it: {creatable}"
            yield Finding("publication", FAIL, name, message, text)
        elif (problem := publication.misfit(found)) is not None:
            (text,) = publication.as_text([publication.repair(found)])
            yield Finding("publication", FAIL, name, problem, text)
        else:
            yield Finding("publication", PASS, name, "exists and is used as it is")
    yield from _published_tables(look)


def _published_tables(look: Look) -> Iterator[Finding]:
    """Tables that existing publications treat wrongly."""
    everything, keyed = look.publications
    for found in filter(None, look.publications):
        for schema, name in sorted(found.restricted):
            yield Finding(
                "publication_filter",
                FAIL,
                f"{quote_identifier(schema)}.{quote_identifier(name)}",
                f"{found.name} leaves out some of its rows or columns: publish it whole",
            )
    for table in look.logged:
        identifier = (table.schema, table.name)
        if everything and identifier not in everything.tables:
            yield _unpublished(everything, table, "its inserts and truncates")
        if keyed and table.followed and identifier not in keyed.tables:
            yield _unpublished(keyed, table, "its updates and deletes")
        if keyed and not table.followed and identifier in keyed.tables:
            yield Finding(
                "breaks_updates",
                FAIL,
                table.qualified_name,
                f"has no replica identity, yet {keyed.name} publishes its updates: the"
                " application's own UPDATE and DELETE on it fail now",
                _change((None, keyed), table),
            )


def _unpublished(found: publication.Publication, table: Table, what: str) -> Finding:
    keyed = found.name.endswith("_keyed")
    return Finding(
        "not_published",
        WARN,
        table.qualified_name,
        f"is not in {found.name}: {what} are not archived",
        _change((None, found) if keyed else (found, None), table),
    )


def _change(
    there: tuple[publication.Publication | None, publication.Publication | None], table: Table
) -> str:
    return " ".join(publication.as_text(publication.changes(there, [table])))


def _may_create(look: Look) -> str | None:
    """Why this role may not create the publications; None if it may."""
    if look.facts.is_superuser:
        return None
    (creates,) = look.row("SELECT has_database_privilege(current_database(), 'CREATE')")
    foreign = [table.qualified_name for table in look.logged if not table.owned]
    if foreign:
        return f"it does not own {_some(foreign)}"
    return None if creates else "it has not the CREATE privilege on the database"


def _outside_the_stream(look: Look) -> Iterator[Finding]:
    """What no logical replication carries."""
    for table in look.tables:
        if table.persistence == "u":
            yield Finding(
                "unlogged",
                WARN,
                table.qualified_name,
                "is unlogged: it is not archived",
                f"ALTER TABLE {table.qualified_name} SET LOGGED;",
            )
    for schema, name in look.rows(_FOREIGN_TABLES):
        subject = f"{quote_identifier(schema)}.{quote_identifier(name)}"
        message = "is a foreign table: its rows are elsewhere and not archived"
        yield Finding("foreign_table", WARN, subject, message)
    (large_objects,) = look.row("SELECT count(*) FROM pg_largeobject_metadata")
    if large_objects:
        message = "are not in the stream and not archived: keep such data in bytea columns"
        yield Finding("large_objects", WARN, f"{large_objects} large objects", message)
    generated = [table.qualified_name for table in look.logged if table.generated]
    if generated:
        message = "their generated columns are not archived: a restore computes them again"
        yield Finding("generated_columns", PASS, _some(generated), message)


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


TABLE_CHECKS: tuple[Callable[[Look], Iterator[Finding]], ...] = (
    _publications,
    _privileges,
    _identities,
    _outside_the_stream,
)

# Tables and their partitioned parents that the role cannot read or reads with rows hidden, and
# sequences whose value it cannot read.
_READABLE: LiteralString = """
SELECT * FROM (
    SELECT c.relkind::text AS kind, n.nspname, c.relname,
           has_schema_privilege(n.oid, 'USAGE') AS in_schema,
           CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                ELSE has_table_privilege(c.oid, 'SELECT') END AS readable,
           row_security_active(c.oid) AS hidden
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND c.oid >= 16384
          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')) AS r
WHERE NOT in_schema OR NOT readable OR hidden
ORDER BY nspname, relname
"""

_UNIQUE_INDEXES: LiteralString = """
SELECT DISTINCT ON (i.indrelid) i.indrelid, x.relname
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
WHERE i.indisunique AND i.indimmediate AND i.indisvalid
      AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (
          SELECT FROM unnest((string_to_array(i.indkey::text, ' ')::int[])[:i.indnkeyatts]) k,
                      pg_attribute a
          WHERE a.attrelid = i.indrelid AND a.attnum = k
                AND (NOT a.attnotnull OR a.attgenerated <> ''))
ORDER BY i.indrelid, i.indnkeyatts, x.relname
"""

_FOREIGN_TABLES: LiteralString = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'f' ORDER BY n.nspname, c.relname
"""
