"""The statement of `history.<schema>.<table>`: a row per event of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from waly_cdc.history.chains import chains
from waly_cdc.history.events import sql_type
from waly_cdc.history.images import after_name, before_name, images
from waly_cdc.history.session import identifier, literal
from waly_cdc.history.subject import Subject
from waly_cdc.relations import Column

ACTOR = (
    "struct_pack(user := t.actor_user, application_name := t.actor_application_name,"
    " client_addr := t.actor_client_addr, client_port := t.actor_client_port, pid := t.actor_pid,"
    " backend_start := t.actor_backend_start, query := t.actor_query, context := t.actor_context,"
    " source := coalesce(t.actor_source, 'unknown'), sources := t.actor_sources)"
)
LSN = "printf('%X/%X', {0} >> 32, {0} & 4294967295)"


def history_select(
    subject: Subject,
    shown: Subject,
    raw: Collection[str],
    unsent: Collection[str],
    transactions: str,
) -> str:
    """The statement over a table of transactions. Rows have the columns of the version at the bound
    and then those that were dropped, of `shown`: where that is another era's table, columns are
    told by their names. `raw` names (as stored) the columns that are VARCHAR because DuckDB's type
    cannot hold all of their values; `unsent` as in `images`."""
    places = _places(subject, shown)

    def row(name: Callable[[Column], str]) -> str:
        values = {c: f"h.{name(place)}" if place else "NULL" for c, place in places.items()}
        return _row(shown.columns, raw, lambda column: values[column])

    had, has = "h._op IN ('U', 'D')", "h._op IN ('I', 'U')"
    key = _key(subject, shown, raw)
    end = "coalesce(t.end_lsn, h._lsn + 1)"
    event = (
        f"h._era AS era, h._op AS op, {LSN.format(end)} AS lsn,"
        f' {end} AS "position", h._seq AS seq,'
        " nullif(h._xid, 0) AS xid, make_timestamptz(h._committed_us) AS committed_at"
    )
    statement = (
        f"{images(subject, chains(subject, subject.events()), unsent)}\n"
        f"SELECT {event}, h.version, h.row_hash, h._relation AS relation_version,"
        f" {ACTOR} AS actor, {key} AS key,"
        f" CASE WHEN h._op = 'U' THEN {_changed(subject)} END AS changed,"
        f" CASE WHEN {had} THEN {row(before_name)} END AS before,"
        f" CASE WHEN {has} THEN {row(after_name)} END AS after,"
        f" {_unknown(subject)} AS unknown\n"
        f"FROM history h LEFT JOIN {transactions} t ON t.lsn = h._lsn AND t._era = h._era\n"
        "WHERE h._op <> 'R'"
    )
    if subject.has("T"):
        statement += (
            f"\nUNION ALL\nSELECT {event}, NULL, NULL, h._relation, {ACTOR},"
            " NULL, NULL, NULL, NULL, []\n"
            f"FROM e h LEFT JOIN {transactions} t ON t.lsn = h._lsn AND t._era = h._era\n"
            "WHERE h._op = 'T'"
        )
    return statement


def _places(subject: Subject, shown: Subject) -> dict[Column, Column | None]:
    """For each column that is shown the subject's own."""
    if subject is shown:
        return {column: column for column in shown.columns}
    by_name = {column.name: column for column in reversed(subject.columns)}
    return {column: by_name.get(column.name) for column in shown.columns}


def names(columns: Sequence[Column]) -> list[str]:
    """The columns' names, told apart where they differ in case only."""
    folded = Counter(column.name.casefold() for column in columns)
    return [
        column.name if folded[column.name.casefold()] == 1 else f"{column.name}~{number}"
        for number, column in enumerate(columns, start=1)
    ]


def _row(columns: Sequence[Column], raw: Collection[str], text: Callable[[Column], str]) -> str:
    """A struct of typed values from texts."""
    fields = [
        f"{identifier(name)} := {_typed(column, raw, text(column))}"
        for column, name in zip(columns, names(columns), strict=True)
    ]
    return f"struct_pack({', '.join(fields)})" if fields else "NULL"


def _typed(column: Column, raw: Collection[str], text: str) -> str:
    if column.stored in raw or column.storage == "text":
        return text
    if column.storage == "bytes":
        return f"unhex(substr({text}, 3))"
    return f"CAST({text} AS {sql_type(column.storage)})"


def _key(subject: Subject, shown: Subject, raw: Collection[str]) -> str:
    """The key after the event, or that of the row that was deleted, by the event's own version."""
    places = _places(subject, shown)

    def text(column: Column) -> str:
        place = places[column]
        numbers = [
            str(version.version)
            for version in subject.versions
            if any(subject.column(stored) == place for stored in version.key)
        ]
        if place is None or not numbers:
            return "NULL"
        own = f"CASE WHEN h._op = 'D' THEN h.{before_name(place)} ELSE h.{after_name(place)} END"
        if len(numbers) == len(subject.versions):
            return own
        return f"CASE WHEN h._relation IN ({', '.join(numbers)}) THEN {own} END"

    keyed = {shown.column(stored) for version in shown.versions for stored in version.key}
    current = [shown.column(stored) for stored in shown.relation.key]
    ordered = [column for column in current if column in keyed]
    ordered += [c for c in shown.columns if c in keyed and c not in current]
    return _row(ordered, raw, text)


def _changed(subject: Subject) -> str:
    """A map from the name of each column that changed to its texts before and after."""
    entries = []
    for column in subject.columns:
        old, new = f"h.{before_name(column)}", f"h.{after_name(column)}"
        known = _known(subject, column, "_unknown_before", "_unknown_after")
        entries.append(
            f"CASE WHEN {old} IS DISTINCT FROM {new} AND {known}"
            f" THEN {{'key': {_name(subject, column)}, 'value': [{old}, {new}]}} END"
        )
    if not entries:
        return "NULL"
    listed = f"list_filter([{', '.join(entries)}], lambda entry: entry IS NOT NULL)"
    return f"map_from_entries({listed})"


def _known(subject: Subject, column: Column, *lists: str) -> str:
    having = [str(v.version) for v in subject.versions if subject.has_column(v, column) is not None]
    if not having:
        return "FALSE"
    parts = [f"h._relation IN ({', '.join(having)})"]
    parts += [
        f"NOT coalesce(list_contains(h.{each}, {literal(column.stored)}), FALSE)" for each in lists
    ]
    return " AND ".join(parts)


def _name(subject: Subject, column: Column) -> str:
    """The name that a column had in the event's relation version."""
    had = {
        version.version: mine.name
        for version in subject.versions
        if (mine := subject.has_column(version, column)) is not None
    }
    if not had:
        return literal(column.name)
    if len(set(had.values())) == 1:
        return literal(next(iter(had.values())))
    cases = " ".join(f"WHEN {number} THEN {literal(name)}" for number, name in had.items())
    return f"CASE h._relation {cases} END"


def _unknown(subject: Subject) -> str:
    """The names of the columns that are not known on one of the sides."""
    entries = [
        f"CASE WHEN NOT ({_known(subject, column, '_unknown_before', '_unknown_after')})"
        f" THEN {_name(subject, column)} END"
        for column in subject.columns
    ]
    if not entries:
        return "[]"
    return f"list_filter([{', '.join(entries)}], lambda name: name IS NOT NULL)"
