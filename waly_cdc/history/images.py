"""Whole rows before and after each event.

The row after an event is what was sent, and for values that were not sent (unchanged TOAST) the
newest earlier value in the row's chain. The row before it is the old row as far as it was sent, and
else the row after the event before in the chain. What no event tells is unknown, and named: of rows
whose beginning was not captured, and where rows may have changed without events (a gap lies between
an event and the one before it). Unknown is neither NULL nor a guess.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import duckdb

from waly_cdc.history.canonical import hash_of
from waly_cdc.history.chains import not_sent
from waly_cdc.history.events import old_name
from waly_cdc.history.session import identifier, literal
from waly_cdc.history.subject import Subject
from waly_cdc.relations import Column, RelationVersion


def before_name(column: Column) -> str:
    return identifier("before " + column.stored)


def after_name(column: Column) -> str:
    return identifier("after " + column.stored)


def images(subject: Subject, clause: str, unsent: Collection[str]) -> str:
    """The WITH clause of `chains` with one more table, `history`: a row per event but truncates.
    `unsent` are the stored names of the columns of which some event has an unchanged value.

    It has `_n` and what `e` has of the event itself, `_root`, `version`, `row_hash`, and texts of
    the row `before_name` and `after_name` of each column; `_unknown_before` and `_unknown_after`
    list the stored names of what is not known, or are NULL.
    """
    names = {subject.column(stored) for stored in unsent}
    lost = [column for column in subject.columns if column in names]
    parts = [clause]
    trusted = _trusted(subject)
    if lost:
        parts.append(_sources(subject, lost, trusted))
    parts.append(_image(subject, lost))
    parts.append(_sides(subject, lost, trusted))
    again = len({f.last_lsn for f in subject.files if f.ops.get("R")}) > 1
    same = " AND ".join(
        f"{before_name(c)} IS NOT DISTINCT FROM {after_name(c)}" for c in subject.columns
    )
    # A later baseline's image is a version of its own only where the row has another value in it.
    step = f"CASE WHEN _op = 'R' AND _pred IS NOT NULL AND {same or 'TRUE'} THEN 0 ELSE 1 END"
    counted = f"sum({step})" if again else "row_number()"
    parts.append(
        "history AS NOT MATERIALIZED (\nSELECT *,"
        f" CAST({counted} OVER (PARTITION BY _root ORDER BY _n) AS BIGINT) AS version,\n"
        f"{_row_hash(subject)} AS row_hash\nFROM sides\n)"
    )
    return ",\n".join(parts)


def unsent_columns(
    connection: duckdb.DuckDBPyConnection, subject: Subject, source: str | None = None
) -> set[str]:
    """The stored names in `_unchanged` of the events that `source` gives (default: all)."""
    files = [file for file in subject.files if file.unchanged]
    if not files:
        return set()
    source = source or subject.events(files, ())
    # Not in a cursor: what is registered in a session is not there in its cursors.
    found = connection.execute(f"SELECT DISTINCT unnest(_unchanged) FROM (\n{source}\n)")
    return {stored for (stored,) in found.fetchall()}


def _trusted(subject: Subject) -> str:
    """Whether no gap in which rows changed lies between an event `e` of a chain `c` and the
    one before it. A state X is in a gap if its start < X < its end, and an event makes the states
    from its LSN + 1 on."""
    pred = "CAST((c._pred // 4294967296) % 18446744073709551616 AS UBIGINT)"
    crossed = [
        f"(e._lsn > {gap.start.value}"
        + (f" AND {pred} + 1 < {gap.end.value})" if gap.end is not None else ")")
        for gap in subject.contents.gaps
        if gap.oid == subject.oid and gap.rows
    ]
    return f"NOT ({' OR '.join(crossed)} OR e._op = 'R')" if crossed else "TRUE"


def _sources(subject: Subject, columns: Sequence[Column], trusted: str) -> str:
    """For each event the places where its values were sent."""
    found = ", ".join(
        f"max(CASE WHEN NOT {not_sent(subject, 's', c)} THEN s._n END) OVER w AS {_source(c)}"
        for c in columns
    )
    return (
        f"sources AS MATERIALIZED (\nSELECT s._n, {found} FROM (\n"
        "SELECT e._n, e._unchanged, c._root,\n"
        f"       sum(CASE WHEN {trusted} THEN 0 ELSE 1 END)"
        " OVER (PARTITION BY c._root ORDER BY e._n) AS _stretch\n"
        "FROM chain c JOIN e USING (_n) WHERE e._op <> 'D'\n"
        ") s WINDOW w AS (PARTITION BY s._root, s._stretch ORDER BY s._n)\n)"
    )


def _source(column: Column) -> str:
    return identifier("source " + column.stored)


def _image(subject: Subject, lost: Sequence[Column]) -> str:
    """The row after each event but deletes."""
    names = {column.stored: f"e.{identifier(column.stored)}" for column in subject.columns}
    joins, unknown = [], []
    for number, column in enumerate(lost):
        unsent = not_sent(subject, "e", column)
        names[column.stored] = (
            f"CASE WHEN {unsent} THEN s{number}.{identifier(column.stored)}"
            f" ELSE e.{identifier(column.stored)} END"
        )
        joins.append(f"LEFT JOIN e s{number} ON {unsent} AND s{number}._n = o.{_source(column)}")
        unknown.append(
            f"CASE WHEN {unsent} AND o.{_source(column)} IS NULL THEN {literal(column.stored)} END"
        )
    values = [f"{value} AS {identifier(stored)}" for stored, value in names.items()]
    sources = "LEFT JOIN sources o USING (_n)" if lost else ""
    return (
        f"image AS NOT MATERIALIZED (\nSELECT {', '.join(['e._n', *values])},"
        f" {_names_list(unknown)} AS _unknown\nFROM e {sources}\n"
        + "\n".join(joins)
        + "\nWHERE e._op NOT IN ('D', 'T')\n)"
    )


def _names_list(names: Sequence[str]) -> str:
    """A list of those names that are not NULL; NULL where it is empty."""
    if not names:
        return "CAST(NULL AS VARCHAR[])"
    listed = f"list_filter([{', '.join(names)}], lambda name: name IS NOT NULL)"
    return f"nullif({listed}, [])"


def _sides(subject: Subject, lost: Sequence[Column], trusted: str) -> str:
    """Both rows of each event."""
    had = "e._op IN ('U', 'D')"
    known = f"(p._n IS NOT NULL AND {trusted})"
    before, after, unknown = [], [], []
    for column in subject.columns:
        name = identifier(column.stored)
        sent = _sent(subject, column)
        kept = _kept_key(subject, column)
        value = (
            f"CASE WHEN {sent} THEN e.{old_name(column)} WHEN {kept} THEN e.{name}"
            f" WHEN {known} THEN p.{name} END"
        )
        # Of an image of a later baseline, too: whether the row is still as it was is told by it.
        before.append(f"CASE WHEN {had} THEN {value} ELSE p.{name} END AS {before_name(column)}")
        after.append(f"a.{name} AS {after_name(column)}")
        unknown.append(
            f"CASE WHEN {_in_version(subject, column)} AND NOT ({sent} OR {kept}) AND (NOT {known}"
            f" OR coalesce(list_contains(p._unknown, {literal(column.stored)}), FALSE))"
            f" THEN {literal(column.stored)} END"
        )
    meta = ("_era", "_op", "_lsn", "_seq", "_xid", "_committed_us", "_relation")
    selected = [
        "e._n",
        *(f"e.{name}" for name in meta),
        "c._root",
        "c._pred",
        *before,
        *after,
        f"CASE WHEN {had} THEN {_names_list(unknown)} END AS _unknown_before",
        "a._unknown AS _unknown_after" if lost else "CAST(NULL AS VARCHAR[]) AS _unknown_after",
    ]
    return (
        f"sides AS NOT MATERIALIZED (\nSELECT {', '.join(selected)}\n"
        "FROM e JOIN chain c USING (_n) LEFT JOIN image a ON a._n = e._n\n"
        "LEFT JOIN image p ON p._n = c._pred\n)"
    )


def _sent(subject: Subject, column: Column) -> str:
    """Whether the old row that was sent has the column."""
    holding = [
        version
        for version in subject.versions
        if (mine := subject.has_column(version, column)) is not None and mine.identity
    ]
    return _when_version(subject, holding, "e._has_before")


def _kept_key(subject: Subject, column: Column) -> str:
    """Whether an update's own value is the old one, because it is the key's and no old row was
    sent."""
    holding = [
        version
        for version in subject.versions
        if (mine := subject.has_column(version, column)) is not None
        and mine.stored in version.key
        and mine.identity
    ]
    return _when_version(subject, holding, "e._op = 'U' AND NOT e._has_before")


def _in_version(subject: Subject, column: Column) -> str:
    holding = [v for v in subject.versions if subject.has_column(v, column) is not None]
    return _when_version(subject, holding, "TRUE")


def _when_version(subject: Subject, versions: Sequence[RelationVersion], condition: str) -> str:
    if not versions:
        return "FALSE"
    if len(versions) == len(subject.versions):
        return f"({condition})"
    listed = ", ".join(str(version.version) for version in versions)
    return f"({condition} AND e._relation IN ({listed}))"


def _row_hash(subject: Subject) -> str:
    """The hash of the row after an event, or of the row that a delete removed."""
    return (
        "CASE WHEN _op = 'D' THEN\n"
        f"CASE WHEN _unknown_before IS NULL THEN {hash_of(subject, before_name)} END\n"
        f"ELSE CASE WHEN _unknown_after IS NULL THEN {hash_of(subject, after_name)} END"
        " END"
    )
