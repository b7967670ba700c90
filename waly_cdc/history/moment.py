"""Resolving a point: which transactions are before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File, format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt, PointNotInArchive
from waly_cdc.lsn import Lsn
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
    """A resolved point: the state made by all transactions whose commit record begins before
    `bound`. `time` is the time that was asked for, or that of the last transaction before."""

    bound: Lsn
    time: datetime | None
    before: TransactionRef | None
    after: TransactionRef | None

    def to_json(self) -> dict[str, Any]:
        return {
            "lsn": str(self.bound),
            "time": format_time(self.time),
            "before": self.before.to_json() if self.before else None,
            "after": self.after.to_json() if self.after else None,
        }


def resolve(
    contents: Contents, store: LocalStore, when: When, quiet_until: datetime | None = None
) -> Moment:
    """The moment that a point names. Raises PointNotInArchive for one outside the archive.

    `quiet_until` is a time up to which nothing is known to have been committed after the horizon.
    """
    beginning, horizon = contents.beginning, contents.horizon
    if beginning is None:
        raise PointNotInArchive("the archive has no baseline yet", hint="run: waly init")
    find = _Transactions(contents, store)
    time: datetime | None = None
    match when:
        case Latest():
            bound, time = horizon, contents.horizon_time
        case AtLsn(lsn):
            bound = lsn
        case AtTransaction(xid, before):
            transaction = find.newest(xid)
            bound = transaction.lsn if before else transaction.end_lsn
        case AtTime(time):
            bound = _at_time(contents, find, time, quiet_until)
    if not beginning <= bound <= horizon:
        raise PointNotInArchive(
            f"{bound} is {'before' if bound < beginning else 'after'} what the archive holds",
            hint=f"it goes from {beginning} to {horizon} ({format_time(contents.horizon_time)})",
        )
    earlier = find.last(bound)
    return Moment(
        bound=bound,
        time=time or (earlier.committed_at if earlier else contents.beginning_time),
        before=earlier,
        after=find.first(bound),
    )


def _at_time(
    contents: Contents, find: _Transactions, time: datetime, quiet_until: datetime | None
) -> Lsn:
    """As `recovery_target_time` does: up to the first transaction that committed after `time`."""
    begins = contents.beginning_time
    ends = max(filter(None, (contents.horizon_time, quiet_until)), default=None)
    shown = format_time(time)
    if begins is not None and time < begins:
        raise PointNotInArchive(
            f"{shown} is before the archive's first baseline",
            hint=f"the archive begins at {format_time(begins)}",
        )
    later = find.first_after(time)
    if later is not None:
        return later.lsn
    if ends is None or time > ends:
        raise PointNotInArchive(
            f"{shown} is after the archive's horizon",
            hint=f"the archive knows everything up to {format_time(ends)}; `latest` names that",
        )
    return contents.horizon


class _Transactions:
    """Looks transactions up in the files that can hold them."""

    def __init__(self, contents: Contents, store: LocalStore) -> None:
        self._store = store
        self._files = sorted(contents.transaction_files(), key=lambda file: file.first_lsn)

    def first(self, bound: Lsn) -> TransactionRef | None:
        """The first transaction whose commit record begins at `bound` or after it."""
        return self._earliest(
            lambda file: file.last_lsn >= bound,
            lambda table: pc.greater_equal(table.column("lsn"), bound.value),
        )

    def first_after(self, time: datetime) -> TransactionRef | None:
        """The first transaction, in commit order, that committed after `time`."""
        return self._earliest(
            lambda file: file.last_time is not None and file.last_time > time,
            lambda table: pc.greater(
                table.column("committed_at"),
                pa.scalar(time.astimezone(UTC), pa.timestamp("us", "UTC")),
            ),
        )

    def last(self, bound: Lsn) -> TransactionRef | None:
        """The last transaction whose commit record begins before `bound`."""
        best: TransactionRef | None = None
        for file in reversed(self._files):
            if file.first_lsn >= bound or (best is not None and file.last_lsn < best.lsn):
                continue
            table = self._read(file)
            found = table.filter(pc.less(table.column("lsn"), bound.value))
            if len(found):
                candidate = _reference(found, len(found) - 1)
                if best is None or candidate.lsn > best.lsn:
                    best = candidate
        return best

    def newest(self, xid: int) -> TransactionRef:
        """The newest transaction with that xid: xids come round again. Raises PointNotInArchive."""
        for file in reversed(self._files):
            table = self._read(file)
            found = table.filter(pc.equal(table.column("xid"), xid))
            if len(found):
                return _reference(found, len(found) - 1)
        raise PointNotInArchive(
            f"no transaction {xid} in the archive",
            hint="only transactions that changed an archived table are there",
        )

    def _earliest(
        self, may_hold: Callable[[File], bool], condition: Callable[[pa.Table], pa.Array]
    ) -> TransactionRef | None:
        best: TransactionRef | None = None
        for file in self._files:
            if best is not None and file.first_lsn > best.lsn:
                break
            if not may_hold(file):
                continue
            table = self._read(file)
            found = table.filter(condition(table))
            if len(found):
                candidate = _reference(found, 0)
                if best is None or candidate.lsn < best.lsn:
                    best = candidate
        return best

    def _read(self, file: File) -> pa.Table:
        try:
            return pq.read_table(self._store.path(file.path), columns=_COLUMNS, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveCorrupt(
                f"{file.path} cannot be read: {error}", hint="run: waly verify"
            ) from error


def _reference(table: pa.Table, row: int) -> TransactionRef:
    values = table.slice(row, 1).to_pylist()[0]
    return TransactionRef(
        values["xid"],
        Lsn(values["lsn"]),
        Lsn(values["end_lsn"]),
        values["committed_at"].astimezone(UTC),
    )
