"""The manifest: numbered entries, each holding the SHA-256 of the one before.

Rule 2, commit point: writing an entry is the sole commit point of the archive. A file that no entry
names does not exist; a file that one names is never changed.

Crash windows around an entry, and what is left behind in each:

* before its files are renamed: temporary files in `incoming/`, which the next writer removes;
* after the rename, before the entry: files that no entry names, which the next writer removes;
* after the entry: everything is there; the journal still holds what is sealed, and is trimmed.

A checkpoint holds the sum of all entries up to one of them, so that opening an archive does not
read the whole history. It is derived: a missing or unreadable one costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.tables import NO_CHANGES, TableChanges

FORMAT = 1
GENESIS = "0" * 64
"""What the first entry names as its predecessor."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the archive.

    `kind` is `events`, `baseline`, `transactions` or `schema`. `first_lsn` and `last_lsn` bound the
    `_lsn` of its rows, or the moment when a schema dump was taken; `first_time` and `last_time`
    bound their `_committed_at`. `ops` counts events by `_op`; `unchanged` counts events with a
    value that was not sent, `rekeyed` updates that carry the old row's key. `sorted_by` holds the
    stored names of the key that the rows are sorted by; where it is empty they are in the order of
    their positions. `fingerprint` is that of the rows (see `fingerprint.py`), and None in files
    that compaction did not make.
    """

    kind: str
    path: str
    sha256: str
    bytes: int
    rows: int
    first_lsn: Lsn
    last_lsn: Lsn
    first_time: datetime | None = None
    last_time: datetime | None = None
    oid: int | None = None
    version: int | None = None
    ops: Mapping[str, int] = field(default_factory=dict)
    unchanged: int = 0
    rekeyed: int = 0
    sorted_by: tuple[str, ...] = ()
    fingerprint: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": self.path,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "rows": self.rows,
            "first_lsn": str(self.first_lsn),
            "last_lsn": str(self.last_lsn),
            "first_time": format_time(self.first_time),
            "last_time": format_time(self.last_time),
            "oid": self.oid,
            "version": self.version,
            "ops": dict(self.ops),
            "unchanged": self.unchanged,
            "rekeyed": self.rekeyed,
            "sorted_by": list(self.sorted_by),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> File:
        return cls(
            kind=data["kind"],
            path=data["path"],
            sha256=data["sha256"],
            bytes=data["bytes"],
            rows=data["rows"],
            first_lsn=Lsn.parse(data["first_lsn"]),
            last_lsn=Lsn.parse(data["last_lsn"]),
            first_time=parse_time(data["first_time"]),
            last_time=parse_time(data["last_time"]),
            oid=data["oid"],
            version=data["version"],
            ops=data["ops"],
            unchanged=data["unchanged"],
            rekeyed=data["rekeyed"],
            sorted_by=tuple(data["sorted_by"]),
            fingerprint=data["fingerprint"],
        )


@dataclass(frozen=True, slots=True)
class Removed:
    """A file that an entry replaces, and the fingerprint of its rows."""

    path: str
    fingerprint: str

    def to_json(self) -> list[str]:
        return [self.path, self.fingerprint]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A complete copy of one relation: the state made by all commits that begin before `lsn`. It
    was taken from the server, or is `folded`: computed from what the archive had before it."""

    oid: int
    version: int
    lsn: Lsn
    rows: int
    folded: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "oid": self.oid,
            "version": self.version,
            "lsn": str(self.lsn),
            "rows": self.rows,
            "folded": self.folded,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Baseline:
        return cls(**{**data, "lsn": Lsn.parse(data["lsn"])})


@dataclass(frozen=True, slots=True)
class SequenceValue:
    """Where a sequence stood when an entry was written: `nextval` may return what follows it."""

    schema: str
    name: str
    last_value: int
    is_called: bool

    def to_json(self) -> list[Any]:
        return [self.schema, self.name, self.last_value, self.is_called]


@dataclass(frozen=True, slots=True)
class EraGap:
    """What lies before an era: what the server did after `start`, the horizon of the era before,
    and before `end`, where the new era's baselines were taken, was never seen.

    The two LSNs are of one server's log or of two, and need not be in order. `start_time` and
    `end_time` are the horizon's time and the baselines'.
    """

    start: Lsn
    start_time: datetime | None
    end: Lsn
    end_time: datetime
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "from": str(self.start),
            "from_time": format_time(self.start_time),
            "to": str(self.end),
            "to_time": format_time(self.end_time),
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EraGap:
        return cls(
            Lsn.parse(data["from"]),
            parse_time(data["from_time"]),
            Lsn.parse(data["to"]),
            datetime.fromisoformat(data["to_time"]),
            data["reason"],
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Which database an archive, or an era of it, belongs to, and by what its changes come.

    `timeline` is the server's, and `ended` holds the ones before it in its history, each with the
    LSN at which it ended (PostgreSQL documentation, section 26.3.6). `failover` says that the slot
    was made so that standbys keep a copy of it. `losses` names what the plugin could not give at
    any time (`waly_cdc.plugins`). `every_table` false: only the tables of the era's first baselines
    are captured (with pgoutput the publications say which).
    """

    system_identifier: str
    database: str
    database_oid: int
    timeline: int
    ended: tuple[tuple[int, Lsn], ...]
    server_version: int
    slot: str
    plugin: str
    publications: tuple[str, ...]
    failover: bool
    losses: tuple[str, ...] = ()
    every_table: bool = True

    @property
    def identity(self) -> str:
        """What tells the database from all others: its server's system identifier and its oid."""
        return f"{self.system_identifier}/{self.database_oid}"

    def to_json(self) -> dict[str, Any]:
        return {
            "system_identifier": self.system_identifier,
            "database": self.database,
            "database_oid": self.database_oid,
            "timeline": self.timeline,
            "ended": [[timeline, str(end)] for timeline, end in self.ended],
            "server_version": self.server_version,
            "slot": self.slot,
            "plugin": self.plugin,
            "publications": list(self.publications),
            "failover": self.failover,
            "losses": list(self.losses),
            "every_table": self.every_table,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        ended = tuple((timeline, Lsn.parse(end)) for timeline, end in data["ended"])
        lists = {name: tuple(data[name]) for name in ("publications", "losses")}
        return cls(**{**data, **lists, "ended": ended})


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of an archive: what it adds, and which part of the log it covers.

    `kind` is `init` (the archive begins, nothing captured yet), `baseline`, `seal`, `source` (the
    same history goes on from a server that has changed: another timeline or version), `era`
    (another history begins, with baselines of its own and a `gap` before it), `compact` (`files`
    hold the same rows as those `removed`, of era `era`) or `fold` (baselines that were computed
    from the archive itself). The entry covers the
    commits that begin at or after `start` and before `end`; `horizon_time` is the time up to which
    the server is known to have nothing else before `end`. `schema_fingerprint` comes
    with a schema dump, and tells whether the schema has changed since. `tables` holds what the
    catalog told about tables since the entry before.
    """

    number: int
    previous: str
    kind: str
    era: int
    start: Lsn
    end: Lsn
    horizon_time: datetime | None
    written_at: datetime
    files: tuple[File, ...] = ()
    removed: tuple[Removed, ...] = ()
    relations: tuple[RelationVersion, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    sequences: tuple[SequenceValue, ...] = ()
    source: Source | None = None
    gap: EraGap | None = None
    schema_fingerprint: str | None = None
    tables: TableChanges = NO_CHANGES
    transactions: int = 0
    events: int = 0

    def to_bytes(self) -> bytes:
        """The entry as it is stored, and as the next one's `previous` hashes it."""
        data = {
            "format": FORMAT,
            "entry": self.number,
            "previous": self.previous,
            "kind": self.kind,
            "era": self.era,
            "from": str(self.start),
            "to": str(self.end),
            "horizon_time": format_time(self.horizon_time),
            "written_at": format_time(self.written_at),
            "transactions": self.transactions,
            "events": self.events,
            "files": [file.to_json() for file in self.files],
            "removed": [removed.to_json() for removed in self.removed],
            "relations": [relation.to_json() for relation in self.relations],
            "baselines": [baseline.to_json() for baseline in self.baselines],
            "sequences": [sequence.to_json() for sequence in self.sequences],
            "source": self.source.to_json() if self.source else None,
            "gap": self.gap.to_json() if self.gap else None,
            "schema_fingerprint": self.schema_fingerprint,
            "tables": self.tables.to_json(),
        }
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes, path: str) -> Entry:
        """Raises ArchiveCorrupt for what is not an entry of this format."""
        try:
            data = json.loads(content)
            if data["format"] != FORMAT:
                raise ArchiveCorrupt(
                    f"{path} has format {data['format']}, and this waly reads format {FORMAT}",
                    hint="use the version of waly that wrote the archive, or a newer one",
                )
            return cls(
                number=data["entry"],
                previous=data["previous"],
                kind=data["kind"],
                era=data["era"],
                start=Lsn.parse(data["from"]),
                end=Lsn.parse(data["to"]),
                horizon_time=parse_time(data["horizon_time"]),
                written_at=datetime.fromisoformat(data["written_at"]),
                files=tuple(map(File.from_json, data["files"])),
                removed=tuple(Removed(*item) for item in data["removed"]),
                relations=tuple(map(RelationVersion.from_json, data["relations"])),
                baselines=tuple(map(Baseline.from_json, data["baselines"])),
                sequences=tuple(SequenceValue(*value) for value in data["sequences"]),
                source=Source.from_json(data["source"]) if data["source"] else None,
                gap=EraGap.from_json(data["gap"]) if data["gap"] else None,
                schema_fingerprint=data["schema_fingerprint"],
                tables=TableChanges.from_json(data["tables"]),
                transactions=data["transactions"],
                events=data["events"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArchiveCorrupt(
                f"{path} is not a manifest entry: {type(error).__name__}",
                hint="restore this file from a copy of the archive, then run: waly verify",
            ) from error


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def format_time(time: datetime | None) -> str | None:
    """RFC 3339 in UTC with microseconds."""
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
