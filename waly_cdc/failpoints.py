"""Failure points: named places where tests make the next durable step fail.

Nothing is armed unless `WALY_FAILPOINTS` names it, as `name=action` pairs joined by commas:
`kill` ends the process as SIGKILL does, `enospc` and `eio` raise what a full or a broken disk
would. A number, as in `seal.publish=kill:3`, lets the point pass that many times first.
"""

from __future__ import annotations

import errno
import os
import signal

NAMES = (
    "journal.append",
    "journal.sync",
    "seal.write",
    "seal.publish",
    "manifest.put",
    "acknowledge",
    "journal.trim",
    "baseline.copy",
    "compact.write",
    "compact.delete",
    "fold.write",
)

_armed: dict[str, tuple[str, int]] = {}


def arm(setting: str) -> None:
    """Arm the points that `setting` names, and disarm all others. Raises ValueError."""
    _armed.clear()
    for item in filter(None, setting.split(",")):
        name, _, action = item.partition("=")
        action, _, passes = action.partition(":")
        if name not in NAMES or action not in ("kill", "enospc", "eio"):
            raise ValueError(f"unknown failure point or action: {item!r}")
        _armed[name] = (action, int(passes or 0))


def reach(name: str) -> None:
    """Called just before the step of that name."""
    if not _armed or name not in _armed:
        return
    action, passes = _armed[name]
    if passes:
        _armed[name] = (action, passes - 1)
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    code = errno.ENOSPC if action == "enospc" else errno.EIO
    raise OSError(code, os.strerror(code))


arm(os.environ.get("WALY_FAILPOINTS", ""))
