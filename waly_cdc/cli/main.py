"""The `waly` program: finds the command, runs it, and turns errors into exit codes.

Nothing heavy is imported before a command needs it, so that `waly --help` and completion are quick:
the commands' modules are loaded one at a time, and their own imports happen when they run.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

import waly_cdc
from waly_cdc.cli.options import State, global_options
from waly_cdc.cli.output import Output
from waly_cdc.errors import WalyError

COMMANDS = {
    "check": "Look whether server, role, tables and archive are ready for capture.",
    "init": "Make slot, publications and archive, with a baseline of every table.",
    "run": "Capture: the sidecar.",
    "status": "Show state, lag, slot and contents.",
    "log": "Show the history of the database, a TABLE or a row, newest first.",
    "show": "Show a row as it was, or all that a transaction did.",
    "blame": "Show for each column of a row its value, and who last changed it and when.",
    "diff": "Show the net difference of the database, a table or a row.",
    "query": "Run SQL over the archive.",
    "restore": "Rebuild the database or some tables as of a point.",
    "revert": "Undo transactions, somebody's work or the changes of a row, in the live database.",
    "verify": "Prove that the archive is whole, and that it restores.",
    "compact": "Merge small files into large ones, with the same rows.",
    "slot": "Show or drop the replication slot.",
    "demo": "See it all work on a PostgreSQL of its own.",
    "completion": "Print the completion script of a shell.",
    "config": "Show the settings.",
    "version": "Print the version of waly, and the archive format that it writes.",
}
"""Every command with its short help; each lives in `waly_cdc.cli.commands.<name>`."""

INTERRUPTED = 130


class Commands(click.Group):
    """A group that loads a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"waly_cdc.cli.commands.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(waly_cdc.__version__, message="waly %(version)s")
@global_options
def cli() -> None:
    """A change-data-capture archive for PostgreSQL: who changed which row and when, any past state
    back, and proof.

    A point (WHEN) is a time (2026-11-23T14:05:00Z, '2026-11-23 14:05 Europe/Berlin', '15m ago'), an
    LSN (0/1A2B3C8), a transaction (xid:8812 right after it, xid:8812^ right before it) or latest.
    Where an archive has several eras, 2:0/1A2B3C8 and 2:xid:8812 are of the second; without it the
    newest era that holds the LSN or the transaction is meant.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its code."""
    if sys.stdout is None or sys.stderr is None:
        sys.exit("waly: stdout and stderr must be open")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Data is UTF-8 whatever the locale; a terminal is shown what it can show of it.
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    # Imports make many objects and no garbage: looking for it takes a tenth of their time.
    gc.set_threshold(50_000, 20, 100)
    # numpy's linear algebra, which nothing here uses, would start threads that spin for a while.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit code."""
    given = list(arguments)
    # What was said is not yet parsed where parsing fails: an error must be JSON then, too.
    output = Output(json="--json" in given, quiet=False, verbose="--verbose" in given)
    try:
        result = cli.main(given, prog_name="waly", standalone_mode=False, obj=State())
        sys.stdout.flush()
    except WalyError as error:
        output.error(error.message, error.hint, error.exit_code)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        hint = None
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f"{error.ctx.command_path} --help"
        output.error(error.format_message(), hint, error.exit_code)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        output.error("interrupted", None, INTERRUPTED)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # Whoever read the output has seen enough. click and rich exit with 1 then, and only then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        hint = "this is a fault of waly's; --verbose shows where it happened"
        output.error(f"unexpected {type(error).__name__}: {error}", hint, 1)
        output.traceback()
        return 1
    return result if isinstance(result, int) else 0
