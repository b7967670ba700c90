"""The replication slot: making it, looking at it, dropping it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta

import psycopg
from psycopg import pq

from waly_cdc.lsn import Lsn
from waly_cdc.source.connect import source_errors

_NAME = re.compile(r"[a-z0-9_]{1,63}")


@dataclass(frozen=True, slots=True)
class CreatedSlot:
    """A new slot. `snapshot` sees all that commits before `consistent_point`, until its connection
    does anything else; the slot streams all that commits from there on."""

    name: str
    consistent_point: Lsn
    snapshot: str


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot as `pg_replication_slots` shows it. `retained_bytes` is the log it holds back."""

    name: str
    plugin: str
    database: str
    active: bool
    active_pid: int | None
    wal_status: str | None
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    retained_bytes: int | None
    safe_wal_size: int | None

    @property
    def lost(self) -> bool:
        """Whether the server has thrown away log that the slot would need."""
        return self.wal_status == "lost"


@dataclass(frozen=True, slots=True)
class Blocker:
    """An open transaction that creating a slot has to wait for."""

    what: str
    age: timedelta


def default_name(database: str) -> str:
    """The slot's name for a database: different for any two databases of a server."""
    name = "waly_" + database
    if _NAME.fullmatch(name):
        return name
    safe = re.sub(r"[^a-z0-9_]", "_", database.lower())[:40]
    return f"waly_{safe}_{hashlib.sha256(database.encode()).hexdigest()[:12]}"


def create(
    connection: psycopg.Connection, name: str, *, plugin: str = "pgoutput", temporary: bool = False
) -> CreatedSlot:
    """Create a logical slot over a replication connection, exporting a snapshot.

    Waits for all transactions that are open. Raises SourceError.
    """
    kind = "TEMPORARY " if temporary else ""
    export = (
        "(SNAPSHOT 'export')" if connection.info.server_version >= 150000 else "EXPORT_SNAPSHOT"
    )
    command = f'CREATE_REPLICATION_SLOT "{name}" {kind}LOGICAL "{plugin}" {export}'
    with source_errors():
        result = connection.pgconn.exec_(command.encode())
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
    values = [(result.get_value(0, column) or b"").decode() for column in range(3)]
    return CreatedSlot(values[0], Lsn.parse(values[1]), values[2])


def info(connection: psycopg.Connection, name: str) -> SlotInfo | None:
    """The slot of that name; None if there is none. Raises SourceError."""
    with source_errors():
        row = connection.execute(
            """
            select slot_name, plugin, database, active, active_pid, wal_status, restart_lsn::text,
                   confirmed_flush_lsn::text,
                   pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                       else pg_current_wal_insert_lsn() end, restart_lsn)::bigint,
                   safe_wal_size
            from pg_replication_slots where slot_name = %s
            """,
            (name,),
        ).fetchone()
    if row is None:
        return None
    return SlotInfo(
        name=row[0],
        plugin=row[1],
        database=row[2],
        active=row[3],
        active_pid=row[4],
        wal_status=row[5],
        restart_lsn=Lsn.parse(row[6]) if row[6] else None,
        confirmed_flush_lsn=Lsn.parse(row[7]) if row[7] else None,
        retained_bytes=row[8],
        safe_wal_size=row[9],
    )


def drop(connection: psycopg.Connection, name: str) -> None:
    """Drop a slot. Raises SourceError, also when it is in use."""
    with source_errors():
        connection.execute("select pg_drop_replication_slot(%s)", (name,))


def blockers(connection: psycopg.Connection) -> list[Blocker]:
    """Open and prepared transactions that creating a slot now would wait for, oldest first."""
    with source_errors():
        rows = connection.execute(
            """
            select format('process %%s (%%s, %%s)', pid, usename, state), clock_timestamp() - xact_start
            from pg_stat_activity
            where backend_xid is not null and pid <> pg_backend_pid() and xact_start is not null
            union all
            select format('prepared transaction %%L', gid), clock_timestamp() - prepared
            from pg_prepared_xacts
            order by 2 desc
            """.replace("%%", "%")
        ).fetchall()
    return [Blocker(what, age) for what, age in rows]
