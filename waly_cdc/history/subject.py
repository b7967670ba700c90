"""What is asked about: one relation's events before an LSN, in the shapes of all its versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.store import LocalStore
from waly_cdc.history.events import ReadFiles, events, old_name, old_raw_name
from waly_cdc.history.session import identifier, read_files
from waly_cdc.history.texts import printed_text, raw_text
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion

EXTRA = ("_era", "_xid", "epoch_us(_committed_at) AS _committed_us", "_relation")


@dataclass(frozen=True, slots=True)
class Keying:
    """Relation versions, one after the other, that tell rows apart by the same columns: those of
    the key, or of all of the row where there is no key (`by_content`)."""

    versions: tuple[int, ...]
    columns: tuple[Column, ...]
    by_content: bool


@dataclass(frozen=True)
class Subject:
    """One relation's events before `bound`. `columns` are those of all its versions, each once: of
    one whose type was changed, and which has several stored names, the newest stands for all;
    `keyings` are those of the versions that have events and of the one in force, in order."""

    contents: Contents
    store: LocalStore
    oid: int
    bound: Lsn
    read: ReadFiles = read_files

    @cached_property
    def files(self) -> list[File]:
        return [f for f in self.contents.history_files(self.oid) if f.first_lsn < self.bound]

    @cached_property
    def versions(self) -> list[RelationVersion]:
        """The versions that have events; where there are none, the one in force."""
        numbers = {file.version for file in self.files} or {self.relation.version}
        return [v for v in self.contents.relations[self.oid] if v.version in numbers]

    @cached_property
    def relation(self) -> RelationVersion:
        """The version in force at the bound, or the last one before."""
        known = [v for v in self.contents.relations[self.oid] if v.since < self.bound]
        return (known or self.contents.relations[self.oid][:1])[-1]

    @cached_property
    def _stored(self) -> tuple[Column, ...]:
        """The columns of all versions by stored name, those of the newest version first."""
        found: dict[str, Column] = {}
        for version in [self.relation, *reversed(self.versions)]:
            for column in version.columns:
                found.setdefault(column.stored, column)
        return tuple(found.values())

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        return tuple({self.column(each.stored): None for each in self._stored})

    def column(self, stored: str) -> Column:
        """The one of `columns` that a stored name belongs to."""
        (mine,) = (column for column in self._stored if column.stored == stored)
        same = (c for c in self._stored if c.attnum == mine.attnum is not None)
        return next(same, mine)

    def has_column(self, version: RelationVersion, column: Column) -> Column | None:
        """What a version has in the place of one of `columns`."""
        return next((c for c in version.columns if self.column(c.stored) == column), None)

    def variants(self, column: Column) -> list[Column]:
        """The columns as stored that one of `columns` stands for."""
        return [each for each in self._stored if self.column(each.stored) == column]

    @cached_property
    def keyings(self) -> list[Keying]:
        found: list[Keying] = []
        latest = [] if self.relation in self.versions else [self.relation]
        for version in [*self.versions, *latest]:
            chosen = version.key_columns or version.columns
            columns = tuple(self.column(each.stored) for each in chosen)
            mine = Keying((version.version,), columns, not version.key)
            last = found[-1] if found else None
            if last is not None and _same(last, mine):
                found[-1] = replace(mine, versions=(*last.versions, version.version))
            else:
                found.append(mine)
        return found

    def has(self, *ops: str) -> bool:
        """Whether there are events of these operations."""
        return any(file.ops.get(op) for file in self.files for op in ops)

    def events(
        self, files: Sequence[File] | None = None, old: Iterable[Column] | None = None
    ) -> str:
        """A statement for the events in `files` (default: all) with typed values."""
        shape = replace(self.relation, columns=self._stored, key=())
        old = self.columns if old is None else old
        source = events(
            self.contents,
            self.store,
            shape,
            self.files if files is None else files,
            old=[each for column in old for each in self.variants(column)],
            extra=EXTRA,
            read=self.read,
        )
        return f"SELECT * FROM (\n{source}\n) WHERE _lsn < {self.bound.value}"

    def own_text(self, column: Column) -> str:
        """The printed text of the row's value, over what `events` gives."""
        texts = [
            printed_text(each, identifier(each.stored), raw_text(each.stored))
            for each in self.variants(column)
        ]
        return f"coalesce({', '.join(texts)})" if len(texts) > 1 else texts[0]

    def old_text(self, column: Column) -> str:
        """The printed text of the old row's value."""
        texts = [
            printed_text(each, old_name(each), old_raw_name(each)) for each in self.variants(column)
        ]
        return f"coalesce({', '.join(texts)})" if len(texts) > 1 else texts[0]


def _same(one: Keying, other: Keying) -> bool:
    stored = ({c.stored for c in one.columns}, {c.stored for c in other.columns})
    return one.by_content == other.by_content and stored[0] == stored[1]
