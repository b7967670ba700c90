"""Rows of one relation version, as a plugin sent them, on their way to batches of events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import pyarrow as pa

from waly_cdc.decode import events, tuples
from waly_cdc.decode.events import EventBatch, Header, Texts
from waly_cdc.decode.tuples import Mask, Positions, Spans
from waly_cdc.relations import Column, RelationVersion

DELETE = ord("D")

Reader = Callable[[Column, Spans], pa.StringArray]
"""Gives the texts that PostgreSQL printed for a column's values."""


@dataclass(slots=True)
class Rows:
    """One element per message, in order; `at` is a position inside each.

    `new` and `old` are spans by column, of the new rows and of the old ones, and `new_rows` and
    `old_rows` the elements that have them. Where an old row was sent, `whole` says whether all of
    its columns were, or only those of the replica identity.
    """

    relation: RelationVersion
    header: Header
    at: Positions
    new: list[Spans]
    new_rows: Positions
    old: list[Spans]
    old_rows: Positions
    whole: Mask

    def batches(self, era: int, read: Reader) -> Iterator[EventBatch]:
        """The events, by UTC day."""
        batch = self._events(era, read)
        days = self.header.day
        for day in np.unique(days).tolist():
            same = days == day
            yield EventBatch(
                self.relation,
                date.fromordinal(date(1970, 1, 1).toordinal() + day),
                batch if same.all() else batch.filter(pa.array(same)),
            )

    def _events(self, era: int, read: Reader) -> pa.RecordBatch:
        count = len(self.at)
        deleted = self.header.op[self.old_rows] == DELETE
        texts = Texts(count)
        own: list[pa.Array] = []
        unchanged_names: list[str] = []
        unchanged_masks: list[Mask] = []
        before: list[pa.Array] = []
        for number, column in enumerate(self.relation.columns):
            spans = self._new_spans(number)
            if self.old:
                if deleted.any():
                    tuples.place(
                        spans, self.old_rows[deleted], self.old[number], np.flatnonzero(deleted)
                    )
                sent = self.whole | column.identity
                _fill_from_old(spans, self.old[number], self.old_rows, sent)
            own.append(texts.typed(column.stored, column.storage, read(column, spans)))
            if spans.unchanged is not None and spans.unchanged.any():
                unchanged_names.append(column.stored)
                unchanged_masks.append(spans.unchanged)
            if self.old and column.identity:
                was = tuples.nowhere(self.at)
                tuples.place(was, self.old_rows, self.old[number], slice(None))
                name = events.BEFORE_PREFIX + column.stored
                before.append(texts.typed(name, column.storage, read(column, was)))
        return events.batch(
            self.relation,
            era,
            self.header,
            own,
            events.unchanged_names(unchanged_names, unchanged_masks, count),
            self._before(before),
            texts.raw(),
        )

    def _new_spans(self, number: int) -> Spans:
        """Where the column's values of the new rows lie; NULL for messages without a new row."""
        if self.new and len(self.new_rows) == len(self.at):
            return replace(self.new[number])
        spans = tuples.nowhere(self.at)
        if self.new:
            tuples.place(spans, self.new_rows, self.new[number], slice(None))
        return spans

    def _before(self, columns: list[pa.Array]) -> pa.Array | None:
        kind = events.before_type(self.relation)
        if kind is None:
            return None
        if not columns:
            return pa.nulls(len(self.at), kind)
        missing = np.ones(len(self.at), np.bool_)
        missing[self.old_rows] = False
        return pa.StructArray.from_arrays(columns, fields=list(kind), mask=pa.array(missing))


def _fill_from_old(spans: Spans, old: Spans, old_rows: Positions, sent: Mask) -> None:
    """Take unchanged values from the old row where the column of it was sent: always for the
    replica identity's columns, else where the whole old row was."""
    if spans.unchanged is None:
        return
    spans.start, spans.end = spans.start.copy(), spans.end.copy()
    assert spans.absent is not None
    spans.absent, spans.unchanged = spans.absent.copy(), spans.unchanged.copy()
    known = np.ones(len(old_rows), np.bool_) if old.unchanged is None else ~old.unchanged
    fill = sent[old_rows] & spans.unchanged[old_rows] & known
    rows = old_rows[fill]
    spans.unchanged[rows] = False
    tuples.place(spans, rows, old, np.flatnonzero(fill))
