"""The net difference of tables between two moments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.jsonb import pg_text, to_json
from waly_cdc.history.log import key_json, row_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.session import identifier, rows
from waly_cdc.history.state import column_text, state_query
from waly_cdc.relations import RelationVersion


def diff(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str | None,
    start: Moment,
    end: Moment,
) -> Iterator[dict[str, Any]]:
    """What differs, an object per row: `table`, `change` (`added`, `removed` or `changed`), `key`,
    `changed` (column → [old, new]), `before`, `after`. Rows of a table without a key are only added
    or removed. Raises UsageError for an unknown table."""
    if table is not None:
        relations = [contents.find_relation(table, end.bound)]
    else:
        relations = [
            relation
            for oid in contents.relations
            if (relation := contents.version_at(oid, end.bound)) is not None
        ]
    for relation in sorted(relations, key=lambda relation: relation.qualified_name):
        yield from _relation_diff(connection, contents, store, relation, start, end)


def _relation_diff(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    start: Moment,
    end: Moment,
) -> Iterator[dict[str, Any]]:
    texts = ", ".join(f"{column_text(c)} AS {identifier(c.stored)}" for c in relation.columns)
    after = f"SELECT {texts} FROM ({state_query(contents, store, relation, end.bound)})"
    try:
        then = state_query(contents, store, relation, start.bound)
    except PointNotInArchive:
        if relation.since < start.bound:
            raise
        then = f"({after}) WHERE FALSE"
        before = f"SELECT * FROM {then}"
    else:
        before = f"SELECT {texts} FROM ({then})"
    names = [identifier(column.stored) for column in relation.columns]
    # Rows that are the same on both sides drop out first; few are left to be matched by key.
    statement = f"""
WITH before AS ({before}), after AS ({after}),
gone AS (SELECT * FROM before EXCEPT ALL SELECT * FROM after),
come AS (SELECT * FROM after EXCEPT ALL SELECT * FROM before)
SELECT TRUE AS _gone, {", ".join(names)} FROM gone
UNION ALL SELECT FALSE, {", ".join(names)} FROM come"""
    gone: dict[Any, dict[str, str | None]] = {}
    for number, row in enumerate(rows(connection, f"{statement} ORDER BY _gone DESC")):
        was = row.pop("_gone")
        image = {c.stored: pg_text(c, row[c.stored]) for c in relation.columns}
        key = tuple(image[stored] for stored in relation.key)
        if was and key:
            gone[key] = image
        elif was:
            yield _difference(relation, key, image, None)
        else:
            yield _difference(relation, key, gone.pop(key if key else number, None), image)
    for key, image in gone.items():
        yield _difference(relation, key, image, None)


def _difference(
    relation: RelationVersion,
    key: tuple[str | None, ...],
    before: dict[str, str | None] | None,
    after: dict[str, str | None] | None,
) -> dict[str, Any]:
    change = "changed" if before and after else "added" if after else "removed"
    changed = None
    if before and after:
        changed = {
            c.name: [to_json(c, before[c.stored]), to_json(c, after[c.stored])]
            for c in relation.columns
            if before[c.stored] != after[c.stored]
        }
    return {
        "table": relation.qualified_name,
        "change": change,
        "key": key_json(relation, key),
        "changed": changed,
        "before": row_json(relation, before),
        "after": row_json(relation, after),
    }
