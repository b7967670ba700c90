"""Who is behind transactions: sessions by the xid that they show.

An xid is shown from the transaction's first change on, until its commit is done: where a commit
waits for a synchronous standby, until that has acknowledged it.
"""

from __future__ import annotations

import select
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from psycopg import pq

from waly_cdc.errors import SourceLost
from waly_cdc.source.connect import connect, source_errors

QUERY_CHARACTERS = 4096
"""Of a query that is kept; the server itself keeps `track_activity_query_size` bytes."""

_COLUMNS = f"""
SELECT backend_xid::text::bigint, pg_get_userbyid(usesysid)::text, application_name,
       host(client_addr), nullif(client_port, -1), pid,
       (extract(epoch FROM backend_start) * 1000000)::bigint, left(query, {QUERY_CHARACTERS})
FROM pg_stat_get_activity(NULL)
"""
_OF_XIDS = f"{_COLUMNS} WHERE backend_xid = ANY ($1::xid[])"
_STATEMENT = b"sessions"
_OPEN = f"""{_COLUMNS}
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
  AND datid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A session that showed a transaction: its role (`session_user`), where it comes from, and the
    statement that it ran then. `backend_start` is microseconds since 1970, UTC."""

    xid: int
    user: str | None
    application_name: str | None
    client_addr: str | None
    client_port: int | None
    pid: int
    backend_start: int | None
    query: str | None

    def session(self) -> dict[str, Any]:
        """All but the xid, by name."""
        return {name: value for name, value in asdict(self).items() if name != "xid"}

    def to_json(self) -> dict[str, Any]:
        """As the journal keeps it (FORMAT.md, section 5)."""
        return asdict(self)


def with_transactions(connection: psycopg.Connection) -> list[Sighting]:
    """The sessions of this database that have written something in an open transaction. Raises
    SourceError."""
    with source_errors():
        return [Sighting(*row) for row in connection.execute(_OPEN, prepare=True).fetchall()]


class SessionLook:
    """Looks for the sessions of transactions, each in two halves: while the server answers `ask`,
    something else can be done before `answer`."""

    def __init__(self, dsn: str, timeout: float) -> None:
        """`timeout` is how many seconds an answer may take. Raises SourceError."""
        self._timeout = timeout
        self._connection = connect(dsn, application_name="waly witness")
        with source_errors():
            milliseconds = round(timeout * 1000)
            self._connection.execute(f"SET statement_timeout = {milliseconds}".encode())
            _check(self._connection.pgconn.prepare(_STATEMENT, _OF_XIDS.encode()))

    def ask(self, xids: Collection[int]) -> None:
        """Ask for the sessions in which these transactions are open, or wait for their commit to be
        acknowledged: one query for all. Raises SourceError."""
        pgconn = self._connection.pgconn
        listed = "{" + ",".join(map(str, xids)) + "}"
        with source_errors():
            pgconn.send_query_prepared(_STATEMENT, [listed.encode()])
            pgconn.flush()

    def answer(self) -> list[Sighting]:
        """What `ask` asked for. Raises SourceError."""
        pgconn = self._connection.pgconn
        deadline = time.monotonic() + self._timeout
        with source_errors():
            while pgconn.is_busy():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SourceLost(f"no answer from PostgreSQL in {self._timeout:g} s")
                select.select([pgconn.socket], [], [], left)
                pgconn.consume_input()
            result = pgconn.get_result()
            while pgconn.get_result() is not None:
                pass
            return [_sighting(row) for row in _rows(_check(result))]

    def close(self) -> None:
        self._connection.close()


def _check(result: pq.abc.PGresult | None) -> pq.abc.PGresult:
    if result is None:
        raise psycopg.OperationalError("the connection is closed")
    if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        raise psycopg.errors.error_from_result(result)
    return result


def _rows(result: pq.abc.PGresult) -> list[list[str | None]]:
    return [
        [
            None if (value := result.get_value(row, column)) is None else value.decode()
            for column in range(result.nfields)
        ]
        for row in range(result.ntuples)
    ]


def _sighting(row: list[str | None]) -> Sighting:
    """A row in text format, as `_COLUMNS` has it."""
    xid, user, application, address, port, pid, start, query = row
    return Sighting(
        xid=int(xid or 0),
        user=user,
        application_name=application,
        client_addr=address,
        client_port=int(port) if port else None,
        pid=int(pid or 0),
        backend_start=int(start) if start else None,
        query=query,
    )
