"""`waly version`"""

import click

import waly_cdc
from waly_cdc.cli.options import State, global_options, pass_state


@click.command("version")
@global_options
@pass_state
def command(state: State) -> None:
    """Print the version of waly, and the archive format that it writes."""
    from waly_cdc.archive.manifest import FORMAT

    answer = {"version": waly_cdc.__version__, "format": FORMAT}
    state.output.result(
        answer,
        lambda console: console.print(f"waly {waly_cdc.__version__} (archive format {FORMAT})"),
    )
