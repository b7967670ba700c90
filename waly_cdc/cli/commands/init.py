"""`waly init`"""

import click

from waly_cdc.cli.archive import interruptible
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import init_result


@click.command("init")
@click.option("--if-not-exists", is_flag=True, help="No error where the archive is already.")
@click.option(
    "--plugin",
    type=click.Choice(["pgoutput"]),
    default="pgoutput",
    help="The server's output plugin.",
)
@click.option("--table", "tables", metavar="PATTERN", multiple=True, help="Only these tables.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Not these tables.")
@click.option("--slot", metavar="NAME", help="Slot (default: named after the database).")
@global_options
@pass_state
def command(
    state: State,
    if_not_exists: bool,
    plugin: str,  # noqa: ARG001 - there is one so far
    tables: tuple[str, ...],
    exclude: tuple[str, ...],
    slot: str | None,
) -> None:
    """Make slot, publications and archive, with a baseline of every table.

    A PATTERN is a name or schema.name with * and ?. On the server it creates a replication slot and
    two publications, both named after the database; `waly slot drop` removes them.
    """
    from waly_cdc.capture.initialise import initialise
    from waly_cdc.capture.settings import CaptureSettings

    state.set(slot=slot)
    with interruptible():
        result = initialise(
            CaptureSettings.of(state.config),
            if_not_exists=if_not_exists,
            tables=tables,
            exclude=exclude,
            on_progress=state.output.note,
        )
    state.output.result(result.to_json(), lambda console: init_result(console, result))
