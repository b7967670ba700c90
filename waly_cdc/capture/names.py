"""Which table had a name, and when: wal2json tells tables by nothing else.

A name is believed to belong to the table that the last look at the catalog before the change found
under it. A look whose answer differs counts from where the log stood right after it. What was
changed in between may be filed under the wrong table: the tables concerned get a gap there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.source.catalog import Table

Name = tuple[str, str]
"""Schema and name."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """The table that has a name from an LSN on."""

    oid: int
    since: Lsn


class TableNames:
    """The tables by name. `look` is the table watch's, all else the keeper's.

    `generated` tells the generated columns, which wal2json sends and pgoutput does not.
    """

    def __init__(self, newest: Iterable[RelationVersion]) -> None:
        """`newest` are the last versions of the relations that are there still."""
        self._lock = threading.Lock()
        self._holders: dict[Name, list[_Holder]] = {}
        for relation in sorted(newest, key=lambda version: version.since):
            self._holders[relation.schema, relation.name] = [_Holder(relation.oid, ZERO)]
        self._generated: dict[int, Mapping[int, str]] = {}
        self._columns: dict[int, list[tuple[Lsn, frozenset[int]]]] = {}
        self.looks = 0
        """How many looks there have been."""

    def oid_at(self, name: Name, lsn: Lsn) -> int | None:
        """The table that had the name in a transaction that commits at an LSN, if it is known."""
        with self._lock:
            held = [h for h in self._holders.get(name, ()) if h.since <= lsn]
        return held[-1].oid if held else None

    def generated(self, oid: int) -> Mapping[int, str]:
        """The names of a table's generated columns by attnum."""
        with self._lock:
            return self._generated.get(oid, {})

    def columns_at(self, oid: int, lsn: Lsn) -> frozenset[int] | None:
        """The attnums of the columns that a table had at most in a transaction that commits at an
        LSN, but for new ones; None where no look tells."""
        with self._lock:
            seen = [attnums for since, attnums in self._columns.get(oid, ()) if since <= lsn]
        return seen[-1] if seen else None

    def learn(self, table: Table) -> None:
        """A table whose name no look has seen."""
        with self._lock:
            name = (table.schema, table.name)
            self._holders.setdefault(name, [_Holder(table.oid, ZERO)])
            self._generated.setdefault(table.oid, table.generated)

    def look(self, tables: Iterable[Table], position: Callable[[], Lsn]) -> set[int]:
        """Take over what the catalog says. `position` tells where the log ends, after the catalog
        was read. Returns the tables of which changes may have been filed wrongly since the look
        before: those whose name passed to or came from another, and those of which a column is no
        longer generated."""
        with self._lock:
            doubtful: set[int] = set()
            now = position()
            for table in tables:
                held = self._holders.setdefault(
                    (table.schema, table.name), [_Holder(table.oid, ZERO)]
                )
                if held[-1].oid != table.oid:
                    doubtful |= {held[-1].oid, table.oid}
                    held.append(_Holder(table.oid, now))
                attnums = frozenset(column.attnum for column in table.columns)
                seen = self._columns.setdefault(table.oid, [])
                if not seen or seen[-1][1] != attnums:
                    seen.append((now, attnums))
                if self._generated.get(table.oid, {}).keys() - table.generated.keys():
                    doubtful.add(table.oid)
                self._generated[table.oid] = table.generated
            self.looks += 1
            return doubtful


def present(
    relations: Mapping[int, list[RelationVersion]], dropped: Iterable[int]
) -> list[RelationVersion]:
    """The last version of each relation that was there at the last look."""
    gone = set(dropped)
    return [versions[-1] for oid, versions in relations.items() if oid not in gone]
