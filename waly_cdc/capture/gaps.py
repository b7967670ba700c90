"""Open gaps and new baselines: what the table watch has found and no entry holds yet.

Invariants:

* `open` has at most one gap per table, and none that a baseline in `ready` will not close;
* a gap in `open` whose table is in `to_copy` closes with a new baseline, another one by itself;
* what is in `ready` was true at its LSN, and is dropped when the rows change again.

Not locked: the table watch does that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from waly_cdc.capture.baseline import CopiedTable
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.tables import Gap


@dataclass(frozen=True, slots=True)
class Ready:
    """The end of a gap, for the first entry that covers its LSN: the table's version then, and its
    copy where rows had changed."""

    relation: RelationVersion
    gap: Gap
    lsn: Lsn
    copied: CopiedTable | None = None

    def discard(self) -> None:
        """Remove the copy's files."""
        for finished in self.copied.finished if self.copied else ():
            finished.temporary.unlink(missing_ok=True)


@dataclass(slots=True)
class Gaps:
    """`found` are gaps that begin, or end without a `Ready`, and that no entry holds yet."""

    open: dict[int, Gap]
    to_copy: set[int]
    found: list[Gap] = field(default_factory=list)
    ready: list[Ready] = field(default_factory=list)

    @classmethod
    def of(cls, gaps: Iterable[Gap]) -> Gaps:
        """Those that an archive has. Whether rows changed in one is not known any more."""
        still_open = {gap.oid: gap for gap in gaps if gap.end is None}
        return cls(still_open, set(still_open))

    def begin(self, oid: int, after: Lsn, reason: str, *, copy: bool) -> None:
        """Something changed: an open gap stays open, and what was copied before is not enough."""
        for ready in [item for item in self.ready if item.gap.oid == oid]:
            self.ready.remove(ready)
            ready.discard()
        if oid not in self.open:
            self.open[oid] = Gap(oid, after, None, reason)
            self.found.append(self.open[oid])
        if copy:
            self.to_copy.add(oid)

    def withdraw(self, oid: int) -> None:
        """It was none."""
        gap = self.open.pop(oid)
        if gap in self.found:
            self.found.remove(gap)
        else:
            self.found.append(replace(gap, end=gap.start))

    def drop(self, oid: int, after: Lsn, by: Lsn, reason: str) -> None:
        """The table is gone by `by`: until then its state is not known."""
        gap = self.open.pop(oid, None) or Gap(oid, after, None, reason)
        for ready in [item for item in self.ready if item.gap.oid == oid]:
            self.ready.remove(ready)
            ready.discard()
        self.to_copy.discard(oid)
        self.found.append(replace(gap, end=by))

    def wanted(self) -> dict[int, Gap]:
        """The gaps that take a copy which nobody has made yet."""
        made = {ready.gap.oid for ready in self.ready}
        return {oid: gap for oid, gap in self.open.items() if oid in self.to_copy - made}

    def take(self, end: Lsn) -> tuple[tuple[Gap, ...], list[Ready]]:
        """What an entry that covers up to `end` should hold; the gaps of `Ready` are closed with
        it, or given back by `reopen`."""
        ready = [item for item in self.ready if item.lsn <= end]
        self.ready = [item for item in self.ready if item.lsn > end]
        found, self.found = tuple(self.found), []
        for item in ready:
            self.open.pop(item.gap.oid, None)
            self.to_copy.discard(item.gap.oid)
        return found, ready

    def reopen(self, ready: Ready) -> None:
        """What was ready does not fit what the stream has shown meanwhile."""
        ready.discard()
        self.open.setdefault(ready.gap.oid, replace(ready.gap, end=None))
        self.to_copy.add(ready.gap.oid)
