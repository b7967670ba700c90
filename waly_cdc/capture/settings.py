"""What capture needs to be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from waly_cdc.config import Config


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """`slot` None means the slot named after the database, which is made so that standbys keep a
    copy of it with `failover`. Intervals are seconds, sizes bytes.

    `durability` says what an acknowledged transaction is durable in: the local `journal`, or the
    `archive`. An empty `dsn` leaves everything to libpq's environment.
    """

    dsn: str
    archive: Path
    slot: str | None = None
    failover: bool = False
    seal_interval: float = 60.0
    seal_size: int = 64 << 20
    durability: str = "journal"
    sample: bool = True

    @classmethod
    def of(cls, config: Config) -> CaptureSettings:
        """Raises UsageError for a setting that cannot be read."""
        return cls(
            dsn=config["dsn"] or "",
            archive=config["archive"],
            slot=config["slot"],
            seal_interval=config["seal_interval"],
            seal_size=config["seal_size"],
            durability=config["durability"],
        )
