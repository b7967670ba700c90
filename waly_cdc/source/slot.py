"""The replication slot: making it, looking at it, dropping it; and what making it waits for.

A slot keeps the server's log until its reader has acknowledged it. One that nobody reads fills the
server's disk: whoever makes a slot in vain drops it again.
"""

from __future__ import annotations

import hashlib
import re
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import psycopg
from psycopg import pq

from waly_cdc.errors import SourceLost, UsageError
from waly_cdc.lsn import Lsn
from waly_cdc.source.connect import source_errors

STANDBY_SINCE, FAILOVER_SINCE = 16, 17
"""The versions of PostgreSQL since which a standby has logical slots of its own, and since which it
keeps copies of its primary's."""

NAME_LIMIT = 63
"""Bytes of a slot's name (NAMEDATALEN - 1)."""

_DEFAULT_LIMIT = NAME_LIMIT - len("_keyed")
"""Bytes of a default name, so that the publications' names are made of it whole."""

_NAME = re.compile(r"[a-z0-9_]{1,63}")
_HASHED = re.compile(r".*_[0-9a-f]{8}")

_CANCEL_PATIENCE = 10.0
"""Seconds to wait for the server to confirm that it gave up."""


@dataclass(frozen=True, slots=True)
class CreatedSlot:
    """A new slot. `snapshot` sees all that commits before `consistent_point`, until its connection
    does anything else; the slot streams all that commits from there on."""

    name: str
    consistent_point: Lsn
    snapshot: str


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot as `pg_replication_slots` shows it.

    `retained_bytes` is the log that it holds back, `safe_wal_size` what may still be written before
    it is lost (None: any amount), `invalidation` why it is lost, where the server's version says.
    """

    name: str
    plugin: str | None
    database: str | None
    temporary: bool
    active: bool
    active_pid: int | None
    wal_status: str | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    retained_bytes: int | None
    safe_wal_size: int | None
    invalidation: str | None
    failover: bool

    @property
    def lost(self) -> bool:
        """Whether the server can no longer send what the slot would need."""
        return self.wal_status == "lost" or self.invalidation is not None


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction, in any of the server's databases, that creating a slot has to wait for.

    `pid` is None for a prepared transaction, `age` where the role may not see it. `end_sql` rolls
    the transaction back (a prepared one in its own database only).
    """

    pid: int | None
    what: str
    age: timedelta | None
    end_sql: str


def default_name(database: str) -> str:
    """`waly_<database>`, restricted to what a slot's name may hold.

    Where characters had to be replaced or cut, a hash keeps names of different databases apart; a
    database whose own name ends like a hash gets one too, so that none can be mistaken for it.
    """
    name = f"waly_{database}"
    if len(name) <= _DEFAULT_LIMIT and _NAME.fullmatch(name) and not _HASHED.fullmatch(name):
        return name
    digest = hashlib.sha256(database.encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9_]", "_", name.lower())
    return f"{readable[: _DEFAULT_LIMIT - 9]}_{digest}"


def check_name(name: str) -> str:
    """The name, if a slot may have it. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not a slot name: {name!r}",
            hint=f"up to {NAME_LIMIT} lower case letters, digits and underscores",
        )
    return name


def create(
    connection: psycopg.Connection,
    name: str,
    plugin: str = "pgoutput",
    *,
    temporary: bool = False,
    failover: bool = False,
    on_wait: Callable[[float], None] = lambda _: None,
) -> CreatedSlot:
    """Create a logical slot over a replication connection, exporting a snapshot.

    The server waits for all transactions that are open: `on_wait` is called about every second with
    the seconds waited so far, and may use another connection to ask for `blockers`. When anything
    interrupts the wait, the server is told to give up, and no slot is left behind. Publications
    that the slot's reader asks for must exist before it. With `failover` standbys may keep a copy
    of it (PostgreSQL 17 and newer). Raises SourceError, SourceLost.
    """
    kind = "TEMPORARY " if temporary else ""
    newer = connection.info.server_version >= 150000
    options = "SNAPSHOT 'export'" + (", FAILOVER" if failover else "")
    export = f"({options})" if newer else "EXPORT_SNAPSHOT"
    command = f'CREATE_REPLICATION_SLOT "{check_name(name)}" {kind}LOGICAL "{plugin}" {export}'
    with source_errors():
        try:
            result = _execute(connection.pgconn, command, on_wait)
        except BaseException:
            _give_up(connection, name)
            raise
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
    created, point, snapshot = ((result.get_value(0, at) or b"").decode() for at in range(3))
    return CreatedSlot(created, Lsn.parse(point), snapshot)


def info(connection: psycopg.Connection, name: str) -> SlotInfo | None:
    """The slot of that name; None if there is none. Raises SourceError."""
    with source_errors():
        row = connection.execute(_INFO, (name,)).fetchone()
    if row is None:
        return None
    return SlotInfo(
        name=row[0],
        plugin=row[1],
        database=row[2],
        temporary=row[3],
        active=row[4],
        active_pid=row[5],
        wal_status=row[6],
        restart_lsn=Lsn.parse(row[7]) if row[7] else None,
        confirmed_flush_lsn=Lsn.parse(row[8]) if row[8] else None,
        retained_bytes=row[9],
        safe_wal_size=row[10],
        invalidation=row[11],
        failover=row[12],
    )


def drop(connection: psycopg.Connection, name: str) -> None:
    """Drop a slot. Raises SourceError, also when it is in use or does not exist."""
    with source_errors():
        connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))


def blockers(connection: psycopg.Connection) -> list[Blocker]:
    """Open and prepared transactions that creating a slot now would wait for, oldest first."""
    with source_errors():
        return [Blocker(*row) for row in connection.execute(_BLOCKERS)]


# Which columns there are depends on the server's version: 16 has `conflicting`, 17 and later name
# the reason, and have `failover`.
_INFO = """
SELECT s.slot_name::text, s.plugin::text, s.database::text, s.temporary, s.active, s.active_pid,
       s.wal_status, s.restart_lsn::text, s.confirmed_flush_lsn::text,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                            ELSE pg_current_wal_insert_lsn() END, s.restart_lsn)::bigint,
       s.safe_wal_size,
       coalesce(to_jsonb(s) ->> 'invalidation_reason',
                CASE WHEN to_jsonb(s) ->> 'conflicting' = 'true' THEN 'conflict' END),
       coalesce(to_jsonb(s) ->> 'failover', 'false') = 'true'
FROM pg_replication_slots s WHERE s.slot_name = %s
"""

# A role without pg_read_all_stats sees neither the state nor the age of others' transactions.
_BLOCKERS = """
SELECT a.pid, format('process %s, %s on %s, %s', a.pid, coalesce(a.usename, a.backend_type),
                     a.datname, coalesce(a.state, 'state not shown')),
       clock_timestamp() - a.xact_start, format('SELECT pg_terminate_backend(%s);', a.pid)
FROM pg_stat_activity a WHERE a.backend_xid IS NOT NULL AND a.pid <> pg_backend_pid()
UNION ALL
SELECT NULL, format('prepared transaction %L, %s on %s', gid, owner, database),
       clock_timestamp() - prepared, format('ROLLBACK PREPARED %L;', gid)
FROM pg_prepared_xacts
ORDER BY 3 DESC NULLS LAST
"""


def _execute(
    pgconn: pq.abc.PGconn, command: str, on_wait: Callable[[float], None]
) -> pq.abc.PGresult:
    """The result of a command in the simple protocol, waiting so that signals get through."""
    begun = time.monotonic()
    pgconn.send_query(command.encode())
    while pgconn.flush():
        select.select([], [pgconn.socket], [])
    result = None
    while True:
        while pgconn.is_busy():
            if select.select([pgconn.socket], [], [], 1.0)[0]:
                pgconn.consume_input()
            else:
                on_wait(time.monotonic() - begun)
        following = pgconn.get_result()
        if following is None:
            break
        result = following
    if result is None:
        raise SourceLost("the connection to PostgreSQL broke while the slot was made")
    return result


def _give_up(connection: psycopg.Connection, name: str) -> None:
    """Cancel a slot's creation. The server goes on with it when the connection is merely closed."""
    pgconn = connection.pgconn
    try:
        connection.cancel_safe(timeout=_CANCEL_PATIENCE)
        deadline = time.monotonic() + _CANCEL_PATIENCE
        created = False
        while (remaining := deadline - time.monotonic()) > 0:
            if not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    break
                created = created or result.status == pq.ExecStatus.TUPLES_OK
            elif select.select([pgconn.socket], [], [], remaining)[0]:
                pgconn.consume_input()
        if created:
            # It was finished in the very moment of the interrupt.
            pgconn.exec_(f'DROP_REPLICATION_SLOT "{name}"'.encode())
    except psycopg.Error:
        # The connection is broken: the server has given up, or `waly slot drop` has to help.
        connection.close()
