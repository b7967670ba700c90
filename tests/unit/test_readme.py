"""What the documents tell people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from waly_cdc.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?:sh)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _lines(prompt: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    found = []
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            stripped = line.removeprefix("$ ")
            if stripped.startswith(prompt):
                found.append(stripped)
    return found


@pytest.mark.parametrize("line", _lines("waly "))
def test_a_command_of_the_readme_is_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    context = click.Context(command, info_name=name)
    if isinstance(command, click.Group):
        sub = command.get_command(context, arguments[0])
        assert sub is not None, arguments
        command, arguments = sub, arguments[1:]
    # Raises for an option that is not there or a value that is missing.
    command.make_parser(context).parse_args(list(arguments))


@pytest.mark.parametrize("line", _lines("make "))
def test_a_target_of_the_readme_is_in_the_makefile(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_shows_every_command_of_daily_use() -> None:
    shown = {line.split()[1] for line in _lines("waly ")}
    assert set(COMMANDS) - shown <= {"slot", "demo", "completion", "config", "version", "init"}


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test\n" in script
    assert any(line.startswith("make test") for line in _lines("make "))
