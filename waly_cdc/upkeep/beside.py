"""Upkeep beside a running sidecar: on a thread of its own, while the sidecar keeps up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from waly_cdc.archive.compaction import compact
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.config import Config
from waly_cdc.errors import WalyError
from waly_cdc.upkeep.folding import When, fold

RETRY_EVERY = 600.0
"""Seconds before what failed is tried again."""
STOP_WITHIN = 5.0
"""Seconds that the sidecar waits for work that is under way when it ends. What is left then can
commit nothing any more: the archive is closed."""


@dataclass(frozen=True, slots=True)
class UpkeepSettings:
    """Seconds between two looks for work (0: never), and when a table gets a new baseline."""

    interval: float
    baselines: When

    @classmethod
    def of(cls, config: Config) -> UpkeepSettings:
        """Raises UsageError for a setting that cannot be read."""
        when = When(config["baseline_events"], timedelta(seconds=config["baseline_age"]))
        return cls(config["compact_interval"], when)


class Upkeep(threading.Thread):
    """A context manager: works on the archive from its beginning to its end, whenever that is
    `calm`. What fails is told and tried again later: capture goes on."""

    def __init__(
        self,
        archive: ArchiveWriter,
        settings: UpkeepSettings,
        on_event: Callable[[str], None],
    ) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._archive = archive
        self._settings = settings
        self._on_event = on_event
        self._stopping = threading.Event()

    def run(self) -> None:
        pause = self._settings.interval
        while not self._stopping.wait(pause):
            pause = self._settings.interval
            if not self._archive.calm.is_set():
                continue
            try:
                self._work()
            except WalyError as error:
                if not self._stopping.is_set():
                    self._on_event(f"upkeep failed, to be tried again: {error.message}")
                pause = RETRY_EVERY

    def _work(self) -> None:
        done = compact(self._archive, stopping=self._busy)
        if done.replaced:
            self._on_event(f"compacted {done.replaced} files into {done.made}")
        if not self._busy():
            fold(
                self._archive,
                when=self._settings.baselines,
                on_table=self._on_event,
                stopping=self._busy,
            )

    def _busy(self) -> bool:
        return self._stopping.is_set() or not self._archive.calm.is_set()

    def __enter__(self) -> Upkeep:
        if self._settings.interval > 0:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join(STOP_WITHIN)
