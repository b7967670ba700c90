"""The net difference of tables between two moments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive, UsageError
from waly_cdc.history.eras import in_other_era
from waly_cdc.history.events import sql_type
from waly_cdc.history.jsonb import pg_text, to_json
from waly_cdc.history.keys import key_json, parse_key, row_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.narrow import Key
from waly_cdc.history.rows import Texts
from waly_cdc.history.session import identifier, rows
from waly_cdc.history.state import state_files, state_query
from waly_cdc.history.texts import column_text
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion

_NO_COLUMNS = '0 AS "no columns"'
"""What stands for the columns of a table without any: its rows differ in their number only."""


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
    each of which that is so. The moments may be of two eras.
    """
    wanted: Key | None = None
    if table is not None:
        pairs = [_find(contents, table, start, end)]
        wanted = parse_key(pairs[0].relation, key) if key else None
    else:
        pairs = _all_pairs(contents, start, end)
    for pair in sorted(pairs, key=lambda pair: pair.relation.qualified_name):
        try:
            for found in _relation_diff(connection, contents, store, pair, start, end):
                if wanted is None or found.key == wanted:
                    yield found.to_json()
        except PointNotInArchive as error:
            if table is not None:
                raise
            on_unknown(error)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A table at the two moments; None where it is not there."""

    before: RelationVersion | None
    after: RelationVersion | None

    @property
    def relation(self) -> RelationVersion:
        """The version whose columns are compared."""
        found = self.after or self.before
        assert found is not None
        return found


def _find(contents: Contents, table: str, start: Moment, end: Moment) -> _Pair:
    """The table of that name at the end, or one that was dropped since the start."""
    first, last = contents.in_era(start.era), contents.in_era(end.era)
    try:
        after = last.find_relation(table, end.bound)
    except UsageError:
        return _Pair(first.find_relation(table, start.bound), None)
    return _Pair(_counterpart(after, last, first, start.bound), after)


def _all_pairs(contents: Contents, start: Moment, end: Moment) -> list[_Pair]:
    first, last = contents.in_era(start.era), contents.in_era(end.era)
    there = (last.version_at(oid, end.bound) for oid in last.relations)
    pairs = [_Pair(_counterpart(v, last, first, start.bound), v) for v in there if v is not None]
    matched = {pair.before.oid for pair in pairs if pair.before is not None}
    gone = (first.version_at(oid, start.bound) for oid in first.relations if oid not in matched)
    return pairs + [_Pair(version, None) for version in gone if version is not None]


def _counterpart(
    relation: RelationVersion, era: Contents, other: Contents, bound: Lsn
) -> RelationVersion | None:
    if era is other:
        return era.version_at(relation.oid, bound)
    return in_other_era(relation, era, other, bound)


@dataclass(frozen=True, slots=True)
class _Side:
    """A statement for the rows at a moment as texts, under the stored names of the columns that are
    compared; `columns` are what these were there, by those names."""

    statement: str
    columns: dict[str, Column]


def _side(
    era: Contents,
    store: LocalStore,
    relation: RelationVersion,
    own: RelationVersion | None,
    moment: Moment,
    *,
    same_era: bool,
) -> _Side:
    there = own is not None
    if same_era:
        own = relation
    elif own is None and era.gap_at(relation.oid, moment.bound):
        state_files(era, relation, moment.bound)  # Raises: it may be there all the same.
    # Within an era stored names tell which column is which, and from one era to another names do.
    by_name = {column.name: column for column in own.columns} if own else {}
    columns = {c.stored: by_name[c.name] for c in relation.columns if c.name in by_name}
    texts = [
        f"{column_text(columns[c.stored]) if c.stored in columns else 'CAST(NULL AS VARCHAR)'}"
        f" AS {identifier(c.stored)}"
        for c in relation.columns
    ]
    select = f"SELECT {', '.join(texts or [_NO_COLUMNS])}"
    if own is None:
        return _Side(f"{select} WHERE FALSE", columns)
    state = state_query(era, store, own, moment.bound)
    return _Side(f"{select} FROM (\n{state}\n) WHERE {there}", columns)


def _relation_diff(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    pair: _Pair,
    start: Moment,
    end: Moment,
) -> Iterator[Difference]:
    relation, same_era = pair.relation, start.era == end.era
    before, after = (
        _side(contents.in_era(m.era), store, relation, own, m, same_era=same_era)
        for m, own in ((start, pair.before), (end, pair.after))
    )
    names = [identifier(column.stored) for column in relation.columns] or ['"no columns"']
    # Rows that are the same on both sides drop out first; few are left to be matched by key.
    statement = f"""
WITH before AS ({before.statement}), after AS ({after.statement}),
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
        own = (before if was else after).columns
        image = {c.stored: pg_text(own.get(c.stored, c), row[c.stored]) for c in relation.columns}
        key = tuple(image[stored] for stored in relation.key)
        # A table that had no key yet may have held several rows of one.
        if was and key and key not in gone:
            gone[key] = image
        elif was:
            yield Difference(relation, key, image, None)
        elif (old := gone.pop(key if key else number, None)) != image:
            yield Difference(relation, key, old, image)
    for key, image in gone.items():
        yield Difference(relation, key, image, None)
