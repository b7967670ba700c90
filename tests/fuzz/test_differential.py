"""The archive against the server itself: random schemas, DML and DDL, compared at random LSNs.

`make fuzz` runs it for WALY_FUZZ_SECONDS, `make test` a sample. WALY_FUZZ_SEED repeats a run; each
round has a seed of its own, printed with what it finds, and leaves its statements in a file that is
named then. One thread drives all sessions, so the same seed gives the same statements; when the
sidecar looks, seals or is killed between them differs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TestServer
from tests.fuzz import recording
from tests.fuzz.photographs import Comparison, Photograph, Photographer, compare, photograph
from tests.fuzz.workload import Workload
from tests.running import execute
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.alterations import Alteration
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.history.session import read_files, rows, session
from waly_cdc.verify.integrity import verify_integrity

_SCRIPT = (Path(__file__).parents[2] / "docker" / "init-waly.sql").read_text()
KEEPING_PUBLICATIONS = _SCRIPT[_SCRIPT.index("CREATE SCHEMA waly;") :]
"""What keeps publications to the tables that have an identity, in the very transaction."""

SECONDS = float(os.environ.get("WALY_FUZZ_SECONDS", "25"))
ROUND_SECONDS = 25.0
SEED = int(os.environ.get("WALY_FUZZ_SEED", str(random.randrange(10**6))))
DAMAGES = int(os.environ.get("WALY_FUZZ_DAMAGES", "30"))
"""Damaged copies of each round's stream that the decoders are to agree on."""

PATIENCE = 60.0
"""Seconds after the last statement by which every gap must be closed."""


@pytest.mark.timeout(SECONDS * 3 + 300)
def test_at_any_moment_the_archive_has_what_the_server_had(server: TestServer) -> None:
    print(f"WALY_FUZZ_SEED={SEED} WALY_FUZZ_SECONDS={SECONDS:.0f}")
    begun, number, total = time.monotonic(), 0, Comparison()
    while number == 0 or time.monotonic() - begun < SECONDS:
        seconds = min(ROUND_SECONDS, SECONDS - (time.monotonic() - begun))
        found = _round(server, SEED + number, seconds)
        total.equal += found.equal
        total.refused += found.refused
        total.unseen += found.unseen
        number += 1
    print(
        f"{number} rounds: {total.equal} tables equal, {total.refused} refused in a gap,"
        f" {total.unseen} changed while they were photographed"
    )
    assert total.equal > 0


def _round(server: TestServer, seed: int, seconds: float) -> Comparison:
    """One random database, worked on and captured. Raises AssertionError for what it finds."""
    database = server.create_database()
    folder = Path(tempfile.mkdtemp(prefix=f"waly-fuzz-{seed}-"))
    workload = Workload(server.dsn(database), seed, folder / "statements.log")
    settings = CaptureSettings(server.dsn(database), folder / "archive", sample_interval=0)
    # Without the event trigger a table that loses its key is published for up to a second more.
    guarded = seed % 2 == 0
    workload.alters = seed % 4 != 3
    try:
        dice = workload.dice
        workload.build(dice.randrange(4, 9))
        if guarded:
            execute(settings.dsn, KEEPING_PUBLICATIONS)
        initialise(settings)
        recording.begin(settings.dsn)
        with _Sidecar(settings, folder / "sidecar.log", random.Random(seed)) as sidecar:
            photographs = _work(workload, sidecar, seconds)
            workload.finish()
            photographs.append(photograph(settings.dsn))
            known = time.monotonic()
            found = _settled(sidecar, photographs)
            known = time.monotonic() - known
            sidecar.stop()
        found.wrong += workload.refused if guarded else []
        found.wrong += [] if workload.alters else _groundless_gaps(settings.archive)
        found.wrong += _repeated_positions(settings.archive)
        store = LocalStore(settings.archive)
        verified = verify_integrity(store)
        found.wrong += map(str, verified.findings if verified.result != "passed" else ())
        source = load(store).source
        assert source is not None
        frames = recording.end(settings.dsn, source.publications)
        recording.keep(frames, folder / "frames")
        found.wrong += recording.disagreements(frames, random.Random(seed), DAMAGES)
    except BaseException as error:
        _report(workload, folder, [f"{type(error).__name__}: {error}"])
        raise
    finally:
        workload.close()
        server.drop_database(database)
    if found.wrong:
        _report(workload, folder, found.wrong)
        pytest.fail(f"seed {seed}: {len(found.wrong)} findings, the first: {found.wrong[0]}")
    print(
        f"{seed}: {workload.steps} steps, {workload.changes} changes of shape,"
        f" {len(frames)} frames; {found.equal} tables equal, {found.refused} refused;"
        f" all known after {known:.0f} s"
    )
    shutil.rmtree(folder)
    return found


def _report(workload: Workload, folder: Path, wrong: list[str]) -> None:
    print(f"\nWALY_FUZZ_SEED={workload.seed} found, after {workload.changes} changes of shape:")
    for each in wrong[:20]:
        print(f"* {each}")
    print(f"statements: {folder / 'statements.log'}, sidecar: {folder / 'sidecar.log'}")


def _work(workload: Workload, sidecar: _Sidecar, seconds: float) -> list[Photograph]:
    """Run the workload, kill the sidecar now and then, and take photographs."""
    # Not the workload's own dice: how long things take must not change its statements.
    dice = random.Random(workload.seed)
    end = time.monotonic() + seconds
    photographs: list[Photograph] = []
    photographer: Photographer | None = None
    next_photograph, next_kill = time.monotonic() + 1, time.monotonic() + dice.uniform(3, 15)
    while (now := time.monotonic()) < end:
        workload.step()
        if photographer is None and now >= next_photograph:
            photographer = Photographer(sidecar.settings.dsn)
            photographer.start()
        if photographer is not None and not photographer.is_alive():
            photographs.append(photographer.result())
            photographer = None
            next_photograph = now + dice.uniform(0, 0.7)
        if now >= next_kill:
            sidecar.kill()
            next_kill = now + dice.uniform(3, 15)
        sidecar.check()
        # Bursts and pauses: several changes of shape between two looks, and looks between two.
        time.sleep(dice.choice((0, 0, 0, 0.01, 0.03)) if dice.random() < 0.993 else 0.8)
    workload.finish()
    if photographer is not None:
        photographs.append(photographer.result())
    return photographs


def _settled(sidecar: _Sidecar, photographs: list[Photograph]) -> Comparison:
    """Compare all photographs once the archive has them and knows its tables."""
    store = LocalStore(sidecar.settings.archive)
    last = max(taken.lsn for taken in photographs)
    deadline = time.monotonic() + PATIENCE
    while True:
        contents = load(store)
        found = Comparison()
        if contents.horizon >= last and not _open(contents, photographs[-1]):
            for taken in photographs:
                _add(found, compare(taken, contents, store))
            return found
        if time.monotonic() > deadline:
            gaps = [str(gap) for gap in _open(contents, photographs[-1])]
            found.wrong.append(f"{PATIENCE} s after the end: at {contents.horizon}, open: {gaps}")
            return found
        sidecar.check()
        time.sleep(0.2)


def _open(contents: Contents, last: Photograph) -> list[object]:
    return [
        gap
        for gap in contents.gaps
        if gap.end is None and gap.oid in last.tables and gap.oid not in last.unfollowed
    ]


def _add(found: Comparison, more: Comparison) -> None:
    found.equal += more.equal
    found.refused += more.refused
    found.unseen += more.unseen
    found.wrong += more.wrong


def _groundless_gaps(archive: Path) -> Iterator[str]:
    """Gaps although no shape changed. A truncate in a savepoint cannot be told from a rewrite."""
    for gap in load(LocalStore(archive)).gaps:
        if gap.reason != Alteration.REWRITTEN.value:
            yield f"a gap without a reason: {gap}"


def _repeated_positions(archive: Path) -> Iterator[str]:
    store = LocalStore(archive)
    contents = load(store)
    with session() as connection:
        for oid, versions in contents.relations.items():
            for version in versions:
                files = [
                    file
                    for file in contents.event_files(oid)
                    if file.kind == "events" and file.version == version.version
                ]
                if not files:
                    continue
                (counts,) = rows(
                    connection,
                    "select count(*) as events, count(distinct (_lsn, _seq)) as positions"
                    f" from {read_files(store, files)}",
                )
                if counts["events"] != counts["positions"]:
                    yield f"{version.qualified_name}: {counts}"


class _Sidecar:
    """`waly run` as a process, killed and started again."""

    def __init__(self, settings: CaptureSettings, log: Path, dice: random.Random) -> None:
        self.settings = settings
        self._log = log
        self._dice = dice
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "waly_cdc", "--archive", str(self.settings.archive), "run"]
        command.append(f"--seal-interval={self._dice.choice((0.05, 0.2, 0.7, 2))}s")
        command.append(f"--seal-size={self._dice.choice((2, 50, 10_000))}kB")
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, "WALY_DSN": self.settings.dsn},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = self._start()

    def check(self) -> None:
        """A sidecar that ends by itself has failed."""
        code = self._process.poll()
        assert code is None, f"the sidecar ended with {code}:\n{self._log.read_text()[-3000:]}"

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0, self._log.read_text()[-3000:]

    def __enter__(self) -> _Sidecar:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
