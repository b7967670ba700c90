"""Relation versions: from what the stream and the catalog say to the stored shape of a table.

The stream tells a table's columns at the moment of the change, but neither their attnum nor, under
replica identity FULL, the key. The catalog tells both, but only as they are now. What the two agree
on is taken; where the catalog has moved on, columns are matched by name to the version before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from waly_cdc.capture.alterations import certain
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

    `look_up` asks the catalog for a table by oid; None for one that is gone. `earlier` holds the
    versions of eras before: numbers begin again in each, stored names keep their meaning. `new`
    collects the versions made since it was last taken: the entry that names their first events
    names them too.
    """

    def __init__(
        self,
        known: Mapping[int, Sequence[RelationVersion]],
        look_up: Callable[[int], Table | None],
        earlier: Iterable[Mapping[int, Sequence[RelationVersion]]] = (),
    ) -> None:
        self._versions = {oid: list(versions) for oid, versions in known.items()}
        self._earlier: dict[int, list[RelationVersion]] = {}
        for era in earlier:
            for oid, versions in era.items():
                self._earlier.setdefault(oid, []).extend(versions)
        self._look_up = look_up
        self.new: list[RelationVersion] = []

    def resolve(
        self,
        relation: StreamRelation,
        lsn: Lsn,
        attnums: Sequence[int | None] | None = None,
    ) -> RelationVersion:
        """The version that a Relation message describes, made now if it is a new shape. `attnums`
        are those of its columns, where the stream tells them."""
        versions = self._versions.get(relation.oid, [])
        if versions and versions[-1].matches(relation):
            return versions[-1]
        return self._add(relation, self._look_up(relation.oid), lsn, attnums)

    def register(self, table: Table, lsn: Lsn) -> RelationVersion:
        """The version that the catalog describes, for a baseline."""
        relation = table.to_stream()
        versions = self._versions.get(relation.oid, [])
        if versions and versions[-1].matches(relation):
            return versions[-1]
        return self._add(relation, table, lsn)

    def propose(self, table: Table, lsn: Lsn) -> RelationVersion:
        """The version that the catalog describes, without making it known: for `adopt`."""
        versions = list(self._versions.get(table.oid, []))
        proposed = self._make(table.to_stream(), table, versions, lsn)
        if versions and _same(versions[-1], proposed):
            return versions[-1]
        return proposed

    def adopt(
        self, proposed: RelationVersion, lsn: Lsn, end: Lsn, after: Lsn | None = None
    ) -> bool:
        """Make a proposed version known as in force at `lsn`, which the stream has passed, up to
        `end`. False if the stream has shown other shapes meanwhile; with `after`, also if it is not
        certain what its events from there to `lsn` mean in that version.
        """
        versions = self._versions.setdefault(proposed.oid, [])
        number = proposed.version - 1
        if number > len(versions) or (after and not self._is_certain(proposed, after, lsn)):
            return False
        if number == len(versions):
            if versions and versions[-1].since >= lsn:
                return False
            # Nothing in the stream tells it from the version before: events since then may have
            # been filed under that one. Those from `end` on are not.
            hidden = bool(versions) and versions[-1].matches(proposed.to_stream())
            proposed = replace(proposed, since=Lsn((end if hidden else lsn).value - 1))
            versions.append(proposed)
            self.new.append(proposed)
            return not hidden
        known = versions[number]
        if not _same(known, proposed):
            return False
        if len(versions) > number + 1 and versions[number + 1].since < lsn:
            return False
        if known.since >= lsn:
            earlier = replace(known, since=Lsn(lsn.value - 1))
            versions[number] = earlier
            self.new = [version for version in self.new if version is not known] + [earlier]
        return True

    def newest_of(self, oid: int) -> RelationVersion | None:
        """The last version of a relation."""
        versions = self._versions.get(oid)
        return versions[-1] if versions else None

    def _is_certain(self, proposed: RelationVersion, after: Lsn, lsn: Lsn) -> bool:
        versions = self._versions[proposed.oid]
        before = [version for version in versions if version.since < after]
        return bool(before) and certain(before[-1], proposed, self.shown(proposed.oid, after, lsn))

    def shown(self, oid: int, after: Lsn, lsn: Lsn) -> list[RelationVersion]:
        """The versions of a relation that came into force from `after` on and before `lsn`."""
        return [v for v in self._versions.get(oid, []) if after <= v.since < lsn]

    def since(self) -> dict[int, Lsn]:
        """Where each relation was first seen."""
        return {
            oid: versions[0].since for oid, versions in list(self._versions.items()) if versions
        }

    def newest(self) -> list[RelationVersion]:
        """The last version of every relation."""
        return [versions[-1] for versions in self._versions.values()]

    def take_new(self) -> list[RelationVersion]:
        taken, self.new = self.new, []
        return sorted(taken, key=lambda version: (version.oid, version.version))

    def _add(
        self,
        relation: StreamRelation,
        table: Table | None,
        lsn: Lsn,
        attnums: Sequence[int | None] | None = None,
    ) -> RelationVersion:
        versions = self._versions.setdefault(relation.oid, [])
        version = self._make(relation, table, versions, lsn, attnums)
        versions.append(version)
        self.new.append(version)
        return version

    def _make(
        self,
        relation: StreamRelation,
        table: Table | None,
        versions: Sequence[RelationVersion],
        lsn: Lsn,
        attnums: Sequence[int | None] | None = None,
    ) -> RelationVersion:
        """The version that follows those of this era."""
        earlier = self._earlier.get(relation.oid, ())
        return _make(relation, table, versions, lsn, earlier, attnums)


def _same(known: RelationVersion, other: RelationVersion) -> bool:
    """Whether two versions differ in nothing but number and time."""
    return replace(known, version=other.version, since=other.since) == other


def _make(
    relation: StreamRelation,
    table: Table | None,
    versions: Sequence[RelationVersion],
    lsn: Lsn,
    earlier: Sequence[RelationVersion],
    attnums: Sequence[int | None] | None = None,
) -> RelationVersion:
    """The version that follows `versions`; `earlier` ones are of eras before."""
    agrees = table is not None and table.to_stream().columns == relation.columns
    columns: list[Column] = []
    taken = {column.stored for v in (*earlier, *versions) for column in v.columns}
    if attnums is None or None in attnums:
        origins = _former(relation, table, versions)
    else:
        origins = [(attnum, None) for attnum in attnums]
    for described, (attnum, former) in zip(relation.columns, origins, strict=True):
        storage = storage_of(described.type_oid, described.typmod)
        stored = _known_column(versions, former, attnum, storage)
        if stored is None:
            stored = _earlier_column(earlier, described.name, attnum, storage)
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
    return RelationVersion(
        oid=relation.oid,
        version=len(versions) + 1,
        schema=relation.schema,
        name=relation.name,
        replica_identity=relation.replica_identity,
        columns=tuple(columns),
        key=_key(relation, table if agrees else None, columns, versions),
        since=lsn,
    )


def _former(
    relation: StreamRelation, table: Table | None, versions: Sequence[RelationVersion]
) -> list[tuple[int | None, Column | None]]:
    """For each column its attnum, where it can be told, and what it was in the version before.

    The catalog may be ahead: it knows columns by the names that they have by then, the version
    before by the names they had. A name that neither knows is a column that was renamed since, and
    is again by now: it lies where it did. Columns are in the order of their attnums.
    """
    before = list(versions[-1].columns) if versions else []
    now = {_identity(c): c.attnum for c in (table.columns if table else ())}
    newest = max((c.attnum or 0 for version in versions for c in version.columns), default=0)
    known = {_identity(column) for column in before}
    added = {c: attnum for c, attnum in now.items() if attnum > newest and c not in known}
    # A name may have gone from one column to another by now. Where the catalog's order is not the
    # relation's, it is believed only for columns that are new.
    for catalog in (now, added, {}):
        attnums = [catalog.get(_identity(c)) for c in relation.columns]
        places = [_place(c, a, before) for c, a in zip(relation.columns, attnums, strict=True)]
        if _ascending(attnums) and _ascending(places):
            break
    else:
        return [(None, None)] * len(relation.columns)
    _place_renamed(relation, attnums, places, before)
    former = [None if place is None else before[place] for place in places]
    attnums = [a or (f.attnum if f else None) for a, f in zip(attnums, former, strict=True)]
    _number_new(relation, attnums, places, now, newest)
    return list(zip(attnums, former, strict=True))


def _place(column: StreamColumn, attnum: int | None, before: Sequence[Column]) -> int | None:
    """Which of the columns before it is, by its attnum or else by its name."""
    same_attnum = [i for i, c in enumerate(before) if c.attnum == attnum is not None]
    same_name = [
        i
        for i, c in enumerate(before)
        if c.name == column.name and (attnum is None or c.attnum is None)
    ]
    places = same_attnum + same_name
    return places[0] if places else None


def _place_renamed(
    relation: StreamRelation,
    attnums: Sequence[int | None],
    places: list[int | None],
    before: Sequence[Column],
) -> None:
    """Fill in which columns before those are that nothing knows by name: of the same type, between
    the same neighbours, in the same order."""
    for number, described in enumerate(relation.columns):
        if places[number] is not None or attnums[number] is not None:
            continue
        low = max((p for p in places[:number] if p is not None), default=-1)
        high = min((p for p in places[number + 1 :] if p is not None), default=len(before))
        kind = (described.type_oid, described.typmod)
        gap = range(low + 1, high)
        places[number] = next(
            (i for i in gap if (before[i].type_oid, before[i].typmod) == kind), None
        )


def _number_new(
    relation: StreamRelation,
    attnums: list[int | None],
    places: Sequence[int | None],
    now: Mapping[tuple[str, int, int], int],
    newest: int,
) -> None:
    """Fill in the attnums of columns that are new at the end and unknown by name: they count on,
    unless the catalog has a column of another type there."""
    types = {attnum: kind for (_, *kind), attnum in now.items()}
    last = newest
    for number, described in enumerate(relation.columns):
        last = max(last, attnums[number] or 0)
        at_end = not any(place is not None for place in places[number:])
        if at_end and attnums[number] is None:
            kind = [described.type_oid, described.typmod]
            if types.get(last + 1, kind) == kind:
                last += 1
                attnums[number] = last


def _ascending(numbers: Sequence[int | None]) -> bool:
    known = [number for number in numbers if number is not None]
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
    versions: Sequence[RelationVersion], former: Column | None, attnum: int | None, storage: str
) -> str | None:
    """The stored name of the same column with the same storage in an earlier version."""
    same = [c for v in versions for c in v.columns if attnum is not None and c.attnum == attnum]
    same += [former] if former is not None else []
    matching = [column.stored for column in same if column.storage == storage]
    return matching[-1] if matching else None


def _earlier_column(
    earlier: Sequence[RelationVersion], name: str, attnum: int | None, storage: str
) -> str | None:
    """The stored name that a column had in an era before. The name must be the same too: another
    database may use the same oid for another table."""
    wanted = (name, attnum, storage)
    same = [c.stored for v in earlier for c in v.columns if (c.name, c.attnum, c.storage) == wanted]
    return same[-1] if same else None


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
