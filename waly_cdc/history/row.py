"""One row as it was at a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import WalyError
from waly_cdc.history.log import parse_key, row_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.rows import RowEvent, row_events
from waly_cdc.history.transactions import UNKNOWN_ACTOR, by_lsn


def show(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str,
    key: Sequence[str],
    moment: Moment,
) -> dict[str, Any]:
    """The row with that key at a moment, and the event that made it what it was.

    Raises UsageError for an unknown table or a key that does not fit, WalyError where there was no
    such row.
    """
    relation = contents.find_relation(table, moment.bound)
    wanted = parse_key(relation, key)
    living: RowEvent | None = None
    last: RowEvent | None = None
    for event in row_events(connection, contents, store, relation, moment.bound, [wanted]):
        if event.op == "T":
            living = None
        elif event.after is not None and event.key == wanted:
            living = last = event
        elif living is not None and event.version is not None and _ends(event, living):
            living = None
    if living is None:
        raise WalyError(
            f"{relation.qualified_name} had no row {' '.join(key)} at {moment.bound}",
            hint="its last change was at " + str(format_time(last.committed_at)) if last else None,
        )
    transaction = by_lsn(contents, store, {living.lsn}).get(living.lsn)
    return {
        "table": relation.qualified_name,
        "row": row_json(relation, living.after),
        "version": living.version,
        "row_hash": living.row_hash,
        "lsn": str(transaction.end_lsn if transaction else living.lsn + 1),
        "xid": living.xid or None,
        "committed_at": format_time(living.committed_at),
        "actor": dict(transaction.actor if transaction else UNKNOWN_ACTOR),
    }


def _ends(event: RowEvent, living: RowEvent) -> bool:
    """Whether the event deletes the living row or gives it another key."""
    return event.before is not None and event.before == living.after
