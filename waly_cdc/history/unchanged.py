"""Looking up values that an update did not send, because they lie out of line and did not change.

Such a value is the newest earlier value of that column for that row: back along the row's events,
through changes of its key, until one has it. A recursive table does that for all rows of a state
and all their columns at once; each step goes to the nearest earlier event that has the value or
that changed the key.
"""

from __future__ import annotations

from collections.abc import Sequence

from waly_cdc.history.events import old_name, old_raw_name
from waly_cdc.history.session import identifier, literal
from waly_cdc.history.texts import exact_text, raw_text
from waly_cdc.relations import Column, RelationVersion

_TOASTABLE = ("text", "bytes")
"""Storages of types that PostgreSQL may store out of line, so that an update need not send them."""

_MISSING = "coalesce(list_contains(e._unchanged, l._column), FALSE)"


def resolved(relation: RelationVersion, statement: str, *, rekeyed: bool) -> str:
    """The rows of `state` with every unchanged value looked up in `events`: `statement` is a WITH
    RECURSIVE clause that has these two tables. `rekeyed`: `events` has the old keys."""
    looked_up = [
        column
        for column in relation.columns
        if column.storage in _TOASTABLE and column.stored not in relation.key
    ]
    found, values = [], []
    for column in relation.columns:
        name, label = identifier(column.stored), literal(column.stored)
        if column not in looked_up:
            values.append(f"state.{name}")
            continue
        known = identifier("known " + column.stored)
        found.append(f"any_value(e.{name}) FILTER (l._column = {label}) AS {name}")
        found.append(f"bool_or(l._column = {label}) AS {known}")
        values.append(
            f"CASE WHEN NOT coalesce(list_contains(state._unchanged, {label}), FALSE)"
            f" THEN state.{name} WHEN found.{known} THEN found.{name}"
            f" ELSE error('no earlier value of an unchanged one') END AS {name}"
        )
    return (
        f"{statement},\n{_lookups(relation.key_columns, rekeyed)},\n"
        f"found AS (\nSELECT {', '.join(['l._row_lsn', 'l._row_seq', *found])}\n"
        "FROM lookups l JOIN events e ON e._lsn = l._lsn AND e._seq = l._seq\n"
        "WHERE l._known GROUP BY l._row_lsn, l._row_seq\n)\n"
        f"SELECT {', '.join(values)}, state._raw, state._lsn, state._seq\n"
        "FROM state LEFT JOIN found"
        " ON found._row_lsn = state._lsn AND found._row_seq = state._seq"
    )


def _lookups(key: Sequence[Column], rekeyed: bool) -> str:
    """A recursive table: for each unchanged value of `state` (`_row_lsn`, `_row_seq`, `_column`)
    the event looked at (`_lsn`, `_seq`), the key that the row had before it, and whether it has the
    value."""
    names = [identifier(f"key {number}") for number in range(len(key))]
    changes_key = _changes_key(key) if rekeyed else "FALSE"
    before = ", ".join(
        f"CASE WHEN {changes_key} THEN {_old(column)} ELSE {_own(column)} END AS {name}"
        if rekeyed
        else f"{_own(column)} AS {name}"
        for name, column in zip(names, key, strict=True)
    )
    same_row = " AND ".join(
        f"{_own(column)} = l.{name}" for name, column in zip(names, key, strict=True)
    )
    return f"""lookups AS (
SELECT e._lsn AS _row_lsn, e._seq AS _row_seq, unnest(e._unchanged) AS _column, e._lsn, e._seq,
       {before}, FALSE AS _known
FROM events e JOIN state ON state._lsn = e._lsn AND state._seq = e._seq
UNION ALL
SELECT _row_lsn, _row_seq, _column, _lsn, _seq, {", ".join(names)}, _known
FROM (
    SELECT l._row_lsn, l._row_seq, l._column, e._lsn, e._seq, {before}, NOT {_MISSING} AS _known,
           ROW_NUMBER() OVER (PARTITION BY l._row_lsn, l._row_seq, l._column
                              ORDER BY e._lsn DESC, e._seq DESC) AS _nearest
    FROM lookups l JOIN events e
    ON {same_row} AND e._op IN ('R', 'I', 'U')
       AND (e._lsn < l._lsn OR (e._lsn = l._lsn AND e._seq < l._seq))
       AND (NOT {_MISSING} OR {changes_key})
    WHERE NOT l._known
)
WHERE _nearest = 1
)"""


def _own(column: Column) -> str:
    return exact_text(column, f"e.{identifier(column.stored)}", f"e.{raw_text(column.stored)}")


def _old(column: Column) -> str:
    return exact_text(column, f"e.{old_name(column)}", f"e.{old_raw_name(column)}")


def _changes_key(key: Sequence[Column]) -> str:
    pairs = [f"{_old(column)} IS DISTINCT FROM {_own(column)}" for column in key]
    return f"(e._has_before AND ({' OR '.join(pairs)}))"
