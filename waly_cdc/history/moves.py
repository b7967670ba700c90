"""Rows that move between the partitions of one table.

PostgreSQL makes such an update a delete in the one partition and an insert into the other, right
after each other in one transaction, and so does the stream. The two are taken for one row where the
key is the same but for the columns that rows are told apart by into partitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from waly_cdc.archive.contents import Contents, parse_qualified_name
from waly_cdc.history.narrow import Key
from waly_cdc.history.rows import RowEvent, row_events
from waly_cdc.history.subject import Subject
from waly_cdc.relations import RelationVersion


def follow(
    connection: duckdb.DuckDBPyConnection, partitions: Sequence[Subject], key: Key
) -> dict[int, list[Key]]:
    """By partition (oid), the keys of the rows that have or had a key in any of them, wherever they
    have been."""
    keys: dict[int, set[Key]] = {subject.oid: {key} for subject in partitions}
    waiting = [(subject, key) for subject in partitions]
    while waiting:
        subject, wanted = waiting.pop()
        for event in row_events(connection, subject, keys=[wanted]):
            for other in partitions:
                found = _counterpart(connection, subject, event, other)
                if found is not None and found not in keys[other.oid]:
                    keys[other.oid].add(found)
                    waiting.append((other, found))
    return {oid: sorted(found, key=str) for oid, found in keys.items()}


def _counterpart(
    connection: duckdb.DuckDBPyConnection, subject: Subject, event: RowEvent, other: Subject
) -> Key | None:
    """The key that a row came to or from `other` with, if the event is half of a move."""
    if event.op not in ("D", "I") or other.oid == subject.oid or event.key is None:
        return None
    op, seq = ("I", event.seq + 1) if event.op == "D" else ("D", event.seq - 1)
    if not any(file.first_lsn <= event.lsn <= file.last_lsn for file in other.files):
        return None
    keying = other.keyings[-1]
    if keying.by_content:
        return None
    where = f"_op = '{op}' AND _lsn = {event.lsn.value} AND _seq = {seq}"
    keys = ", ".join(other.own_text(column) for column in keying.columns)
    statement = f"SELECT {keys} FROM (\n{other.events(old=())}\n) WHERE {where}"
    found = connection.execute(statement).fetchone()
    if found is None:
        return None
    there = dict(zip((column.name for column in keying.columns), found, strict=True))
    here = dict(zip((column.name for column in event.relation.key_columns), event.key, strict=True))
    apart = _apart(subject) | _apart(other)
    if {n: v for n, v in here.items() if n not in apart} != {
        n: v for n, v in there.items() if n not in apart
    }:
        return None
    return tuple(found)


def _apart(subject: Subject) -> set[str]:
    """The names of the columns that the partitions are told apart by."""
    return {
        name
        for partition in subject.contents.partitions
        if partition.oid == subject.oid
        for name in partition.columns
    }


def relations_named(contents: Contents, table: str) -> list[RelationVersion]:
    """The relations that have or had a name (see `Contents.find_relations`), or the partitions of
    the partitioned table of that name. Raises UsageError."""
    if contents.has_relation(table):
        return contents.find_relations(table)
    return contents.partitions_of(table) or contents.find_relations(table)


def membership(subject: Subject, table: str) -> str:
    """A condition on events: they happened while the relation was a partition of the table of that
    name; what lies between two looks at the catalog counts as inside."""
    parents = parse_qualified_name(table)
    spans: list[str] = []
    inside = False
    for partition in subject.contents.partitions:
        if partition.oid != subject.oid:
            continue
        now = any(parent[-len(parents) :] == parents for parent in partition.parents)
        if now and not inside:
            spans.append(f"_lsn >= {partition.after.value}")
        elif inside and not now:
            spans[-1] += f" AND _lsn < {partition.by.value}"
        inside = now
    return f"({' OR '.join(f'({span})' for span in spans)})" if spans else "TRUE"
