"""The watchdog: a session that takes our name out of `synchronous_standby_names` when we cannot.

It runs in the server, so it outlives the sidecar, its machine and the network between them. All of
its work is sent to the server in the beginning, in one pipeline: first a loop that ends when the
sidecar's walsender is gone or a commit has waited too long, then the statements that take the name
out. The server has read them all before the loop ends: whether anybody is left to read the answers
does not matter. `ALTER SYSTEM` commits at once and needs no lock that a waiting commit holds.

The loop ends its transaction before every pause, so it never keeps vacuum from anything.
"""

from __future__ import annotations

import select
import time

import psycopg
from psycopg import pq

from waly_cdc.source.connect import connect, source_errors
from waly_cdc.source.synchronous import RELOAD, Standbys

NAME = "waly watchdog"
LOOK_SECONDS = 0.1
_TAKEN_OUT_SECONDS = 5.0

_WATCH = """
DO $watch$
DECLARE
    waiting text[];
    still text[] := '{{}}';
    since timestamptz;
BEGIN
    LOOP
        PERFORM FROM pg_stat_get_wal_senders() AS sender WHERE sender.pid = {pid};
        EXIT WHEN NOT FOUND;
        waiting := ARRAY(
            SELECT concat_ws(' ', pid, backend_xid, query_start) FROM pg_stat_get_activity(NULL)
            WHERE wait_event = 'SyncRep');
        still := ARRAY(SELECT unnest(still) INTERSECT SELECT unnest(waiting));
        IF still = '{{}}' THEN
            still := waiting;
            since := clock_timestamp();
        ELSIF clock_timestamp() - since > make_interval(secs => {patience}) THEN
            EXIT;
        END IF;
        COMMIT;
        PERFORM pg_sleep({pause});
    END LOOP;
END
$watch$
"""


class Watchdog:
    """Watches from its making on. Used by one thread."""

    def __init__(self, dsn: str, sender: int, patience: float, previous: Standbys) -> None:
        """`sender` is the pid of the sidecar's walsender, `patience` how many seconds a commit may
        wait, `previous` the value that the setting gets back. Raises SourceError."""
        self._connection = connect(dsn, application_name=NAME)
        self._syncs = 0
        self._failed: str | None = None
        watch = _WATCH.format(pid=sender, patience=patience, pause=LOOK_SECONDS)
        pgconn = self._connection.pgconn
        with source_errors():
            # A client that is gone must not end the session before its work is done.
            self._connection.execute("SET client_connection_check_interval = 0")
            pgconn.enter_pipeline_mode()
            pgconn.send_query_params(watch.encode(), None)
            pgconn.pipeline_sync()
            pgconn.send_query_params(previous.statement().encode(), None)
            pgconn.send_query_params(RELOAD.encode(), None)
            pgconn.pipeline_sync()
            while pgconn.flush():
                select.select([], [pgconn.socket], [])

    def ended(self, seconds: float) -> bool:
        """Whether it has done its work, or has failed; waits for that so long at most."""
        pgconn = self._connection.pgconn
        deadline = time.monotonic() + seconds
        try:
            while not self._read(pgconn):
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([pgconn.socket], [], [], left)[0]:
                    return False
                pgconn.consume_input()
        except psycopg.Error as error:
            self._failed = str(error).strip()
        return True

    def call_off(self) -> bool:
        """Let it take the name out now. Whether it did: else somebody else has to."""
        if not self.ended(0):
            try:
                self._connection.pgconn.get_cancel().cancel()
            except psycopg.Error as error:
                self._failed = str(error).strip()
        return self.ended(_TAKEN_OUT_SECONDS) and self._failed is None

    def close(self) -> None:
        self._connection.close()

    def _read(self, pgconn: pq.abc.PGconn) -> bool:
        """Take the answers that have come; whether all have, or none will."""
        while self._failed is None and self._syncs < 2 and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == pq.ConnStatus.BAD:
                    self._failed = "the connection is gone"
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                self._syncs += 1
            elif result.status == pq.ExecStatus.FATAL_ERROR and self._syncs == 1:
                self._failed = result.get_error_message()
        return self._failed is not None or self._syncs == 2
