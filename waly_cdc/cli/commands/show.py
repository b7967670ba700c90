"""`waly show`"""

import re
from collections.abc import Iterator
from typing import Any

import click

from waly_cdc.cli.archive import Opened, echo_moment, open_archive
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import event, row
from waly_cdc.cli.rendering import transaction as render_transaction
from waly_cdc.errors import UsageError

_XID = re.compile(r"xid:(\d{1,10})")


@click.command("show")
@click.argument("what", metavar="TABLE|xid:X")
@click.argument("key", nargs=-1)
@click.option("--at", "when", metavar="WHEN", default="latest", help="As of this point.")
@click.option("-n", "limit", type=click.IntRange(min=1), help="At most so many events.")
@global_options
@pass_state
def command(state: State, what: str, key: tuple[str, ...], when: str, limit: int | None) -> None:
    """Show a row as it was, or all that a transaction did.

    waly show orders 42 --at '15m ago'    waly show xid:8812
    """
    if what.startswith("xid:") and what.endswith("^"):
        raise UsageError("a transaction is named without ^", hint=f"waly show {what[:-1]}")
    match = _XID.fullmatch(what)
    if match and key:
        raise UsageError("a transaction has no key", hint=f"waly show {what}")
    if not match and not key:
        raise UsageError("a key is missing", hint=f"waly show {what} KEY…, or waly log {what}")
    opened = open_archive(state)
    if match:
        _transaction(state, opened, int(match[1]), limit)
    else:
        _row(state, opened, what, key, when)


def _row(state: State, opened: Opened, table: str, key: tuple[str, ...], when: str) -> None:
    from waly_cdc.history.row import show
    from waly_cdc.history.session import session

    moment = opened.resolve(when)
    echo_moment(state, moment)
    relation = opened.contents.find_relation(table, moment.bound)
    if not relation.followed:
        state.output.note(
            f"{relation.qualified_name} has no replica identity: its updates and deletes are not"
            " archived, and this is what was inserted"
        )
    with session() as connection:
        found = show(connection, opened.contents, opened.store, table, key, moment)
    state.output.result(found, lambda console: row(console, found))


def _transaction(state: State, opened: Opened, xid: int, limit: int | None) -> None:
    from waly_cdc.history.log import transaction_events
    from waly_cdc.history.session import session
    from waly_cdc.history.transactions import by_xid

    with session() as connection:
        transaction = by_xid(connection, opened.contents, opened.store, xid)
        if not state.json:
            render_transaction(state.output.console, transaction.to_json())
        found = transaction_events(connection, opened.contents, opened.store, transaction)
        shown = state.output.lines(
            _first(found, limit),
            lambda console, each: event(console, each, oneline=False, patch=False),
        )
    if shown < transaction.events:
        state.output.note(f"… and {transaction.events - shown:,} more events: leave out -n")


def _first(found: Iterator[dict[str, Any]], limit: int | None) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(found):
        if number == limit:
            return
        yield each
