"""What a restore will do, decided before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from waly_cdc.archive.contents import Contents, parse_qualified_name
from waly_cdc.archive.manifest import Baseline, File, SequenceValue, format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt, PointNotInArchive, TargetError, UsageError
from waly_cdc.history.moment import Moment
from waly_cdc.history.state import state_files
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.restore import schema as schemas
from waly_cdc.restore.dump import Item, read_items
from waly_cdc.restore.fit import made_from_version
from waly_cdc.restore.schema import Schema, TableItem


@dataclass(frozen=True, slots=True)
class SchemaDump:
    """The schema as it was at some moment from `lsn` to `until`.

    `earlier` holds the oids of the tables in the dump before it, where the point lies between them.
    """

    lsn: Lsn
    until: Lsn
    items: Sequence[Item]
    earlier: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class PlannedTable:
    """A table whose rows are restored. `name` is what it was called at the point, `made_as` what
    the schema dump calls it.

    `versions` are all of its relation, `version` is the one in force. `files` are those that its
    state is computed from: of a baseline (None for a table that was made later and followed from
    its first row on) and of the events since.
    """

    name: TableItem
    made_as: TableItem
    version: RelationVersion
    versions: tuple[RelationVersion, ...]
    baseline: Baseline | None
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def rows(self) -> int:
        """An estimate: the baseline's rows, and inserts less deletes since."""
        changes = sum(f.ops.get("I", 0) - f.ops.get("D", 0) for f in self.files)
        return max((self.baseline.rows if self.baseline else 0) + changes, 0)


@dataclass(frozen=True, slots=True)
class Plan:
    """A restore to `lsn` of an era: the state made by all commits that begin before it.

    `schema` is None where there is no dump to take it from, `dumped_later` says that the dump was
    taken after the point. `without_rows` names tables whose rows cannot be restored, and why.
    """

    lsn: Lsn
    time: datetime | None
    tables: tuple[PlannedTable, ...]
    schema: Schema | None
    sequences: tuple[SequenceValue, ...]
    without_rows: tuple[str, ...]
    dumped_later: bool = False
    era: int = 1

    @property
    def left_out(self) -> tuple[str, ...]:
        """What belongs to the point and will not be in a PostgreSQL target."""
        return (self.schema.left_out if self.schema else ()) + self.without_rows

    @property
    def bytes(self) -> int:
        return sum(table.bytes for table in self.tables)

    def required_schema(self) -> Schema:
        """The schema, for a target that cannot do without. Raises TargetError."""
        if self.schema is None:
            raise TargetError(
                "the archive holds no schema dump of that time, so no database can be made from it",
                hint="restore into a DuckDB file: --output FILE.duckdb",
            )
        return self.schema

    def to_json(self) -> dict[str, Any]:
        return {
            "at": {"era": self.era, "lsn": str(self.lsn), "time": format_time(self.time)},
            "tables": [
                {
                    "table": table.name.qualified_name,
                    "rows_estimate": table.rows,
                    "baseline": str(table.baseline.lsn) if table.baseline else None,
                    "files": len(table.files),
                    "bytes": table.bytes,
                }
                for table in self.tables
            ],
            "sequences": len(self.sequences),
            "bytes": self.bytes,
            "left_out": list(self.left_out),
        }


def plan_restore(
    store: LocalStore, contents: Contents, moment: Moment, tables: Sequence[str] = ()
) -> Plan:
    """The plan of a restore to `moment` of the whole database, or of the tables that the user calls
    so. `contents` are those of the moment's era. Raises UsageError for a table that was not there
    then, ArchiveCorrupt."""
    dump = read_dump(store, contents, moment.bound)
    return plan(contents, dump, moment.bound, moment.time, tables)


def read_dump(store: LocalStore, contents: Contents, bound: Lsn) -> SchemaDump | None:
    """The schema dump that describes a point best; None where the archive has none.

    That is the newest one before it, or the next one if a shape changed between the two. Raises
    ArchiveCorrupt.
    """
    dumps = sorted((f for f in contents.files if f.kind == "schema"), key=lambda f: f.first_lsn)
    earlier = [dump for dump in dumps if dump.last_lsn <= bound]
    later = [dump for dump in dumps if dump.last_lsn > bound]
    known = earlier[-1].first_lsn if earlier else bound
    changed = any(known <= v.since < bound for vs in contents.relations.values() for v in vs)
    if later and (changed or not earlier):
        before = _read_items(store, earlier[-1]) if earlier else []
        oids = frozenset(table.oid for table in schemas.table_items(before))
        file = later[0]
        return SchemaDump(file.first_lsn, file.last_lsn, _read_items(store, file), oids)
    if not earlier:
        return None
    file = earlier[-1]
    return SchemaDump(file.first_lsn, file.last_lsn, _read_items(store, file))


def _read_items(store: LocalStore, file: File) -> list[Item]:
    try:
        return read_items(store.read(file.path))
    except FileNotFoundError:
        raise ArchiveCorrupt(f"{file.path} is missing", hint="run: waly verify") from None


def plan(
    contents: Contents,
    dump: SchemaDump | None,
    bound: Lsn,
    time: datetime | None,
    tables: Iterable[str] = (),
) -> Plan:
    """The plan of a restore to `bound` of the whole database, or of some tables.

    `dump` is what `read_dump` gives for the same point. Raises UsageError for a table that is not
    there.
    """
    items = None if dump is None else _without_later_tables(contents, dump, bound)
    described = schemas.table_items(items or ())
    undescribed = _undescribed(contents, described, dump, bound)
    alive = {table.oid: table for table in described}
    alive |= {v.oid: TableItem(v.oid, v.schema, v.name) for v in undescribed}
    asked = [_find(alive.values(), contents, name, bound) for name in tables]
    wanted = set(asked) if asked else set(alive)
    schema = None
    if items is not None:
        wanted |= schemas.partitions_of(items, wanted)
        schema = schemas.some_tables(items, wanted) if asked else schemas.whole(items)
        schema = _with_versions(schema, [v for v in undescribed if v.oid in wanted])
    planned, without_rows = [], []
    for table in (alive[oid] for oid in alive if oid in wanted and not alive[oid].partitioned):
        found = _planned(contents, table, dump, bound)
        if isinstance(found, str):
            without_rows.append(f"rows of table {table.qualified_name}: {found}")
        elif found is not None:
            planned.append(found)
    sequences = contents.sequences_at(bound)
    made = schema.sequences if schema else frozenset()
    return Plan(
        lsn=bound,
        time=time,
        tables=tuple(planned),
        schema=schema,
        sequences=tuple(s for s in sequences if (s.schema, s.name) in made),
        without_rows=tuple(without_rows),
        dumped_later=dump is not None and dump.until > bound,
        era=contents.era,
    )


def _without_later_tables(contents: Contents, dump: SchemaDump, bound: Lsn) -> list[Item]:
    """The dump's items, but for tables that a dump from after the point has and the point did not,
    and what depends on them."""
    if dump.until <= bound:
        return list(dump.items)
    later = {oid for oid in contents.relations if contents.version_at(oid, bound) is None}
    return schemas.without_tables(dump.items, later)


def _undescribed(
    contents: Contents, described: Iterable[TableItem], dump: SchemaDump | None, bound: Lsn
) -> list[RelationVersion]:
    """Versions in force of tables that the dump lacks and that may have been there at the point.

    A table that was dropped stops to have events, and nothing else tells of it. One that an earlier
    dump lacks is gone, unless a shape of it came after the dump; one that only a later dump lacks
    may have been there, or is known to have been by its events.
    """
    known = {table.oid for table in described}
    versions = [
        version
        for oid in contents.relations
        if oid not in known and (version := contents.version_at(oid, bound)) is not None
    ]
    if dump is None:
        return versions
    if dump.until <= bound:
        return [version for version in versions if version.since >= dump.lsn]
    return [
        version
        for version in versions
        if version.oid in dump.earlier
        or any(file.last_lsn >= bound for file in contents.event_files(version.oid))
    ]


def _with_versions(schema: Schema, versions: Iterable[RelationVersion]) -> Schema:
    """The schema with tables made from their relation versions added."""
    for version in versions:
        before, after = made_from_version(version)
        schema = replace(
            schema,
            before=(*schema.before, *before),
            after=(*after, *schema.after),
            left_out=(
                *schema.left_out,
                f"all of table {version.qualified_name} but columns and key: it came or went"
                " between two schema dumps, and may not have been there",
            ),
        )
    return schema


def _find(alive: Iterable[TableItem], contents: Contents, name: str, bound: Lsn) -> int:
    """The oid of the table that a user calls `name`, partitioned ones included."""
    wanted = parse_qualified_name(name)
    known = list(alive)
    found = [table for table in known if (table.schema, table.name)[-len(wanted) :] == wanted]
    if len(found) > 1:
        found = [table for table in found if table.schema == "public"] or found
    if len(found) == 1:
        return found[0].oid
    if not found:
        # By a name that it got after the dump was taken; or the error that names what there is.
        oid = contents.find_relation(name, bound).oid
        if any(table.oid == oid for table in known):
            return oid
        raise UsageError(f"table {name!r} did not exist at {bound}")
    raise UsageError(
        f"table {name!r} is in several schemas",
        hint="name one of: " + ", ".join(sorted(table.qualified_name for table in found)),
    )


def _planned(
    contents: Contents, table: TableItem, dump: SchemaDump | None, bound: Lsn
) -> PlannedTable | str | None:
    """The table's part in the plan; why its rows cannot be restored; None if it had none yet."""
    versions = tuple(contents.relations.get(table.oid, ()))
    version = contents.version_at(table.oid, bound)
    if version is None:
        return None if versions else "they are not in the archive"
    try:
        files = state_files(contents, version, bound)
    except PointNotInArchive as error:
        return error.message
    name = table
    if dump is not None and _renamed_since(table, version, versions, dump, bound):
        name = replace(table, schema=version.schema, name=version.name)
    baseline = contents.baseline_for(table.oid, bound)
    return PlannedTable(name, table, version, versions, baseline, tuple(files))


def _renamed_since(
    table: TableItem,
    version: RelationVersion,
    versions: Iterable[RelationVersion],
    dump: SchemaDump,
    bound: Lsn,
) -> bool:
    """Whether the dump's name for a table is known to be from before the version, or after it. A
    name that no event ever came under may as well be the one of that time."""
    if dump.until <= bound:
        return version.since >= dump.lsn
    return any(
        (later.schema, later.name) == (table.schema, table.name)
        for later in versions
        if later.version > version.version
    )
