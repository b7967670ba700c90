"""What a verification found, and the memory of the last one.

The last result lies beside the archive's data, in `last-verify.json`, for `waly status`. It is a
note, no part of the archive: it may be deleted, and no reader relies on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from waly_cdc import durable
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.findings import Finding
from waly_cdc.lsn import Lsn

LAST = "last-verify.json"

PASSED, MISMATCH, COULD_NOT = "passed", "mismatch", "could_not_verify"
_EXIT_CODES = {PASSED: 0, MISMATCH: 4, COULD_NOT: 5}
_WORST_FIRST = (MISMATCH, COULD_NOT, PASSED)


@dataclass(frozen=True, slots=True)
class Checked:
    """How much was looked at."""

    files: int = 0
    bytes: int = 0
    rows: int = 0
    tables: int = 0


@dataclass(frozen=True, slots=True)
class DrillResult:
    """A restore that was made to be compared: rows per table, and how long recovery took."""

    tables: tuple[tuple[str, int], ...]
    restore_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "tables": [{"table": name, "rows": rows} for name, rows in self.tables],
            "restore_seconds": round(self.restore_seconds, 3),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a verification as of `lsn` in `era`: `passed`, `mismatch` or
    `could_not_verify`."""

    result: str
    findings: tuple[Finding, ...]
    checked: Checked
    lsn: Lsn
    time: datetime | None
    drill: DrillResult | None = None
    era: int = 1

    @classmethod
    def of(
        cls,
        findings: Iterable[Finding],
        checked: Checked,
        lsn: Lsn,
        time: datetime | None,
        drill: DrillResult | None = None,
        era: int = 1,
    ) -> Report:
        """A report whose result follows from its findings."""
        listed = tuple(findings)
        failed = any(finding.severity == "fail" for finding in listed)
        return cls(MISMATCH if failed else PASSED, listed, checked, lsn, time, drill, era)

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.result]

    def with_drill(self, drill: Report) -> Report:
        """This report of the files, and that of a drill on the same archive: the worse counts."""
        return replace(
            self,
            result=min(self.result, drill.result, key=_WORST_FIRST.index),
            findings=self.findings + drill.findings,
            drill=drill.drill,
        )

    def without(self, check: str, reason: str) -> Report:
        """This report, when another check could not be run: never `passed`."""
        return self.undecided(Finding(check, "warn", check, f"could not be run: {reason}"))

    def undecided(self, finding: Finding) -> Report:
        """This report with a finding that may or may not be a fault: never `passed`."""
        return replace(
            self,
            result=min(self.result, COULD_NOT, key=_WORST_FIRST.index),
            findings=(*self.findings, finding),
        )

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "result": self.result,
            "findings": [finding.to_json() for finding in self.findings],
            "checked": {
                "files": self.checked.files,
                "bytes": self.checked.bytes,
                "rows": self.checked.rows,
                "tables": self.checked.tables,
            },
            "at": {"era": self.era, "lsn": str(self.lsn), "time": format_time(self.time)},
        }
        if self.drill is not None:
            data["drill"] = self.drill.to_json()
        return data


def remember(store: LocalStore, report: Report) -> None:
    """Keep the result for `waly status`. Raises StorageError."""
    note = {
        "verified_at": format_time(datetime.now(UTC)),
        **report.to_json(),
        "findings": [f.to_json() for f in report.findings if f.severity != "pass"][:100],
    }
    durable.replace(store.root / LAST, json.dumps(note, ensure_ascii=False).encode() + b"\n")


def recall(store: LocalStore) -> dict[str, Any] | None:
    """The last result; None when there is none, or none that can be read."""
    try:
        note = json.loads((store.root / LAST).read_bytes())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None
