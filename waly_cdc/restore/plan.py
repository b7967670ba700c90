"""What a restore will do, decided before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from waly_cdc.archive.contents import Contents, parse_qualified_name
from waly_cdc.archive.manifest import Baseline, File, SequenceValue, format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt, PointNotInArchive, TargetError, UsageError
from waly_cdc.history.state import state_files
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.restore import schema as schemas
from waly_cdc.restore.dump import Item, read_items
from waly_cdc.restore.schema import Schema, TableItem


@dataclass(frozen=True, slots=True)
class PlannedTable:
    """A table whose rows are restored, under the name that it has in the target.

    `files` are those that its state is computed from: of a baseline (None for a table that was
    made later and followed from its first row on) and of the events since.
    """

    name: TableItem
    version: RelationVersion
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
    """A restore to `lsn`: the state made by all commits that begin before it.

    `schema` is None where there is no dump to take it from. `without_rows` names tables whose rows
    cannot be restored, and why.
    """

    lsn: Lsn
    time: datetime | None
    tables: tuple[PlannedTable, ...]
    schema: Schema | None
    sequences: tuple[SequenceValue, ...]
    without_rows: tuple[str, ...]

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
            "at": {"lsn": str(self.lsn), "time": format_time(self.time)},
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


def read_dump(store: LocalStore, contents: Contents, bound: Lsn) -> list[Item] | None:
    """The schema in force at a point; None where the archive has none. Raises ArchiveCorrupt."""
    file = contents.schema_file(bound)
    if file is None:
        return None
    try:
        return read_items(store.read(file.path))
    except FileNotFoundError:
        raise ArchiveCorrupt(f"{file.path} is missing", hint="run: waly verify") from None


def plan(
    contents: Contents,
    items: Sequence[Item] | None,
    bound: Lsn,
    time: datetime | None,
    tables: Iterable[str] = (),
) -> Plan:
    """The plan of a restore to `bound` of the whole database, or of some tables.

    `items` is what `read_dump` gives for the same point: a table that it does not hold did not
    exist then. Raises UsageError for a table that is not there.
    """
    alive = {} if items is None else {table.oid: table for table in schemas.table_items(items)}
    if items is None:
        for oid in contents.relations:
            if (version := contents.version_at(oid, bound)) is not None:
                alive[oid] = TableItem(oid, version.schema, version.name)
    asked = [_find(alive.values(), contents, name, bound) for name in tables]
    wanted = set(asked) if asked else set(alive)
    schema = None
    if items is not None:
        wanted = schemas.partitions_of(items, wanted)
        schema = schemas.some_tables(items, wanted) if asked else schemas.whole(items)
    planned, without_rows = [], []
    for table in (alive[oid] for oid in alive if oid in wanted and not alive[oid].partitioned):
        found = _planned(contents, table, bound)
        if isinstance(found, str):
            without_rows.append(f"rows of table {table.qualified_name}: {found}")
        else:
            planned.append(found)
    if not asked:
        without_rows += _unknown_shape(contents, alive, bound)
    sequences = contents.sequences_at(bound)
    made = schema.sequences if schema else frozenset()
    return Plan(
        lsn=bound,
        time=time,
        tables=tuple(planned),
        schema=schema,
        sequences=tuple(s for s in sequences if (s.schema, s.name) in made),
        without_rows=tuple(without_rows),
    )


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


def _planned(contents: Contents, table: TableItem, bound: Lsn) -> PlannedTable | str:
    """The table's part in the plan, or why its rows cannot be restored."""
    version = contents.version_at(table.oid, bound)
    if version is None:
        return "they are not in the archive"
    try:
        files = state_files(contents, version, bound)
    except PointNotInArchive as error:
        return error.message
    baseline = contents.baseline_for(table.oid, bound)
    return PlannedTable(table, version, baseline, tuple(files))


def _unknown_shape(contents: Contents, alive: dict[int, TableItem], bound: Lsn) -> list[str]:
    """Tables with rows at that point that the newest schema dump before it does not describe."""
    return [
        f"table {version.qualified_name}: made after the schema was last archived"
        for oid in contents.relations
        if oid not in alive
        and (version := contents.version_at(oid, bound)) is not None
        and (dump := contents.schema_file(bound)) is not None
        and version.since >= dump.first_lsn
    ]
