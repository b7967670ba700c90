"""`waly config show|path`"""

import click

from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.output import table
from waly_cdc.config import FILE, FILE_VARIABLE, SETTINGS


@click.group("config")
@global_options
def command() -> None:
    """Show the settings.

    An option outdoes the environment (WALY_DSN, WALY_ARCHIVE, …), which outdoes waly.toml, which
    outdoes the default. What the DSN leaves open comes from libpq's own PG* variables, service
    files and ~/.pgpass.
    """


@command.command("show")
@click.option("--origin", is_flag=True, help="Also say where each value comes from.")
@global_options
@pass_state
def show(state: State, origin: bool) -> None:
    """Print each setting; passwords are masked."""
    settings = state.config.settings.values()
    answer = {
        setting.name: {"value": setting.masked(), "origin": setting.origin}
        if origin
        else setting.masked()
        for setting in settings
    }
    rows = []
    for setting in settings:
        shown = setting.masked() or f"({SETTINGS[setting.name].unset})"
        rows.append((setting.name, shown, setting.origin) if origin else (setting.name, shown))
    headings = ("setting", "value", "from") if origin else ("setting", "value")
    state.output.result(answer, lambda console: table(console, headings, rows))


@command.command("path")
@global_options
@pass_state
def path(state: State) -> None:
    """Print the path of the settings file that is read."""
    found = state.config.path
    text = (
        str(found.resolve()) if found else f"none ({FILE} here, or the file {FILE_VARIABLE} names)"
    )
    state.output.result(
        {"path": str(found.resolve()) if found else None}, lambda console: console.print(text)
    )
