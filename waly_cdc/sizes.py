"""Sizes as people read them."""

from __future__ import annotations

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size_text(number: int | None, unknown: str = "unknown") -> str:
    """Bytes in the largest binary unit that they fill; `unknown` for None."""
    if number is None:
        return unknown
    power = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{number / (1 << 10 * power):.{1 if power else 0}f} {_UNITS[power]}"
