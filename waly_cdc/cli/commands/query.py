"""`waly query`"""

from pathlib import Path

import click

from waly_cdc.cli.archive import echo_moment, open_with_pending
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.output import table as render_table
from waly_cdc.errors import UsageError

FORMATS = ("table", "json", "csv", "parquet")


@click.command("query")
@click.argument("statement", metavar="[NAME|SQL]", required=False)
@click.option("-f", "--file", type=Path, help="Read the SQL from a file.")
@click.option("--param", "params", metavar="K=V", multiple=True, help="A value for $K.")
@click.option("--at", "when", metavar="WHEN", default="latest", help="Tables as of this point.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: table.")
@click.option("--output", metavar="FILE", type=Path, help="Write to a file (needed for parquet).")
@click.option("--list", "lists", is_flag=True, help="Name the queries that come with waly.")
@global_options
@pass_state
def command(
    state: State,
    statement: str | None,
    file: Path | None,
    params: tuple[str, ...],
    when: str,
    form: str | None,
    output: Path | None,
    lists: bool,
) -> None:
    """Run SQL over the archive.

    NAME runs a query that comes with waly; --list names them.

    DuckDB's SQL over every table as of --at under its own name; history.SCHEMA.TABLE, a row for
    each event; transactions; changes, the events of all tables. A query can write nothing.
    """
    from waly_cdc.cli.results import write
    from waly_cdc.history import library
    from waly_cdc.history.query import query

    if lists:
        known = library.queries()
        rows = [(found.name, found.description, found.usage) for found in known]
        if state.json:
            state.output.lines((found.to_json() for found in known), lambda *_: None)
        else:
            render_table(state.output.console, ("name", "tells", "--param"), rows)
        return
    if (statement is None) == (file is None):
        raise UsageError("name a query, give SQL, or a file with -f", hint="waly query --list")
    sql, values = library.find(statement, file, _parameters(params))
    opened = open_with_pending(state)
    moment = opened.resolve(when)
    echo_moment(state, moment)
    with query(opened.contents, opened.store, moment, sql, values) as result:
        for note in result.notes:
            state.output.note(note)
        write(result.reader, form or ("json" if state.json else "table"), output, state.output)


def _parameters(given: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"not a parameter: {each!r}", hint="write --param name=value")
        values[name] = value
    return values
