"""What capture needs to be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DURABILITIES = ("journal", "archive")


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """`slot` None means the slot named after the database. Intervals are seconds, sizes bytes.

    `durability` says what an acknowledged transaction is durable in: the local journal, or the
    archive.
    """

    dsn: str
    archive: Path
    slot: str | None = None
    seal_interval: float = 60.0
    seal_size: int = 64 << 20
    durability: str = "journal"
    sample: bool = True
