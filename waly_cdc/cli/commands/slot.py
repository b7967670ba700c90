"""`waly slot show|drop`"""

import click
from rich.console import Console
from rich.text import Text

from waly_cdc.cli.archive import open_archive
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.output import table
from waly_cdc.errors import NoArchive, UsageError


@click.group("slot")
@global_options
def command() -> None:
    """Show or drop the replication slot."""


@command.command("show")
@click.option("--slot", metavar="NAME", help="Slot (default: the archive's, or the database's).")
@global_options
@pass_state
def show(state: State, slot: str | None) -> None:
    """Describe the slot and what hangs on it."""
    from waly_cdc.capture import teardown

    state.set(slot=slot)
    config = state.config
    found = teardown.describe(config["dsn"] or "", _slot_name(state))
    rows = [(name, value) for name, value in found.items() if not isinstance(value, list)]
    rows.append(("publications", ", ".join(found["publications"]) or "none"))
    state.output.result(found, lambda console: table(console, ("slot", ""), rows))


@command.command("drop")
@click.option("--yes", is_flag=True, help="Really drop it.")
@click.option("--slot", metavar="NAME", help="Slot (default: the archive's, or the database's).")
@global_options
@pass_state
def drop(state: State, yes: bool, slot: str | None) -> None:
    """Drop the slot and its publications: everything waly made on the server.

    Publications of another owner are left, with the statement that drops them. The archive stays.
    What the database does from then on is not in it, until `waly init --new-era` begins again.
    """
    from waly_cdc.capture import teardown

    state.set(slot=slot)
    config = state.config
    name = _slot_name(state)
    horizon = _horizon(state)
    gap = "no archive goes on from it"
    if horizon:
        gap = f"after {horizon} the archive goes on only with a new era, after a gap"
    if not yes:
        raise UsageError(
            f"dropping slot {name} leaves a gap: {gap}", hint="to do it: waly slot drop --yes"
        )
    done = teardown.remove(config["dsn"] or "", name)

    def render(console: Console) -> None:
        if done.dropped:
            console.print(Text(f"dropped {', '.join(done.dropped)}; {gap}"))
        if done.left:
            console.print(
                Text(f"left {', '.join(done.left)}, of another owner, who drops them with:")
            )
            console.print(Text(f"       {done.fix_sql}", style="cyan"))

    state.output.result({**done.to_json(), "gap_from": horizon}, render)


def _slot_name(state: State) -> str | None:
    if state.config["slot"]:
        return str(state.config["slot"])
    try:
        source = open_archive(state).contents.source
    except NoArchive:
        return None
    return source.slot if source else None


def _horizon(state: State) -> str | None:
    try:
        return str(open_archive(state).contents.horizon)
    except NoArchive:
        return None
