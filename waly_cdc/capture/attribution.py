"""Who made a transaction: the sources of an actor, and which of them wins.

* `message`: the transaction itself said so, by `pg_logical_emit_message(true, 'waly', json)`;
* `sample`: a look at `pg_stat_activity` happened to see the transaction while it was open. Short
  transactions are missed.

Without either the actor is `unknown`, which is recorded as such and never guessed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import psycopg

from waly_cdc.archive.transactions import UNKNOWN, Actor, told
from waly_cdc.errors import SourceError
from waly_cdc.source.connect import connect

SAMPLE_EVERY = 0.05
REMEMBERED = 100_000
"""Sampled transactions kept until they commit; the oldest go first."""

_SAMPLE = """
select backend_xid::text::bigint, usename, application_name, host(client_addr), pid,
       left(query, 4096)
from pg_catalog.pg_stat_activity
where backend_xid is not null and datname = current_database() and backend_type = 'client backend'
"""


class Attribution:
    """Collects what is known about transactions that have not been sealed yet."""

    def __init__(self) -> None:
        self._sampled: OrderedDict[int, Actor] = OrderedDict()
        self._lock = threading.Lock()

    def saw(self, xid: int, actor: Actor) -> None:
        with self._lock:
            self._sampled[xid] = actor
            while len(self._sampled) > REMEMBERED:
                self._sampled.popitem(last=False)

    def actors(self, xids: Sequence[int], messages: Mapping[int, Sequence[bytes]]) -> list[Actor]:
        """The actors of transactions that are being sealed, one for each xid."""
        with self._lock:
            sampled = [self._sampled.pop(xid, UNKNOWN) for xid in xids]
        return [
            told(messages[xid], seen) if xid in messages else seen
            for xid, seen in zip(xids, sampled, strict=True)
        ]


class Sampler(threading.Thread):
    """Polls `pg_stat_activity` for open transactions while the sidecar runs."""

    def __init__(self, dsn: str, attribution: Attribution) -> None:
        super().__init__(name="sampler", daemon=True)
        self._dsn = dsn
        self._attribution = attribution
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self._dsn, application_name="waly sampler") as connection:
                    self._sample(connection)
            except (SourceError, psycopg.Error):
                # Attribution is a courtesy: the stream reports a server that is away.
                self._stopping.wait(5)

    def _sample(self, connection: psycopg.Connection) -> None:
        own = connection.info.backend_pid
        while not self._stopping.wait(SAMPLE_EVERY):
            for xid, user, application, address, pid, query in connection.execute(_SAMPLE):
                if pid != own:
                    self._attribution.saw(
                        xid, Actor("sample", user, application, address, pid, query)
                    )

    def stop(self) -> None:
        self._stopping.set()
