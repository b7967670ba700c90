"""`waly run`"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from waly_cdc.cli.archive import interruptible
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import run_result

if TYPE_CHECKING:
    from waly_cdc.archive.writer import ArchiveWriter
    from waly_cdc.upkeep.beside import Upkeep


@click.command("run")
@click.option("--init", "initialise_first", is_flag=True, help="First do `waly init`, if needed.")
@click.option("--once", is_flag=True, help="Everything up to the server's LSN at start, then end.")
@click.option("--seal-interval", metavar="TIME", help="Seal at least this often (default 60s).")
@click.option("--seal-size", metavar="SIZE", help="Seal when this much is open (default 64MB).")
@click.option(
    "--durability",
    type=click.Choice(["journal", "archive"]),
    help="What a transaction must be durable in before the server may forget it.",
)
@click.option(
    "--witness",
    is_flag=True,
    help="Commits wait for us: who made each transaction is seen. See docs/who.md.",
)
@click.option(
    "--witness-patience",
    metavar="TIME",
    help="A commit that waits this long ends the waiting of all (default 2s).",
)
@click.option("--slot", metavar="NAME", help="Slot (default: named after the database).")
@global_options
@pass_state
def command(
    state: State,
    initialise_first: bool,
    once: bool,
    seal_interval: str | None,
    seal_size: str | None,
    durability: str | None,
    witness: bool,
    witness_patience: str | None,
    slot: str | None,
) -> int:
    """Capture: the sidecar. Runs until it is told to stop.

    While it keeps up, small files of the archive are merged every compact_interval (5m; 0: never),
    and a table gets a new baseline, computed from the archive, after baseline_events (1000000; but
    as many as it had rows) or at the age of baseline_age (30d).

    SIGTERM or Ctrl-C: what was received is sealed and acknowledged, then it ends (exit code 0, 130
    after Ctrl-C). A killed sidecar goes on where it was when it is started again.
    """
    from waly_cdc.capture.initialise import initialise
    from waly_cdc.capture.settings import CaptureSettings
    from waly_cdc.capture.sidecar import run

    state.set(
        seal_interval=seal_interval,
        seal_size=seal_size,
        durability=durability,
        witness="true" if witness else None,
        witness_patience=witness_patience,
        slot=slot,
    )
    settings = CaptureSettings.of(state.config)
    if initialise_first:
        with interruptible():
            initialise(settings, if_not_exists=True, on_progress=state.output.note)
    stop = threading.Event()
    with _stopping(stop) as received:
        result = run(
            settings,
            once=once,
            stop=stop,
            on_event=state.output.note,
            beside=nullcontext if once else _upkeep(state),
        )
    state.output.result(result.to_json(), lambda console: run_result(console, result))
    return 130 if signal.SIGINT in received else 0


def _upkeep(state: State) -> Callable[[ArchiveWriter], Upkeep]:
    """What works on the archive beside the sidecar. It imports DuckDB, which nothing else here
    needs."""
    from waly_cdc.upkeep.beside import Upkeep, UpkeepSettings

    settings = UpkeepSettings.of(state.config)
    return lambda archive: Upkeep(archive, settings, state.output.note)


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[list[int]]:
    """Set `stop` at SIGTERM and SIGINT; gives the signals that came."""
    received: list[int] = []

    def end(number: int, _: object) -> None:
        received.append(number)
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, end) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
