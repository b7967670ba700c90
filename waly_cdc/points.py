"""Points: how a user names a moment of the history (`WHEN` on the command line)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from waly_cdc.errors import UsageError
from waly_cdc.lsn import Lsn

EXAMPLES = (
    "2026-11-23T14:05:00Z, '2026-11-23 14:05 Europe/Berlin', '15m ago', 0/1A2B3C8, xid:8812,"
    " xid:8812^ or latest; 2:0/1A2B3C8 and 2:xid:8812 in era 2"
)


@dataclass(frozen=True, slots=True)
class Latest:
    """All that is known."""


@dataclass(frozen=True, slots=True)
class AtTime:
    """All transactions up to the last one before the first that committed after `time`."""

    time: datetime


@dataclass(frozen=True, slots=True)
class AtLsn:
    """All transactions whose commit record begins before `lsn`, in the newest era that holds it
    unless one is named."""

    lsn: Lsn
    era: int | None = None


@dataclass(frozen=True, slots=True)
class AtTransaction:
    """Right after a transaction, or right before it: the newest with that xid."""

    xid: int
    before: bool
    era: int | None = None


When = Latest | AtTime | AtLsn | AtTransaction

_AGO = re.compile(r"(\d+)\s*(s|m|h|d|w|second|minute|hour|day|week)s?\s+ago")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_ERA = re.compile(r"(\d{1,9}):(?=xid:|[^ ]*/)")
_XID = re.compile(r"xid:(\d{1,10})(\^?)")
_ZONED = re.compile(r"(\S+[ T]\S+|\d{4}-\d\d-\d\d)\s+([A-Za-z][A-Za-z0-9_+/-]*)")


def parse_when(text: str, now: datetime | None = None) -> When:
    """Read a WHEN. A time without a zone is local time. Raises UsageError."""
    text = text.strip()
    if text == "latest":
        return Latest()
    given, era = text, None
    if match := _ERA.match(text):
        era, text = int(match[1]), text[match.end() :]
    if match := _XID.fullmatch(text):
        return AtTransaction(int(match[1]), before=bool(match[2]), era=era)
    if match := _AGO.fullmatch(text):
        try:
            return AtTime(
                (now or datetime.now(UTC)) - timedelta(**{_UNITS[match[2][0]]: int(match[1])})
            )
        except OverflowError:
            raise _malformed(text) from None
    if "/" in text and " " not in text:
        try:
            return AtLsn(Lsn.parse(text), era)
        except ValueError:
            raise _malformed(given) from None
    if era is not None:
        raise _malformed(given)
    return AtTime(_parse_time(text))


def _parse_time(text: str) -> datetime:
    zone = None
    if match := _ZONED.fullmatch(text):
        try:
            zone = ZoneInfo(match[2])
        except (ZoneInfoNotFoundError, ValueError):
            raise UsageError(
                f"unknown time zone: {match[2]!r}",
                hint="zones are named as in Europe/Berlin or UTC",
            ) from None
        text = match[1]
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise _malformed(text) from None
    if time.tzinfo is not None:
        return time.astimezone(UTC)
    # A local time that the clocks skip or repeat names no moment, or two.
    readings = {
        (time.replace(tzinfo=zone, fold=fold) if zone else time.replace(fold=fold)).astimezone(UTC)
        for fold in (0, 1)
    }
    if len(readings) > 1:
        raise UsageError(
            f"{text} does not name one moment: the clocks changed then",
            hint="write the offset, as in 2026-10-25T02:30:00+01:00",
        )
    return readings.pop()


def _malformed(text: str) -> UsageError:
    return UsageError(f"not a point in time: {text!r}", hint=f"write for example {EXAMPLES}")
