"""`waly log`"""

import click

from waly_cdc.cli.archive import open_with_pending
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import event
from waly_cdc.errors import UsageError


@click.command("log")
@click.argument("table", required=False)
@click.argument("key", nargs=-1)
@click.option("--since", metavar="WHEN", help="Only from this point on.")
@click.option("--until", metavar="WHEN", help="Only before this point.")
@click.option("--actor", metavar="NAME", help="Only of this user or application_name; or unknown.")
@click.option("--xid", type=int, help="Only of this transaction.")
@click.option(
    "--op", "ops", metavar="I,U,D,T", help="Only these: insert, update, delete, truncate."
)
@click.option("--column", metavar="NAME", help="Only updates that changed this column.")
@click.option("-n", "limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--oneline", is_flag=True, help="A line for each event.")
@click.option("-p", "--patch", is_flag=True, help="The whole row before and after.")
@global_options
@pass_state
def command(
    state: State,
    table: str | None,
    key: tuple[str, ...],
    since: str | None,
    until: str | None,
    actor: str | None,
    xid: int | None,
    ops: str | None,
    column: str | None,
    limit: int | None,
    oneline: bool,
    patch: bool,
) -> None:
    """Show the history of the database, a TABLE or a row, newest first.

    The row is named by its KEY, the values of the table's key in key order:
    waly log order_items 42 7
    """
    from waly_cdc.history.eras import whole_log
    from waly_cdc.history.log import OPERATIONS, LogFilter
    from waly_cdc.history.session import session

    opened = open_with_pending(state)
    wanted_ops = OPERATIONS if ops is None else tuple(op.strip().upper() for op in ops.split(","))
    if unknown := [op for op in wanted_ops if op not in OPERATIONS]:
        raise UsageError(f"no such operation: {unknown[0]!r}", hint="they are I, U, D and T")
    wanted = LogFilter(
        since=opened.resolve(since) if since else None,
        until=opened.resolve(until) if until else None,
        actor=actor,
        xid=xid,
        ops=wanted_ops,
        column=column,
        limit=limit,
    )
    with session() as connection:
        found = whole_log(connection, opened.contents, opened.store, table, key, wanted)
        eras = bool(opened.contents.earlier)
        shown = state.output.lines(
            found,
            lambda console, each: event(console, each, oneline=oneline, patch=patch, eras=eras),
        )
    if not shown:
        state.output.note("no events")
