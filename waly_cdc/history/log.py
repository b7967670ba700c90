"""The log: events of the database, a table or a row, newest first."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import UsageError
from waly_cdc.history.events import events
from waly_cdc.history.jsonb import pg_text, to_json
from waly_cdc.history.moment import Moment
from waly_cdc.history.rows import Key, RowEvent, Texts, row_events
from waly_cdc.history.session import identifier, rows
from waly_cdc.history.texts import column_text
from waly_cdc.history.transactions import UNKNOWN_ACTOR, Transaction, by_lsn
from waly_cdc.relations import Column, RelationVersion

OPERATIONS = ("I", "U", "D", "T")
_TYPMOD_HEADER = 4
"""What a typmod counts beside the characters."""


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
        _require_column(relations, wanted.column)
    keys = _keys(relations, key) if key else None
    bound = wanted.until.bound if wanted.until else contents.horizon
    found: list[RowEvent] = []
    for relation in relations:
        chosen = None if keys is None else keys[relation.oid]
        if chosen is None and wanted.limit is not None and relation.key and not _narrow(wanted):
            chosen = _newest_keys(connection, contents, store, relation, wanted)
        matching = (
            event
            for event in row_events(connection, contents, store, relation, bound, chosen)
            if _matches(event, wanted)
        )
        found += _newest(matching, None if wanted.actor else wanted.limit)
    found.sort(key=_position, reverse=True)
    transactions = by_lsn(contents, store, {event.lsn for event in found})
    given = 0
    for event in found:
        transaction = transactions.get(event.lsn)
        if wanted.actor is not None and not _made_by(transaction, wanted.actor):
            continue
        yield event_json(event, transaction)
        given += 1
        if given == wanted.limit:
            return


def transaction_events(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    transaction: Transaction,
) -> Iterator[dict[str, Any]]:
    """All events of one transaction, in order."""
    found: list[RowEvent] = []
    for relation in _relations(contents, None):
        files = [
            file
            for file in contents.event_files(relation.oid)
            if file.kind == "events" and file.first_lsn <= transaction.lsn <= file.last_lsn
        ]
        if files and (keys := _keys_at(connection, contents, store, relation, transaction)) != []:
            bound = transaction.end_lsn
            found += (
                event
                for event in row_events(connection, contents, store, relation, bound, keys)
                if event.lsn == transaction.lsn and event.op != "R"
            )
    for event in sorted(found, key=_position):
        yield event_json(event, transaction)


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
        "relation_version": event.relation_version,
        "actor": dict(transaction.actor if transaction else UNKNOWN_ACTOR),
        "changed": _changed(event),
        "before": row_json(relation, event.before),
        "after": row_json(relation, event.after),
    }


def row_json(relation: RelationVersion, row: Texts | None) -> dict[str, Any] | None:
    """A whole row as `to_jsonb(row)` shows it."""
    if row is None:
        return None
    return {column.name: to_json(column, row.get(column.stored)) for column in relation.columns}


def key_json(relation: RelationVersion, key: Key) -> dict[str, Any] | None:
    if not key:
        return None
    return {
        column.name: to_json(column, text)
        for column, text in zip(relation.key_columns, key, strict=True)
    }


def parse_key(relation: RelationVersion, key: Sequence[str]) -> Key:
    """The key as given by a user, value by value in key order. Raises UsageError."""
    columns = relation.key_columns
    if not columns:
        raise UsageError(
            f"{relation.qualified_name} has no key",
            hint=f"`waly log {relation.qualified_name}` shows all of it",
        )
    if len(key) != len(columns):
        names = " ".join(column.name for column in columns)
        raise UsageError(
            f"{len(key)} key values given, and the key of {relation.qualified_name} has"
            f" {len(columns)}",
            hint=f"its key is: {names}",
        )
    return tuple(_key_text(column, text) for column, text in zip(columns, key, strict=True))


def _key_text(column: Column, text: str) -> str | None:
    """A key's value as PostgreSQL prints it, from the other forms in which it is written."""
    try:
        if column.storage in ("int16", "int32", "int64"):
            return str(int(text))
        if column.storage in ("float32", "float64"):
            return pg_text(column, str(float(text)))
    except ValueError:
        raise UsageError(
            f"{text!r} is not a value of {column.name}, which is {column.type_name}",
        ) from None
    if column.storage == "bool":
        return {"true": "t", "false": "f"}.get(text.lower(), text)
    if column.type_name == "uuid":
        return text.lower()
    if column.type_name.startswith("character(") and column.typmod > 0:
        return text.ljust(column.typmod - _TYPMOD_HEADER)
    return text


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
        return contents.find_relations(table)
    newest = (versions[-1] for versions in contents.relations.values())
    return sorted(newest, key=lambda relation: (relation.schema, relation.name))


def _require_column(relations: Iterable[RelationVersion], name: str) -> None:
    names = {column.name for relation in relations for column in relation.columns}
    if name not in names:
        raise UsageError(f"no column {name!r}", hint="columns: " + ", ".join(sorted(names)[:20]))


def _narrow(wanted: LogFilter) -> bool:
    """Whether more is asked for than the newest events can be chosen by in advance."""
    return wanted.actor is not None or wanted.column is not None


def _conditions(wanted: LogFilter) -> str:
    listed = ", ".join(f"'{op}'" for op in OPERATIONS if op in wanted.ops)
    parts = [f"_op IN ({listed})"]
    if wanted.since is not None:
        parts.append(f"_lsn >= {wanted.since.bound.value}")
    if wanted.until is not None:
        parts.append(f"_lsn < {wanted.until.bound.value}")
    if wanted.xid is not None:
        parts.append(f"_xid = {wanted.xid}")
    return " AND ".join(parts)


def _newest_keys(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    wanted: LogFilter,
) -> list[Key]:
    """The keys of the newest events asked for: only their rows need following."""
    files = [file for file in contents.event_files(relation.oid) if file.kind == "events"]
    source = events(contents, store, relation, files, extra=("_xid",))
    key = ", ".join(
        f"{column_text(c)} AS {identifier(f'key {n}')}" for n, c in enumerate(relation.key_columns)
    )
    statement = (
        f"SELECT {key} FROM (\n{source}\n) WHERE {_conditions(wanted)}"
        f" ORDER BY _lsn DESC, _seq DESC LIMIT {wanted.limit}"
    )
    return list({tuple(row.values()) for row in rows(connection, statement)})


def _keys_at(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    transaction: Transaction,
) -> list[Key] | None:
    """The keys that a transaction touched; None for a table without a key."""
    if not relation.key:
        return None
    only = LogFilter(xid=transaction.xid, limit=transaction.events)
    return _newest_keys(connection, contents, store, relation, only)


def _matches(event: RowEvent, wanted: LogFilter) -> bool:
    if event.op not in wanted.ops:
        return False
    if wanted.since is not None and event.lsn < wanted.since.bound:
        return False
    if wanted.xid is not None and event.xid != wanted.xid:
        return False
    if wanted.column is not None:
        return wanted.column in (changed_texts(event) or {})
    return True


def _newest(found: Iterable[RowEvent], limit: int | None) -> list[RowEvent]:
    return list(found) if limit is None else heapq.nlargest(limit, found, key=_position)


def _position(event: RowEvent) -> tuple[int, int]:
    return event.lsn.value, event.seq


def changed_texts(event: RowEvent) -> dict[str, tuple[str | None, str | None]] | None:
    """For an update the columns that changed, by name: PostgreSQL's text before and after."""
    if event.op != "U" or event.before is None or event.after is None:
        return None
    before, after = event.before, event.after
    return {
        column.name: (before.get(column.stored), after[column.stored])
        for column in event.relation.columns
        if before.get(column.stored) != after[column.stored]
    }


def _changed(event: RowEvent) -> dict[str, list[Any]] | None:
    """For an update the columns that changed: name → [old, new], as JSON values."""
    changed = changed_texts(event)
    if changed is None:
        return None
    return {
        column.name: [to_json(column, text) for text in changed[column.name]]
        for column in event.relation.columns
        if column.name in changed
    }


def _made_by(transaction: Transaction | None, actor: str) -> bool:
    """Whether the actor's user or application_name is that name; `unknown` names the source."""
    if transaction is None:
        return False
    known: Mapping[str, Any] = transaction.actor
    if actor == "unknown":
        return bool(known["source"] == "unknown")
    return actor in (known["user"], known["application_name"])
