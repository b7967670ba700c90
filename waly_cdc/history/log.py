"""The log: events of the database, a table or a row, newest first."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import UsageError
from waly_cdc.history.images import after_name, before_name
from waly_cdc.history.jsonb import to_json
from waly_cdc.history.keys import key_json, parse_key, row_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.moves import follow, membership, relations_named
from waly_cdc.history.narrow import Key
from waly_cdc.history.rows import RowEvent, row_events
from waly_cdc.history.session import literal, read_files, rows
from waly_cdc.history.subject import Subject
from waly_cdc.history.transactions import UNKNOWN_ACTOR, Transaction, by_lsn
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.relations import RelationVersion

OPERATIONS = ("I", "U", "D", "T")
LOOKED_UP = 500
"""Events whose transactions are looked up at a time."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which events to give; everything given must hold. `since` and `until` are moments: events
    from the one on, and before the other."""

    since: Moment | None = None
    until: Moment | None = None
    actor: str | None = None
    xid: int | None = None
    ops: Collection[str] = field(default=OPERATIONS)
    column: str | None = None
    limit: int | None = None


def log(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str | None,
    key: Sequence[str],
    wanted: LogFilter,
) -> Iterator[dict[str, Any]]:
    """Events as the objects of `waly log --json`, newest first.

    Raises UsageError for an unknown table or column, or a key that does not fit the table.
    """
    relations = _relations(contents, table)
    if wanted.column is not None:
        _require_column(contents, relations, wanted.column)
    # Rows are named by the key they have in the end, also where events before that are asked for.
    bound = wanted.until.bound if wanted.until and not key else contents.horizon
    subjects = [Subject(contents, store, relation.oid, bound) for relation in relations]
    keys = _keys(relations, key) if key else None
    partitioned = table is not None and not contents.has_relation(table)
    if partitioned and keys is not None:
        keys = follow(connection, subjects, keys[relations[0].oid][0])
    where = _conditions(contents, store, wanted)
    few = wanted.limit is not None or wanted.xid is not None
    narrow = keys is None and few and wanted.column is None
    first = wanted.since.bound if wanted.since else ZERO
    if narrow:
        first = _oldest(connection, subjects, where, wanted.limit)
    found = [
        _relation_log(
            connection,
            subject,
            None if keys is None else keys[subject.oid],
            f"{where} AND _lsn >= {first.value}"
            + (f" AND {membership(subject, table or '')}" if partitioned else ""),
            wanted,
            narrow=narrow,
        )
        for subject in subjects
        if _may_hold(subject, first)
    ]
    merged = heapq.merge(*found, key=_position, reverse=True)
    yield from islice(_with_transactions(connection, contents, store, merged), wanted.limit)


def _may_hold(subject: Subject, first: Lsn) -> bool:
    """Whether a relation may have events from an LSN on."""
    return any(file.kind == "events" and file.last_lsn >= first for file in subject.files)


def _relation_log(
    connection: duckdb.DuckDBPyConnection,
    subject: Subject,
    keys: Sequence[Key] | None,
    where: str,
    wanted: LogFilter,
    *,
    narrow: bool,
) -> Iterator[RowEvent]:
    """One relation's events, newest first. `narrow`: there are so few that only their rows are
    followed."""
    if keys == []:
        return iter(())
    touched = touched_keys(connection, subject, where) if narrow else None
    of_column = _changes_column(subject, wanted.column)
    return row_events(
        connection,
        subject,
        keys=keys,
        touched=touched,
        where=f"{where} AND {of_column}",
        of_truncates=where if wanted.column is None else "FALSE",
        newest_first=True,
        limit=wanted.limit,
    )


def transaction_events(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    transaction: Transaction,
) -> Iterator[dict[str, Any]]:
    """All events of one transaction, in order."""
    found = []
    where = f"_op <> 'R' AND _lsn = {transaction.lsn.value}"
    for relation in _relations(contents, None):
        subject = Subject(contents, store, relation.oid, transaction.end_lsn)
        if any(file.first_lsn <= transaction.lsn <= file.last_lsn for file in subject.files):
            touched = touched_keys(connection, subject, where)
            found.append(row_events(connection, subject, touched=touched, where=where))
    for event in heapq.merge(*found, key=_position):
        yield event_json(event, transaction)


def _with_transactions(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    events: Iterator[RowEvent],
) -> Iterator[dict[str, Any]]:
    """The JSON of events, whose transactions are looked up some hundred at a time."""
    while chunk := list(islice(events, LOOKED_UP)):
        lsns = {event.lsn for event in chunk}
        transactions = by_lsn(connection, contents, store, lsns)
        for event in chunk:
            yield event_json(event, transactions.get(event.lsn))


def event_json(event: RowEvent, transaction: Transaction | None) -> dict[str, Any]:
    """The object that `waly log --json` prints for an event."""
    relation = event.relation
    return {
        "table": relation.qualified_name,
        "op": event.op,
        "key": key_json(relation, event.key),
        "lsn": str(transaction.end_lsn if transaction else event.lsn + 1),
        "seq": event.seq,
        "xid": event.xid or None,
        "committed_at": format_time(event.committed_at),
        "version": event.version,
        "row_hash": event.row_hash,
        "relation_version": relation.version,
        "actor": dict(transaction.actor if transaction else UNKNOWN_ACTOR),
        "changed": _changed(event),
        "before": row_json(relation, event.before),
        "after": row_json(relation, event.after),
        "unknown": [relation.by_stored_name(stored).name for stored in event.unknown],
    }


def _keys(relations: Sequence[RelationVersion], key: Sequence[str]) -> dict[int, list[Key]]:
    """The key in each of the relations that had one name; none where it does not fit."""
    keys = {relations[0].oid: [parse_key(relations[0], key)]}
    for former in relations[1:]:
        try:
            keys[former.oid] = [parse_key(former, key)]
        except UsageError:
            keys[former.oid] = []
    return keys


def _relations(contents: Contents, table: str | None) -> list[RelationVersion]:
    if table is not None:
        return relations_named(contents, table)
    newest = (versions[-1] for versions in contents.relations.values())
    return sorted(newest, key=lambda relation: (relation.schema, relation.name))


def _require_column(contents: Contents, relations: Iterable[RelationVersion], name: str) -> None:
    versions = (v for relation in relations for v in contents.relations[relation.oid])
    names = {column.name for version in versions for column in version.columns}
    if name not in names:
        raise UsageError(f"no column {name!r}", hint="columns: " + ", ".join(sorted(names)[:20]))


def _conditions(contents: Contents, store: LocalStore, wanted: LogFilter) -> str:
    """The filter, but for its column, as a condition on events."""
    listed = ", ".join(f"'{op}'" for op in OPERATIONS if op in wanted.ops)
    parts = [f"_op IN ({listed})"]
    if wanted.since is not None:
        parts.append(f"_lsn >= {wanted.since.bound.value}")
    if wanted.until is not None:
        parts.append(f"_lsn < {wanted.until.bound.value}")
    if wanted.xid is not None:
        parts.append(f"_xid = {wanted.xid}")
    if wanted.actor is not None:
        parts.append(f"_lsn IN ({made_by(contents, store, wanted.actor)})")
    return " AND ".join(parts)


def made_by(contents: Contents, store: LocalStore, actor: str) -> str:
    """A statement for the transactions whose user or application_name is that name; `unknown` names
    the source."""
    files = contents.transaction_files()
    if not files:
        return "NULL"
    name = literal(actor)
    condition = f"actor_user = {name} OR actor_application_name = {name}"
    if actor == "unknown":
        condition = "actor_source = 'unknown'"
    return f"SELECT lsn FROM {read_files(store, files)} WHERE {condition}"


def _oldest(
    connection: duckdb.DuckDBPyConnection,
    subjects: Sequence[Subject],
    where: str,
    limit: int | None,
) -> Lsn:
    """The LSN of the oldest of the newest events of all relations that fulfil a condition; where
    none does, the horizon."""
    parts = [
        f"SELECT _lsn FROM (\n{subject.events(files, ())}\n) WHERE {where}"
        for subject in subjects
        if (files := [file for file in subject.files if file.kind == "events"])
    ]
    if not parts:
        return ZERO
    every = "\nUNION ALL\n".join(parts)
    if limit is not None:
        every += f"\nORDER BY _lsn DESC LIMIT {limit}"
    (found,) = rows(connection, f"SELECT min(_lsn) AS oldest FROM (\n{every}\n)")
    oldest = found["oldest"]
    return subjects[0].contents.horizon if oldest is None else Lsn(oldest)


def _changes_column(subject: Subject, name: str | None) -> str:
    """A condition on `history`: an update changed a column of that name."""
    if name is None:
        return "TRUE"
    parts = [
        f"(_relation = {version.version} AND {before_name(c)} IS DISTINCT FROM {after_name(c)}"
        f" AND NOT coalesce(list_contains(_unknown_before, {literal(c.stored)})"
        f" OR list_contains(_unknown_after, {literal(c.stored)}), FALSE))"
        for version in subject.versions
        for c in subject.columns
        if (mine := subject.has_column(version, c)) is not None and mine.name == name
    ]
    return f"(_op = 'U' AND ({' OR '.join(parts) or 'FALSE'}))"


def touched_keys(connection: duckdb.DuckDBPyConnection, subject: Subject, where: str) -> str | None:
    """A statement that selects the keys of the events that fulfil a condition: only their rows need
    following. None where they are in several keyings, or told apart by content."""
    files = [file for file in subject.files if file.kind == "events"]
    keying = subject.keyings[-1]
    if keying.by_content or any(file.version not in keying.versions for file in files):
        return None
    keys = ", ".join(f"{subject.own_text(c)} AS k{n}" for n, c in enumerate(keying.columns))
    connection.execute(
        f"CREATE OR REPLACE TABLE touched_{subject.oid} AS"
        f" SELECT DISTINCT {keys} FROM (\n{subject.events(files, ())}\n)"
        f" WHERE _op <> 'T' AND {where}"
    )
    return f"SELECT * FROM touched_{subject.oid}"


def _position(event: RowEvent) -> tuple[int, int, str]:
    """Its place in the log. Truncates of several tables by one statement share a seq."""
    return event.lsn.value, event.seq, event.relation.qualified_name


def _changed(event: RowEvent) -> dict[str, list[Any]] | None:
    """For an update the columns that changed: name → [old, new], as JSON values."""
    changed = event.changed()
    if changed is None:
        return None
    return {
        column.name: [to_json(column, text) for text in changed[column.stored]]
        for column in event.relation.columns
        if column.stored in changed
    }
