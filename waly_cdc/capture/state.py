"""What a running sidecar says of itself, in `sidecar.json` beside the archive's files.

Not durable and not history: it lets `waly status` see what is not yet in the manifest.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from waly_cdc import durable
from waly_cdc.archive.manifest import format_time, parse_time
from waly_cdc.errors import StorageError
from waly_cdc.lsn import Lsn
from waly_cdc.tables import Gap

FILE = "sidecar.json"


@dataclass(frozen=True, slots=True)
class SidecarState:
    """`quiet_until`: up to this time nothing was committed after the horizon; None if something
    was, or nobody knows."""

    state: str
    era: int
    received: Lsn
    safe: Lsn
    acknowledged: Lsn
    horizon: Lsn
    horizon_time: datetime | None
    quiet_until: datetime | None
    unsealed_bytes: int
    unsealed_gaps: tuple[Gap, ...] = ()
    error: str | None = None


def write_state(root: Path, state: SidecarState) -> None:
    """Replace the file. A disk that is full does not stop capture here: it will elsewhere."""
    data = {
        "state": state.state,
        "pid": os.getpid(),
        "at": format_time(datetime.now(UTC)),
        "era": state.era,
        "received": str(state.received),
        "safe": str(state.safe),
        "acknowledged": str(state.acknowledged),
        "horizon": str(state.horizon),
        "horizon_time": format_time(state.horizon_time),
        "quiet_until": format_time(state.quiet_until),
        "unsealed_bytes": state.unsealed_bytes,
        "unsealed_gaps": [gap.to_json() for gap in state.unsealed_gaps],
        "error": state.error,
    }
    with suppress(StorageError):
        durable.replace(root / FILE, json.dumps(data).encode() + b"\n", durable=False)


def forget_state(root: Path) -> None:
    """Remove what was said of an era that has ended."""
    (root / FILE).unlink(missing_ok=True)


def note_error(root: Path, state: str, error: str) -> None:
    """Say in the file that the sidecar waits for its server (`disconnected`), or has `failed`."""
    data = read_state(root) or {}
    data |= {"state": state, "at": format_time(datetime.now(UTC)), "error": error}
    with suppress(StorageError):
        durable.replace(root / FILE, json.dumps(data).encode() + b"\n", durable=False)


def quiet_until(root: Path, era: int, horizon: Lsn) -> datetime | None:
    """The time up to which, as a sidecar said, nothing was committed after the horizon."""
    data = read_state(root) or {}
    if (data.get("era"), data.get("horizon")) != (era, str(horizon)):
        return None
    return parse_time(data.get("quiet_until"))


def unsealed_gaps(root: Path) -> list[Gap]:
    """The gaps that a sidecar had found and not sealed yet."""
    data = read_state(root) or {}
    return [Gap.from_json(gap) for gap in data.get("unsealed_gaps", ())]


def read_state(root: Path) -> dict[str, Any] | None:
    """What the last sidecar said; None where none has run."""
    try:
        data = json.loads((root / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
