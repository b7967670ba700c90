"""`waly restore`"""

import os
from pathlib import Path

import click

from waly_cdc.cli.archive import echo_moment, interruptible, open_archive
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.output import table as render_table
from waly_cdc.cli.rendering import restored
from waly_cdc.errors import UsageError
from waly_cdc.sizes import size_text

JOBS = min(4, os.cpu_count() or 1)


@click.command("restore")
@click.option("--to", "when", metavar="WHEN", required=True, help="The point to restore.")
@click.option("--target", metavar="DSN", help="The PostgreSQL database to restore into.")
@click.option("--output", metavar="FILE.duckdb", type=Path, help="The DuckDB file to write.")
@click.option("--table", "tables", metavar="TABLE", multiple=True, help="Only these tables.")
@click.option("--schema-only", is_flag=True, help="No rows.")
@click.option("--dry-run", is_flag=True, help="Only say what would be restored.")
@click.option("--force", is_flag=True, help="Also into a target that is not empty.")
@click.option("--jobs", type=click.IntRange(1, 32), default=JOBS, help="Tables at a time.")
@global_options
@pass_state
def command(
    state: State,
    when: str,
    target: str | None,
    output: Path | None,
    tables: tuple[str, ...],
    schema_only: bool,
    dry_run: bool,
    force: bool,
    jobs: int,
) -> None:
    """Rebuild the database or some tables as of a point.

    Into an empty PostgreSQL database, with indexes, constraints, foreign keys and sequences; or
    into a DuckDB file. A target that is not empty is refused without --force.
    """
    from waly_cdc.restore.plan import plan_restore

    if not dry_run and (target is None) == (output is None):
        raise UsageError("name one target", hint="--target DSN, or --output FILE.duckdb")
    if output is not None and output.suffix not in (".duckdb", ".db"):
        raise UsageError(f"{output} is no DuckDB file", hint="the name must end in .duckdb")
    if output is not None and schema_only:
        raise UsageError("--schema-only needs --target")
    opened = open_archive(state)
    moment = opened.resolve(when)
    echo_moment(state, moment)
    contents = opened.at(moment)
    plan = plan_restore(opened.store, contents, moment, tables)
    if dry_run:
        rows = [(t.name.qualified_name, f"{t.rows:,}", size_text(t.bytes)) for t in plan.tables]
        headings = ("table", "rows, about", "to read")
        state.output.result(
            plan.to_json(), lambda console: render_table(console, headings, rows, right=(1, 2))
        )
        _left_out(state, plan.left_out)
        return
    with interruptible(), state.output.progress("restoring", "rows") as advance:
        from waly_cdc.restore.files import restore_duckdb
        from waly_cdc.restore.postgres import restore_postgres
        from waly_cdc.restore.rows import Rows

        expected = sum(planned.rows for planned in plan.tables)
        done = 0

        def on_rows(_: str, count: int) -> None:
            nonlocal done
            done += count
            advance(done, expected)

        with Rows(opened.store, contents) as source:
            if output is not None:
                result = restore_duckdb(source, plan, output, force=force, on_rows=on_rows)
            else:
                assert target is not None
                result = restore_postgres(
                    source,
                    plan,
                    target,
                    jobs=jobs,
                    force=force,
                    schema_only=schema_only,
                    on_rows=on_rows,
                )
    state.output.result(result.to_json(), lambda console: restored(console, result))
    _left_out(state, result.left_out)


def _left_out(state: State, reasons: tuple[str, ...]) -> None:
    for reason in reasons:
        state.output.note(f"not restored: {reason}")
