"""Preflight: the tables, and the publications that carry their changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import LiteralString

from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.relations import (
    IDENTITY_DEFAULT,
    IDENTITY_FULL,
    IDENTITY_NOTHING,
    quote_identifier,
)
from waly_cdc.source import publication
from waly_cdc.source.catalog import GENERATED_REFUSED, Table
from waly_cdc.source.preflight_look import Look, some


def _identities(look: Look) -> Iterator[Finding]:
    """Tables of which only inserts and truncates can be followed."""
    tables = [table for table in look.logged if not table.followed]
    indexes: dict[int, str] = dict(look.rows(_UNIQUE_INDEXES)) if tables else {}
    for table in tables:
        full_fits = not table.generated or look.facts.server_version < GENERATED_REFUSED
        reason, fix = _lack_of_identity(table, indexes.get(table.oid), full_fits)
        identity = f"ALTER TABLE {table.qualified_name} REPLICA IDENTITY {fix};"
        cost = " (the log then holds the whole old row of each)" if fix == "FULL" else ""
        yield Finding(
            "replica_identity",
            WARN,
            table.qualified_name,
            f"{reason}: its inserts and truncates are archived, its updates and deletes are not"
            + (f" until this has run{cost}" if fix else ""),
            fix and " ".join([identity, *_publishing_updates(look, table)]),
        )
    if not tables:
        message = f"all {len(look.logged)} tables have a replica identity"
        yield Finding("replica_identity", PASS, "tables", message)


def _publishing_updates(look: Look, table: Table) -> list[str]:
    """The statements that publish updates of a table that is about to have a replica identity.

    Nothing needs to be said of a publication that `init` is going to make.
    """
    made_by_init = look.publications[1] is None and look.may_not_publish is None
    if look.plugin != PGOUTPUT:
        return []
    if made_by_init or look.is_kept_by_trigger:
        return []
    _, keyed = publication.names(look.slot_name)
    return publication.as_text([publication.addition(keyed, [table])])


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
    if look.plugin != PGOUTPUT:
        return
    wanted = publication.creation(look.slot_name, look.logged, every_table=look.facts.is_superuser)
    obstacle = look.may_not_publish
    for name, found, statement in zip(
        publication.names(look.slot_name), look.publications, wanted, strict=True
    ):
        if found is None and obstacle is None:
            message = "the publication does not exist yet: `waly init` makes it"
            yield Finding("publication", PASS, name, message)
        elif found is None:
            # An administrator who runs the statement can as well publish later tables.
            admins = publication.creation(look.slot_name, look.logged, every_table=True)
            if name == publication.names(look.slot_name)[0]:
                statement = admins[0]
            (text,) = publication.as_text([statement])
            message = (
                f"the publication does not exist, and role {look.facts.role} may not make it:"
                f" {obstacle}"
            )
            yield Finding("publication", FAIL, name, message, text)
        elif (problem := publication.misfit(found)) is not None:
            (text,) = publication.as_text([publication.repair(found)])
            yield Finding("publication", FAIL, name, f"the publication {problem}", text)
        else:
            yield Finding("publication", PASS, name, "the publication exists, and is used as it is")
    yield from _published_tables(look)


def _published_tables(look: Look) -> Iterator[Finding]:
    """Tables that existing publications treat wrongly."""
    everything, keyed = look.publications
    by_name = {(each.schema, each.name): each for each in look.logged}
    for found in filter(None, look.publications):
        for schema, name in sorted(found.restricted):
            table = by_name.get((schema, name))
            if found is keyed and table and not table.followed:
                # It must not be there at all, which is said below.
                continue
            yield Finding(
                "publication_filter",
                FAIL,
                f"{quote_identifier(schema)}.{quote_identifier(name)}",
                f"{found.name} leaves out some of its rows or columns: publish it whole",
                _publish_whole(found, table) if table else None,
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
                f"it has no replica identity, yet {keyed.name} publishes its updates: the"
                " application's own UPDATE and DELETE on it fail now",
                _change((None, keyed), table),
            )


def _publish_whole(found: publication.Publication, table: Table) -> str:
    """The statements that end a row filter or a column list, both at once."""
    statements = [
        publication.removal(found.name, [table]),
        publication.addition(found.name, [table]),
    ]
    return " ".join(["BEGIN;", *publication.as_text(statements), "COMMIT;"])


def _unpublished(found: publication.Publication, table: Table, what: str) -> Finding:
    keyed = found.name.endswith("_keyed")
    return Finding(
        "not_published",
        WARN,
        table.qualified_name,
        f"it is not in {found.name}: {what} are not archived",
        _change((None, found) if keyed else (found, None), table),
    )


def _change(
    there: tuple[publication.Publication | None, publication.Publication | None], table: Table
) -> str:
    return " ".join(publication.as_text(publication.changes(there, [table])))


def _outside_the_stream(look: Look) -> Iterator[Finding]:
    """What no logical replication carries."""
    everything, _ = look.publications
    for table in look.tables:
        if table.persistence == "u":
            statements = [f"ALTER TABLE {table.qualified_name} SET LOGGED;"]
            if everything and not everything.every_table:
                addition = publication.addition(everything.name, [table])
                statements += publication.as_text([addition])
            if table.followed:
                statements += _publishing_updates(look, table)
            yield Finding(
                "unlogged",
                WARN,
                table.qualified_name,
                "it is unlogged, and not archived; this would write it whole to the log, and each"
                " change from then on",
                " ".join(statements),
            )
    for schema, name in look.rows(_FOREIGN_TABLES):
        subject = f"{quote_identifier(schema)}.{quote_identifier(name)}"
        message = "it is a foreign table: its rows are elsewhere and not archived"
        yield Finding("foreign_table", WARN, subject, message)
    (large_objects,) = look.row("SELECT count(*) FROM pg_largeobject_metadata")
    if large_objects:
        message = "they are not in the stream and not archived: keep such data in bytea columns"
        yield Finding("large_objects", WARN, f"{large_objects} large objects", message)
    generated = [table.qualified_name for table in look.logged if table.generated]
    if generated:
        message = "their generated columns are not archived: a restore computes them again"
        yield Finding("generated_columns", PASS, some(generated), message)


TABLE_CHECKS: tuple[Callable[[Look], Iterator[Finding]], ...] = (
    _publications,
    _identities,
    _outside_the_stream,
)

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
