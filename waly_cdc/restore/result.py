"""What a restore did."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from waly_cdc.archive.manifest import format_time
from waly_cdc.lsn import Lsn


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was restored; `left_out` names what was not, and why. Of that `violated` are constraints
    that the rows do not satisfy: they were dropped since the schema dump, or made after the point;
    or the archive is wrong."""

    target: str
    era: int
    lsn: Lsn
    time: datetime | None
    tables: tuple[tuple[str, int], ...]
    seconds: float
    left_out: tuple[str, ...] = ()
    violated: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "at": {"era": self.era, "lsn": str(self.lsn), "time": format_time(self.time)},
            "tables": [{"table": table, "rows": rows} for table, rows in self.tables],
            "seconds": round(self.seconds, 3),
            "left_out": list(self.left_out),
        }
