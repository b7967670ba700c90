"""Rows over time: events, each with the whole row before and after it and the row's version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from waly_cdc.history.chains import chains
from waly_cdc.history.images import after_name, before_name, images, unsent_columns
from waly_cdc.history.narrow import Key, Narrowing, has_key, literal_keys
from waly_cdc.history.subject import Subject
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion

Texts = dict[str, str | None]
"""A row: PostgreSQL's text of each column, by stored name."""

BATCH = 2_000
FIRST = 10
"""Where in a row of the statement the texts begin."""


@dataclass(frozen=True, slots=True)
class RowEvent:
    """An event of a row with the row on both sides of it; both are None for a truncate.

    Rows are in the shape of the event's own relation version; a column whose value is not known is
    left out of them. `version` counts the row's changes from 1, its baseline image or its insert;
    `row_hash` is that of the row after the event, or of the one that a delete removed, and None
    where it is not known whole.
    """

    relation: RelationVersion
    op: str
    lsn: Lsn
    seq: int
    xid: int
    committed_at: datetime
    root: int | None
    version: int | None
    row_hash: str | None
    before: Texts | None
    after: Texts | None
    unknown: tuple[str, ...]
    """Stored names of the columns that are left out of one of the rows, or of both."""

    @property
    def key(self) -> Key | None:
        """The key of the row after the event, or of the one that a delete removed."""
        row = self.before if self.op == "D" else self.after
        if row is None or not self.relation.key:
            return None
        return tuple(row.get(stored) for stored in self.relation.key)

    def changed(self) -> dict[str, tuple[str | None, str | None]] | None:
        """For an update the columns that changed, by stored name: the texts before and after. What
        is not known on one side is not among them."""
        if self.op != "U" or self.before is None or self.after is None:
            return None
        return {
            stored: (self.before[stored], text)
            for stored, text in self.after.items()
            if stored in self.before and self.before[stored] != text
        }


def row_events(
    connection: duckdb.DuckDBPyConnection,
    subject: Subject,
    *,
    keys: Sequence[Key] | None = None,
    touched: str | None = None,
    where: str = "TRUE",
    of_truncates: str | None = None,
    newest_first: bool = False,
    limit: int | None = None,
) -> Iterator[RowEvent]:
    """Events of a subject, in order, baseline images as op `R`.

    `keys`: only of rows that have or had one of them (values in the order of the last keying's
    columns). `touched` selects keys like them, of whose
    rows only the events that fulfil `where` are wanted. `where` is a condition over the table
    `history` (see `images`); `of_truncates` is another for truncates, over `e` (see `chains`).
    """
    if not subject.files:
        return
    clause, rooted = history_clause(connection, subject, keys, touched)
    columns = [f"{before_name(c)}, {after_name(c)}" for c in subject.columns]
    meta = "_n, _op, _lsn, _seq, _xid, _committed_us, _relation"
    history = (
        f"SELECT {', '.join([meta, '_root, version, row_hash', *columns])},"
        " _unknown_before, _unknown_after FROM history"
        f" WHERE {rooted} AND {where}"
    )
    if subject.has("T"):
        history += (
            f"\nUNION ALL\nSELECT {meta}, {', '.join(['NULL'] * (5 + 2 * len(subject.columns)))}"
            f" FROM e WHERE _op = 'T' AND {of_truncates or where}"
        )
    order = f"ORDER BY _n{' DESC' if newest_first else ''}"
    bounded = f" LIMIT {limit}" if limit is not None else ""
    statement = f"{clause}\nSELECT * FROM (\n{history}\n) {order}{bounded}"
    with connection.cursor() as cursor:
        cursor.execute(statement)
        read = _reader(subject)
        while batch := cursor.fetchmany(BATCH):
            yield from map(read, batch)


def history_clause(
    connection: duckdb.DuckDBPyConnection,
    subject: Subject,
    keys: Sequence[Key] | None,
    touched: str | None,
) -> tuple[str, str]:
    """The WITH clause that has `history` (see `images`), and the condition on it that `keys` make;
    `keys` and `touched` are those of `row_events`."""
    columns = subject.keyings[-1].columns
    narrowing, rooted = None, "TRUE"
    if keys is not None:
        touched = literal_keys(keys, len(columns))
    if touched is not None:
        narrowing = Narrowing(connection, subject, touched)
    source = subject.events() if narrowing is None else narrowing.source()
    unsent = unsent_columns(connection, subject, source if narrowing else None)
    clause = images(subject, chains(subject, source), unsent)
    if keys is not None:
        having = f"{has_key(columns, keys, old=False)} OR {has_key(columns, keys, old=True)}"
        rooted = f"_root IN (SELECT _root FROM chain JOIN e USING (_n) WHERE {having})"
    return clause, rooted


def _reader(subject: Subject) -> Any:
    """A function that makes a RowEvent of a row of the statement."""
    versions = {version.version: version for version in subject.versions}
    own = {
        number: [
            (mine.stored, column.stored, FIRST + 2 * at)
            for at, column in enumerate(subject.columns)
            if (mine := subject.has_column(version, column)) is not None
        ]
        for number, version in versions.items()
    }

    def read(row: tuple[Any, ...]) -> RowEvent:
        _, op, lsn, seq, xid, micros, number, root, version, row_hash = row[:FIRST]
        lost_before, lost_after = row[-2] or (), row[-1] or ()
        places = own[number]
        before = after = None
        if op in ("U", "D"):
            before = {name: row[at] for name, one, at in places if one not in lost_before}
        if op in ("I", "U", "R"):
            after = {name: row[at + 1] for name, one, at in places if one not in lost_after}
        seconds, rest = divmod(micros, 1_000_000)
        return RowEvent(
            relation=versions[number],
            op=op,
            lsn=Lsn(lsn),
            seq=seq,
            xid=xid,
            committed_at=datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest),
            root=root,
            version=version,
            row_hash=row_hash,
            before=before,
            after=after,
            unknown=tuple(name for name, one, _ in places if one in (*lost_before, *lost_after)),
        )

    return read
