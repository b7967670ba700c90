"""`waly verify`"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from waly_cdc.cli.archive import interruptible, open_archive
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import verified
from waly_cdc.errors import ArchiveCorrupt, CouldNotVerify, StorageError

if TYPE_CHECKING:
    from waly_cdc.verify.report import Report


@click.command("verify")
@click.option(
    "--drill",
    metavar="[DSN]",
    is_flag=False,
    flag_value="",
    help="Also restore, and compare: on an embedded server, or in a scratch database on that one.",
)
@click.option("--report", metavar="DIR", type=Path, help="Also write the result there, as JSON.")
@global_options
@pass_state
def command(state: State, drill: str | None, report: Path | None) -> int:
    """Prove that the archive is whole, and that it restores.

    Reads every file: its SHA-256, rows and columns, the manifest's chain, and that every
    transaction has all its events. --drill restores everything into a scratch server and compares
    it row by row with the archive's state. Exit code 4 for a mismatch, 5 where something could not
    be checked.
    """
    from waly_cdc.archive.store import LocalStore
    from waly_cdc.verify.integrity import verify_integrity
    from waly_cdc.verify.report import remember

    store = LocalStore(state.config["archive"])
    with interruptible():
        with state.output.progress("verifying", "bytes") as advance:
            result = verify_integrity(store, progress=advance)
        if drill is not None:
            state.output.note("restoring into a scratch server …")
            result = _with_drill(state, result, drill or None)
    try:
        remember(store, result)
    except StorageError as error:
        state.output.note(f"the result could not be kept for `waly status`: {error.message}")
    if report is not None:
        _write(report, result)
    state.output.result(result.to_json(), lambda console: verified(console, result))
    return result.exit_code


def _with_drill(state: State, result: "Report", target: str | None) -> "Report":
    from waly_cdc.verify.drill import drill

    try:
        opened = open_archive(state)
        return result.with_drill(
            drill(opened.store, opened.contents, opened.resolve("latest"), target)
        )
    except (CouldNotVerify, ArchiveCorrupt) as error:
        return result.without("drill", error.message)


def _write(folder: Path, result: "Report") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"verify-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    content = json.dumps(result.to_json(), indent=2, ensure_ascii=False)
    (folder / name).write_text(content + "\n")
