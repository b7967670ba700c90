"""Events as Arrow: the schema of an event file, and batches of it (FORMAT.md, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from waly_cdc.decode import values
from waly_cdc.decode.tuples import Mask, Positions
from waly_cdc.relations import RelationVersion

COMMITTED_AT = pa.timestamp("us", "UTC")
RAW = pa.map_(pa.string(), pa.string())
_DAY = 86_400_000_000
BEFORE_PREFIX = "_before."

TRANSACTIONS = pa.schema(
    [
        pa.field("lsn", pa.int64()),
        pa.field("end_lsn", pa.int64()),
        pa.field("xid", pa.int64()),
        pa.field("committed_at", COMMITTED_AT),
        pa.field("events", pa.int64()),
    ]
)
"""Transactions as the stream tells them; the archive adds who made them."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of one relation version that were committed on one UTC day, in order."""

    relation: RelationVersion
    day: date
    events: pa.RecordBatch


@dataclass(slots=True)
class Decoded:
    """What a chunk held: batches of events, and the transactions that committed in it.

    `messages` are the contents of the transactions' own logical messages, by xid, in order.
    """

    batches: list[EventBatch]
    transactions: pa.RecordBatch
    messages: list[tuple[int, bytes]]


def nothing() -> Decoded:
    """What an empty chunk holds."""
    return Decoded([], pa.RecordBatch.from_pylist([], schema=TRANSACTIONS), [])


@cache
def schema(relation: RelationVersion) -> pa.Schema:
    """The Arrow schema of the relation version's event files."""
    fields = [pa.field(c.stored, values.arrow_type(c.storage)) for c in relation.columns]
    fields += [
        pa.field("_op", pa.string(), nullable=False),
        pa.field("_era", pa.int32(), nullable=False),
        pa.field("_lsn", pa.int64(), nullable=False),
        pa.field("_seq", pa.int64(), nullable=False),
        pa.field("_xid", pa.int64(), nullable=False),
        pa.field("_committed_at", COMMITTED_AT, nullable=False),
        pa.field("_relation", pa.int32(), nullable=False),
        pa.field("_unchanged", pa.list_(pa.string())),
    ]
    before = before_type(relation)
    if before is not None:
        fields.append(pa.field("_before", before))
    fields += [pa.field("_raw", RAW), pa.field("day", pa.date32(), nullable=False)]
    return pa.schema(fields)


def before_type(relation: RelationVersion) -> pa.StructType | None:
    """The type of `_before`: the replica identity's columns. None without a replica identity."""
    fields = [
        pa.field(column.stored, values.arrow_type(column.storage))
        for column in relation.columns
        if column.identity
    ]
    return pa.struct(fields) if fields else None


@dataclass(slots=True)
class Header:
    """What every event has, whatever its table: one array element per event."""

    op: npt.NDArray[np.uint8]
    lsn: Positions
    seq: Positions
    xid: Positions
    committed_at: Positions
    """Microseconds since 1970-01-01 UTC."""

    @property
    def day(self) -> Positions:
        """The UTC day, in days since 1970-01-01."""
        return self.committed_at // _DAY


class Texts:
    """The texts of a batch on their way into typed columns; collects what goes to `_raw`."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._names: list[str] = []
        self._places: list[Positions] = []
        self._texts: list[pa.StringArray] = []

    def typed(self, name: str, storage: str, text: pa.StringArray) -> pa.Array:
        array, raw = values.from_text(storage, text)
        if raw is not None:
            self._names.append(name)
            self._places.append(np.flatnonzero(raw))
            self._texts.append(text.filter(pa.array(raw)))
        return array

    def raw(self) -> pa.Array:
        """The `_raw` column: per row a map, or NULL where there is nothing to say."""
        if not self._names:
            return pa.nulls(self.rows, RAW)
        rows = np.concatenate(self._places)
        order = np.argsort(rows, kind="stable")
        names = np.repeat(np.arange(len(self._names)), [len(place) for place in self._places])
        return pa.MapArray.from_arrays(
            _offsets(rows, self.rows),
            pc.take(pa.array(self._names), pa.array(names[order])),
            pc.take(pa.concat_arrays(self._texts), pa.array(order)),
        )


def unchanged_names(names: list[str], masks: list[Mask], rows: int) -> pa.Array:
    """The `_unchanged` column from one mask per column named; NULL for a row that has none."""
    if not names:
        return pa.nulls(rows, pa.list_(pa.string()))
    row, column = np.nonzero(np.column_stack(masks))
    return pa.ListArray.from_arrays(_offsets(row, rows), pc.take(pa.array(names), pa.array(column)))


def _offsets(rows: Positions, count: int) -> pa.Int32Array:
    """Offsets of a list or map array whose elements belong to `rows`; NULL for rows without."""
    sizes = np.bincount(rows, minlength=count)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.array(bounds, mask=np.append(sizes == 0, False))


def batch(
    relation: RelationVersion,
    era: int,
    header: Header,
    own: list[pa.Array],
    unchanged: pa.Array,
    before: pa.Array | None,
    raw: pa.Array,
) -> pa.RecordBatch:
    """Put a batch of `schema(relation)` together."""
    rows = len(header.op)
    operations = pa.Array.from_buffers(
        pa.string(),
        rows,
        [None, pa.py_buffer(np.arange(rows + 1, dtype=np.int32)), pa.py_buffer(header.op)],
    )
    arrays = [
        *own,
        operations,
        pa.array(np.full(rows, era, np.int32)),
        pa.array(header.lsn),
        pa.array(header.seq),
        pa.array(header.xid),
        pa.array(header.committed_at).cast(COMMITTED_AT),
        pa.array(np.full(rows, relation.version, np.int32)),
        unchanged,
    ]
    if before is not None:
        arrays.append(before)
    arrays += [raw, pa.array(header.day.astype(np.int32)).cast(pa.date32())]
    return pa.RecordBatch.from_arrays(arrays, schema=schema(relation))
