"""The state of a table at a point: the as-of statement, written once (DESIGN: "State at a point").

For each key the last event before the point, starting from the newest complete baseline. A delete
drops the key, a truncate all before it; an update that changes the key deletes the old one. A value
that was not sent (unchanged TOAST) is the newest earlier value of that column for that row, through
key changes too. Under replica identity FULL, and without a key, a table is a multiset: what was
inserted, less the old rows of what was updated or deleted. With FULL the stream does not tell the
key: a primary key that is dropped and made anew would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from waly_cdc.archive.contents import Contents, at_hand
from waly_cdc.archive.manifest import File
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.events import (
    ReadFiles,
    events,
    old_name,
    old_raw_name,
    own_column,
    raw_name,
)
from waly_cdc.history.session import identifier, read_files
from waly_cdc.history.texts import column_text, may_be_raw, raw_text
from waly_cdc.history.unchanged import resolved
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.relations import IDENTITY_FULL, Column, RelationVersion


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a statement's events come from: those whose `_lsn` is in `first` to `last`, in files
    that `read` reads."""

    contents: Contents
    store: LocalStore
    read: ReadFiles
    first: int
    last: int


def state_files(contents: Contents, relation: RelationVersion, bound: Lsn) -> list[File]:
    """The files that the state at `bound` is made of: a baseline and the events after it.

    Raises PointNotInArchive before the relation's first baseline, and in a gap.
    """
    gap = contents.gap_at(relation.oid, bound)
    if gap is not None:
        raise PointNotInArchive(
            f"the rows of {relation.qualified_name} at {bound} are not known: {gap.reason}"
            f" after {gap.start}",
            hint=f"from {gap.end} on they are"
            if gap.end
            else "the sidecar is taking a new baseline of it: `waly status` tells",
        )
    files = contents.event_files(relation.oid)
    baseline = contents.baseline_for(relation.oid, bound)
    beginning = contents.beginning
    if baseline is None and (beginning is None or relation.since < beginning):
        raise PointNotInArchive(
            f"{relation.qualified_name} has no baseline at or before {bound}",
            hint=f"the archive begins at {beginning}",
        )
    start = baseline.lsn if baseline else ZERO
    return [
        file
        for file in files
        if file.first_lsn < bound
        and (
            file.last_lsn >= start
            if file.kind == "events"
            else baseline is not None and file.last_lsn + 1 == start
        )
    ]


def state_query(
    contents: Contents,
    store: LocalStore,
    relation: RelationVersion,
    bound: Lsn,
    read: ReadFiles = read_files,
) -> str:
    """The statement that gives a table's rows at a point: all transactions whose commit record
    begins before `bound`.

    Its columns are the relation version's under their stored names, `_raw`, and `_lsn` and `_seq`
    of the event that a row comes from (NULL where there is no key). Raises PointNotInArchive.
    """
    contents, files = at_hand(store, contents, lambda now: state_files(now, relation, bound))
    baseline = contents.baseline_for(relation.oid, bound)
    # Baseline rows carry the LSN just before their own; no commit record begins there.
    first = baseline.lsn.value - 1 if baseline else 0
    return _state(_Span(contents, store, read, first, bound.value - 1), relation, files)


def _state(span: _Span, relation: RelationVersion, files: Sequence[File]) -> str:
    """The state that the events in `files` make, in the shape of a relation version."""
    former = _last_of_former_key(span.contents, relation, files)
    before = None
    if former is not None:
        earlier = [file for file in files if (file.version or 0) <= former.version]
        files = [file for file in files if (file.version or 0) > former.version]
        before = (former, _state(span, former, earlier))
    ops = {op for file in files for op, count in file.ops.items() if count}
    truncated = "T" in ops
    if not ops & {"U", "D"}:
        return (
            f"WITH events AS (\n{_events(span, relation, files, before)}\n)\n"
            f"SELECT {_names(relation.columns, '_raw', '_lsn', '_seq')}\n"
            f"FROM events WHERE _op <> 'T' AND {_after_truncate(truncated)}"
        )
    if not _replay_key(relation):
        source = _events(span, relation, files, before, relation.columns)
        return _multiset(relation, source, truncated)
    rekeyed = any(file.rekeyed for file in files)
    unchanged = any(file.unchanged for file in files)
    source = _events(span, relation, files, before, relation.key_columns if rekeyed else ())
    return _keyed(relation, source, truncated, rekeyed, unchanged)


def _last_of_former_key(
    contents: Contents, relation: RelationVersion, files: Sequence[File]
) -> RelationVersion | None:
    """The newest version whose updates and deletes name rows by something else than this one's."""
    versions = {file.version for file in files if file.ops.get("U") or file.ops.get("D")}
    return max(
        (
            version
            for version in contents.relations[relation.oid]
            if version.version in versions and _replay_key(version) != _replay_key(relation)
        ),
        key=lambda version: version.version,
        default=None,
    )


def _replay_key(version: RelationVersion) -> frozenset[str]:
    """What the updates and deletes of a version name their rows by; empty: by the whole row."""
    return frozenset(() if version.replica_identity == IDENTITY_FULL else version.key)


def _events(
    span: _Span,
    relation: RelationVersion,
    files: Sequence[File],
    before: tuple[RelationVersion, str] | None,
    old: Sequence[Column] = (),
) -> str:
    """The events of a state. Where the key was another before, the rows that the events until then
    made stand in for them as a baseline's do: `before` is their version and their statement."""
    source = events(span.contents, span.store, relation, files, old=old, read=span.read)
    statement = f"SELECT * FROM (\n{source}\n) WHERE _lsn BETWEEN {span.first} AND {span.last}"
    if before is None:
        return statement
    former, rows = before
    columns = [own_column(former, column) for column in relation.columns]
    stored = {column.stored for column in former.columns}
    # Rows of a multiset have no position. The new key, unique among them by now, gives them one.
    by_key = ", ".join(
        part
        for column in relation.key_columns
        if column.stored in stored
        for part in (identifier(column.stored), raw_text(column.stored))
    )
    seq = f"row_number() OVER (ORDER BY {by_key})" if by_key else "0"
    columns += ["'R'", f"coalesce(_lsn, {span.first})", f"coalesce(_seq, {seq})", "NULL", "_raw"]
    columns += ["FALSE", *["NULL, NULL"] * len(old)]
    return f"{statement}\nUNION ALL\nSELECT {', '.join(columns)}\nFROM (\n{rows}\n)"


def _names(columns: Sequence[Column], *more: str) -> str:
    return ", ".join([*(identifier(column.stored) for column in columns), *more])


def _after_truncate(truncated: bool) -> str:
    """A condition on events: after the last truncate, if there is one."""
    if not truncated:
        return "TRUE"
    last = "SELECT {} FROM events WHERE _op = 'T' ORDER BY _lsn DESC, _seq DESC LIMIT 1"
    lsn, seq = last.format("_lsn"), last.format("_seq")
    return (
        f"(_lsn > coalesce(({lsn}), -1)"
        f" OR (_lsn = coalesce(({lsn}), -1) AND _seq > coalesce(({seq}), -1)))"
    )


def _keyed(
    relation: RelationVersion, source: str, truncated: bool, rekeyed: bool, unchanged: bool
) -> str:
    key = relation.key_columns
    names = _names(relation.columns)
    new_key = [identifier(column.stored) for column in key]
    new_raw = [f"{raw_text(c.stored)} AS {raw_name(c)}" for c in key if may_be_raw(c)]
    images = (
        f"SELECT {', '.join([*new_raw, names])}, _raw, _unchanged, _lsn, _seq,"
        " _op <> 'D' AS _alive\n"
        f"FROM events WHERE _op <> 'T' AND {_after_truncate(truncated)}"
    )
    if rekeyed:
        old_values = {column.stored: old_name(column) for column in key}
        old_raw = [f"{old_raw_name(c)} AS {raw_name(c)}" for c in key if may_be_raw(c)]
        values = [
            f"{old_values.get(c.stored, 'NULL')} AS {identifier(c.stored)}"
            for c in relation.columns
        ]
        images += (
            f"\nUNION ALL\nSELECT {', '.join(old_raw + values)}, NULL, NULL, _lsn, _seq, FALSE\n"
            f"FROM events WHERE _op = 'U' AND _has_before AND {_key_differs(key)}"
            f" AND {_after_truncate(truncated)}"
        )
    partition = ", ".join(new_key + [raw_name(c) for c in key if may_be_raw(c)])
    statement = (
        f"WITH RECURSIVE events AS (\n{source}\n),\n"
        f"images AS (\n{images}\n),\n"
        f"ranked AS (\nSELECT *, ROW_NUMBER() OVER (PARTITION BY {partition}"
        " ORDER BY _lsn DESC, _seq DESC, _alive DESC) AS _rank\nFROM images\n),\n"
        "state AS (\nSELECT * FROM ranked WHERE _rank = 1 AND _alive\n)"
    )
    if not unchanged:
        return f"{statement}\nSELECT {names}, _raw, _lsn, _seq FROM state"
    return resolved(relation, statement, rekeyed=rekeyed)


def _key_differs(key: Sequence[Column]) -> str:
    """Whether an update's old key is another than its new one."""
    pairs = []
    for column in key:
        pairs.append(f"{old_name(column)} IS DISTINCT FROM {identifier(column.stored)}")
        if may_be_raw(column):
            pairs.append(f"{old_raw_name(column)} IS DISTINCT FROM {raw_text(column.stored)}")
    return "(" + " OR ".join(pairs) + ")"


def _multiset(relation: RelationVersion, source: str, truncated: bool) -> str:
    columns = relation.columns
    raws = [column for column in columns if may_be_raw(column)]
    new = [f"{raw_text(column.stored)} AS {raw_name(column)}" for column in raws]
    old = [f"{old_name(column)} AS {identifier(column.stored)}" for column in columns]
    old += [f"{old_raw_name(column)} AS {raw_name(column)}" for column in raws]
    # Zero and minus zero are two values, and one to GROUP BY.
    groups = [
        column_text(c) if c.storage.startswith("float") else identifier(c.stored) for c in columns
    ] + [raw_name(column) for column in raws]
    values = [
        f"any_value({identifier(c.stored)}) AS {identifier(c.stored)}"
        if c.storage.startswith("float")
        else identifier(c.stored)
        for c in columns
    ]
    after = _after_truncate(truncated)
    # Where there is a key, no row is there twice, and the newest event that made it is its own.
    own = "_copies = 1" if relation.key else "FALSE"
    newest = f"max(struct_pack(_lsn := _lsn, _seq := _seq)) FILTER (WHERE {own})"
    return (
        f"WITH events AS (\n{source}\n),\n"
        f"changes AS (\nSELECT {', '.join([_names(columns), *new])}, _raw, 1 AS _copies,"
        " _lsn, _seq\n"
        f"FROM events WHERE _op IN ('R', 'I', 'U') AND {after}\nUNION ALL\n"
        f"SELECT {', '.join(old)}, NULL, -1, NULL, NULL\n"
        f"FROM events WHERE _op IN ('U', 'D') AND {after}\n),\n"
        f"counted AS (\nSELECT {', '.join(values)}, any_value(_raw) AS _raw,"
        f" sum(_copies)::BIGINT AS _copies, {newest} AS _newest\n"
        f"FROM changes GROUP BY {', '.join(groups)}\n)\n"
        f"SELECT {_names(columns)}, _raw, _newest._lsn AS _lsn, _newest._seq AS _seq\n"
        "FROM (SELECT *, unnest(range(_copies)) FROM counted WHERE _copies > 0)"
    )
