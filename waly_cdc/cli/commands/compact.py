"""`waly compact`"""

import click

from waly_cdc.cli.archive import interruptible
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import compacted
from waly_cdc.errors import ArchiveLocked


@click.command("compact")
@click.option(
    "--baseline", is_flag=True, help="Also compute new baselines from the archive, of every table."
)
@global_options
@pass_state
def command(state: State, baseline: bool) -> None:
    """Merge small files into large ones, with the same rows.

    Files of the day that goes on are merged so that they stay few; those of days that have ended
    become large ones sorted by key. --baseline computes the state of every table as of the last
    look at the catalog and keeps it as a baseline, so that later states need not replay what came
    before. Nothing is asked of the database, and nothing that is archived is lost. What was
    replaced is deleted an hour later, by the next command that writes or the sidecar.

    A running sidecar does all this by itself; beside one, exit code 11.
    """
    from waly_cdc.archive.compaction import compact
    from waly_cdc.archive.writer import ArchiveWriter
    from waly_cdc.upkeep.folding import fold

    try:
        archive = ArchiveWriter.open(state.config["archive"])
    except ArchiveLocked as error:
        raise ArchiveLocked(
            error.message, hint="a running sidecar compacts by itself: see compact_interval"
        ) from None
    with archive, interruptible():
        folded = fold(archive, on_table=state.output.note) if baseline else []
        with state.output.progress("compacting", "bytes") as advance:
            done = compact(archive, progress=advance)
    result = {
        **done.to_json(),
        "baselines": [each.to_json() for each in folded],
        "horizon": {"lsn": str(archive.contents.horizon)},
    }
    state.output.result(result, lambda console: compacted(console, done, folded))
