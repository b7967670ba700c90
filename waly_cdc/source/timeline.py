"""The history of a server's timelines: which logs its own log goes on from.

A server that recovers up to a point, or a standby that is promoted, begins a new timeline where its
predecessor's log ended for it (PostgreSQL documentation, section 26.3.6, "Timelines"). Servers
that share a timeline up to an LSN have the same log up to there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq

from waly_cdc.errors import SourceError
from waly_cdc.lsn import Lsn
from waly_cdc.source.connect import connect, source_errors

Ended = tuple[tuple[int, Lsn], ...]
"""Timelines that ended, oldest first, each with the LSN at which the next one begins."""

_STARTED = "SELECT pg_postmaster_start_time()::text"


@dataclass(frozen=True, slots=True)
class Timelines:
    """A server's timeline and the ones before it. `started` is when the server was, which tells it
    from its copies."""

    current: int
    ended: Ended
    started: str


def timelines(dsn: str) -> Timelines:
    """The history of the server that `dsn` leads to. Raises SourceError, SourceLost."""
    with (
        connect(dsn, replication=True, application_name="waly timeline") as connection,
        source_errors(),
    ):
        started = connection.execute(_STARTED).fetchone()
        assert started is not None
        # pg_control_checkpoint() names the old timeline for a while after it has changed.
        current = int(_value(connection, b"IDENTIFY_SYSTEM", 1))
        # The first timeline has no history file.
        history = _value(connection, b"TIMELINE_HISTORY %d" % current, 1) if current > 1 else ""
    return Timelines(current, parse_history(history), started[0])


def started(connection: psycopg.Connection) -> str:
    """When the server of a connection was started, as in `Timelines`. Raises SourceError."""
    with source_errors():
        row = connection.execute(_STARTED).fetchone()
    assert row is not None
    return str(row[0])


def _value(connection: psycopg.Connection, command: bytes, column: int) -> str:
    """A column of a replication command's answer. As text: older servers call a history file's
    content bytea, and send it as it is."""
    result = connection.pgconn.exec_(command)
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result, encoding="utf-8")
    return (result.get_value(0, column) or b"").decode("utf-8", "replace")


def parse_history(text: str) -> Ended:
    """The lines of a timeline history file. Raises SourceError."""
    ended = []
    for line in text.splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            ended.append((int(fields[0]), Lsn.parse(fields[1])))
        except (ValueError, IndexError):
            raise SourceError(f"the server's timeline history cannot be read: {line!r}") from None
    return tuple(ended)


def left_at(known: int, known_ended: Sequence[tuple[int, Lsn]], now: Ended) -> Lsn | None:
    """Where a server whose history is `now` (its own timeline at the end, with the LSN it has
    reached) left the log of one that was on timeline `known` after `known_ended`: up to there the
    two logs are the same."""
    for (timeline, end), (other, other_end) in zip(known_ended, now, strict=False):
        if timeline != other:
            return None
        if end != other_end:
            return min(end, other_end)
    if len(now) <= len(known_ended) or now[len(known_ended)][0] != known:
        # It never was on that timeline, and left where that one began.
        return known_ended[-1][1] if known_ended else None
    return now[len(known_ended)][1]
