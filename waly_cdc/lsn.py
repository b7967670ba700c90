"""Log sequence numbers: byte positions in PostgreSQL's write-ahead log.

An `Lsn` is a value type. Outside this module a position is never a bare int or str, except in the
columns of an event file, which hold `Lsn.value`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


@dataclass(frozen=True, order=True, slots=True)
class Lsn:
    """A position in the write-ahead log, in bytes from its beginning (64 bits, unsigned).

    Text form as PostgreSQL prints `pg_lsn`: two hexadecimal halves, `0/1A2B3C8`
    (PostgreSQL documentation, section 8.20, "pg_lsn Type").
    """

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1 << 64:
            raise ValueError(f"not a 64-bit LSN: {self.value}")

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Parse `X/Y`. Raises ValueError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    @classmethod
    def from_hex(cls, text: str) -> Lsn:
        """Parse the 16 hexadecimal digits that `hex` gives."""
        if len(text) != 16:
            raise ValueError(f"not a 16-digit LSN: {text!r}")
        return cls(int(text, 16))

    @property
    def hex(self) -> str:
        """Sixteen hexadecimal digits: file names made of them sort in WAL order."""
        return f"{self.value:016x}"

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"

    def __add__(self, size: int) -> Lsn:
        return Lsn(self.value + size)

    def __sub__(self, other: Lsn) -> int:
        """Bytes of WAL from `other` to this position."""
        return self.value - other.value


ZERO = Lsn(0)
"""Before every position. PostgreSQL calls it InvalidXLogRecPtr."""
