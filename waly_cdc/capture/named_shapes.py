"""Relation versions for messages that tell a table by its name, as wal2json's do.

A message shows columns with name, attnum, type and typmod, those of the replica identity (updates
and deletes) and of the primary key: more than enough to see that a shape is another, but not all of
it. The version before is taken while it explains the message, then the catalog's as it is now; what
neither explains is put together from the message and both.

Not in the messages: a TOASTed column that was not changed, which looks like one that is not there.
Where the version before has such a column, it is believed to be there until a look at the catalog
has missed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from waly_cdc.capture.names import TableNames
from waly_cdc.capture.shapes import Shapes
from waly_cdc.lsn import Lsn
from waly_cdc.relations import (
    IDENTITY_DEFAULT,
    IDENTITY_FULL,
    IDENTITY_INDEX,
    Column,
    NamedColumn,
    NamedTable,
    RelationVersion,
    StreamColumn,
    StreamRelation,
)
from waly_cdc.source.catalog import Table, TableColumn

_NEVER_TOASTED = frozenset({16, 18, 19, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 2950})
"""Type oids of fixed length: bool, "char", name, integers, oid, floats, dates and times, uuid."""


class NamedShapes:
    """Finds the version that a message of wal2json describes, making it if it is a new shape.

    `find` asks the catalog for a table by name, `look_up` by oid, and `typmod_of` for the typmod of
    a type by its oid and name; `on_stranger` is told of tables that are gone before anybody knew
    them, whose changes cannot be kept. With `every_table` false only known tables are captured.
    """

    def __init__(
        self,
        shapes: Shapes,
        names: TableNames,
        *,
        find: Callable[[str, str], Table | None],
        look_up: Callable[[int], Table | None],
        typmod_of: Callable[[int, str], int],
        on_stranger: Callable[[str], None],
        every_table: bool,
    ) -> None:
        self._shapes = shapes
        self._names = names
        self._find = find
        self._look_up = look_up
        self._typmod_of = typmod_of
        self._on_stranger = on_stranger
        self._every_table = every_table
        self._strangers: set[tuple[str, str]] = set()
        self._told: set[tuple[str, str]] = set()
        self._looks = 0

    def resolve(self, table: NamedTable, lsn: Lsn) -> RelationVersion | None:
        """The version in the transaction that commits at `lsn`; None for a table that is not
        captured. Raises SourceError."""
        oid = self._oid(table, lsn)
        if oid is None:
            return None
        before = self._shapes.newest_of(oid)
        if before is None and not self._every_table:
            return None
        generated = self._names.generated(oid)
        present = self._names.columns_at(oid, lsn)
        name = (table.schema, table.name)
        if (
            before is not None
            and (before.schema, before.name) == name
            and _explains(before.columns, before.replica_identity, table, generated, present)
        ):
            return before
        now = self._look_up(oid)
        if now is not None:
            self._names.learn(now)
            generated = {**generated, **now.generated}
            if (now.schema, now.name) == name and _explains(
                now.columns, now.replica_identity, table, generated, deferrable=True
            ):
                return self._shapes.resolve(now.to_stream(), lsn)
        if not table.columns and before is None:
            return None
        shown = _columns(table, before, now, generated, present)
        return self._put_together(oid, table, shown, before, now, lsn)

    def _oid(self, table: NamedTable, lsn: Lsn) -> int | None:
        name = (table.schema, table.name)
        oid = self._names.oid_at(name, lsn)
        if oid is not None:
            return oid
        if self._looks != self._names.looks:
            self._looks = self._names.looks
            self._strangers.clear()
        if name in self._strangers:
            return None
        found = self._find(*name)
        if found is None:
            self._strangers.add(name)
            if name not in self._told:
                self._told.add(name)
                self._on_stranger(f"{table.schema}.{table.name}")
            return None
        self._names.learn(found)
        return found.oid

    def _put_together(
        self,
        oid: int,
        table: NamedTable,
        shown: list[NamedColumn],
        before: RelationVersion | None,
        now: Table | None,
        lsn: Lsn,
    ) -> RelationVersion:
        known: list[Column | TableColumn] = [*(before.columns if before else ())]
        known += now.columns if now else ()
        replica_identity = _replica_identity(table, shown, before, now)
        sent = _identity(table, shown, replica_identity, before)
        relation = StreamRelation(
            oid,
            table.schema,
            table.name,
            replica_identity,
            tuple(
                StreamColumn(c.name, c.type_oid, self._typmod(c, known), c.name in sent)
                for c in shown
            ),
        )
        return self._shapes.resolve(relation, lsn, [column.attnum for column in shown])

    def _typmod(self, column: NamedColumn, known: Iterable[Column | TableColumn]) -> int:
        kind = (column.type_oid, column.type_name)
        for other in known:
            if (other.type_oid, other.type_name) == kind:
                return other.typmod
        return self._typmod_of(*kind)


def _explains(
    columns: tuple[Column, ...] | tuple[TableColumn, ...],
    replica_identity: str,
    table: NamedTable,
    generated: Mapping[int, str],
    present: frozenset[int] | None = None,
    *,
    deferrable: bool = False,
) -> bool:
    """Whether a message may come from a table of that shape; `present` are the attnums of the
    columns that are not known to be dropped, None for all.

    `deferrable`: the shape is the catalog's, so a primary key that is no identity is deferrable.
    """
    by_name = {column.name: column for column in columns}
    for shown in (*table.columns, *table.identity):
        if shown.attnum in generated or (shown.attnum is None and shown.name in generated.values()):
            continue
        column = by_name.get(shown.name)
        if column is None or (column.type_oid, column.type_name) != (
            shown.type_oid,
            shown.type_name,
        ):
            return False
        if None not in (column.attnum, shown.attnum) and column.attnum != shown.attnum:
            return False
    there = {column.name for column in table.columns}
    for column in columns:
        hidden = table.action == "U" and _may_be_hidden(column, present)
        if table.action in "IU" and column.name not in there and not hidden:
            return False
    identity = {column.name for column in columns if column.identity}
    if table.identity:
        sent = {column.name for column in table.identity}
        if identity != sent & by_name.keys():
            return False
    if table.action != "T" and replica_identity == IDENTITY_DEFAULT:
        return identity == set(table.key) or (deferrable and not identity)
    return True


def _may_be_hidden(column: Column | TableColumn, present: frozenset[int] | None) -> bool:
    there = present is None or column.attnum is None or column.attnum in present
    return there and column.type_oid not in _NEVER_TOASTED


def _columns(
    table: NamedTable,
    before: RelationVersion | None,
    now: Table | None,
    generated: Mapping[int, str],
    present: frozenset[int] | None,
) -> list[NamedColumn]:
    """The columns of the table that a message shows a part of, in the order of their attnums."""
    known = before.columns if before else now.columns if now else ()
    if table.action == "D":
        return [_named(column) for column in known]
    shown = [column for column in table.columns if column.attnum not in generated]
    if table.action == "U":
        there = {column.attnum for column in shown}
        hidden = [column for column in known if _may_be_hidden(column, present)]
        shown += [_named(column) for column in hidden if column.attnum not in there]
        shown.sort(key=lambda column: column.attnum or 0)
    return shown


def _named(column: Column | TableColumn) -> NamedColumn:
    return NamedColumn(column.attnum, column.name, column.type_oid, column.type_name)


def _replica_identity(
    table: NamedTable,
    shown: list[NamedColumn],
    before: RelationVersion | None,
    now: Table | None,
) -> str:
    """The replica identity: one that is known, if it fits the identity that was sent."""
    known = [each.replica_identity for each in (before, now) if each is not None]
    if not table.identity:
        return known[0] if known else IDENTITY_DEFAULT
    sent = {column.name for column in table.identity}
    fitting = {
        IDENTITY_DEFAULT: sent == set(table.key),
        IDENTITY_FULL: sent >= {column.name for column in shown},
        IDENTITY_INDEX: True,
    }
    wanted = [*known, IDENTITY_DEFAULT, IDENTITY_FULL, IDENTITY_INDEX]
    return next(each for each in wanted if fitting.get(each, False))


def _identity(
    table: NamedTable,
    shown: list[NamedColumn],
    replica_identity: str,
    before: RelationVersion | None,
) -> set[str]:
    """The names of the replica identity's columns."""
    if table.identity:
        return {column.name for column in table.identity}
    if replica_identity == IDENTITY_FULL:
        return {column.name for column in shown}
    if replica_identity == IDENTITY_DEFAULT:
        return set(table.key)
    return {c.name for c in (before.columns if before else ()) if c.identity}
