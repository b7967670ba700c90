"""`waly status`"""

import time
from functools import partial
from typing import Any

import click

from waly_cdc.cli.archive import open_archive
from waly_cdc.cli.options import State, global_options, pass_state
from waly_cdc.cli.rendering import status as render_status

WATCH_EVERY = 2.0
DEGRADED = 3


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option("--max-lag", metavar="TIME", help="More lag than this is degraded (default 60s).")
@global_options
@pass_state
def command(state: State, watch: bool, max_lag: str | None) -> int:
    """Show state, lag, slot and contents.

    Exit code 3 where the state is degraded: lag over --max-lag, slot lost or nearly, source out of
    reach, a failed sidecar, a verify that found a mismatch.
    """
    state.set(max_lag=max_lag)
    while True:
        found = _look(state)
        if watch and not state.json:
            click.clear()
        state.output.result(found, partial(render_status, found=found))
        if not watch:
            return DEGRADED if found["reasons"] else 0
        time.sleep(WATCH_EVERY)


def _look(state: State) -> dict[str, Any]:
    from waly_cdc.capture.status import degradations, status
    from waly_cdc.verify.report import recall

    opened = open_archive(state)
    config = state.config
    found = status(opened.contents, opened.store, config["dsn"] or "", recall(opened.store))
    found["reasons"] = degradations(found, config["max_lag"])
    if found["reasons"]:
        found["state"] = "degraded"
    return found
