"""Opening the archive that the settings name, and resolving points in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from waly_cdc.cli.options import State

if TYPE_CHECKING:
    from waly_cdc.archive.contents import Contents
    from waly_cdc.archive.store import LocalStore
    from waly_cdc.history.moment import Moment
    from waly_cdc.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Opened:
    """An archive opened for reading, as it was at that moment. `quiet` is the sealed horizon if
    nothing is known to have been committed since; a sidecar may tell for how long."""

    contents: Contents
    store: LocalStore
    quiet: Lsn | None

    def resolve(self, when: str) -> Moment:
        """Raises UsageError, PointNotInArchive."""
        from waly_cdc.capture.state import quiet_until
        from waly_cdc.history.moment import resolve
        from waly_cdc.points import parse_when

        quiet = None
        if self.quiet is not None:
            quiet = quiet_until(self.store.root, self.contents.era, self.quiet)
        return resolve(self.contents, self.store, parse_when(when), quiet)

    def at(self, moment: Moment) -> Contents:
        """The contents of the moment's era."""
        return self.contents.in_era(moment.era)


def open_archive(state: State) -> Opened:
    """The archive as it is sealed. Raises NoArchive, ArchiveCorrupt."""
    from waly_cdc.archive.contents import load
    from waly_cdc.archive.store import LocalStore

    store = LocalStore(state.config["archive"])
    contents = load(store)
    return Opened(contents, store, contents.horizon)


def open_with_pending(state: State) -> Opened:
    """The archive with what was received and is not sealed yet, until the command ends; says up to
    where that is known. Raises NoArchive, ArchiveCorrupt."""
    from waly_cdc.archive.manifest import format_time
    from waly_cdc.archive.store import LocalStore
    from waly_cdc.capture.state import unsealed_gaps
    from waly_cdc.history.pending import with_pending

    store = LocalStore(state.config["archive"])
    pending = with_pending(store, unsealed_gaps(store.root))
    known = click.get_current_context().with_resource(pending)
    horizon, waiting = known.contents.horizon, known.transactions
    state.output.note(
        f"known up to {horizon} ({format_time(known.contents.horizon_time)})"
        + (f", with {waiting:,} transactions that are not sealed yet" if waiting else "")
        + (f"; not all that was received: {known.cut}" if known.cut else "")
    )
    return Opened(known.contents, known.store, None if waiting else known.sealed)


def echo_moment(state: State, moment: Moment) -> None:
    """Say which point a WHEN was resolved to, and the commits on either side."""
    from waly_cdc.archive.manifest import format_time

    def beside(label: str, transaction: object) -> str:
        return f"; {label} {transaction}" if transaction else ""

    before = (
        moment.before and f"xid {moment.before.xid} of {format_time(moment.before.committed_at)}"
    )
    after = moment.after and f"xid {moment.after.xid} of {format_time(moment.after.committed_at)}"
    state.output.note(
        f"at {moment.name} ({format_time(moment.time)})"
        + beside("after", before)
        + beside("before", after)
    )


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end long work as Ctrl-C does: cleaned up, exit code 130."""
    import signal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
