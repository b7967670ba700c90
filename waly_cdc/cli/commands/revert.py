"""`waly revert`"""

import re
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from waly_cdc.cli.archive import Opened, interruptible, open_with_pending
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import reverted
from waly_cdc.errors import RevertConflict, UsageError

if TYPE_CHECKING:
    from waly_cdc.restore.revert.revert import Request, Revert

_XID = re.compile(r"(?:(\d{1,9}):)?xid:(\d{1,10})")
SHOWN = 50
"""Conflicts that people are shown; `--json` has all."""


@click.command("revert")
@click.argument("what", metavar="[xid:X… | TABLE KEY…]", nargs=-1)
@click.option("--to", "when", metavar="WHEN", help="The point that the row goes back to.")
@click.option("--actor", metavar="NAME", help="Undo what this user or application_name did.")
@click.option("--since", metavar="WHEN", help="With --actor: from this point on.")
@click.option("--output", metavar="FILE.sql", type=Path, help="Write the script for psql there.")
@click.option("--apply", "apply_it", is_flag=True, help="Run it, in one transaction.")
@click.option("--dry-run", is_flag=True, help="Only say which rows, and which are in conflict.")
@click.option("--theirs", is_flag=True, help="Leave rows that others changed later as they are.")
@click.option("--ours", is_flag=True, help="Undo what others did later to these rows, too.")
@click.option("--no-triggers", is_flag=True, help="The tables' own triggers do not fire.")
@global_options
@pass_state
def command(
    state: State,
    what: tuple[str, ...],
    when: str | None,
    actor: str | None,
    since: str | None,
    output: Path | None,
    apply_it: bool,
    dry_run: bool,
    theirs: bool,
    ours: bool,
    no_triggers: bool,
) -> None:
    """Undo transactions, somebody's work or the changes of a row, in the live database.

    waly revert xid:8812 --dry-run        waly revert orders 42 --to '1h ago' --apply

    Prints the script for psql, unless told to --apply it or to write it to --output. Rows that
    others changed later are listed and refused. Triggers of the tables fire as they do for any
    statement; --no-triggers needs the tables' owner and holds other writers off meanwhile.
    """
    from waly_cdc.history.session import session
    from waly_cdc.restore.revert.revert import apply, prepare
    from waly_cdc.source.connect import connect

    if sum((apply_it, dry_run, output is not None)) > 1 or (theirs and ours):
        raise UsageError("these options exclude each other", hint="waly revert --help")
    opened = open_with_pending(state)
    request = _request(opened, what, when, actor, since)
    resolution = "theirs" if theirs else "ours" if ours else None
    dsn = state.config["dsn"] or ""
    with (
        interruptible(),
        session() as duck,
        connect(dsn, application_name="waly revert") as live,
    ):
        contents, store = opened.contents, opened.store
        found = prepare(
            duck, contents, store, live, request, resolution=resolution, triggers=not no_triggers
        )
        for reason in found.left_out:
            state.output.note(f"not reverted: {reason}")
        met: list[dict[str, Any]] = []
        try:
            if resolution is None:
                found.require_no_conflicts()
            if apply_it:
                met = [each.to_json() for each in apply(duck, live, found, theirs=theirs)]
        except RevertConflict as error:
            _tell(state, found, list(error.conflicts), applied=False)
            raise
        if apply_it or dry_run or output is not None:
            if output is not None:
                _write(duck, found, output)
            _tell(state, found, met, applied=apply_it)
        else:
            _write(duck, found, None)


def _request(
    opened: Opened,
    what: tuple[str, ...],
    when: str | None,
    actor: str | None,
    since: str | None,
) -> "Request":
    from waly_cdc.restore.revert.revert import Request

    matches = [_XID.fullmatch(each) for each in what]
    xids = tuple((int(match[1]) if match[1] else None, int(match[2])) for match in matches if match)
    of_actor, of_row = actor is not None or since is not None, bool(what) and not matches[0]
    if what and matches[0] and len(xids) == len(what) and not (when or of_actor):
        return Request(xids=xids)
    if of_row and len(what) > 1 and when and not of_actor:
        return Request(table=what[0], key=what[1:], since=opened.resolve(when))
    if actor and since and not what and not when:
        return Request(actor=actor, since=opened.resolve(since))
    raise UsageError(
        "say what to undo",
        hint="waly revert xid:8812, or TABLE KEY --to WHEN, or --actor NAME --since WHEN",
    )


def _write(duck: Any, found: "Revert", path: Path | None) -> None:
    from waly_cdc.restore.revert.revert import write

    if path is None:
        write(duck, found.steps, sys.stdout.buffer)
        return
    try:
        with path.open("xb") as file:
            try:
                write(duck, found.steps, file)
            except BaseException:
                # A part of a script must not be taken for all of it.
                path.unlink()
                raise
    except FileExistsError:
        raise UsageError(f"{path} exists already", hint="choose another name") from None


def _tell(state: State, found: "Revert", met: list[dict[str, Any]], *, applied: bool) -> None:
    """The answer: rows by table, and the rows in conflict."""
    conflicts = [*(conflict.to_json() for conflict in found.conflicts), *met]
    answer = {
        "transactions": found.transactions,
        "at": {"lsn": str(found.horizon)},
        "tables": found.tables(),
        "conflicts": conflicts,
        "left_out": found.left_out,
        "applied": applied,
    }
    shown = {**answer, "conflicts": list(islice(conflicts, SHOWN))}
    state.output.result(answer, lambda console: reverted(console, shown))
    if len(conflicts) > SHOWN:
        state.output.note(f"… and {len(conflicts) - SHOWN:,} more rows in conflict: see --json")
