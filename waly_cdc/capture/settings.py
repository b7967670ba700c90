"""What capture needs to be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from waly_cdc.config import Config
from waly_cdc.errors import UsageError


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """`slot` None means the slot named after the database, which is made so that standbys keep a
    copy of it with `failover`. Intervals are seconds, sizes bytes.

    `durability` says what an acknowledged transaction is durable in: the local `journal`, or the
    `archive`. An empty `dsn` leaves everything to libpq's environment. `sample_interval` 0 turns
    sampling off. With `witness` commits wait for us, each `witness_patience` at most.
    """

    dsn: str
    archive: Path
    slot: str | None = None
    failover: bool = False
    seal_interval: float = 60.0
    seal_size: int = 64 << 20
    durability: str = "journal"
    sample_interval: float = 0.05
    witness: bool = False
    witness_patience: float = 2.0

    @classmethod
    def of(cls, config: Config) -> CaptureSettings:
        """Raises UsageError for settings that cannot be read, or not be had together."""
        if config["witness"] and config["durability"] != "journal":
            raise UsageError(
                "with witness a commit waits until it is acknowledged, which durability archive"
                " does at every seal only",
                hint="use durability journal",
            )
        return cls(
            dsn=config["dsn"] or "",
            archive=config["archive"],
            slot=config["slot"],
            seal_interval=config["seal_interval"],
            seal_size=config["seal_size"],
            durability=config["durability"],
            sample_interval=config["sample_interval"],
            witness=config["witness"],
            witness_patience=config["witness_patience"],
        )
