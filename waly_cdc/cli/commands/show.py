"""`waly show`"""

import re
from collections.abc import Iterator
from typing import Any

import click

from waly_cdc.cli.archive import Opened, echo_moment, open_with_pending
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import event, row
from waly_cdc.cli.rendering import transaction as render_transaction
from waly_cdc.errors import UsageError

_XID = re.compile(r"(?:(\d{1,9}):)?xid:(\d{1,10})")


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
    if _XID.fullmatch(what.removesuffix("^")) and what.endswith("^"):
        raise UsageError("a transaction is named without ^", hint=f"waly show {what[:-1]}")
    match = _XID.fullmatch(what)
    if match and key:
        raise UsageError("a transaction has no key", hint=f"waly show {what}")
    if not match and not key:
        raise UsageError("a key is missing", hint=f"waly show {what} KEY…, or waly log {what}")
    opened = open_with_pending(state)
    if match:
        _transaction(state, opened, int(match[2]), int(match[1]) if match[1] else None, limit)
    else:
        _row(state, opened, what, key, when)


def _row(state: State, opened: Opened, table: str, key: tuple[str, ...], when: str) -> None:
    from waly_cdc.history.moves import relations_named
    from waly_cdc.history.row import show
    from waly_cdc.history.session import session

    moment = opened.resolve(when)
    echo_moment(state, moment)
    contents = opened.at(moment)
    relation = relations_named(contents, table)[0]
    if not relation.followed:
        state.output.note(
            f"{relation.qualified_name} has no replica identity: its updates and deletes are not"
            " archived, and this is what was inserted"
        )
    with session() as connection:
        found = show(connection, contents, opened.store, table, key, moment)
    eras = bool(opened.contents.earlier)
    state.output.result(found, lambda console: row(console, found, eras=eras))


def _transaction(
    state: State, opened: Opened, xid: int, era: int | None, limit: int | None
) -> None:
    from waly_cdc.history.eras import newest_transaction, whole_transaction
    from waly_cdc.history.session import session

    eras = bool(opened.contents.earlier)
    with session() as connection:
        contents, transaction = newest_transaction(
            connection, opened.contents, opened.store, xid, era
        )
        if not state.json:
            told = {**transaction.to_json(), "era": contents.era}
            render_transaction(state.output.console, told, eras=eras)
        found = whole_transaction(connection, contents, opened.store, transaction)
        shown = state.output.lines(
            _first(found, limit),
            lambda console, each: event(console, each, oneline=False, patch=False, eras=eras),
        )
    if shown < transaction.events:
        state.output.note(f"… and {transaction.events - shown:,} more events: leave out -n")


def _first(found: Iterator[dict[str, Any]], limit: int | None) -> Iterator[dict[str, Any]]:
    for number, each in enumerate(found):
        if number == limit:
            return
        yield each
