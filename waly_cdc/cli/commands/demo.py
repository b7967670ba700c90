"""`waly demo`"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.output import Output

FOLDER = Path("waly-demo")


@click.command("demo")
@click.option("--directory", type=Path, help="Where the archive goes (default ./waly-demo).")
@global_options
@pass_state
def command(state: State, directory: Path | None) -> None:
    """See it all work on a PostgreSQL of its own.

    A shop, a mistake, and the way back. Takes well under a minute and leaves the archive behind to
    explore. With --dsn it uses that server instead, where it makes the databases waly_demo and
    waly_demo_restored and the roles webshop, warehouse, bob and alice; databases and slot are
    removed at the end.
    """
    from waly_cdc.demo.story import Story, free_folder
    from waly_cdc.embedded import EmbeddedServer

    archive = free_folder(directory or FOLDER)
    teller = _Teller(state.output)
    with ExitStack() as stack:
        dsn = state.options.get("dsn")
        if dsn is None:
            teller.says("starting a PostgreSQL of its own …")
            dsn = stack.enter_context(EmbeddedServer.start()).dsn()
        ending = Story(dsn, archive, teller, quiet=state.json).tell()
    place = os.path.relpath(archive)
    if state.json:
        state.output.result(ending.to_json(), lambda _: None)
        return
    teller.chapter(
        f"Done in {ending.seconds:.0f} seconds", "explore the archive; no server needed:"
    )
    for line in (
        f"export WALY_ARCHIVE={place} PATH={Path(sys.executable).parent}:$PATH",
        f"waly log orders --actor bob -n 5        waly show xid:{ending.xid}",
        f"waly diff products --from xid:{ending.xid}^       waly query --list",
        'waly query "SELECT status, count(*) FROM orders GROUP BY ALL"',
        "waly restore --to latest --output shop.duckdb",
    ):
        teller.command(line)


class _Teller:
    """Tells the story on a terminal."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def chapter(self, title: str, text: str = "") -> None:
        self._print(f"\n[bold magenta]{title}[/]" + (f"  [dim]{text}[/]" if text else ""))

    def command(self, line: str) -> None:
        self._print("[bold cyan]$[/] [bold]" + line.replace("[", "\\[") + "[/]")

    def says(self, text: str) -> None:
        self._print("  " + text.replace("[", "\\["))

    def _print(self, markup: str) -> None:
        if not self._output.json:
            self._output.console.print(markup)
            self._output.console.file.flush()
