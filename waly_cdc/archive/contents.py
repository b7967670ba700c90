"""What an archive contains: the sum of its manifest entries.

Invariants of `Contents`:

* it is of one era, and the eras before it hang on it: within an era the entries' LSN ranges follow
  each other without a hole, and no LSN of one means anything in another;
* the eras' `files` together are exactly the files that exist, each once;
* `replaced` are files that compaction replaced lately: they hold nothing that `files` do not, and
  are kept for readers that opened the manifest before;
* `relations[oid]` lists a relation's versions in order, numbered from 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

from waly_cdc.archive import layout
from waly_cdc.archive.manifest import (
    GENESIS,
    Baseline,
    Entry,
    EraGap,
    File,
    SequenceValue,
    Source,
    digest,
    format_time,
    parse_time,
)
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt, NoArchive, UsageError
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.tables import Drop, Gap, Heap, Partition, TableChanges

GRACE = timedelta(hours=1)
"""How long a replaced file is kept, for readers that opened the manifest before."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A file in whose place the entry written `at` put another."""

    path: str
    at: datetime

    def expired(self, now: datetime) -> bool:
        """Whether no reader can be expected to need it any more."""
        return self.at + GRACE <= now


@dataclass(slots=True)
class Contents:
    """The newest era of the archive after `entries` manifest entries, the last of which hashes to
    `head`; or an `earlier` era, as it was when it ended.

    `beginning` and `beginning_time` tell where the era's first baseline was taken, before which
    nothing can be answered; None while there is none. `gap` lies between the era before and it.
    """

    entries: int = 0
    head: str = GENESIS
    era: int = 1
    beginning: Lsn | None = None
    beginning_time: datetime | None = None
    horizon: Lsn = ZERO
    horizon_time: datetime | None = None
    transactions: int = 0
    events: int = 0
    source: Source | None = None
    schema_fingerprint: str | None = None
    files: list[File] = field(default_factory=list)
    relations: dict[int, list[RelationVersion]] = field(default_factory=dict)
    baselines: list[Baseline] = field(default_factory=list)
    sequences: list[tuple[Lsn, tuple[SequenceValue, ...]]] = field(default_factory=list)
    heaps: dict[int, Heap] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    drops: dict[int, Drop] = field(default_factory=dict)
    partitions: list[Partition] = field(default_factory=list)
    looked_at: Lsn = ZERO
    gap: EraGap | None = None
    replaced: list[Replaced] = field(default_factory=list)
    earlier: list[Contents] = field(default_factory=list)

    @property
    def eras(self) -> list[Contents]:
        """All eras, oldest first; the last one is this."""
        return [*self.earlier, self]

    def in_era(self, era: int) -> Contents:
        """The era of that number. Raises KeyError."""
        for contents in self.eras:
            if contents.era == era:
                return contents
        raise KeyError(era)

    def apply(self, entry: Entry, content: bytes) -> None:
        """Add one more entry. Raises ArchiveCorrupt when it does not follow."""
        path = layout.entry_path(self.entries)
        if entry.number != self.entries or entry.previous != self.head:
            raise ArchiveCorrupt(
                f"{path} does not follow the entry before it: the manifest's chain is broken",
                hint="run: waly verify",
            )
        if entry.kind == "era":
            self._begin_era(entry, path)
        elif entry.start != self.horizon and self.beginning is not None:
            raise ArchiveCorrupt(
                f"{path} begins at {entry.start}, and the entry before it ends at {self.horizon}"
            )
        self.entries += 1
        self.head = digest(content)
        if self.beginning is None and entry.kind in ("baseline", "era"):
            self.beginning = entry.end
            # Where all tables were empty, no row tells when the snapshot was taken.
            times = [file.first_time for file in entry.files if file.kind == "baseline"]
            self.beginning_time = min(filter(None, times), default=entry.written_at)
        self.horizon = entry.end
        self.horizon_time = entry.horizon_time or self.horizon_time
        self.transactions += entry.transactions
        self.events += entry.events
        self.source = entry.source or self.source
        self.schema_fingerprint = entry.schema_fingerprint or self.schema_fingerprint
        self.replaced = [each for each in self.replaced if not each.expired(entry.written_at)]
        if entry.kind == "compact":
            self._replace(entry, path)
        else:
            self.files.extend(entry.files)
        self.baselines.extend(entry.baselines)
        for relation in entry.relations:
            # A version that is given again was in force earlier than was known.
            known = self.relations.setdefault(relation.oid, [])
            known[relation.version - 1 :] = [relation, *known[relation.version :]]
        if entry.sequences:
            self.sequences.append((entry.end, entry.sequences))
        self._apply_tables(entry.tables)

    def _replace(self, entry: Entry, path: str) -> None:
        """Put an entry's files in the place of those that it removes."""
        removed = {each.path for each in entry.removed}
        era = next((each for each in self.eras if each.era == entry.era), None)
        if era is None or not removed <= {file.path for file in era.files}:
            raise ArchiveCorrupt(
                f"{path} replaces files that era {entry.era} does not have",
                hint="run: waly verify",
            )
        era.files = [file for file in era.files if file.path not in removed] + list(entry.files)
        self.replaced += [Replaced(each.path, entry.written_at) for each in entry.removed]

    def _begin_era(self, entry: Entry, path: str) -> None:
        """Put all that is of this era among the earlier ones, and begin the next."""
        if entry.gap is None or entry.era != self.era + 1 or entry.gap.start != self.horizon:
            raise ArchiveCorrupt(
                f"{path} does not begin era {self.era + 1} after a gap from {self.horizon}"
            )
        ended = replace(self, earlier=[])
        fresh = Contents(self.entries, self.head, entry.era)
        fresh.gap, fresh.earlier = entry.gap, [*self.earlier, ended]
        fresh.replaced, ended.replaced = self.replaced, []
        for each in fields(Contents):
            setattr(self, each.name, getattr(fresh, each.name))

    def _apply_tables(self, tables: TableChanges) -> None:
        for heap in tables.heaps:
            self.heaps[heap.oid] = heap
            # It is logged again after it was not: a gap tells since when its rows are not known.
            self.drops.pop(heap.oid, None)
        for gap in tables.gaps:
            # One that is closed stands for the open one that began where it does.
            opened = replace(gap, end=None)
            self.gaps = [known for known in self.gaps if replace(known, end=None) != opened]
            if gap.end != gap.start:
                self.gaps.append(gap)
        for drop in tables.drops:
            self.drops[drop.oid] = drop
            self.heaps.pop(drop.oid, None)
        self.partitions.extend(tables.partitions)
        self.looked_at = tables.looked_at or self.looked_at

    def gap_at(self, oid: int, bound: Lsn) -> Gap | None:
        """The gap that makes a relation's state at a point unknown."""
        return next((gap for gap in self.gaps if gap.oid == oid and gap.holds(bound)), None)

    def version(self, oid: int, number: int) -> RelationVersion:
        return self.relations[oid][number - 1]

    def version_at(self, oid: int, bound: Lsn) -> RelationVersion | None:
        """The version in force for commits before `bound`; None before the relation was known, and
        after it was dropped."""
        drop = self.drops.get(oid)
        if drop is not None and drop.by <= bound:
            return None
        known = [version for version in self.relations.get(oid, ()) if version.since < bound]
        return known[-1] if known else None

    def find_relation(self, name: str, bound: Lsn | None = None) -> RelationVersion:
        """The relation that a user calls `name` or `schema.name`, quoted as in SQL where needed,
        at a point (default: the horizon). Raises UsageError, naming what there is."""
        wanted = parse_qualified_name(name)
        found = [
            version
            for oid in self.relations
            if (version := self.version_at(oid, bound or self.horizon + 1)) is not None
            and (version.schema, version.name)[-len(wanted) :] == wanted
        ]
        if len(wanted) == 1 and len(found) > 1:
            found = [version for version in found if version.schema == "public"] or found
        schemas = {(version.schema, version.name) for version in found}
        if len(schemas) > 1:
            raise UsageError(
                f"table {name!r} is in several schemas",
                hint="name one of: " + ", ".join(sorted(v.qualified_name for v in found)),
            )
        if not found and name != name.lower() and '"' not in name:
            # Not as SQL reads it, but as people copy it.
            quoted = ".".join(f'"{part}"' for part in name.split("."))
            return self.find_relation(quoted, bound)
        if not found:
            names = sorted({versions[-1].qualified_name for versions in self.relations.values()})
            raise UsageError(
                f"no table {name!r} in the archive",
                hint="tables: " + ", ".join(names[:20]) + (" …" if len(names) > 20 else ""),
            )
        return max(found, key=lambda version: version.since)

    def find_relations(self, name: str) -> list[RelationVersion]:
        """The newest version of every relation that ever had the name, dropped ones too; the one
        that has it at the horizon first. Raises UsageError."""
        wanted = parse_qualified_name(name)
        had = [
            versions[-1]
            for versions in self.relations.values()
            if any((v.schema, v.name)[-len(wanted) :] == wanted for v in versions)
        ]
        try:
            now = self.find_relation(name)
        except UsageError:
            if not had or len({(v.schema, v.name) for v in had}) > 1:
                raise
            now = max(had, key=lambda version: version.since)
        same = [v for v in had if (v.schema, v.name) == (now.schema, now.name)]
        return sorted(same, key=lambda version: (version.oid != now.oid, -version.since.value))

    def has_relation(self, name: str) -> bool:
        """Whether any relation has or had that name."""
        try:
            return bool(self.find_relations(name))
        except UsageError:
            return False

    def partitions_of(self, name: str) -> list[RelationVersion]:
        """The newest version of every relation that is or was a partition of the partitioned table
        of that name, at any depth, in the order in which they became so."""
        wanted = parse_qualified_name(name)
        oids = [
            partition.oid
            for partition in self.partitions
            if any(parent[-len(wanted) :] == wanted for parent in partition.parents)
        ]
        return [self.relations[oid][-1] for oid in dict.fromkeys(oids) if oid in self.relations]

    def baseline_for(self, oid: int, bound: Lsn) -> Baseline | None:
        """The newest baseline of a relation from which its state at `bound` can be replayed."""
        usable = [b for b in self.baselines if b.oid == oid and b.lsn <= bound]
        return max(usable, key=lambda baseline: baseline.lsn, default=None)

    def event_files(self, oid: int) -> list[File]:
        """Files with events and baseline rows of a relation, in no order."""
        return [file for file in self.files if file.oid == oid]

    def history_files(self, oid: int) -> list[File]:
        """The same without folded baselines that come after anything: they repeat what it made."""
        files = self.event_files(oid)
        first = min((file.first_lsn for file in files), default=ZERO)
        folded = {b.lsn for b in self.baselines if b.oid == oid and b.folded}
        return [
            file
            for file in files
            if file.kind != "baseline" or file.first_lsn == first or file.last_lsn + 1 not in folded
        ]

    def transaction_files(self) -> list[File]:
        return [file for file in self.files if file.kind == "transactions"]

    def sequences_at(self, bound: Lsn) -> tuple[SequenceValue, ...]:
        """Sequence values that no later `nextval` before `bound` has passed: those recorded first
        at or after it, or the last ones."""
        later = [values for end, values in self.sequences if end >= bound]
        if later:
            return later[0]
        return self.sequences[-1][1] if self.sequences else ()

    def to_checkpoint(self) -> bytes:
        data = {**self._to_json(), "earlier": [era._to_json() for era in self.earlier]}
        body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
        return digest(body).encode() + b"\n" + body + b"\n"

    def _to_json(self) -> dict[str, Any]:
        return {
            "entries": self.entries,
            "head": self.head,
            "era": self.era,
            "beginning": str(self.beginning) if self.beginning else None,
            "beginning_time": format_time(self.beginning_time),
            "horizon": str(self.horizon),
            "horizon_time": format_time(self.horizon_time),
            "transactions": self.transactions,
            "events": self.events,
            "source": self.source.to_json() if self.source else None,
            "schema_fingerprint": self.schema_fingerprint,
            "files": [file.to_json() for file in self.files],
            "relations": [v.to_json() for versions in self.relations.values() for v in versions],
            "baselines": [baseline.to_json() for baseline in self.baselines],
            "tables": self._tables_to_json(),
            "sequences": [
                [str(end), [value.to_json() for value in values]] for end, values in self.sequences
            ],
            "gap": self.gap.to_json() if self.gap else None,
            "replaced": [[each.path, format_time(each.at)] for each in self.replaced],
        }

    def _tables_to_json(self) -> dict[str, Any]:
        return TableChanges(
            tuple(self.heaps.values()),
            tuple(self.gaps),
            tuple(self.drops.values()),
            tuple(self.partitions),
            self.looked_at,
        ).to_json()

    @classmethod
    def from_checkpoint(cls, content: bytes) -> Contents:
        """Raises ValueError for a damaged checkpoint."""
        checksum, _, body = content.rstrip(b"\n").partition(b"\n")
        if digest(body).encode() != checksum:
            raise ValueError("checksum does not match")
        data: dict[str, Any] = json.loads(body)
        contents = cls._from_json(data)
        contents.earlier = [cls._from_json(era) for era in data["earlier"]]
        return contents

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Contents:
        tables = TableChanges.from_json(data["tables"])
        relations: dict[int, list[RelationVersion]] = {}
        for item in data["relations"]:
            relations.setdefault(item["oid"], []).append(RelationVersion.from_json(item))
        return cls(
            entries=data["entries"],
            head=data["head"],
            era=data["era"],
            beginning=Lsn.parse(data["beginning"]) if data["beginning"] else None,
            beginning_time=parse_time(data["beginning_time"]),
            horizon=Lsn.parse(data["horizon"]),
            horizon_time=parse_time(data["horizon_time"]),
            transactions=data["transactions"],
            events=data["events"],
            source=Source.from_json(data["source"]) if data["source"] else None,
            schema_fingerprint=data["schema_fingerprint"],
            files=[File.from_json(item) for item in data["files"]],
            relations=relations,
            baselines=[Baseline.from_json(item) for item in data["baselines"]],
            sequences=[
                (Lsn.parse(end), tuple(SequenceValue(*value) for value in values))
                for end, values in data["sequences"]
            ],
            heaps={heap.oid: heap for heap in tables.heaps},
            gaps=list(tables.gaps),
            drops={drop.oid: drop for drop in tables.drops},
            partitions=list(tables.partitions),
            looked_at=tables.looked_at or ZERO,
            gap=EraGap.from_json(data["gap"]) if data["gap"] else None,
            replaced=[Replaced(path, datetime.fromisoformat(at)) for path, at in data["replaced"]],
        )


def load(store: LocalStore, *, from_checkpoint: bool = True) -> Contents:
    """Read an archive's contents: the newest good checkpoint and the entries since.

    With `from_checkpoint` false every entry is read and the whole chain checked. Raises NoArchive
    where there is no entry at all, ArchiveCorrupt where one is missing or does not follow.
    """
    entries, checkpoints = set(), []
    for path in store.list(layout.MANIFEST):
        if (number := layout.entry_number(path)) is not None:
            entries.add(number)
        elif (number := layout.checkpoint_number(path)) is not None:
            checkpoints.append(number)
    if not entries:
        raise NoArchive(
            f"no archive at {store.root}",
            hint="create one with `waly init`, or name another with --archive",
        )
    contents = _newest_checkpoint(store, checkpoints) if from_checkpoint else Contents()
    for entry, content in read_entries(store, contents.entries, max(entries) + 1):
        contents.apply(entry, content)
    return contents


def at_hand(
    store: LocalStore, contents: Contents, files: Callable[[Contents], list[File]]
) -> tuple[Contents, list[File]]:
    """Files of an era, and the contents that name them: those given, or, where a file has been
    replaced and deleted since they were read, those of now, if they reach as far. Raises what
    `files` raises."""
    chosen = files(contents)
    if all(store.path(file.path).exists() for file in chosen):
        return contents, chosen
    now = next((era for era in load(store).eras if era.era == contents.era), contents)
    if now.horizon < contents.horizon:
        return contents, chosen
    return now, files(now)


def read_entries(store: LocalStore, first: int, end: int) -> Iterator[tuple[Entry, bytes]]:
    """Entries `first` to `end`, the latter excluded. Raises ArchiveCorrupt for a missing one."""
    for number in range(first, end):
        path = layout.entry_path(number)
        try:
            content = store.read(path)
        except FileNotFoundError:
            raise ArchiveCorrupt(
                f"{path} is missing from {store.root}",
                hint="restore this file from a copy of the archive, then run: waly verify",
            ) from None
        yield Entry.from_bytes(content, path), content


def _newest_checkpoint(store: LocalStore, numbers: list[int]) -> Contents:
    for number in sorted(numbers, reverse=True):
        try:
            contents = Contents.from_checkpoint(store.read(layout.checkpoint_path(number)))
            last = store.read(layout.entry_path(contents.entries - 1))
        except (ValueError, KeyError, TypeError, OSError):
            continue
        if digest(last) == contents.head:
            return contents
    return Contents()


def parse_qualified_name(text: str) -> tuple[str, ...]:
    """`name` or `schema.name` as SQL reads it: unquoted parts fold to lower case.

    Raises UsageError for anything else.
    """
    parts: list[str] = []
    rest = text.strip()
    while True:
        if rest.startswith('"'):
            end = 1
            while (end := rest.find('"', end)) >= 0 and rest[end : end + 2] == '""':
                end += 2
            if end < 0:
                raise UsageError(f"not a table name: {text!r}", hint="close the double quote")
            parts.append(rest[1:end].replace('""', '"'))
            rest = rest[end + 1 :]
        else:
            part, dot, tail = rest.partition(".")
            parts.append(part.lower())
            rest = dot + tail
        if not rest:
            break
        if not rest.startswith("."):
            raise UsageError(f"not a table name: {text!r}")
        rest = rest[1:]
    if not 1 <= len(parts) <= 2 or not all(parts):
        raise UsageError(f"not a table name: {text!r}", hint="write name or schema.name")
    return tuple(parts)
