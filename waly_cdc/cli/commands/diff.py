"""`waly diff`"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from waly_cdc.cli.archive import echo_moment, open_with_pending
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.output import table as render_table
from waly_cdc.cli.rendering import difference

DIFFERENCES = 8


@click.command("diff")
@click.argument("table", required=False)
@click.argument("key", nargs=-1)
@click.option("--from", "start", metavar="WHEN", required=True, help="The earlier point.")
@click.option("--to", "end", metavar="WHEN", default="latest", help="The later point.")
@click.option("--stat", is_flag=True, help="Only how many rows differ, for each table.")
@click.option("--exit-code", is_flag=True, help="Exit with 8 where anything differs.")
@global_options
@pass_state
def command(
    state: State,
    table: str | None,
    key: tuple[str, ...],
    start: str,
    end: str,
    stat: bool,
    exit_code: bool,
) -> int:
    """Show the net difference of the database, a table or a row.

    That is what is not the same at two points, whatever happened in between.
    """
    from waly_cdc.history.diff import diff
    from waly_cdc.history.session import session

    opened = open_with_pending(state)
    moments = opened.resolve(start), opened.resolve(end)
    for moment in moments:
        echo_moment(state, moment)
    with session() as connection:
        found = diff(
            connection,
            opened.contents,
            opened.store,
            table,
            key,
            *moments,
            on_unknown=lambda error: state.output.note(f"not compared: {error.message}"),
        )
        shown = _stat(state, found) if stat else state.output.lines(found, difference)
    if not shown:
        state.output.note("no differences")
    return DIFFERENCES if shown and exit_code else 0


def _stat(state: State, found: Iterator[dict[str, Any]]) -> int:
    counts: dict[str, Counter[str]] = {}
    for each in found:
        counts.setdefault(each["table"], Counter())[each["change"]] += 1
    kinds = ("added", "changed", "removed")
    rows = [
        {"table": name, **{kind: count[kind] for kind in kinds}} for name, count in counts.items()
    ]
    if state.json:
        state.output.lines(rows, lambda *_: None)
    else:
        cells = [[row["table"], *(f"{row[kind]:,}" for kind in kinds)] for row in rows]
        render_table(state.output.console, ("table", *kinds), cells, right=(1, 2, 3))
    return sum(sum(count.values()) for count in counts.values())
