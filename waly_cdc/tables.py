"""What the catalog tells of a table that no event does: its heap, gaps, its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from waly_cdc.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Heap:
    """Where a table's rows lie: its file, and the attnums of columns that older rows have a default
    for without holding it.

    A statement that rewrites a table (ALTER COLUMN … TYPE, ADD COLUMN with a volatile default, …)
    gives it a new file and sends no event for the rows in it. ADD COLUMN with a constant default
    leaves the file alone: rows from before have the default without holding it (PostgreSQL
    documentation, section 51.7, `pg_attribute.attmissingval`).
    """

    oid: int
    filenode: int
    filled: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"oid": self.oid, "filenode": self.filenode, "filled": list(self.filled)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Heap:
        return cls(data["oid"], data["filenode"], tuple(data["filled"]))


@dataclass(frozen=True, slots=True)
class Gap:
    """LSNs at which a table's rows are not known, `start` and `end` excluded: rows changed after
    `start` without events, and a baseline at `end` has them all. `end` None: there is none yet."""

    oid: int
    start: Lsn
    end: Lsn | None
    reason: str

    def holds(self, lsn: Lsn) -> bool:
        return self.start < lsn and (self.end is None or lsn < self.end)

    def to_json(self) -> dict[str, Any]:
        return {
            "oid": self.oid,
            "from": str(self.start),
            "to": str(self.end) if self.end else None,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gap:
        end = Lsn.parse(data["to"]) if data["to"] else None
        return cls(data["oid"], Lsn.parse(data["from"]), end, data["reason"])


@dataclass(frozen=True, slots=True)
class Drop:
    """The end of a table: it was there at `after`, and gone at `by`."""

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
