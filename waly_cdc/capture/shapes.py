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
    StreamRelation,
    stored_name,
)
from waly_cdc.source.catalog import Table


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
        attnums = [column.attnum for column in table.columns] if table and agrees else None
        type_names = [column.type_name for column in table.columns] if table and agrees else None
        columns: list[Column] = []
        taken = {column.stored for version in versions for column in version.columns}
        for number, described in enumerate(relation.columns):
            attnum = attnums[number] if attnums else None
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
                    type_name=type_names[number] if type_names else "",
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
            key=_key(relation, table if agrees else None, columns),
            since=lsn,
        )
        versions.append(version)
        self.new.append(version)
        return version


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
    relation: StreamRelation, table: Table | None, columns: Sequence[Column]
) -> tuple[str, ...]:
    by_name = {column.name: column.stored for column in columns}
    if table is not None:
        return tuple(by_name[name] for name in table.key if name in by_name)
    if relation.replica_identity in (IDENTITY_DEFAULT, IDENTITY_INDEX):
        return tuple(column.stored for column in columns if column.identity)
    return ()
