from __future__ import annotations

import importlib
import json
import subprocess
import sys

import click
import pytest

from waly_cdc.cli.main import COMMANDS, cli, run

HEAVY = ("duckdb", "numpy", "psycopg", "pyarrow", "rich")


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("completion", "bash")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys; from waly_cdc.cli.main import run\n"
        f"code = run({list(arguments)!r})\n"
        f"print('loaded', sorted(set(sys.modules) & set({HEAVY!r})), code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded [] 0", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_to_its_name_and_its_short_help_tells_the_truth(name: str) -> None:
    command = importlib.import_module(f"waly_cdc.cli.commands.{name}").command
    assert isinstance(command, click.Command)
    assert command.name == name
    assert (command.help or "").startswith(COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_global_options_after_the_verb(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--dsn", "--archive", "--json", "--quiet", "--verbose"} <= options


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("log", "--nonsense"),
        ("restore",),
        ("restore", "--to", "latest"),
        ("show", "orders"),
        ("query",),
        ("query", "--param", "nonsense", "select 1"),
        ("query", "no-such-query"),
        ("completion", "tcsh"),
        ("run", "--seal-interval", "soon"),
        ("run", "--seal-size", "-1"),
    ],
)
def test_wrong_use_is_one_json_object_on_stderr_and_exit_code_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = json.loads(captured.err)
    assert error["type"] == "error"
    assert error["code"] == 2
    assert error["message"]


def test_wrong_use_is_said_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["nonsense"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: No such command 'nonsense'.\nhint: waly --help\n"


def test_a_missing_archive_is_exit_code_10(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("log", "status", "verify", "run"):
        assert run(["--archive", "/nonexistent/archive", verb]) == 10, verb
        assert "hint: create one with `waly init`" in capsys.readouterr().err


def test_an_unexpected_error_shows_its_traceback_only_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(cli, "main", fail)
    assert run(["version"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert run(["version", "--verbose"]) == 1
    captured = capsys.readouterr()
    assert "unexpected RuntimeError: out of order" in captured.err
    assert "Traceback" in captured.err


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupt)
    assert run(["version"]) == 130


def test_version_says_what_it_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json", "version"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"version": "0.1.0", "format": 1}
