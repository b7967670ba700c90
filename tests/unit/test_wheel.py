"""The wheel: what an installed copy has."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _build(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_brings_queries_and_the_demonstration_and_no_tests(tmp_path: Path) -> None:
    wheel = _build(tmp_path)
    names = set(zipfile.ZipFile(wheel).namelist())
    queries = {f"waly_cdc/queries/{path.name}" for path in (ROOT / "queries").glob("*.sql")}
    assert len(queries) >= 5
    assert queries <= names
    assert {"waly_cdc/py.typed", "waly_cdc/demo/shop.sql"} <= names
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]


def test_an_installed_copy_finds_its_queries(tmp_path: Path) -> None:
    wheel = _build(tmp_path)
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    program = "from waly_cdc.history import library; print(len(library.queries()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) == len(list((ROOT / "queries").glob("*.sql")))
