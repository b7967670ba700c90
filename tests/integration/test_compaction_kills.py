"""Compaction and folding killed at each of their durable steps."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.answers import random_points, states
from tests.integration.sample import Sample
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.verify.integrity import verify_integrity

SEED = int(os.environ.get("WALY_SEED", str(random.randrange(1 << 32))))

COMPACT = """
import sys
from datetime import timedelta
from pathlib import Path
from waly_cdc import failpoints
from waly_cdc.archive import compaction, contents, tiers
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.upkeep.folding import fold

# As if every day had ended, with an entry for every few files, deleted at once.
tiers._ended = lambda *_: True
compaction.BATCH_FILES = 8
contents.GRACE = timedelta(0)
failpoints.arm(sys.argv[2])
with ArchiveWriter.open(Path(sys.argv[1])) as archive:
    archive.contents.looked_at = archive.contents.horizon
    fold(archive)
    compaction.compact(archive)
"""


def compact(archive: Path, armed: str) -> int:
    command = [sys.executable, "-c", COMPACT, str(archive), armed]
    return subprocess.run(command, check=False).returncode


@pytest.mark.parametrize(
    "point", ["fold.write", "seal.publish", "manifest.put", "compact.write", "compact.delete"]
)
def test_killed_there_it_loses_nothing_and_can_be_done_again(
    sample: Sample, work_dir: Path, point: str
) -> None:
    print(f"WALY_SEED={SEED}")
    dice = random.Random(f"{SEED} {point}")
    archive = work_dir / "archive"
    shutil.copytree(sample.archive, archive)
    store = LocalStore(archive)
    points = random_points(archive, dice, 1)
    expected = states(archive, points, load(store))
    # The second one begins on what the first left behind.
    for passes in (dice.randrange(6), 0):
        assert compact(archive, f"{point}=kill:{passes}") == -signal.SIGKILL
    assert states(archive, points, load(store)) == expected
    assert verify_integrity(store).exit_code == 0
    assert compact(archive, "") == 0
    assert states(archive, points, load(store)) == expected
    report = verify_integrity(store)
    assert (report.result, report.findings) == ("passed", ())


@pytest.mark.parametrize("point", ["compact.write", "manifest.put", "seal.publish"])
def test_a_full_disk_leaves_the_archive_as_it_was(
    sample: Sample, work_dir: Path, point: str
) -> None:
    archive = work_dir / "archive"
    shutil.copytree(sample.archive, archive)
    before = {file.path for file in load(LocalStore(archive)).files}
    assert compact(archive, f"{point}=enospc") == 1
    assert before <= {file.path for file in load(LocalStore(archive)).files}
    assert verify_integrity(LocalStore(archive)).exit_code == 0
    assert compact(archive, "") == 0
