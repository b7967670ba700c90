"""Photographs of a live database at an exact LSN, and the archive's answer for the same moment."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from tests.integration.archived import archived_texts
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.session import session
from waly_cdc.history.state import state_query
from waly_cdc.lsn import Lsn
from waly_cdc.source import catalog, slot
from waly_cdc.source.connect import connect
from waly_cdc.source.copy import snapshot_transaction

_CATALOG = """
select c.oid::bigint, n.nspname, c.relname, c.relfilenode::bigint,
       coalesce((select jsonb_agg(jsonb_build_array(a.attname, a.xmin::text, a.attgenerated)
                                  order by a.attnum)
                 from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and c.relpersistence = 'p'
      and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
"""


@dataclass(frozen=True)
class LiveTable:
    """A table as a snapshot sees it: the names of its columns and its rows' sorted texts."""

    oid: int
    schema: str
    name: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Photograph:
    """The tables at `lsn`; `unseen` are those that changed under the photographer's hands, and
    `unfollowed` those whose updates and deletes no publication can have."""

    lsn: Lsn
    tables: dict[int, LiveTable]
    unseen: frozenset[int]
    unfollowed: frozenset[int]


class Photographer(threading.Thread):
    """Takes one photograph beside a workload that goes on. `photograph` is there at the end."""

    def __init__(self, dsn: str) -> None:
        super().__init__(name="photographer")
        self._dsn = dsn
        self.photograph: Photograph | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.photograph = photograph(self._dsn)
        except BaseException as error:
            self.error = error

    def result(self) -> Photograph:
        """Wait for it. Raises what went wrong."""
        self.join()
        if self.photograph is None:
            assert self.error is not None
            raise self.error
        return self.photograph


def photograph(dsn: str) -> Photograph:
    """The database as a new temporary slot's snapshot sees it."""
    with (
        connect(dsn, replication=True, application_name="photographer") as replication,
        connect(dsn, application_name="photographer") as now,
    ):
        created = slot.create(replication, "fuzz_photograph", temporary=True)
        with snapshot_transaction(dsn, created.snapshot) as inside:
            return _read(inside, now, created.consistent_point)


def _read(inside: psycopg.Connection, now: psycopg.Connection, lsn: Lsn) -> Photograph:
    seen = {row[0]: row[1:] for row in inside.execute(_CATALOG)}
    # A snapshot does not keep TRUNCATE and ALTER TABLE away: only a lock does. What they did before
    # it was held is found by comparing the catalog as it is now.
    names = sql.SQL(", ").join(sql.Identifier(row[0], row[1]) for row in seen.values())
    locked = set(seen)
    try:
        if seen:
            inside.execute("savepoint locking")
            inside.execute(sql.SQL("lock table only {} in access share mode").format(names))
    except psycopg.errors.DatabaseError:
        inside.execute("rollback to savepoint locking")
        locked = {oid for oid, row in seen.items() if _lock(inside, row)}
    current = {row[0]: row[1:] for row in now.execute(_CATALOG)}
    same = {oid for oid in locked if seen[oid] == current.get(oid)}
    return Photograph(
        lsn,
        {oid: _table(inside, oid, seen[oid]) for oid in sorted(same)},
        frozenset(set(seen) - same),
        frozenset(table.oid for table in catalog.tables(inside) if not table.followed),
    )


def _lock(inside: psycopg.Connection, row: tuple[object, ...]) -> bool:
    inside.execute("savepoint locking")
    try:
        name = sql.Identifier(str(row[0]), str(row[1]))
        inside.execute(sql.SQL("lock table only {} in access share mode").format(name))
    except psycopg.errors.DatabaseError:
        inside.execute("rollback to savepoint locking")
        return False
    return True


def _table(inside: psycopg.Connection, oid: int, row: tuple[object, ...]) -> LiveTable:
    schema, name, _, attributes = row
    # Generated columns are not in the stream.
    columns = tuple(a[0] for a in attributes if not a[2])  # type: ignore[attr-defined]
    query = sql.SQL(
        'select coalesce("the row"::text, \'()\') from (select {} from only {}) "the row"'
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(str(schema), str(name))
    )
    rows = tuple(sorted(text for (text,) in inside.execute(query)))
    return LiveTable(oid, str(schema), str(name), columns, rows)


@dataclass
class Comparison:
    """What came of comparing photographs with an archive."""

    equal: int = 0
    refused: int = 0
    unseen: int = 0
    wrong: list[str] = field(default_factory=list)


def compare(taken: Photograph, contents: Contents, store: LocalStore) -> Comparison:
    """Every table of a photograph, and every table that the archive has at its LSN."""
    found = Comparison(unseen=len(taken.unseen))
    passed_over = taken.unseen | taken.unfollowed
    with session() as connection:
        for oid in sorted(contents.relations.keys() | taken.tables.keys()):
            if oid in passed_over:
                continue
            live = taken.tables.get(oid)
            relation = contents.version_at(oid, taken.lsn)
            gap = contents.gap_at(oid, taken.lsn)
            label = f"{live or relation} at {taken.lsn}"
            if gap is not None:
                found.refused += 1
                continue
            if relation is None or live is None:
                if relation is not live:
                    has = "the archive" if live is None else "the server"
                    found.wrong.append(f"{has} alone has {_short(label)}")
                continue
            try:
                statement = state_query(contents, store, relation, taken.lsn)
            except PointNotInArchive as error:
                found.wrong.append(f"refused outside of a gap: {_short(label)}: {error.message}")
                continue
            names = tuple(column.name for column in relation.columns)
            if (relation.schema, relation.name, names) != (live.schema, live.name, live.columns):
                found.wrong.append(
                    f"shape at {taken.lsn} of {oid}: the archive has {relation.qualified_name}"
                    f" {names}, the server {live.schema}.{live.name} {live.columns}"
                )
                continue
            rows = tuple(archived_texts(connection, relation, statement))
            if rows == live.rows:
                found.equal += 1
                continue
            found.wrong.append(
                f"rows at {taken.lsn} of {oid} {relation.qualified_name} v{relation.version}"
                f" ({relation.replica_identity}, key {relation.key}):"
                f" {_difference(rows, live.rows)}"
            )
    return found


def _difference(archived: tuple[str, ...], live: tuple[str, ...]) -> str:
    surplus, missing = list(archived), []
    for row in live:
        if row in surplus:
            surplus.remove(row)
        else:
            missing.append(row)
    return (
        f"{len(surplus)} rows too many, {len(missing)} missing"
        f"\n    archive: {[_short(row) for row in surplus[:3]]}"
        f"\n    server:  {[_short(row) for row in missing[:3]]}"
    )


def _short(text: str) -> str:
    return text if len(text) < 300 else f"{text[:300]}… ({len(text)} characters)"
