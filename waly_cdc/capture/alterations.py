"""What a change that a look found means for the state of a table. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

from waly_cdc.relations import Column, RelationVersion
from waly_cdc.tables import Heap, HeapColumn

_NUMERIC = 1700


class Alteration(Enum):
    """What changed of a table without an event, the more consequential first. The value is the
    reason of the gap."""

    FILLED = "a column with a default was added"
    RETYPED = "the type of a column was changed"
    REVEALED = "a generated column became an ordinary one"
    REWORDED = "the values of a type are printed otherwise"
    FOLLOWED = "its updates and deletes were not published before"
    REPUBLISHED = "the publications were altered: some of its changes may not have been sent"
    REWRITTEN = "its rows were rewritten"
    MOVED = "its rows lie elsewhere"
    RENUMBERED = "its columns were changed several times"
    RESHAPED = "its columns, its name or its key changed"

    @property
    def changes_rows(self) -> bool:
        """Whether the events before it no longer give the rows after it."""
        return self is not Alteration.RESHAPED


def alteration(was: Heap, now: Heap, publications: Collection[str] = ()) -> Alteration | None:
    """What happened between two looks; None for nothing that a state depends on. `publications` are
    those by which the table is captured.

    MOVED: the rows lie in another file, and nothing says that their values are others. A truncate
    does that, which is an event; so does VACUUM FULL; but so does a time without logging.
    """
    if was == now:
        return None
    before = {column.attnum: column for column in was.columns}
    common = [(before[c.attnum], c) for c in now.columns if c.attnum in before]
    if set(now.filled) - set(was.filled):
        return Alteration.FILLED
    rewritten = was.filenode != now.filenode
    if any(_retyped(a, b) and (rewritten or not _widened(a, b)) for a, b in common):
        return Alteration.RETYPED
    if any(a.generated and not b.generated for a, b in common):
        return Alteration.REVEALED
    if any(dict(was.texts).get(what, text) != text for what, text in now.texts):
        return Alteration.REWORDED
    if now.followed and not was.followed:
        return Alteration.FOLLOWED
    if any(dict(was.published).get(p) != dict(now.published).get(p) for p in publications):
        return Alteration.REPUBLISHED
    if rewritten:
        return Alteration.MOVED if was.columns == now.columns else Alteration.REWRITTEN
    added = [column for column in now.columns if column.attnum > was.attributes]
    names = {column.name: column.attnum for column in was.columns}
    if len(added) != now.attributes - was.attributes or any(
        names.get(column.name, column.attnum) != column.attnum for column in now.columns
    ):
        # What a column's name meant between the two looks cannot be told.
        return Alteration.RENUMBERED
    if was.form != now.form or len(common) < max(len(was.columns), len(now.columns)):
        return Alteration.RESHAPED
    return Alteration.RESHAPED if any(_renamed(a, b) for a, b in common) else None


def _retyped(was: HeapColumn, now: HeapColumn) -> bool:
    return (was.type_oid, was.typmod) != (now.type_oid, now.typmod)


def _widened(was: HeapColumn, now: HeapColumn) -> bool:
    """Whether a change of type without a rewrite leaves every value's text as it is, and readers
    know how to read the older ones: a numeric with more digits before the point."""
    return was.type_oid == now.type_oid == _NUMERIC


def _renamed(was: HeapColumn, now: HeapColumn) -> bool:
    """Whether a column has another name, or may have had one meanwhile: its row was written, and
    nothing else in it says what for."""
    if was.name != now.name or was.generated != now.generated or _retyped(was, now):
        return True
    return was.written_by != now.written_by and was.rest == now.rest


def certain(was: RelationVersion, now: RelationVersion, between: Sequence[RelationVersion]) -> bool:
    """Whether the versions that the stream showed between two looks, `was` and `now`, are those of
    the one or the other: then it is certain which column each of their names meant."""
    known = {_columns(was), _columns(now)}
    return all(_columns(version) in known for version in between)


def _columns(version: RelationVersion) -> tuple[tuple[int | None, str, str, int, int], ...]:
    def facts(c: Column) -> tuple[int | None, str, str, int, int]:
        return c.attnum, c.name, c.stored, c.type_oid, c.typmod

    return tuple(map(facts, version.columns))
