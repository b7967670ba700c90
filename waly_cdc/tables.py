"""What the catalog tells of a table that no event does: its heap, gaps, its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from waly_cdc.lsn import Lsn


class HeapColumn(NamedTuple):
    """A column as its table's rows hold it. `written_by` is the transaction that last wrote its row
    in `pg_attribute`, `rest` what that row says otherwise."""

    attnum: int
    name: str
    type_oid: int
    typmod: int
    generated: bool
    written_by: int
    rest: str


@dataclass(frozen=True, slots=True)
class Heap:
    """Where a table's rows lie, and how they are read: what tells that rows or names changed.

    `filenode` is their file; `filled` are the attnums of columns that older rows have a default for
    without holding it; `attributes` counts all columns that there ever were; `texts` are the labels
    of enum types and the fields of composite types that values are printed with; `form` is a digest
    of the table's names, key and replica identity; `followed` as in `Table`; `published` has a text
    for each publication that the table is in: another one when it was altered as to this table.

    A statement that rewrites a table (ALTER COLUMN … TYPE, ADD COLUMN with a volatile default, …)
    gives it a new file and sends no event for the rows in it. ADD COLUMN with a constant default
    leaves the file alone: rows from before have the default without holding it (PostgreSQL
    documentation, section 51.7, `pg_attribute.attmissingval`).
    """

    oid: int
    filenode: int
    filled: tuple[int, ...]
    attributes: int
    columns: tuple[HeapColumn, ...]
    texts: tuple[tuple[str, str], ...]
    form: str
    followed: bool
    published: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "oid": self.oid,
            "filenode": self.filenode,
            "filled": list(self.filled),
            "attributes": self.attributes,
            "columns": [list(column) for column in self.columns],
            "texts": [list(text) for text in self.texts],
            "form": self.form,
            "followed": self.followed,
            "published": [list(each) for each in self.published],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Heap:
        return cls(
            data["oid"],
            data["filenode"],
            tuple(data["filled"]),
            data["attributes"],
            tuple(HeapColumn(*column) for column in data["columns"]),
            tuple((what, text) for what, text in data["texts"]),
            data["form"],
            data["followed"],
            tuple((name, text) for name, text in data["published"]),
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """LSNs at which a table's state is not known, `start` and `end` excluded: something changed
    after `start` without an event. At `end` all is known again, by a new baseline where rows had
    changed. `end` None: not yet. One that ends where it starts was none: it is withdrawn. `rows`
    False: no row changed in it but by events, only the table's shape is not known."""

    oid: int
    start: Lsn
    end: Lsn | None
    reason: str
    rows: bool = True

    def holds(self, lsn: Lsn) -> bool:
        return self.start < lsn and (self.end is None or lsn < self.end)

    def to_json(self) -> dict[str, Any]:
        return {
            "oid": self.oid,
            "from": str(self.start),
            "to": str(self.end) if self.end else None,
            "reason": self.reason,
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gap:
        end = Lsn.parse(data["to"]) if data["to"] else None
        return cls(data["oid"], Lsn.parse(data["from"]), end, data["reason"], data["rows"])


@dataclass(frozen=True, slots=True)
class Drop:
    """The end of a table: it was there at `after`, and gone at `by`. Between is a gap."""

    oid: int
    after: Lsn
    by: Lsn

    def to_json(self) -> dict[str, Any]:
        return {"oid": self.oid, "after": str(self.after), "by": str(self.by)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Drop:
        return cls(data["oid"], Lsn.parse(data["after"]), Lsn.parse(data["by"]))


@dataclass(frozen=True, slots=True)
class Partition:
    """Which partitioned tables a table is a partition of, the nearest first, each as schema and
    name; none: it is one no longer. It became so between two looks at the catalog, `after` and
    `by`. `columns` names those that rows are told apart by into partitions."""

    oid: int
    parents: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    after: Lsn
    by: Lsn

    def to_json(self) -> dict[str, Any]:
        return {
            "oid": self.oid,
            "parents": [list(parent) for parent in self.parents],
            "columns": list(self.columns),
            "after": str(self.after),
            "by": str(self.by),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Partition:
        return cls(
            data["oid"],
            tuple((schema, name) for schema, name in data["parents"]),
            tuple(data["columns"]),
            Lsn.parse(data["after"]),
            Lsn.parse(data["by"]),
        )


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What a look at the catalog found that readers must know; an entry of the manifest holds it.

    `looked_at`: everything that changed before it is known. None: nobody looked.
    """

    heaps: tuple[Heap, ...] = ()
    gaps: tuple[Gap, ...] = ()
    drops: tuple[Drop, ...] = ()
    partitions: tuple[Partition, ...] = ()
    looked_at: Lsn | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "heaps": [heap.to_json() for heap in self.heaps],
            "gaps": [gap.to_json() for gap in self.gaps],
            "drops": [drop.to_json() for drop in self.drops],
            "partitions": [partition.to_json() for partition in self.partitions],
            "looked_at": str(self.looked_at) if self.looked_at else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableChanges:
        return cls(
            tuple(map(Heap.from_json, data["heaps"])),
            tuple(map(Gap.from_json, data["gaps"])),
            tuple(map(Drop.from_json, data["drops"])),
            tuple(map(Partition.from_json, data["partitions"])),
            Lsn.parse(data["looked_at"]) if data["looked_at"] else None,
        )


NO_CHANGES = TableChanges()
