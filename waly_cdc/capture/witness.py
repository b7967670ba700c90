"""The witness: sees who committed while the commit waits for us.

With our connection among the server's synchronous standbys a commit is written to the server's log,
and sent to us, and its session still shows the transaction's xid until we acknowledge it:

    receive → ask for the sessions of all xids of the batch, in one query → append to the journal
    → sync → append what was seen → acknowledge → hand over to the keeper

All of it happens on the receiver's thread, at once: somebody waits. The keeper, which takes its
time and may wait for locks that a waiting commit holds, decodes and seals what is journalled here.

What fails here in the look costs the sighting, never the commit. Crash windows: before the sync,
nothing was acknowledged and the server sends it again; after the acknowledgement the journal has
the sighting, which a power failure can take away until the next sync: that one is `unknown`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from waly_cdc.capture.acknowledging import acknowledge
from waly_cdc.decode.bounds import Bounds
from waly_cdc.decode.chunk import Chunk
from waly_cdc.errors import SourceError
from waly_cdc.journal.chunks import JournalChunk
from waly_cdc.journal.writer import JournalWriter
from waly_cdc.lsn import Lsn
from waly_cdc.source.sessions import SessionLook
from waly_cdc.source.stream import Received, ReplicationStream

LOOK_TIMEOUT = 1.0
"""How long the server may take over a look: less than the watchdog's patience."""

RETRY_SECONDS = 1.0
"""How long nobody is looked at after a look that failed: each costs the commits that wait."""

SYNC_BYTES = 64 << 20
GATHER_SECONDS = 0.25
GATHER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Journalled:
    """What is in the journal, synced, up to `committed`. With `cut` the journal's file ended here,
    and no transaction is open."""

    chunk: Chunk
    sightings: tuple[bytes, ...]
    committed: Lsn
    cut: bool


class Witness:
    """Used by the receiver's thread."""

    def __init__(
        self,
        dsn: str,
        stream: ReplicationStream,
        journal: JournalWriter,
        safe: Lsn,
        on_event: Callable[[str], None],
    ) -> None:
        """`safe` is up to where the journal has everything. Raises SourceError."""
        self._dsn = dsn
        self._stream = stream
        self._journal = journal
        self._safe = safe
        self._inside = False
        self._on_event = on_event
        self._look: SessionLook | None = SessionLook(dsn, LOOK_TIMEOUT)
        self._again_at = 0.0
        self._chunks: list[Chunk] = []
        self._sightings: list[bytes] = []
        self._bytes = 0
        self._handed_over = 0.0

    def answer(self, received: Received) -> None:
        """Journal what was received and acknowledge it. Raises StorageError, SourceLost,
        DecodeError."""
        chunk, committed = received.chunk, self._safe
        asked = False
        if len(chunk):
            bounds = Bounds.of(chunk, self._inside)
            committed = max(committed, bounds.committed)
            self._inside = bounds.inside
            asked = self._ask(bounds.begun)
        if not self._inside:
            # Nothing for us commits between the last Commit and where the server has sent to:
            # others wait there, in other databases too.
            committed = max(committed, received.server_end)
        if self._journal.unsynced > SYNC_BYTES:
            self._journal.sync()
        if len(chunk) or committed > self._safe:
            lengths = chunk.lengths.astype("<u4").tobytes()
            self._journal.append(JournalChunk(chunk.data, lengths, committed))
        if committed > self._safe or not len(chunk):
            self._journal.sync()
        if asked and (sightings := self._seen()):
            self._journal.append(JournalChunk(b"", b"", committed, sightings))
            self._sightings.append(sightings)
        if committed > self._safe:
            self._safe = committed
            acknowledge(self._tell, committed, self._journal.folder)
        self._chunks.append(chunk)
        self._bytes += len(chunk.data)

    def due(self) -> bool:
        """Whether what was answered is worth handing over: many small chunks cost much to decode,
        and that would hold up the next answer."""
        late = time.monotonic() - self._handed_over >= GATHER_SECONDS
        return late or self._bytes >= GATHER_BYTES

    def hand_over(self, *, cut: bool) -> Journalled:
        """What was answered since this was last called. `cut`: end the journal's file here, if no
        transaction is open."""
        cut = cut and not self._inside
        if cut:
            self._journal.rotate(self._safe)
        lengths = [chunk.lengths for chunk in self._chunks]
        chunk = Chunk(
            b"".join(chunk.data for chunk in self._chunks),
            np.concatenate(lengths) if lengths else np.zeros(0, np.int64),
        )
        journalled = Journalled(chunk, tuple(self._sightings), self._safe, cut)
        self._chunks, self._sightings, self._bytes = [], [], 0
        self._handed_over = time.monotonic()
        return journalled

    def __enter__(self) -> Witness:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._look is not None:
            self._look.close()

    def _tell(self, safe: Lsn) -> None:
        self._stream.acknowledge(safe)
        self._stream.send_status(ask=False)

    def _ask(self, xids: list[int]) -> bool:
        """Ask for the sessions of these transactions; whether there will be an answer."""
        if not xids or time.monotonic() < self._again_at:
            return False
        try:
            self._look = self._look or SessionLook(self._dsn, LOOK_TIMEOUT)
            self._look.ask(xids)
        except SourceError as error:
            self._miss(error)
            return False
        return True

    def _seen(self) -> bytes:
        """The sessions that were asked for, as the journal keeps them."""
        assert self._look is not None
        try:
            found = self._look.answer()
        except SourceError as error:
            self._miss(error)
            return b""
        return json.dumps([sighting.to_json() for sighting in found]).encode()

    def _miss(self, error: SourceError) -> None:
        self._again_at = time.monotonic() + RETRY_SECONDS
        if self._look is not None:
            self._look.close()
            self._look = None
        self._on_event(f"witness: who committed was not seen: {error.message}")
