"""`waly blame`"""

import click

from waly_cdc.cli.archive import echo_moment, open_with_pending
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import blame as render


@click.command("blame")
@click.argument("table")
@click.argument("key", nargs=-1, required=True)
@click.option("--at", "when", metavar="WHEN", default="latest", help="As of this point.")
@global_options
@pass_state
def command(state: State, table: str, key: tuple[str, ...], when: str) -> None:
    """Show for each column of a row its value, and who last changed it and when.

    waly blame orders 42 --at '15m ago'
    """
    from waly_cdc.history.row import blame
    from waly_cdc.history.session import session

    opened = open_with_pending(state)
    moment = opened.resolve(when)
    echo_moment(state, moment)
    with session() as connection:
        found = blame(connection, opened.at(moment), opened.store, table, key, moment)
    state.output.result(found, lambda console: render(console, found))
