"""Integrity: every file and the chain that names them, and that they agree with each other.

Everything is read; nothing is believed because a checkpoint or a file's own metadata says so. A
sidecar may be at work meanwhile: what it adds after the manifest was read is not looked at.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from waly_cdc.archive import layout
from waly_cdc.archive.attribution import contradictions
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File, format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.findings import Finding
from waly_cdc.lsn import Lsn
from waly_cdc.verify.chain import read_chain
from waly_cdc.verify.files import check_file
from waly_cdc.verify.report import LAST, Checked, Report

MOST_TRIES = 3
MOST = 20
"""How many single transactions or positions of one kind are named."""

_NOTES = {"sidecar.json": ("horizon",), LAST: ("at", "lsn")}
"""Files beside the archive's data that say up to where it once reached, and where in them."""

_EVENT_KEYS = pa.schema(
    [pa.field("_era", pa.int32()), pa.field("_lsn", pa.int64()), pa.field("_seq", pa.int64())]
)
_TRANSACTION_KEYS = pa.schema(
    [pa.field("_era", pa.int32()), pa.field("lsn", pa.int64()), pa.field("events", pa.int64())]
)

_COUNTS = """
with found as (select _era, _lsn, count(*)::bigint as events from events group by _era, _lsn),
     stated as (select _era, lsn, sum(events)::bigint as events, count(*) as times
                from transactions group by _era, lsn)
select coalesce(f._lsn, s.lsn), coalesce(f.events, 0), s.events, s.times
from found f full join stated s on f._era = s._era and f._lsn = s.lsn
where s.events is null or coalesce(f.events, 0) <> s.events or s.times > 1
order by 1
"""
_TWICE = """
select _lsn, _seq, count(*) from events group by _era, _lsn, _seq having count(*) > 1 order by 1, 2
"""


def verify_integrity(
    store: LocalStore, *, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check the whole archive. `progress` is told the bytes done and the bytes in all.

    Raises NoArchive, and CouldNotVerify where reading is refused.
    """
    for _ in range(MOST_TRIES):
        report = _verify(store, progress)
        missing = {finding.subject for finding in report.findings if finding.id == "file.missing"}
        if not missing or missing <= _files_now(store):
            break
        # A file was replaced, and deleted before its turn: what replaced it is to be checked.
    return report


def _files_now(store: LocalStore) -> set[str]:
    contents, _ = read_chain(store)
    return {file.path for era in contents.eras for file in era.files}


def _verify(store: LocalStore, progress: Callable[[int, int], None] | None) -> Report:
    # Read first: a sidecar that is at work writes an entry before it tells of it.
    notes = {name: _noted_horizon(store, name) for name in _NOTES}
    # Listed first: a file that is here already and that no entry names afterwards is left over.
    present = [path for folder in layout.DATA_FOLDERS for path in store.list(folder)]
    contents, findings = read_chain(store)
    findings += _cut_off(contents, notes)
    files = [file for era in contents.eras for file in era.files]
    total = sum(file.bytes for file in files)
    done, bad = 0, set()
    for era in contents.eras:
        for file in era.files:
            faults = check_file(store, file, era)
            findings += faults
            bad.update([file.path] if faults else [])
            done += file.bytes
            if progress is not None:
                progress(done, total)
    findings += _named_twice(files)
    findings += _left_over(present, files, contents)
    good = [file for file in files if file.path not in bad]
    for era in contents.eras:
        mine = [file for file in era.files if file.path not in bad]
        findings += [*_gap_before(era), *_check_positions(store, era, mine)]
    if bad:
        message = "not compared with the transactions, because files are damaged"
        findings.append(Finding("transactions.events", "warn", "events", message))
    else:
        findings += _check_transactions(store, good)
        findings += _contradictions(contents, store)
    checked = Checked(
        files=len(files),
        bytes=total,
        rows=sum(file.rows for file in files),
        tables=len(contents.relations),
    )
    return Report.of(findings, checked, contents.horizon, contents.horizon_time, era=contents.era)


def _contradictions(contents: Contents, store: LocalStore) -> list[Finding]:
    """No fault of the archive's: somebody acts in another's name, or an application misnames."""
    return [
        Finding(
            "transactions.actor",
            "warn",
            each.says,
            f"{each.transactions:,} transactions say that {each.says} made them, who is a role of"
            f" the server, and ran in sessions of {each.session}: waly query contradictions",
        )
        for each in contradictions(contents, store)
    ]


def _gap_before(era: Contents) -> list[Finding]:
    """No fault of the archive's, and to be known for ever."""
    gap = era.gap
    if gap is None:
        return []
    message = (
        f"nothing is known from {era.era - 1}:{gap.start} ({format_time(gap.start_time)})"
        f" to {era.era}:{gap.end} ({format_time(gap.end_time)}): {gap.reason}"
    )
    return [Finding("era.gap", "warn", f"era {era.era}", message)]


def _noted_horizon(store: LocalStore, name: str) -> tuple[int, Lsn] | None:
    try:
        value = json.loads((store.root / name).read_bytes())
        for key in _NOTES[name][:-1]:
            value = value[key]
        return int(value["era"]), Lsn.parse(value[_NOTES[name][-1]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cut_off(contents: Contents, notes: Mapping[str, tuple[int, Lsn] | None]) -> list[Finding]:
    """Entries that are missing at the manifest's end leave no hole; but the archive has said how
    far it reached."""
    return [
        Finding(
            "manifest.end",
            "fail",
            layout.entry_path(contents.entries),
            f"the manifest ends at {contents.era}:{contents.horizon}, and {name} says that it"
            f" reached {noted[0]}:{noted[1]}: entries are missing at its end",
        )
        for name, noted in notes.items()
        if noted is not None and noted > (contents.era, contents.horizon)
    ]


def _named_twice(files: Iterable[File]) -> list[Finding]:
    seen: set[str] = set()
    findings = []
    for file in files:
        if file.path in seen:
            message = "named by two entries of the manifest"
            findings.append(Finding("file.twice", "fail", file.path, message))
        seen.add(file.path)
    return findings


def _left_over(present: Iterable[str], files: Iterable[File], contents: Contents) -> list[Finding]:
    named = {file.path for file in files} | {each.path for each in contents.replaced}
    message = "no entry names this file: a crash left it, and the sidecar's next start removes it"
    return [
        Finding("file.unnamed", "warn", path, message)
        for path in sorted(present)
        if path not in named
    ]


def _check_positions(store: LocalStore, contents: Contents, files: Sequence[File]) -> list[Finding]:
    """Whether an event's position is unique in its relation. Within a file the order of its rows
    has shown that, unless they are sorted by key; files whose LSNs overlap are compared with each
    other."""
    findings = []
    for oid, versions in contents.relations.items():
        mine = [file for file in files if file.oid == oid and file.rows]
        for group in _overlapping(mine):
            rows = _query(_TWICE, events=_dataset(store, group, _EVENT_KEYS))
            findings += [
                Finding(
                    "events.position",
                    "fail",
                    versions[-1].qualified_name,
                    f"{times} events have the position {Lsn(lsn)}, {seq}",
                )
                for lsn, seq, times in rows
            ]
    return findings


def _overlapping(files: Iterable[File]) -> list[list[File]]:
    """Groups of files whose LSN ranges overlap, two or more in each, and files sorted by key."""
    groups: list[list[File]] = []
    end = Lsn(0)
    for file in sorted(files, key=lambda file: file.first_lsn):
        if groups and file.first_lsn <= end:
            groups[-1].append(file)
        else:
            groups.append([file])
        end = max(end, file.last_lsn)
    return [group for group in groups if len(group) > 1 or group[0].sorted_by]


def _check_transactions(store: LocalStore, files: Sequence[File]) -> list[Finding]:
    """Whether every transaction has as many events as it says, and every event a transaction."""
    events = [file for file in files if file.kind == "events"]
    transactions = [file for file in files if file.kind == "transactions"]
    rows = _query(
        _COUNTS,
        events=_dataset(store, events, _EVENT_KEYS),
        transactions=_dataset(store, transactions, _TRANSACTION_KEYS),
    )
    findings = []
    for lsn, found, stated, times in rows:
        if stated is None:
            message = f"{found} events, and no transaction of that LSN"
        elif times > 1:
            message = f"the transaction is there {times} times"
        else:
            message = f"{found} events are there, and the transaction had {stated}"
        findings.append(Finding("transactions.events", "fail", f"commit at {Lsn(lsn)}", message))
    return findings


def _dataset(store: LocalStore, files: Iterable[File], schema: pa.Schema) -> ds.Dataset:
    paths = [str(store.path(file.path)) for file in files]
    return ds.dataset(paths, format="parquet", schema=schema)


def _query(sql: str, **tables: ds.Dataset) -> list[tuple[int, ...]]:
    """The first rows of a query over datasets."""
    with tempfile.TemporaryDirectory(prefix="waly-verify-") as spill:
        connection = duckdb.connect(config={"temp_directory": spill})
        try:
            for name, dataset in tables.items():
                connection.register(name, dataset)
            return connection.execute(f"{sql} limit {MOST}").fetchall()
        finally:
            connection.close()
