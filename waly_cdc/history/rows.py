"""Rows over time: the events of some rows, in order, each with the row before and after it.

A row is followed through key changes. What an update did not send (unchanged TOAST, and with
replica identity DEFAULT the whole old row) comes from our own earlier image of the row. In a table
without a key the rows are told apart by their content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.history.events import events, old_name, old_raw_name
from waly_cdc.history.jsonb import pg_text
from waly_cdc.history.session import identifier, literal, rows
from waly_cdc.history.texts import column_text
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion

Texts = dict[str, str | None]
"""A row: PostgreSQL's text of each column, by stored name."""

Key = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class RowEvent:
    """An event of a row with the row on both sides of it; `version` counts the row's changes from
    1, its baseline image or its insert. Both are None for a truncate of the whole table."""

    relation: RelationVersion
    op: str
    lsn: Lsn
    seq: int
    xid: int
    committed_at: datetime
    relation_version: int
    key: Key
    version: int | None
    before: Texts | None
    after: Texts | None

    @property
    def row_hash(self) -> str | None:
        """Hash of the row after the event; of the row before it for a delete."""
        row = self.after or self.before
        return None if row is None else row_hash(self.relation, row)


def row_hash(relation: RelationVersion, row: Mapping[str, str | None]) -> str:
    """SHA-256 of a row's canonical text: for each column in order its name, then its text as
    PostgreSQL prints it; each as its length in UTF-8 bytes, a colon and the bytes; `-` for NULL."""
    digest = hashlib.sha256()
    for column in relation.columns:
        for text in (column.name, row.get(column.stored)):
            if text is None:
                digest.update(b"-")
            else:
                data = text.encode()
                digest.update(b"%d:%b" % (len(data), data))
    return f"sha256:{digest.hexdigest()}"


def row_events(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    bound: Lsn,
    keys: Sequence[Key] | None = None,
) -> Iterator[RowEvent]:
    """Events before `bound`, oldest first, of the rows that have or had one of `keys` (None: of all
    rows). Baseline images come as events of op `R`; those of later baselines repeat the version."""
    source = _source(contents, store, relation, bound)
    if source is None or keys == []:
        return
    if keys is not None and relation.key:
        found = _follow(connection, source, relation, keys)
        where = _touches_key(relation, found)
    else:
        where = "TRUE"
    statement = f"{source} SELECT * FROM texts WHERE {where} ORDER BY _lsn, _seq"
    walk = _Walk(relation)
    with connection.cursor() as cursor:
        cursor.execute(statement)
        names = [column[0] for column in cursor.description or ()]
        while batch := cursor.fetchmany(10_000):
            for values in batch:
                event = walk.step(dict(zip(names, values, strict=True)))
                if event is not None:
                    yield event


def _source(
    contents: Contents, store: LocalStore, relation: RelationVersion, bound: Lsn
) -> str | None:
    """A WITH clause whose table `texts` has the relation's events with every value as text."""
    files = [f for f in contents.event_files(relation.oid) if f.first_lsn < bound]
    if not files:
        return None
    old = relation.key_columns or relation.columns
    inner = events(
        contents,
        store,
        relation,
        files,
        old=old,
        extra=("_xid", "epoch_us(_committed_at) AS _committed_us", "_relation"),
    )
    texts = [f"{column_text(c)} AS {identifier(c.stored)}" for c in relation.columns]
    texts += [f"{_old_text(c)} AS {old_name(c)}" for c in old]
    meta = "_op, _lsn, _seq, _xid, _committed_us, _relation, _unchanged, _has_before"
    return (
        f"WITH texts AS (SELECT {', '.join(texts)}, {meta} FROM (\n{inner}\n)"
        f" WHERE _lsn < {bound.value})"
    )


def _old_text(column: Column) -> str:
    renamed = Column(
        name=column.name,
        stored="old " + column.stored,
        storage=column.storage,
        type_oid=column.type_oid,
        typmod=column.typmod,
        type_name=column.type_name,
        identity=column.identity,
    )
    return column_text(renamed, old_raw_name(column))


def has_key(relation: RelationVersion, keys: Sequence[Key]) -> str:
    """A condition on rows of texts: they have one of the keys."""
    return _in(relation, [identifier(column.stored) for column in relation.key_columns], keys)


def _touches_key(relation: RelationVersion, keys: Sequence[Key]) -> str:
    """A condition on `texts`: the event has or had one of the keys, or is a truncate."""
    old = [old_name(column) for column in relation.key_columns]
    return f"(_op = 'T' OR {has_key(relation, keys)} OR {_in(relation, old, keys)})"


def _in(relation: RelationVersion, names: Sequence[str], keys: Sequence[Key]) -> str:
    listed = ", ".join(
        f"({', '.join(map(_key_literal, relation.key_columns, key))})" for key in keys
    )
    return f"({', '.join(names)}) IN ({listed})"


def _key_literal(column: Column, text: str | None) -> str:
    """A key's value as the text that `column_text` gives for it."""
    match column.storage:
        case "float32":
            return literal(format(float(np.float32(text)), ".9g"))
        case "float64":
            return literal(format(float(text or "nan"), ".17g"))
        case _:
            return literal(text or "")


def _follow(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    relation: RelationVersion,
    keys: Sequence[Key],
) -> list[Key]:
    """The keys, and all that the same rows had before or after."""
    own = [identifier(column.stored) for column in relation.key_columns]
    old = [old_name(column) for column in relation.key_columns]
    changed = (
        f"_op = 'U' AND _has_before AND ({', '.join(own)}) IS DISTINCT FROM ({', '.join(old)})"
    )
    known: set[Key] = set(keys)
    while True:
        found = rows(
            connection,
            f"{source} SELECT DISTINCT {', '.join(own + old)} FROM texts"
            f" WHERE {changed} AND {_touches_key(relation, sorted(known, key=str))}",
        )
        width = len(own)
        more = {
            part
            for row in found
            for part in (tuple(row.values())[:width], tuple(row.values())[width:])
        }
        if more <= known:
            return sorted(known, key=str)
        known |= more


class _Walk:
    """Goes through events in order and keeps each living row's image.

    A version belongs to a key: no two events of a key have the same, whatever rows it had.
    """

    def __init__(self, relation: RelationVersion) -> None:
        self._relation = relation
        self._living: dict[Key, Texts] = {}
        self._versions: dict[Key, int] = {}

    def step(self, values: dict[str, Any]) -> RowEvent | None:
        relation, op = self._relation, values["_op"]
        if op == "T":
            self._living.clear()
            return self._event(values, (), None, None, None)
        own: Texts = {c.stored: pg_text(c, values[c.stored]) for c in relation.columns}
        if not relation.key:
            return self._without_key(values, own)
        key = tuple(own[stored] for stored in relation.key)
        old_key = key
        if op == "U" and values["_has_before"]:
            old_key = tuple(pg_text(c, values["old " + c.stored]) for c in relation.key_columns)
        before = self._living.pop(old_key, None)
        if op == "R" and key in self._versions:
            # A later baseline: rows may have changed without events since the last one.
            self._living[key] = own
            return self._event(values, key, self._versions[key], before, own)
        if op == "I":
            # A row of that key before it can only be one whose end came without an event.
            before = None
        version = max(self._versions.get(old_key, 0), self._versions.get(key, 0)) + 1
        self._versions[key] = version
        if op == "D":
            return self._event(values, key, version, before or own, None)
        for stored in values["_unchanged"] or ():
            own[stored] = before.get(stored) if before else None
        self._living[key] = own
        return self._event(values, key, version, before, own)

    def _without_key(self, values: dict[str, Any], own: Texts) -> RowEvent:
        op = values["_op"]
        old: Texts | None = None
        if values["_has_before"]:
            old = {c.stored: pg_text(c, values["old " + c.stored]) for c in self._relation.columns}
        return self._event(values, (), None, old, None if op == "D" else own)

    def _event(
        self,
        values: dict[str, Any],
        key: Key,
        version: int | None,
        before: Texts | None,
        after: Texts | None,
    ) -> RowEvent:
        return RowEvent(
            relation=self._relation,
            op=values["_op"],
            lsn=Lsn(values["_lsn"]),
            seq=values["_seq"],
            xid=values["_xid"],
            committed_at=datetime.fromtimestamp(values["_committed_us"] // 1_000_000, UTC).replace(
                microsecond=values["_committed_us"] % 1_000_000
            ),
            relation_version=values["_relation"],
            key=key,
            version=version,
            before=before,
            after=after,
        )
