"""The keeper: makes last what the receiver hands over.

    append to the journal and decode into open segments
    → sync the journal → acknowledge
    → seal: close segments, commit the entry → trim the journal

Where commits wait for us, the receiver hands over what is journalled and acknowledged already
(`waly_cdc.capture.witness`): decoding and sealing are left, and an entry ends where the journal's
file does.

Invariants:

* what is in the journal and not yet in the archive can be decoded from the journal's first byte;
* `_safe` is an LSN before which every committed transaction is durable in the journal (rule 1), and
  which the journal tells itself: after a crash it is known that the acknowledgement was ours;
* an entry ends at `_safe`, and only where no transaction is open in the frames decoded so far.

Crash windows: what was appended and not synced was not acknowledged, and comes again; what was
synced and not sealed is sealed from the journal by `recover`; what was sealed and not trimmed is
known by the archive's horizon.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from datetime import datetime

import numpy as np

from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture.acknowledging import acknowledge
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.sealing import Sealer
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.state import SidecarState, write_state
from waly_cdc.capture.witness import Journalled
from waly_cdc.decode.chunk import Chunk
from waly_cdc.journal import reader
from waly_cdc.journal.chunks import JournalChunk
from waly_cdc.journal.writer import JournalWriter
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.source.stream import Received

QUEUE_BYTES = 24 << 20
"""Bytes of frames that may wait for the keeper; then the receiver stops reading."""

SYNC_EVERY = 0.25
"""Seconds that a committed transaction may wait for its fsync and for being acknowledged."""

IDLE_EVERY = 1.0
"""Seconds between two notes in the journal that the server went on without anything for us."""

IDLE_INTERVALS = 10
"""Seal intervals after which such progress alone is worth an entry."""

SYNC_BYTES = 64 << 20
STATE_EVERY = 1.0


class Keeper:
    """Owns the journal and the sealer. `start`, `put` and `finish` are the receiver's; all else
    runs on the keeper's own thread. An error there is raised by the next `put` or `finish`."""

    def __init__(
        self,
        archive: ArchiveWriter,
        sealer: Sealer,
        settings: CaptureSettings,
        catalog: CatalogWatch,
    ) -> None:
        self._archive = archive
        self._sealer = sealer
        self._settings = settings
        self._catalog = catalog
        self._queue: queue.Queue[Received | Journalled | None] = queue.Queue()
        self._room = threading.Condition()
        self._waiting_bytes = 0
        self._thread = threading.Thread(target=self._run, name="keeper")
        self._error: BaseException | None = None
        self._acknowledge: Callable[[Lsn], None] = lambda _: None
        horizon = archive.contents.horizon
        self._safe = self._committed = self._server_end = self._acknowledged = horizon
        self.journal = JournalWriter(archive.journal, horizon)
        self.cut_wanted = threading.Event()
        """Set when an entry is due; who journals ahead clears it and cuts the journal."""
        self._cut_asked = self._ahead = False
        self._last_sync = self._last_seal = self._last_state = time.monotonic()
        self._last_idle = 0.0

    def recover(self, before: Callable[[Lsn], None] = lambda _: None) -> bool:
        """Seal what a crash left in the journal. Whether there was anything.

        A transaction whose Commit is not there is dropped: the server sends it again, whole.
        `before` is told, before anything is sealed, up to where the journal has everything.
        """
        folder, horizon = self._archive.journal, self._archive.contents.horizon
        ends_with = 0
        for number, stored in enumerate(reader.read(folder, horizon), start=1):
            self._sealer.add_sightings([stored.sightings])
            if stored.committed > self._committed:
                self._committed = stored.committed
                ends_with = number if stored.lengths else ends_with
        before(self._committed)
        for number, stored in enumerate(reader.read(folder, horizon), start=1):
            if number > ends_with:
                break
            chunk = Chunk(stored.data, np.frombuffer(stored.lengths, "<u4").astype(np.int64))
            if number == ends_with:
                chunk, _ = chunk.split(self._sealer.committed(chunk)[0])
            self._sealer.add(chunk)
        self._safe = self._committed
        if self._safe > horizon:
            self._sealer.seal(self._safe, None)
        # A half transaction must not lie before the frames that are appended from now on.
        self.journal.restart(self._safe)
        return ends_with > 0

    def start(self, acknowledge: Callable[[Lsn], None] | None) -> None:
        """Begin work. `acknowledge` is told, from then on, what the server may forget; with None
        all that comes is Journalled, and the journal is written by who hands it over."""
        if acknowledge is None:
            self._ahead = True
        else:
            self._acknowledge = acknowledge
        self._thread.start()

    @property
    def safe(self) -> Lsn:
        """An LSN before which all is durable in the journal."""
        return self._safe

    def put(self, received: Received | Journalled, meanwhile: Callable[[], None]) -> None:
        """Hand over what was received, or received and journalled; while there is no room for it,
        call `meanwhile`."""
        size = len(received.chunk.data)
        with self._room:
            while self._waiting_bytes > QUEUE_BYTES and self._error is None:
                self._room.wait(0.2)
                meanwhile()
            self._waiting_bytes += size
        self._raise_error()
        self._queue.put(received)

    def finish(self, meanwhile: Callable[[], None]) -> None:
        """Seal everything that was handed over; call `meanwhile` until that is done."""
        self._queue.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)
            meanwhile()
        self._raise_error()

    def abandon(self) -> None:
        """Stop without sealing: the journal keeps what was received."""
        self._error = self._error or InterruptedError()
        self._queue.put(None)
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (received := self._next()) is not None:
                if isinstance(received, Journalled):
                    self._take_journalled(received)
                    continue
                self._take(received)
                self._sync_if_due()
                if self._seal_due() and not self._sealer.in_transaction:
                    self._seal()
            if self._error is None:
                if not self._ahead:
                    self._sync()
                if self._sealer.in_transaction:
                    # The half transaction comes again; all before it lies in the journal.
                    self._sealer.abandon()
                    self.journal.close()
                    self.recover()
                self._seal()
        except BaseException as error:
            self._error = error
        finally:
            self._sealer.abandon()
            if not self._ahead:
                self.journal.close()
            self._write_state("stopped" if self._error is None else "failed")

    def _next(self) -> Received | Journalled | None:
        """What was received next; empty if nothing comes, so that timers are looked at."""
        received: Received | Journalled | None
        try:
            received = self._queue.get(timeout=SYNC_EVERY)
        except queue.Empty:
            if self._ahead:
                return Journalled(Chunk.of([]), (), self._committed, cut=False)
            return Received(Chunk.of([]), ZERO, None)
        if received is not None:
            with self._room:
                self._waiting_bytes -= len(received.chunk.data)
                self._room.notify()
            if self._waiting_bytes < QUEUE_BYTES // 4:
                self._archive.calm.set()
            else:
                self._archive.calm.clear()
        return None if self._error is not None else received

    def _take_journalled(self, journalled: Journalled) -> None:
        """Decode what is durable already, and seal where the journal was cut."""
        self._sealer.add(journalled.chunk)
        self._sealer.add_sightings(journalled.sightings)
        self._committed = self._safe = self._acknowledged = journalled.committed
        if not self._sealer.in_transaction:
            self._sealer.passed(self._safe)
        self._tell_state_if_due()
        if journalled.cut:
            self._seal()
            self._cut_asked = False
        elif self._seal_due() and not self._cut_asked:
            self._cut_asked = True
            self.cut_wanted.set()

    def _take(self, received: Received) -> None:
        chunk = received.chunk
        if len(chunk):
            count, end = self._sealer.committed(chunk)
            if count and count < len(chunk) and self._seal_due():
                chunk, rest = chunk.split(count)
                self._append(chunk, Lsn(end))
                self._sync()
                self._seal()
                self._append(rest, self._committed)
            else:
                self._append(chunk, Lsn(end) if count else self._committed)
        # Everything that commits before `server_end` was sent before the server said so, and has
        # been appended by now.
        self._server_end = max(self._server_end, received.server_end)

    def _append(self, chunk: Chunk, committed: Lsn) -> None:
        lengths = chunk.lengths.astype("<u4").tobytes()
        self.journal.append(JournalChunk(chunk.data, lengths, committed))
        self._sealer.add(chunk)
        self._committed = committed

    def _sync_if_due(self) -> None:
        now = time.monotonic()
        if self.journal.unsynced > SYNC_BYTES or now - self._last_sync >= SYNC_EVERY:
            self._sync()
        self._tell_state_if_due()

    def _tell_state_if_due(self) -> None:
        if time.monotonic() - self._last_state >= STATE_EVERY:
            self._catalog.observe()
            self._write_state("running")

    def _sync(self) -> None:
        now = time.monotonic()
        idle = now - self._last_idle >= IDLE_EVERY and not self._sealer.in_transaction
        if idle and self._server_end > self._committed:
            self._last_idle = now
            # The server went on, and nothing for us committed: a chunk without frames says so.
            self._append(Chunk.of([]), self._server_end)
        self.journal.sync()
        self._safe = self._committed
        if not self._sealer.in_transaction:
            self._sealer.passed(self._safe)
        self._last_sync = time.monotonic()
        if self._settings.durability == "journal":
            self._tell(self._safe)

    def _tell(self, safe: Lsn) -> None:
        acknowledge(self._acknowledge, safe, self._archive.journal)
        self._acknowledged = safe

    def _seal_due(self) -> bool:
        if self._sealer.bytes >= self._settings.seal_size:
            return True
        waited = time.monotonic() - self._last_seal
        if waited < self._settings.seal_interval:
            return False
        if self._sealer.has_something(self._committed):
            return True
        idle = waited >= IDLE_INTERVALS * self._settings.seal_interval
        return idle and self._committed > self._archive.contents.horizon

    def _seal(self) -> None:
        """Commit what is journalled and decoded; expects no open transaction."""
        if not self._ahead:
            self._last_idle = 0.0
            self._sync()
        end = self._safe
        self._last_seal = time.monotonic()
        contents = self._archive.contents
        if end > contents.horizon or self._sealer.transactions:
            if not self._ahead:
                self.journal.rotate(end)
            self._sealer.seal(end, self._catalog.seen_at(end))
            self.journal.trim(end)
        if self._settings.durability == "archive":
            self._tell(end)

    def _quiet_until(self) -> datetime | None:
        """Up to when nothing was committed after the horizon, if nothing waits to be sealed."""
        if self._sealer.transactions or self._sealer.in_transaction:
            return None
        return self._catalog.seen_at(self._safe)

    def _write_state(self, state: str) -> None:
        self._last_state = time.monotonic()
        write_state(
            self._archive.root,
            SidecarState(
                state=state,
                era=self._archive.contents.era,
                received=max(self._committed, self._server_end),
                safe=self._safe,
                acknowledged=self._acknowledged,
                horizon=self._archive.contents.horizon,
                horizon_time=self._archive.contents.horizon_time,
                quiet_until=self._quiet_until(),
                unsealed_bytes=self._sealer.bytes,
                unsealed_gaps=self._sealer.unsealed_gaps,
                error=str(self._error) if self._error else None,
            ),
        )
