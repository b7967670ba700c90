"""The sidecar: receive, journal, acknowledge, seal.

Two threads do the work. The receiver, here, drains the socket and sends status messages, and does
nothing else that takes time. The keeper (`waly_cdc.capture.keeper`) journals, acknowledges and
seals. Where commits wait for us, the receiver journals and acknowledges at once
(`waly_cdc.capture.witness`). Two more look at the server meanwhile: the table watch, for what the
stream does not tell of tables, and the sampler, for who is behind open transactions.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from waly_cdc.archive.manifest import Source, format_time
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.capture import plugin
from waly_cdc.capture.arming import Arming, leave
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.continuity import Continuity
from waly_cdc.capture.keeper import Keeper
from waly_cdc.capture.sampler import Sampler
from waly_cdc.capture.sealing import Sealer
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.shapes import Shapes
from waly_cdc.capture.state import note_error
from waly_cdc.capture.table_watch import TableWatch
from waly_cdc.capture.witness import Witness
from waly_cdc.errors import SourceLost, SourceMoved, UsageError, WalyError
from waly_cdc.lsn import Lsn
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.source import publication
from waly_cdc.source.stream import ReplicationStream
from waly_cdc.source.synchronous import connection_name

MOST_PASSES = 3
"""How often `once` goes on for baselines that are missing still."""

FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds before the first new try after a connection broke, and at most before any."""

SWITCH_SECONDS = 0.0002
"""How long a thread of ours may hold up the one that answers commits."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one run has archived."""

    archive: str
    entries: int
    transactions: int
    events: int
    horizon: Lsn
    horizon_time: datetime | None

    def to_json(self) -> dict[str, Any]:
        return {
            "archive": self.archive,
            "entries": self.entries,
            "transactions": self.transactions,
            "events": self.events,
            "horizon": {"lsn": str(self.horizon), "time": format_time(self.horizon_time)},
        }


def run(
    settings: CaptureSettings,
    *,
    once: bool = False,
    stop: threading.Event | None = None,
    on_event: Callable[[str], None] = lambda _: None,
    beside: Callable[[ArchiveWriter], AbstractContextManager[object]] = nullcontext,
) -> RunResult:
    """Capture until `stop` is set; with `once`, up to the server's LSN at the start. Within the
    context that `beside` makes, other threads may work on the archive, too.

    Ends with everything received and committed sealed and acknowledged. A connection that breaks is
    made again, as often as it takes, unless it is the first one or `once`. Raises NoArchive,
    ArchiveLocked, SourceError, SlotLost, StorageError; what was acknowledged is durable then too.
    """
    stop = stop or threading.Event()
    with ArchiveWriter.open(settings.archive) as archive, beside(archive):
        contents = archive.contents
        entries, transactions, events = contents.entries, contents.transactions, contents.events
        retries = _Retries(stop)
        for attempt in itertools.count(1):
            try:
                again = _connected(archive, settings, once, stop, on_event, retries)
                if not once or not again or attempt == MOST_PASSES:
                    break
            except SourceLost as error:
                if once or not retries.had_stream:
                    raise
                if not retries.wait(archive.root, error, on_event):
                    # Told to stop while the server is away: what was received lies in the journal.
                    break
            except WalyError as error:
                note_error(archive.root, "failed", error.message)
                raise
        return RunResult(
            archive=str(settings.archive),
            entries=contents.entries - entries,
            transactions=contents.transactions - transactions,
            events=contents.events - events,
            horizon=contents.horizon,
            horizon_time=contents.horizon_time,
        )


class _Retries:
    """How long to wait before the next connection: doubled each time, until one streams."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._delay = FIRST_RETRY
        self.had_stream = False

    def streams(self) -> None:
        """A connection stands."""
        self.had_stream = True
        self._delay = FIRST_RETRY

    def wait(self, root: Path, error: SourceLost, on_event: Callable[[str], None]) -> bool:
        """Wait before another try; False when told to stop."""
        on_event(f"{error.message}; connecting again in {self._delay:.0f} s")
        note_error(root, "disconnected", error.message)
        stopped = self._stop.wait(self._delay)
        self._delay = min(self._delay * 2, LAST_RETRY)
        return not stopped


def _connected(
    archive: ArchiveWriter,
    settings: CaptureSettings,
    once: bool,
    stop: threading.Event,
    on_event: Callable[[str], None],
    retries: _Retries,
) -> bool:
    """Capture over one connection. What an earlier one left in the journal is sealed first.

    Whether a new baseline is needed still: of a table whose truncates had to be known first, or
    whose shape the stream had not shown.
    """
    contents = archive.contents
    with CatalogWatch(settings.dsn, on_event) as catalog, ExitStack() as stack:
        # Before the server's timeline is asked for: a promotion from now on is noticed.
        catalog.observe()
        continuity = Continuity(archive, catalog, settings)
        continuity.require(continuity.other_database())
        shapes = Shapes(
            contents.relations, catalog.table, [era.relations for era in contents.earlier]
        )
        chosen = plugin.of(continuity.source, contents, shapes, lambda: catalog, on_event)
        watch = TableWatch(settings.dsn, continuity.source, archive, shapes, on_event, chosen.names)
        stack.callback(watch.stop)
        sampler = Sampler(settings.dsn, settings.sample_interval)
        sealer = Sealer(archive, shapes, catalog.facts, watch, chosen.make_decoder, sampler.take)
        keeper = Keeper(archive, sealer, settings, catalog)
        if keeper.recover(lambda reach: continuity.require(continuity.other_log(reach))):
            on_event(f"sealed what the journal held, up to {contents.horizon}")
        continuity.require(continuity.unfit_slot())
        options, losses = plugin.stream_options(continuity.source, catalog.connection)
        continuity.note_source(losses)
        source = continuity.source
        if source.publications:
            publication.require(catalog.connection, source.slot)
        if once:
            watch.catch_up()
        target = catalog.observe() if once else None
        witnessing = settings.witness and not once
        stream = _open(settings, source, contents.horizon, options, witnessing, on_event)
        retries.streams()
        on_event(f"streaming from slot {source.slot} at {contents.horizon}")
        if settings.sample_interval:
            sampler.start()
        if not once:
            watch.start()
        try:
            if witnessing:
                _answer(stream, keeper, settings, source.slot, stop, on_event)
            else:
                _receive(stream, keeper, target, stop)
        except SourceMoved:
            continuity.follow()
            raise
        finally:
            sampler.stop()
            stream.close()
        return watch.unfinished


def _open(
    settings: CaptureSettings,
    source: Source,
    start: Lsn,
    options: dict[str, str],
    witnessing: bool,
    on_event: Callable[[str], None],
) -> ReplicationStream:
    """The stream from `start` on. Commits do not wait for it yet, nor for one before it."""
    if witnessing and source.plugin != PGOUTPUT:
        raise UsageError(
            f"a witness takes the plugin {PGOUTPUT}, and this archive has {source.plugin}",
            hint="run without --witness",
        )
    leave(settings.dsn, source.slot, on_event)
    name = connection_name(source.slot) if witnessing else None
    return ReplicationStream(settings.dsn, source.slot, start, options, synchronous_as=name)


def _receive(
    stream: ReplicationStream, keeper: Keeper, target: Lsn | None, stop: threading.Event
) -> None:
    """The receiver: hand everything to the keeper, until told to stop or up to the target."""
    keeper.start(stream.acknowledge)
    try:
        while not stop.is_set():
            received = stream.receive()
            keeper.put(received, stream.keep_alive)
            if target is not None:
                if received.server_end >= target:
                    break
                if not len(received.chunk):
                    stream.send_status()
        keeper.finish(stream.keep_alive)
        stream.send_status()
    except BaseException:
        keeper.abandon()
        raise


def _answer(
    stream: ReplicationStream,
    keeper: Keeper,
    settings: CaptureSettings,
    slot: str,
    stop: threading.Event,
    on_event: Callable[[str], None],
) -> None:
    """The receiver where commits wait for it: answer at once, then hand over to the keeper."""
    keeper.start(None)
    # The keeper's decoding would hold up an answer for as long as this.
    patience = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    arming = Arming(settings, slot, stream.pid, on_event)
    try:
        with Witness(settings.dsn, stream, keeper.journal, keeper.safe, on_event) as witness:
            arming.start()
            while not stop.is_set():
                witness.answer(stream.receive())
                if witness.due():
                    journalled = witness.hand_over(cut=keeper.cut_wanted.is_set())
                    if journalled.cut:
                        keeper.cut_wanted.clear()
                    keeper.put(journalled, stream.keep_alive)
            # Before sealing, which takes time: somebody may wait.
            arming.stop()
            keeper.put(witness.hand_over(cut=False), stream.keep_alive)
        keeper.finish(stream.keep_alive)
        stream.send_status()
    except BaseException:
        arming.stop()
        keeper.abandon()
        raise
    finally:
        sys.setswitchinterval(patience)
        keeper.journal.close()
