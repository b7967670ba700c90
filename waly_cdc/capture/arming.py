"""Arming the witness: when commits wait for us, and when they no longer do.

    stream has caught up → watchdog watches → our name goes into `synchronous_standby_names`
    → the watchdog takes it out: the sidecar stops, is gone, or lets a commit wait too long

Invariant: the name is in the setting only while a watchdog watches, which lives in the server. What
is left: a server that is stopped meanwhile forgets the watchdog and keeps the setting. The sidecar
comes back to it within seconds, and first of all takes out a name that was left behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg

from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.errors import SourceError
from waly_cdc.source import synchronous
from waly_cdc.source.connect import connect, source_errors
from waly_cdc.source.synchronous import SETTING
from waly_cdc.source.watchdog import Watchdog

REARM_SECONDS = 30.0
"""How long commits do not wait for us after one has waited too long."""

CAUGHT_UP_BYTES = 1 << 20
LOOK_SECONDS = 0.2
SYNC_LOOK_SECONDS = 5.0

_SENDER = """
SELECT state, sync_state, pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn) FROM pg_stat_replication
WHERE pid = %s
"""


def leave(dsn: str, slot: str, on_event: Callable[[str], None]) -> None:
    """Take a name that was left behind out of the setting, or say how. Raises SourceError."""
    name = synchronous.connection_name(slot)
    with connect(dsn) as connection:
        value = synchronous.now(connection)
        if not value.has(name):
            return
        if synchronous.missing_rights(connection):
            on_event(
                f"commits wait for {name}, and this role may not end that: when the sidecar is gone"
                " they hang until somebody who may has run:"
                f" {value.without(name).statement()}; {synchronous.RELOAD};"
            )
            return
        synchronous.take_out(connection, name)
        on_event(f"took {name}, which was left behind, out of {SETTING}")


class Arming(threading.Thread):
    """Keeps commits waiting for the stream of a walsender, as long as that does no harm."""

    def __init__(
        self,
        settings: CaptureSettings,
        slot: str,
        sender: int,
        on_event: Callable[[str], None],
    ) -> None:
        super().__init__(name="arming", daemon=True)
        self._dsn = settings.dsn
        self._patience = settings.witness_patience
        self._name = synchronous.connection_name(slot)
        self._sender = sender
        self._on_event = on_event
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._arm():
                    return
            except (SourceError, psycopg.Error) as error:
                if not self._stopping.is_set():
                    self._on_event(f"witness: {error}")
            self._stopping.wait(REARM_SECONDS)

    def stop(self) -> None:
        """Commits no longer wait for us when this returns, if the server can be reached."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def _arm(self) -> bool:
        """Let commits wait until they must not. Whether to do it again later."""
        with connect(self._dsn, application_name="waly witness") as connection:
            value = synchronous.now(connection)
            # Refused before anything is done, if there is no such value.
            joined = value.joined_by(self._name)
            if missing := synchronous.missing_rights(connection):
                self._on_event(
                    f"witness: the role lacks rights: {'; '.join(missing)}; without a watchdog it"
                    f" can be had by: {joined.statement()}; {synchronous.RELOAD};"
                )
                return False
            while not self._caught_up(connection):
                if self._stopping.wait(LOOK_SECONDS):
                    return False
            watchdog = Watchdog(self._dsn, self._sender, self._patience, value.without(self._name))
            try:
                synchronous.apply(connection, joined)
                self._on_event(f"witness: commits wait for {self._name}")
                self._watch(connection, watchdog)
            finally:
                self._disarm(watchdog)
        return True

    def _watch(self, connection: psycopg.Connection, watchdog: Watchdog) -> None:
        """Until told to stop, or the watchdog has taken the name out."""
        looked = time.monotonic()
        while not self._stopping.is_set():
            if watchdog.ended(LOOK_SECONDS):
                self._on_event(
                    f"witness: commits no longer wait for us: one waited {self._patience:g} s, or"
                    f" the watchdog was ended; again in {REARM_SECONDS:.0f} s"
                )
                return
            if time.monotonic() - looked >= SYNC_LOOK_SECONDS:
                looked = time.monotonic()
                if not synchronous.now(connection).has(self._name):
                    self._on_event(f"witness: somebody took {self._name} out of {SETTING}")
                    return

    def _disarm(self, watchdog: Watchdog) -> None:
        try:
            if watchdog.call_off():
                return
        finally:
            watchdog.close()
        with connect(self._dsn, application_name="waly witness") as connection:
            synchronous.take_out(connection, self._name)

    def _caught_up(self, connection: psycopg.Connection) -> bool:
        with source_errors():
            row = connection.execute(_SENDER, (self._sender,)).fetchone()
        if row is None:
            raise SourceError("the walsender of the stream is not to be seen")
        state, _, behind = row
        return state == "streaming" and behind is not None and behind <= CAUGHT_UP_BYTES
