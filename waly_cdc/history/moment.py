"""Resolving a point: of which era it is, and which transactions are before it.

LSNs mean something within their era only, so a moment has an era. Who asks for anything as of a
moment asks the contents of its era.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File, format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt, PointNotInArchive
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.points import AtLsn, AtTime, AtTransaction, Latest, When

_COLUMNS = ["lsn", "end_lsn", "xid", "committed_at"]


@dataclass(frozen=True, slots=True)
class TransactionRef:
    """A transaction beside a moment. `lsn` is where its commit record begins, `end_lsn` the first
    LSN at which it is visible."""

    xid: int
    lsn: Lsn
    end_lsn: Lsn
    committed_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "xid": self.xid,
            "lsn": str(self.end_lsn),
            "committed_at": format_time(self.committed_at),
        }


@dataclass(frozen=True, slots=True)
class Moment:
    """A resolved point: the state made by all transactions of an era whose commit record begins
    before `bound`. `time` is the time that was asked for, or that of the last transaction before.
    `name` is the LSN as people write it, with the era where there are several.
    """

    era: int
    bound: Lsn
    name: str
    time: datetime | None
    before: TransactionRef | None
    after: TransactionRef | None

    def to_json(self) -> dict[str, Any]:
        return {
            "era": self.era,
            "lsn": str(self.bound),
            "time": format_time(self.time),
            "before": self.before.to_json() if self.before else None,
            "after": self.after.to_json() if self.after else None,
        }


def resolve(
    contents: Contents, store: LocalStore, when: When, quiet_until: datetime | None = None
) -> Moment:
    """The moment that a point names. Raises PointNotInArchive for one outside the archive, or in
    the gap between two eras.

    `quiet_until` is a time up to which nothing is known to have been committed after the horizon.
    """
    if contents.beginning is None:
        raise PointNotInArchive("the archive has no baseline yet", hint="run: waly init")
    time: datetime | None = None
    match when:
        case Latest():
            era, bound, time = contents, contents.horizon, contents.horizon_time
        case AtLsn(lsn, number):
            era, bound = _era_of_lsn(contents, lsn, number), lsn
        case AtTransaction(xid, before, number):
            era, transaction = _newest(contents, store, xid, number)
            bound = transaction.lsn if before else transaction.end_lsn
        case AtTime(time):
            era = _era_at_time(contents, time)
            quiet = quiet_until if era is contents else None
            bound = _at_time(contents, era, _Transactions(era, store), time, quiet)
    if not _holds(era, bound):
        raise PointNotInArchive(
            f"{bound} is not in what {_era_name(contents, era)} holds", hint=_span(contents, era)
        )
    find = _Transactions(era, store)
    earlier = find.last(bound)
    return Moment(
        era=era.era,
        bound=bound,
        name=name_lsn(contents, era, bound),
        time=time or (earlier.committed_at if earlier else era.beginning_time),
        before=earlier,
        after=find.first(bound),
    )


def name_lsn(contents: Contents, era: Contents, lsn: Lsn) -> str:
    """An LSN of an era as people write it: alone, or `2:0/1A2B3C8` where there are several eras."""
    return f"{era.era}:{lsn}" if contents.earlier else str(lsn)


def _holds(era: Contents, lsn: Lsn) -> bool:
    return era.beginning is not None and era.beginning <= lsn <= era.horizon


def _era_name(contents: Contents, era: Contents) -> str:
    return f"era {era.era}" if contents.earlier else "the archive"


def _span(contents: Contents, era: Contents) -> str:
    begins, ends = era.beginning or ZERO, era.horizon
    return (
        f"{_era_name(contents, era)} goes from {name_lsn(contents, era, begins)}"
        f" ({format_time(era.beginning_time)}) to {name_lsn(contents, era, ends)}"
        f" ({format_time(era.horizon_time)})"
    )


def _spans(contents: Contents) -> str:
    return "; ".join(_span(contents, era) for era in contents.eras)


def named_era(contents: Contents, number: int) -> Contents:
    """The era of that number. Raises PointNotInArchive."""
    try:
        return contents.in_era(number)
    except KeyError:
        raise PointNotInArchive(f"the archive has no era {number}", hint=_spans(contents)) from None


def _era_of_lsn(contents: Contents, lsn: Lsn, number: int | None) -> Contents:
    """The era that is named, or the newest one that holds the LSN."""
    if number is not None:
        return named_era(contents, number)
    holding = [era for era in contents.eras if _holds(era, lsn)]
    if holding:
        return holding[-1]
    for before, after in pairwise(contents.eras):
        if before.horizon < lsn < (after.beginning or ZERO):
            raise _in_gap(str(lsn), contents, before, after)
    if not contents.earlier:
        side = "before" if lsn < (contents.beginning or ZERO) else "after"
        raise PointNotInArchive(f"{lsn} is {side} what the archive holds", hint=_spans(contents))
    raise PointNotInArchive(f"{lsn} is in no era of the archive", hint=_spans(contents))


def _in_gap(shown: str, contents: Contents, before: Contents, after: Contents) -> PointNotInArchive:
    begins = after.beginning or ZERO
    return PointNotInArchive(
        f"{shown} is in the gap between era {before.era} and era {after.era}:"
        f" {after.gap.reason if after.gap else 'unknown'}",
        hint=f"nearest are {name_lsn(contents, before, before.horizon)}"
        f" ({format_time(before.horizon_time)}) and {name_lsn(contents, after, begins)}"
        f" ({format_time(after.beginning_time)})",
    )


def _newest(
    contents: Contents, store: LocalStore, xid: int, number: int | None
) -> tuple[Contents, TransactionRef]:
    """The newest transaction with that xid, which come round again, and its era."""
    eras = contents.eras if number is None else [named_era(contents, number)]
    for era in reversed(eras):
        found = _Transactions(era, store).newest(xid)
        if found is not None:
            return era, found
    raise PointNotInArchive(
        f"no transaction {xid} in {'the archive' if number is None else f'era {number}'}",
        hint="only transactions that changed an archived table are there",
    )


def _era_at_time(contents: Contents, time: datetime) -> Contents:
    """The newest era that began at that time or before it."""
    begun = [era for era in contents.eras if era.beginning_time and era.beginning_time <= time]
    if not begun:
        raise PointNotInArchive(
            f"{format_time(time)} is before the archive's first baseline",
            hint=f"the archive begins at {format_time(contents.eras[0].beginning_time)}",
        )
    return begun[-1]


def _at_time(
    contents: Contents,
    era: Contents,
    find: _Transactions,
    time: datetime,
    quiet_until: datetime | None,
) -> Lsn:
    """As `recovery_target_time` does: up to the first transaction that committed after `time`."""
    ends = max(filter(None, (era.horizon_time, quiet_until)), default=None)
    shown = format_time(time) or ""
    later = find.first_after(time)
    if later is not None:
        return later.lsn
    if ends is None or time > ends:
        if era is not contents:
            raise _in_gap(shown, contents, era, contents.in_era(era.era + 1))
        raise PointNotInArchive(
            f"{shown} is after the archive's horizon",
            hint=f"the archive knows everything up to {format_time(ends)}; `latest` names that",
        )
    return era.horizon


class _Transactions:
    """Looks transactions up in the files that can hold them."""

    def __init__(self, contents: Contents, store: LocalStore) -> None:
        self._store = store
        self._files = sorted(contents.transaction_files(), key=lambda file: file.first_lsn)

    def first(self, bound: Lsn) -> TransactionRef | None:
        """The first transaction whose commit record begins at `bound` or after it."""
        return self._earliest(
            lambda file: file.last_lsn >= bound, pc.field("lsn") >= pc.scalar(bound.value)
        )

    def first_after(self, time: datetime) -> TransactionRef | None:
        """The first transaction, in commit order, that committed after `time`."""
        after = pa.scalar(time.astimezone(UTC), pa.timestamp("us", "UTC"))
        return self._earliest(
            lambda file: file.last_time is not None and file.last_time > time,
            pc.field("committed_at") > after,
        )

    def last(self, bound: Lsn) -> TransactionRef | None:
        """The last transaction whose commit record begins before `bound`."""
        best: TransactionRef | None = None
        for file in reversed(self._files):
            if file.first_lsn >= bound or (best is not None and file.last_lsn < best.lsn):
                continue
            found = self._find(file, pc.field("lsn") < pc.scalar(bound.value), last=True)
            if found is not None and (best is None or found.lsn > best.lsn):
                best = found
        return best

    def newest(self, xid: int) -> TransactionRef | None:
        """The newest transaction with that xid."""
        condition = pc.field("xid") == pc.scalar(xid)
        found = (self._find(file, condition, last=True) for file in reversed(self._files))
        return next((transaction for transaction in found if transaction is not None), None)

    def _earliest(
        self, may_hold: Callable[[File], bool], condition: pc.Expression
    ) -> TransactionRef | None:
        best: TransactionRef | None = None
        for file in self._files:
            if best is not None and file.first_lsn > best.lsn:
                break
            found = self._find(file, condition) if may_hold(file) else None
            if found is not None and (best is None or found.lsn < best.lsn):
                best = found
        return best

    def _find(
        self, file: File, condition: pc.Expression, *, last: bool = False
    ) -> TransactionRef | None:
        """The first, or the last, transaction of a file that fulfils a condition. A row group is
        read at a time, and none that cannot hold one by its statistics."""
        try:
            (fragment,) = ds.dataset(
                str(self._store.path(file.path)), format="parquet", partitioning=None
            ).get_fragments()
            groups = fragment.split_by_row_group(condition)
            for group in reversed(groups) if last else groups:
                found = group.to_table(columns=_COLUMNS, filter=condition)
                if len(found):
                    return _reference(found, len(found) - 1 if last else 0)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveCorrupt(
                f"{file.path} cannot be read: {error}", hint="run: waly verify"
            ) from error
        return None


def _reference(table: pa.Table, row: int) -> TransactionRef:
    values = table.slice(row, 1).to_pylist()[0]
    return TransactionRef(
        values["xid"],
        Lsn(values["lsn"]),
        Lsn(values["end_lsn"]),
        values["committed_at"].astimezone(UTC),
    )
