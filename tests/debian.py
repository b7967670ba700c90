"""Debian's servers, for what PyPI's do not have: output plugins of others."""

from __future__ import annotations

from pathlib import Path

import pytest


def programs_with(plugin: str) -> Path:
    """The programs of the newest of Debian's servers here that has an output plugin; without one
    the test is skipped."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/lib/{plugin}.so"), key=lambda path: path.parent.parent
    )
    bindirs = [path.parent.parent / "bin" for path in found]
    usable = [bindir for bindir in bindirs if (bindir / "postgres").exists()]
    if not usable:
        pytest.skip(
            f"no server with {plugin} here: apt-get install postgresql-15 postgresql-15-{plugin}"
            f" (Debian 12) or postgresql-17 postgresql-17-{plugin} (Debian 13)"
        )
    return usable[-1]
