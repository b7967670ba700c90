"""The net difference of tables between two moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive, UsageError
from waly_cdc.history.events import sql_type
from waly_cdc.history.jsonb import pg_text, to_json
from waly_cdc.history.log import key_json, parse_key, row_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.rows import Key, Texts
from waly_cdc.history.session import identifier, rows
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.relations import RelationVersion


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not the same at both moments; None on the side where it is not there."""

    relation: RelationVersion
    key: Key
    before: Texts | None
    after: Texts | None

    @property
    def change(self) -> str:
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    def to_json(self) -> dict[str, Any]:
        """The object of `waly diff --json`."""
        changed = None
        if self.before is not None and self.after is not None:
            changed = {
                c.name: [to_json(c, self.before[c.stored]), to_json(c, self.after[c.stored])]
                for c in self.relation.columns
                if self.before[c.stored] != self.after[c.stored]
            }
        return {
            "table": self.relation.qualified_name,
            "change": self.change,
            "key": key_json(self.relation, self.key),
            "changed": changed,
            "before": row_json(self.relation, self.before),
            "after": row_json(self.relation, self.after),
        }


def diff(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str | None,
    key: Sequence[str],
    start: Moment,
    end: Moment,
    on_unknown: Callable[[PointNotInArchive], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """What differs, an object per row (see `Difference.to_json`). Rows of a table without a key are
    only added or removed.

    Raises UsageError for an unknown table, or a key that does not fit it; PointNotInArchive where
    the table's rows are not known at one of the moments. Without a table, `on_unknown` is told of
    each of which that is so.
    """
    wanted: Key | None = None
    if table is not None:
        relations = [_find(contents, table, start, end)]
        wanted = parse_key(relations[0], key) if key else None
    else:
        at_either = (
            contents.version_at(oid, end.bound) or contents.version_at(oid, start.bound)
            for oid in contents.relations
        )
        relations = [relation for relation in at_either if relation is not None]
    for relation in sorted(relations, key=lambda relation: relation.qualified_name):
        try:
            for found in _relation_diff(connection, contents, store, relation, start, end):
                if wanted is None or found.key == wanted:
                    yield found.to_json()
        except PointNotInArchive as error:
            if table is not None:
                raise
            on_unknown(error)


def _find(contents: Contents, table: str, start: Moment, end: Moment) -> RelationVersion:
    """The relation of that name at the end, or one that was dropped since the start."""
    try:
        return contents.find_relation(table, end.bound)
    except UsageError:
        return contents.find_relation(table, start.bound)


def _relation_diff(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    start: Moment,
    end: Moment,
) -> Iterator[Difference]:
    # Rows without columns differ in their number only.
    columns = [f"{column_text(c)} AS {identifier(c.stored)}" for c in relation.columns]
    texts = ", ".join(columns or ['0 AS "no columns"'])
    sides = []
    for moment in (start, end):
        there = contents.version_at(relation.oid, moment.bound) is not None
        state = state_query(contents, store, relation, moment.bound)
        sides.append(f"SELECT {texts} FROM (\n{state}\n) WHERE {there}")
    before, after = sides
    names = [identifier(column.stored) for column in relation.columns] or ['"no columns"']
    # Rows that are the same on both sides drop out first; few are left to be matched by key.
    statement = f"""
WITH before AS ({before}), after AS ({after}),
gone AS (SELECT * FROM before EXCEPT ALL SELECT * FROM after),
come AS (SELECT * FROM after EXCEPT ALL SELECT * FROM before)
SELECT TRUE AS _gone, {", ".join(names)} FROM gone
UNION ALL SELECT FALSE, {", ".join(names)} FROM come"""
    gone: dict[Any, Texts] = {}
    order = [
        f"TRY_CAST({identifier(c.stored)} AS {sql_type(c.storage)})" for c in relation.key_columns
    ]
    statement += f" ORDER BY {', '.join(['_gone DESC', *order])}"
    for number, row in enumerate(rows(connection, statement)):
        was = row.pop("_gone")
        image = {c.stored: pg_text(c, row[c.stored]) for c in relation.columns}
        key = tuple(image[stored] for stored in relation.key)
        # A table that had no key yet may have held several rows of one.
        if was and key and key not in gone:
            gone[key] = image
        elif was:
            yield Difference(relation, key, image, None)
        else:
            yield Difference(relation, key, gone.pop(key if key else number, None), image)
    for key, image in gone.items():
        yield Difference(relation, key, image, None)
