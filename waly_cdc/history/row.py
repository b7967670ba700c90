"""One row as it was at a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import UsageError
from waly_cdc.history.jsonb import pg_text
from waly_cdc.history.log import parse_key, row_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.rows import Key, RowEvent, Texts, has_key, row_events, row_hash
from waly_cdc.history.session import identifier, rows
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.history.transactions import UNKNOWN_ACTOR, by_lsn
from waly_cdc.relations import RelationVersion


def show(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str,
    key: Sequence[str],
    moment: Moment,
) -> dict[str, Any]:
    """The row with that key at a moment, and the event that made it what it was.

    `contents` are those of the moment's era. Raises UsageError for an unknown table, a key that
    does not fit, and where there was no such row; PointNotInArchive where it is not known.
    """
    relation = contents.find_relation(table, moment.bound)
    wanted = parse_key(relation, key)
    row = _row(connection, relation, state_query(contents, store, relation, moment.bound), wanted)
    last: RowEvent | None = None
    for event in row_events(connection, contents, store, relation, moment.bound, [wanted]):
        if event.key == wanted and (event.op != "R" or last is None):
            last = event
    if row is None or last is None:
        raise UsageError(
            f"{relation.qualified_name} had no row {' '.join(key)} at {moment.name}",
            hint=f"its last change was at {format_time(last.committed_at)}" if last else None,
        )
    transaction = by_lsn(contents, store, {last.lsn}).get(last.lsn)
    return {
        "table": relation.qualified_name,
        "row": row_json(relation, row),
        "version": last.version,
        "row_hash": row_hash(relation, row),
        "era": moment.era,
        "lsn": str(transaction.end_lsn if transaction else last.lsn + 1),
        "xid": last.xid or None,
        "committed_at": format_time(last.committed_at),
        "actor": dict(transaction.actor if transaction else UNKNOWN_ACTOR),
    }


def _row(
    connection: duckdb.DuckDBPyConnection, relation: RelationVersion, state: str, key: Key
) -> Texts | None:
    """The row of a state that has that key, as PostgreSQL's texts."""
    texts = ", ".join(f"{column_text(c)} AS {identifier(c.stored)}" for c in relation.columns)
    statement = (
        f"SELECT * FROM (SELECT {texts} FROM (\n{state}\n)) WHERE {has_key(relation, [key])}"
    )
    for values in rows(connection, statement):
        found = {c.stored: pg_text(c, values[c.stored]) for c in relation.columns}
        if tuple(found[stored] for stored in relation.key) == key:
            return found
    return None
