"""Relation versions: from what the stream and the catalog say to the stored shape of a table.

The stream tells a table's columns at the moment of the change, but neither their attnum nor, under
replica identity FULL, the key. The catalog tells both, but only as they are now. What the two agree
on is taken; where the catalog has moved on, columns are matched by name to the version before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from waly_cdc.decode.values import storage_of
from waly_cdc.lsn import Lsn
from waly_cdc.relations import (
    IDENTITY_DEFAULT,
    IDENTITY_INDEX,
    Column,
    RelationVersion,
    StreamColumn,
    StreamRelation,
    stored_name,
)
from waly_cdc.source.catalog import Table, TableColumn


class Shapes:
    """The known versions of every relation; makes the next one when a shape changes.

    `look_up` asks the catalog for a table by oid; None for one that is gone. `new` collects the
    versions made since it was last taken: the entry that names their first events names them too.
    """

    def __init__(
        self,
        known: Mapping[int, Sequence[RelationVersion]],
        look_up: Callable[[int], Table | None],
    ) -> None:
        self._versions = {oid: list(versions) for oid, versions in known.items()}
        self._look_up = look_up
        self.new: list[RelationVersion] = []

    def resolve(self, relation: StreamRelation, lsn: Lsn) -> RelationVersion:
        """The version that a Relation message describes, made now if it is a new shape."""
        versions = self._versions.get(relation.oid, [])
        if versions and versions[-1].matches(relation):
            return versions[-1]
        return self._add(relation, self._look_up(relation.oid), lsn)

    def register(self, table: Table, lsn: Lsn) -> RelationVersion:
        """The version that the catalog describes, for a baseline."""
        relation = table.to_stream()
        versions = self._versions.get(relation.oid, [])
        if versions and versions[-1].matches(relation):
            return versions[-1]
        return self._add(relation, table, lsn)

    def newest(self) -> list[RelationVersion]:
        """The last version of every relation."""
        return [versions[-1] for versions in self._versions.values()]

    def take_new(self) -> list[RelationVersion]:
        taken, self.new = self.new, []
        return taken

    def _add(self, relation: StreamRelation, table: Table | None, lsn: Lsn) -> RelationVersion:
        versions = self._versions.setdefault(relation.oid, [])
        agrees = table is not None and table.to_stream().columns == relation.columns
        attnums = _attnums(relation, table, versions)
        columns: list[Column] = []
        taken = {column.stored for version in versions for column in version.columns}
        for described, attnum in zip(relation.columns, attnums, strict=True):
            storage = storage_of(described.type_oid, described.typmod)
            stored = _known_column(versions, described.name, attnum, storage)
            if stored is None or stored in {column.stored for column in columns}:
                stored = stored_name(described.name, taken)
            taken.add(stored)
            columns.append(
                Column(
                    name=described.name,
                    stored=stored,
                    storage=storage,
                    type_oid=described.type_oid,
                    typmod=described.typmod,
                    type_name=_type_name(described, table, versions),
                    identity=described.identity,
                    attnum=attnum,
                )
            )
        version = RelationVersion(
            oid=relation.oid,
            version=len(versions) + 1,
            schema=relation.schema,
            name=relation.name,
            replica_identity=relation.replica_identity,
            columns=tuple(columns),
            key=_key(relation, table if agrees else None, columns, versions),
            since=lsn,
        )
        versions.append(version)
        self.new.append(version)
        return version


def _attnums(
    relation: StreamRelation, table: Table | None, versions: Sequence[RelationVersion]
) -> list[int | None]:
    """The attnum of each column, None where it cannot be told.

    The catalog may be ahead: it knows columns by the names they have by then, and the version
    before by the names they had. A name that neither knows came and went in between: it is the one
    column of its type that lies where it does. Columns are in the order of their attnums.
    """
    now = {_identity(c): c.attnum for c in (table.columns if table else ())}
    past = {_identity(c): c.attnum for c in (versions[-1].columns if versions else ())}
    attnums = [now.get(_identity(c)) or past.get(_identity(c)) for c in relation.columns]
    for number, described in enumerate(relation.columns):
        if attnums[number] is None:
            low = max((a for a in attnums[:number] if a is not None), default=0)
            high = min((a for a in attnums[number + 1 :] if a is not None), default=1 << 15)
            kind = (described.type_oid, described.typmod)
            possible = {
                attnum
                for (_, *other), attnum in {**past, **now}.items()
                if attnum is not None and low < attnum < high and tuple(other) == kind
            }
            attnums[number] = possible.pop() if len(possible) == 1 else None
    if _ascending(attnums):
        return attnums
    # A name has gone from one column to another since: only the past tells what it meant.
    newest = max((attnum for attnum in past.values() if attnum is not None), default=0)
    now = {column: attnum for column, attnum in now.items() if attnum > newest}
    attnums = [past.get(_identity(c)) or now.get(_identity(c)) for c in relation.columns]
    return attnums if _ascending(attnums) else [None] * len(attnums)


def _ascending(attnums: Sequence[int | None]) -> bool:
    known = [attnum for attnum in attnums if attnum is not None]
    return known == sorted(set(known))


def _identity(column: StreamColumn | TableColumn | Column) -> tuple[str, int, int]:
    return column.name, column.type_oid, column.typmod


def _type_name(
    column: StreamColumn, table: Table | None, versions: Sequence[RelationVersion]
) -> str:
    """What the catalog calls a column's type; empty where it could not be asked in time."""
    described: list[Column | TableColumn] = [c for v in versions for c in v.columns]
    described += table.columns if table else ()
    kind = (column.type_oid, column.typmod)
    names = [c.type_name for c in described if (c.type_oid, c.typmod) == kind and c.type_name]
    return names[-1] if names else ""


def _known_column(
    versions: Sequence[RelationVersion], name: str, attnum: int | None, storage: str
) -> str | None:
    """The stored name of the same column with the same storage in an earlier version."""
    if not versions:
        return None
    if attnum is None:
        same = [c for c in versions[-1].columns if c.name == name]
    else:
        same = [c for version in versions for c in version.columns if c.attnum == attnum]
    matching = [column.stored for column in same if column.storage == storage]
    return matching[-1] if matching else None


def _key(
    relation: StreamRelation,
    table: Table | None,
    columns: Sequence[Column],
    versions: Sequence[RelationVersion],
) -> tuple[str, ...]:
    by_name = {column.name: column.stored for column in columns}
    if table is not None:
        return tuple(by_name[name] for name in table.key if name in by_name)
    before = versions[-1].key if versions else ()
    sent = {column.stored for column in columns if column.identity}
    if relation.replica_identity in (IDENTITY_DEFAULT, IDENTITY_INDEX):
        if sent == set(before):
            return before
        return tuple(column.stored for column in columns if column.identity)
    return before if set(before) <= set(by_name.values()) else ()
