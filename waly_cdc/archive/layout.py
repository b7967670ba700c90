"""Where things lie in an archive. Paths are relative to its root, with `/` between folders."""

from __future__ import annotations

import re
from datetime import date

from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion

MANIFEST = "manifest"
EVENTS = "events"
TRANSACTIONS = "transactions"
SCHEMA = "schema"
JOURNAL = "journal"
INCOMING = "incoming"
LOCK = "lock"

DATA_FOLDERS = (EVENTS, TRANSACTIONS, SCHEMA)
"""Folders that hold only files which the manifest names."""

_ENTRY = re.compile(rf"{MANIFEST}/(\d{{10}})\.json")
_CHECKPOINT = re.compile(rf"{MANIFEST}/checkpoint-(\d{{10}})\.json")
_UNSAFE = re.compile(r"[^A-Za-z0-9-]")


def entry_path(number: int) -> str:
    return f"{MANIFEST}/{number:010d}.json"


def entry_number(path: str) -> int | None:
    """The number of the entry at this path; None for any other file."""
    match = _ENTRY.fullmatch(path)
    return int(match[1]) if match else None


def checkpoint_path(number: int) -> str:
    return f"{MANIFEST}/checkpoint-{number:010d}.json"


def checkpoint_number(path: str) -> int | None:
    match = _CHECKPOINT.fullmatch(path)
    return int(match[1]) if match else None


def events_path(relation: RelationVersion, day: date, era: int, first: Lsn, last: Lsn) -> str:
    folder = f"{_safe(relation.schema)}.{_safe(relation.name)}~{relation.oid}"
    name = f"{_range(era, first, last)}-v{relation.version}.parquet"
    return f"{EVENTS}/{folder}/day={day.isoformat()}/{name}"


def transactions_path(day: date, era: int, first: Lsn, last: Lsn) -> str:
    return f"{TRANSACTIONS}/day={day.isoformat()}/{_range(era, first, last)}.parquet"


def compacted_path(path: str, last: str, *, by_key: bool) -> str:
    """Where a file lies that holds the rows of files from `path` to `last`."""
    folder, _, name = path.rpartition("/")
    first, end = name.split("-"), last.rpartition("/")[2].split("-")
    # era, first LSN, last LSN with `.parquet` or followed by the relation version
    return f"{folder}/{'-'.join(first[:2] + end[2:])}".removesuffix(".parquet") + (
        "-by-key.parquet" if by_key else ".parquet"
    )


def day_of(path: str) -> date:
    """The UTC day of an event or transactions file."""
    return date.fromisoformat(path.rpartition("/day=")[2].partition("/")[0])


def schema_path(era: int, at: Lsn) -> str:
    return f"{SCHEMA}/{era:04d}-{at.hex}.dump"


def _range(era: int, first: Lsn, last: Lsn) -> str:
    """The era comes first: in the next one LSNs may begin again."""
    return f"{era:04d}-{first.hex}-{last.hex}"


def _safe(name: str) -> str:
    """A name that no file system and no query engine trips over; the oid makes it unique."""
    return _UNSAFE.sub("-", name)[:40] or "-"
