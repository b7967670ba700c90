"""`waly init`"""

from dataclasses import replace

import click

from waly_cdc.cli.archive import interruptible
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import init_result
from waly_cdc.errors import UsageError
from waly_cdc.plugins import PGOUTPUT, WAL2JSON


@click.command("init")
@click.option("--if-not-exists", is_flag=True, help="No error where the archive is already.")
@click.option(
    "--plugin",
    type=click.Choice([PGOUTPUT, WAL2JSON]),
    help="The server's output plugin (default: pgoutput).",
)
@click.option("--table", "tables", metavar="PATTERN", multiple=True, help="Only these tables.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Not these tables.")
@click.option("--slot", metavar="NAME", help="Slot (default: named after the database).")
@click.option(
    "--failover", is_flag=True, help="Let standbys keep a copy of the slot (PostgreSQL 17+)."
)
@click.option(
    "--new-era",
    is_flag=True,
    help="Go on after a lost slot, a failover or an upgrade, with a gap in history.",
)
@click.option(
    "--confirm-source",
    metavar="ID",
    help="With --new-era: this other database is the archive's, as the error named it.",
)
@global_options
@pass_state
def command(
    state: State,
    if_not_exists: bool,
    plugin: str | None,
    tables: tuple[str, ...],
    exclude: tuple[str, ...],
    slot: str | None,
    failover: bool,
    new_era: bool,
    confirm_source: str | None,
) -> None:
    """Make slot, publications and archive, with a baseline of every table.

    A PATTERN is a name or schema.name with * and ?. On the server it creates a replication slot and
    two publications, both named after the database; `waly slot drop` removes them.

    With --plugin wal2json there are no publications, for servers where none may be made; `waly
    check --plugin wal2json` names what that plugin cannot tell.

    --new-era is for an archive that cannot go on: `waly run` has said why, and ended with exit code
    13. All that it holds stays. A new slot takes the place of the old one, every table gets a new
    baseline, and the gap between is recorded for ever. Where nothing is broken it is refused.
    """
    from waly_cdc.capture.initialise import initialise
    from waly_cdc.capture.new_era import begin_era
    from waly_cdc.capture.settings import CaptureSettings

    if new_era and if_not_exists:
        raise UsageError("--new-era is for an archive that exists: leave out --if-not-exists")
    if confirm_source is not None and not new_era:
        raise UsageError("--confirm-source needs --new-era")
    if new_era and plugin is not None:
        raise UsageError("an archive keeps its plugin: leave out --plugin")
    state.set(slot=slot)
    settings = replace(CaptureSettings.of(state.config), failover=failover)
    note = state.output.note
    with interruptible():
        if new_era:
            result = begin_era(
                settings,
                confirmed=confirm_source,
                tables=tables,
                exclude=exclude,
                on_progress=note,
            )
        else:
            result = initialise(
                settings,
                if_not_exists=if_not_exists,
                plugin=plugin,
                tables=tables,
                exclude=exclude,
                on_progress=note,
            )
    state.output.result(result.to_json(), lambda console: init_result(console, result))
