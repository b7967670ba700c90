"""One row: as it was at a point, and who last set each of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import UsageError
from waly_cdc.history.keys import key_json, parse_key, row_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.rows import RowEvent, Texts, row_events
from waly_cdc.history.state import state_files
from waly_cdc.history.subject import Subject
from waly_cdc.history.transactions import UNKNOWN_ACTOR, Transaction, by_lsn
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion


@dataclass(frozen=True, slots=True)
class _Life:
    """A row that was there at a moment: the relation then, and the row's events since it began."""

    relation: RelationVersion
    events: list[RowEvent]

    @property
    def row(self) -> Texts:
        """The row in the shape that the relation had at the moment. What is not known is left out;
        a column that is newer than the row's last event is NULL in it, or the table would have a
        newer baseline."""
        newest = self.events[-1]
        names = ((column, _in_event(newest, column)) for column in self.relation.columns)
        return {
            column.stored: (newest.after or {}).get(stored) if stored else None
            for column, stored in names
            if stored not in newest.unknown
        }

    @property
    def last(self) -> RowEvent:
        """The event that made the row what it was. A later baseline that found it unchanged made
        nothing."""
        return next(
            event
            for event, before in zip(
                reversed(self.events), [*reversed(self.events[:-1]), None], strict=True
            )
            if event.op != "R" or before is None or event.version != before.version
        )


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
    life = _life(connection, contents, store, table, key, moment)
    last, newest = life.last, life.events[-1]
    transaction = by_lsn(connection, contents, store, {last.lsn}).get(last.lsn)
    return {
        "table": life.relation.qualified_name,
        "row": row_json(life.relation, life.row),
        "version": newest.version,
        "row_hash": newest.row_hash,
        "era": moment.era,
        **_origin(last, transaction),
    }


def blame(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str,
    key: Sequence[str],
    moment: Moment,
) -> dict[str, Any]:
    """For each column of the row with that key at a moment: its value, and what last set it to
    another one than it had: an event of the row, or its baseline image.

    Raises what `show` raises.
    """
    life = _life(connection, contents, store, table, key, moment)
    row, newest = life.row, life.events[-1]
    setters = {
        column.stored: _setter(life.events, column, row[column.stored])
        for column in life.relation.columns
        if column.stored in row
    }
    lsns = {event.lsn for event in setters.values()}
    transactions = by_lsn(connection, contents, store, lsns)
    values = row_json(life.relation, row) or {}
    return {
        "table": life.relation.qualified_name,
        "key": key_json(life.relation, tuple(row[stored] for stored in life.relation.key)),
        "version": newest.version,
        "row_hash": newest.row_hash,
        "era": moment.era,
        "columns": {
            column.name: {
                "value": values[column.name],
                **_origin(setters[column.stored], transactions.get(setters[column.stored].lsn)),
            }
            for column in life.relation.columns
            if column.stored in row
        },
    }


def _setter(events: Sequence[RowEvent], column: Column, value: str | None) -> RowEvent:
    """The event since which a row has had its value of a column."""
    since = events[-1]
    for event in reversed(events):
        stored = _in_event(event, column)
        if stored in event.unknown or (event.after or {}).get(stored or "") != value:
            break
        since = event
    return since


def _in_event(event: RowEvent, column: Column) -> str | None:
    """The stored name that a column had in an event's relation version, if it was there: another
    one where its type has been changed since."""
    return next(
        (
            mine.stored
            for mine in event.relation.columns
            if mine.stored == column.stored or mine.attnum == column.attnum is not None
        ),
        None,
    )


def _life(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str,
    key: Sequence[str],
    moment: Moment,
) -> _Life:
    missing: UsageError | None = None
    for relation in _relations_at(contents, table, moment):
        try:
            return _life_in(connection, contents, store, relation, key, moment)
        except UsageError as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _relations_at(contents: Contents, table: str, moment: Moment) -> list[RelationVersion]:
    """The relation of that name at a moment, or the partitions that the one of that name had."""
    partitions = [] if contents.has_relation(table) else contents.partitions_of(table)
    versions = (contents.version_at(relation.oid, moment.bound) for relation in partitions)
    known = [version for version in versions if version is not None]
    return known or [contents.find_relation(table, moment.bound)]


def _life_in(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    key: Sequence[str],
    moment: Moment,
) -> _Life:
    wanted = parse_key(relation, key)
    state_files(contents, relation, moment.bound)
    subject = Subject(contents, store, relation.oid, moment.bound)
    found = list(row_events(connection, subject, keys=[wanted]))
    baseline = contents.baseline_for(relation.oid, moment.bound)
    living: list[RowEvent] = []
    last: RowEvent | None = None
    for event in found:
        if event.op == "T":
            living = []
            continue
        if _key_of(event, relation.key_columns) == wanted:
            last = event
        if event.op == "D":
            living = [other for other in living if other.root != event.root]
        else:
            living.append(event)
    roots = {event.root: event for event in living}
    there = [
        root
        for root, event in roots.items()
        if _key_of(event, relation.key_columns) == wanted
        and (baseline is None or event.lsn + 1 >= baseline.lsn)
    ]
    if not there:
        raise UsageError(
            f"{relation.qualified_name} had no row {' '.join(key)} at {moment.name}",
            hint=f"its last change was at {format_time(last.committed_at)}" if last else None,
        )
    return _Life(relation, [event for event in living if event.root == there[-1]])


def _key_of(event: RowEvent, columns: Sequence[Column]) -> tuple[str | None, ...]:
    row = event.after or event.before or {}
    return tuple(row.get(_in_event(event, column) or "") for column in columns)


def _origin(event: RowEvent, transaction: Transaction | None) -> dict[str, Any]:
    """Which transaction an event belongs to; a baseline image belongs to none."""
    lsn: Lsn = transaction.end_lsn if transaction else event.lsn + 1
    return {
        "lsn": str(lsn),
        "xid": event.xid or None,
        "committed_at": format_time(event.committed_at),
        "actor": dict(transaction.actor if transaction else UNKNOWN_ACTOR),
    }
