"""The manifest read from its first entry on, past every fault, so that all of them are reported."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from waly_cdc.archive import fingerprint, layout
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Entry, File, digest
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt, CouldNotVerify, NoArchive
from waly_cdc.findings import Finding


def read_chain(store: LocalStore) -> tuple[Contents, list[Finding]]:
    """What all readable entries together say, and what is wrong with the manifest.

    Raises NoArchive where there is no entry at all, CouldNotVerify where reading is refused.
    """
    # In this order: a writer that is at work makes an entry before the checkpoint that sums it up.
    checkpoints = _numbers(store, layout.checkpoint_number)
    numbers = _numbers(store, layout.entry_number)
    if not numbers:
        raise NoArchive(
            f"no archive at {store.root}",
            hint="create one with `waly init`, or name another with --archive",
        )
    contents, findings = Contents(), []
    whole = True
    for number in range(max(numbers) + 1):
        faults = _read_entry(store, number, contents)
        whole = whole and not faults
        findings += faults
        if number in checkpoints and whole:
            findings += _check_checkpoint(store, number, contents)
    findings += [
        Finding(
            "manifest.end",
            "fail",
            layout.checkpoint_path(number),
            f"the manifest ends with entry {max(numbers)}, and this checkpoint sums up later ones",
        )
        for number in sorted(checkpoints)
        if number > max(numbers)
    ]
    return contents, findings


def _numbers(store: LocalStore, number_of: Callable[[str], int | None]) -> set[int]:
    numbers = (number_of(path) for path in store.list(layout.MANIFEST))
    return {number for number in numbers if number is not None}


def read_file(store: LocalStore, path: str) -> bytes | Finding:
    """A file's content, or the finding that it cannot be had."""
    try:
        return store.read(path)
    except FileNotFoundError:
        return Finding("file.missing", "fail", path, "the file is missing")
    except PermissionError as error:
        raise refused(path) from error
    except OSError as error:
        return Finding(
            "file.unreadable", "fail", path, f"the file cannot be read: {error.strerror}"
        )


def refused(path: str) -> CouldNotVerify:
    return CouldNotVerify(
        f"not allowed to read {path}", hint="run the verification as the archive's owner"
    )


def _read_entry(store: LocalStore, number: int, contents: Contents) -> list[Finding]:
    """Add entry `number` to the contents whatever is wrong with it; the faults."""
    path = layout.entry_path(number)
    content = read_file(store, path)
    if isinstance(content, Finding):
        contents.entries, contents.head = number + 1, ""
        return [content]
    try:
        entry = Entry.from_bytes(content, path)
    except ArchiveCorrupt as error:
        contents.entries, contents.head = number + 1, digest(content)
        return [Finding("manifest.entry", "fail", path, error.message)]
    faults = []
    if entry.number != number or entry.previous != (contents.head or entry.previous):
        faults.append(
            Finding(
                "manifest.chain",
                "fail",
                path,
                "the entry does not hold the hash of the one before it: one of the two was changed",
            )
        )
    begins_era = entry.kind == "era"
    if begins_era and not contents.head:
        contents.era = entry.era - 1  # Whether it follows cannot be told: the one before is gone.
    if begins_era and not _follows_gap(entry, contents):
        message = f"does not begin era {contents.era + 1} after a gap from {contents.horizon}"
        contents.entries, contents.head = number + 1, digest(content)
        return [*faults, Finding("manifest.era", "fail", path, message)]
    known = contents.beginning is not None and contents.head and not begins_era
    if known and entry.start != contents.horizon:
        message = f"begins at {entry.start}, and the entry before it ends at {contents.horizon}"
        faults.append(Finding("manifest.range", "fail", path, message))
    if entry.kind == "compact":
        faults += (replaced := _check_replaced(entry, path, contents))
        if any(fault.id == "manifest.replaced" for fault in replaced):
            contents.entries, contents.head = number + 1, digest(content)
            return faults
    else:
        faults += _check_sums(entry, path)
    contents.entries, contents.head = entry.number, entry.previous
    contents.horizon = entry.gap.start if entry.gap else entry.start
    contents.apply(entry, content)
    contents.entries = number + 1
    return faults


def _follows_gap(entry: Entry, contents: Contents) -> bool:
    gap = entry.gap
    return (
        gap is not None
        and entry.era == contents.era + 1
        and (gap.start == contents.horizon or not contents.head)
    )


def _check_sums(entry: Entry, path: str) -> list[Finding]:
    """Whether an entry's own numbers agree with the files it names."""
    faults = []
    transactions = [file for file in entry.files if file.kind == "transactions"]
    events = [file for file in entry.files if file.kind == "events"]
    for what, stated, files in (
        ("transactions", entry.transactions, transactions),
        ("events", entry.events, events),
    ):
        if (rows := sum(file.rows for file in files)) != stated:
            message = f"says {stated} {what}, and its files have {rows}"
            faults.append(Finding("manifest.count", "fail", path, message))
    for file in (*transactions, *events):
        if not entry.start <= file.first_lsn <= file.last_lsn < entry.end:
            message = f"holds {file.first_lsn} to {file.last_lsn}, outside its entry's range"
            faults.append(Finding("manifest.range", "fail", file.path, message))
    copied = _baseline_rows(entry.files)
    for baseline in entry.baselines:
        if (found := copied[baseline.oid]) != baseline.rows:
            message = f"baseline of {baseline.rows} rows, and its files have {found}"
            faults.append(Finding("manifest.count", "fail", f"{path}: oid {baseline.oid}", message))
    return faults


def _check_replaced(entry: Entry, path: str, contents: Contents) -> list[Finding]:
    """Whether an entry's new files hold the rows of those that it removes, by the fingerprints and
    counts that the manifest states; whether the files have these is for `check_file`."""
    era = next((each for each in contents.eras if each.era == entry.era), contents)
    known = {file.path: file for file in era.files}
    lost = [removed.path for removed in entry.removed if removed.path not in known]
    if lost:
        message = f"replaces {lost[0]}, which is no file of era {entry.era}"
        return [Finding("manifest.replaced", "fail", path, message)]
    faults = []
    before, after = _Rows(), _Rows()
    for removed in entry.removed:
        file = known[removed.path]
        if file.fingerprint not in (None, removed.fingerprint):
            message = f"states another fingerprint of {removed.path} than the entry that made it"
            faults.append(Finding("manifest.fingerprint", "fail", path, message))
        before.add(file, removed.fingerprint)
    for file in entry.files:
        after.add(file, file.fingerprint or "")
    for folder in before.differing(after):
        message = f"its files in {folder} do not hold the rows of those that they replace"
        faults.append(Finding("manifest.fingerprint", "fail", path, message))
    return faults


class _Rows:
    """How many rows there are of each kind and relation version in each folder, and the sum of
    their fingerprints."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int | None]] = Counter()
        self._sums: defaultdict[tuple[str, str, int | None], int] = defaultdict(int)

    def add(self, file: File, stated: str) -> None:
        group = (file.path.rpartition("/")[0], file.kind, file.version)
        self._counts[group] += file.rows
        self._sums[group] = fingerprint.add([self._sums[group], _number(stated)])

    def differing(self, other: _Rows) -> list[str]:
        """Folders that do not hold the same rows."""
        groups = self._counts.keys() | other._counts.keys()
        return sorted(
            {
                group[0]
                for group in groups
                if self._counts[group] != other._counts[group]
                or self._sums[group] != other._sums[group]
            }
        )


def _number(stated: str) -> int:
    try:
        return fingerprint.from_text(stated)
    except ValueError:
        return 0


def _baseline_rows(files: Iterable[File]) -> Counter[int]:
    rows: Counter[int] = Counter()
    for file in files:
        if file.kind == "baseline" and file.oid is not None:
            rows[file.oid] += file.rows
    return rows


def _check_checkpoint(store: LocalStore, number: int, contents: Contents) -> list[Finding]:
    """A checkpoint is derived, so a damaged one costs time only; but one that is whole and says
    something else than the entries would mislead every reader."""
    path = layout.checkpoint_path(number)
    try:
        stored = Contents.from_checkpoint(store.read(path))
    except FileNotFoundError:
        return []  # A writer that is at work has made a newer one.
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"damaged ({error}): readers skip it; it can be deleted"
        return [Finding("manifest.checkpoint", "warn", path, message)]
    if stored != contents:
        message = "says something else than the entries it sums up; delete it"
        return [Finding("manifest.checkpoint", "fail", path, message)]
    return []
