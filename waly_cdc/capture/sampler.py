"""Sampling: who is behind the transactions that a look at `pg_stat_activity` happens to see open.

It costs the application nothing, and misses short transactions.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

import psycopg

from waly_cdc.archive.actors import Actor
from waly_cdc.errors import SourceError
from waly_cdc.source.connect import connect
from waly_cdc.source.sessions import Sighting, with_transactions

REMEMBERED = 100_000
"""Sampled transactions kept until they commit; the oldest go first."""

SHARE = 150
"""Looks take at most one part in so many of the time: they cost a core less than 1 %."""

COMPARED = 10
"""Looks of which the quickest counts."""


class Sampler(threading.Thread):
    """Polls `pg_stat_activity` for open transactions while the sidecar runs."""

    def __init__(self, dsn: str, interval: float) -> None:
        """`interval` is how many seconds lie between two looks at least; where a look takes long,
        more do."""
        super().__init__(name="sampler", daemon=True)
        self._dsn = dsn
        self._interval = interval
        self._sampled: OrderedDict[int, Actor] = OrderedDict()
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self._dsn, application_name="waly sampler") as connection:
                    connection.prepare_threshold = 1
                    self._sample(connection)
            except (SourceError, psycopg.Error):
                # Attribution is a courtesy: the stream reports a server that is away.
                self._stopping.wait(5)

    def take(self, xids: Sequence[int]) -> dict[int, Actor]:
        """What was seen of these transactions; it is forgotten then."""
        with self._lock:
            return {xid: self._sampled.pop(xid) for xid in xids if xid in self._sampled}

    def stop(self) -> None:
        self._stopping.set()

    def _sample(self, connection: psycopg.Connection) -> None:
        pause = self._interval
        # What a look costs is what the quickest of some took: on a busy machine most of them wait.
        took: deque[float] = deque(maxlen=COMPARED)
        while not self._stopping.wait(pause):
            began = time.monotonic()
            for sighting in with_transactions(connection):
                self._saw(sighting)
            took.append(time.monotonic() - began)
            pause = max(self._interval, SHARE * min(took))

    def _saw(self, sighting: Sighting) -> None:
        with self._lock:
            self._sampled[sighting.xid] = Actor("sample", **sighting.session())
            while len(self._sampled) > REMEMBERED:
                self._sampled.popitem(last=False)
