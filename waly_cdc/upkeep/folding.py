"""Folding: a table's state at a point becomes a baseline, computed from the archive itself.

States after it are replayed from there, states before it from the baselines before; both are what
they were. The database is not asked. The point is the last look at the catalog that an entry
records (`looked_at`), or the horizon where that is earlier: all changes without events before it
are known, so no gap can turn out later to have lain there.

Crash windows: until an entry `fold` names it, a baseline is files in `incoming/`, or files that no
entry names; both are removed by the next writer, and folding begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from waly_cdc import durable, failpoints
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Baseline
from waly_cdc.archive.segments import Finished, SegmentSet
from waly_cdc.archive.writer import ArchiveWriter
from waly_cdc.decode import events
from waly_cdc.errors import StorageError
from waly_cdc.history.session import identifier, literal, session
from waly_cdc.history.state import state_query
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion

BATCH_ROWS = 16_384
BATCH_TABLES = 64
"""Tables whose baselines one entry holds at most."""
MEMORY_LIMIT = "512MB"


@dataclass(frozen=True, slots=True)
class Folded:
    """A finished baseline of a table, not yet in the archive."""

    relation: RelationVersion
    baseline: Baseline
    finished: list[Finished]

    def to_json(self) -> dict[str, Any]:
        return {
            "table": self.relation.qualified_name,
            "lsn": str(self.baseline.lsn),
            "rows": self.baseline.rows,
        }


@dataclass(frozen=True, slots=True)
class When:
    """When a table deserves a new baseline: after so many events, if they are not fewer than its
    rows, or at that age of the newest, if there were any."""

    events: int
    age: timedelta


def fold(
    archive: ArchiveWriter,
    *,
    when: When | None = None,
    on_table: Callable[[str], None] = lambda _: None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Folded]:
    """Fold and commit the tables of the newest era that deserve it (default: that had any event
    since their newest baseline), until `stopping` says so.

    Tables whose state is not exact are left out. Raises StorageError, ArchiveCorrupt and
    ArchiveLocked.
    """
    contents = archive.contents
    bound = min(contents.looked_at, contents.horizon)
    made: list[Folded] = []
    for start in range(0, len(wanted := _wanted(contents, bound, when)), BATCH_TABLES):
        batch: list[Folded] = []
        try:
            for relation in wanted[start : start + BATCH_TABLES]:
                if stopping():
                    break
                batch.append(_fold(archive, relation, bound))
                rows = batch[-1].baseline.rows
                on_table(f"baseline of {relation.qualified_name} at {bound}, {rows:,} rows")
        except BaseException:
            for item in (item for folded in batch for item in folded.finished):
                item.temporary.unlink(missing_ok=True)
            raise
        if batch:
            finished = [item for folded in batch for item in folded.finished]
            archive.fold(finished, [folded.baseline for folded in batch])
        made += batch
    return made


def _wanted(contents: Contents, bound: Lsn, when: When | None) -> list[RelationVersion]:
    """Tables that deserve a baseline at a point and whose state is exact there."""
    source = contents.source
    if source is None or source.losses or contents.beginning is None or bound < contents.beginning:
        # What a plugin could not give may be missing from any table.
        return []
    versions = [contents.version_at(oid, bound) for oid in list(contents.relations)]
    return [
        version
        for version in versions
        if version is not None
        and version.followed
        and contents.gap_at(version.oid, bound) is None
        and _deserves(contents, version.oid, bound, when)
    ]


def _deserves(contents: Contents, oid: int, bound: Lsn, when: When | None) -> bool:
    newest = contents.baseline_for(oid, bound)
    start = newest.lsn if newest else Lsn(0)
    files = [
        file
        for file in contents.event_files(oid)
        if file.kind == "events" and file.last_lsn >= start and file.first_lsn < bound
    ]
    count = sum(file.rows for file in files)
    if when is None or not count:
        return bool(count) and start < bound
    if count >= max(when.events, newest.rows if newest else 0):
        return True
    # Without a baseline of rows to ask, the first of the events tells how old it is.
    taken = [
        file.last_time
        for file in contents.event_files(oid)
        if file.kind == "baseline" and newest is not None and file.last_lsn + 1 == newest.lsn
    ] or [file.first_time for file in files]
    since = min(filter(None, taken), default=None)
    now = contents.horizon_time
    return since is not None and now is not None and now - since >= when.age


def _fold(archive: ArchiveWriter, relation: RelationVersion, bound: Lsn) -> Folded:
    """Compute a table's state and write it as a baseline at `bound`, sorted by key."""
    contents = archive.contents
    time = contents.horizon_time or contents.beginning_time
    assert time is not None
    segments = SegmentSet(archive.incoming, "baseline", sorted_by=relation.key)
    rows = 0
    try:
        with session() as connection:
            connection.execute("set memory_limit = $1", [MEMORY_LIMIT])
            connection.execute("set timezone = 'UTC'")
            state = connection.sql(_statement(contents, archive, relation, bound))
            for batch in state.to_arrow_reader(BATCH_ROWS):
                with durable.storage_errors(archive.incoming):
                    failpoints.reach("fold.write")
                segments.add(_events(relation, contents.era, bound, rows, time, batch))
                rows += batch.num_rows
        baseline = Baseline(relation.oid, relation.version, bound, rows, folded=True)
        return Folded(relation, baseline, segments.finish())
    except duckdb.Error as error:
        segments.abandon()
        raise StorageError(
            f"the state of {relation.qualified_name} could not be computed:"
            f" {str(error).splitlines()[0]}",
            hint="is there space for temporary files?",
        ) from error
    except BaseException:
        segments.abandon()
        raise


def _statement(
    contents: Contents, archive: ArchiveWriter, relation: RelationVersion, bound: Lsn
) -> str:
    state = state_query(contents, archive.store, relation, bound)
    own = [identifier(column.stored) for column in relation.columns]
    # What is kept of an event's old row is none of a baseline's business.
    listed = ", ".join(literal(column.stored) for column in relation.columns) or "NULL"
    kept = f"list_filter(map_entries(_raw), lambda entry: entry.key IN ({listed}))"
    raw = f"CASE WHEN len({kept}) > 0 THEN map_from_entries({kept}) END AS _raw"
    order = ", ".join(identifier(name) for name in relation.key)
    return f"SELECT {', '.join([*own, raw])} FROM (\n{state}\n)" + (
        f" ORDER BY {order}" if order else ""
    )


def _events(
    relation: RelationVersion,
    era: int,
    bound: Lsn,
    first: int,
    time: datetime,
    rows: pa.RecordBatch,
) -> events.EventBatch:
    """Rows of a state as events `R` of a baseline (FORMAT.md, section 1)."""
    count = rows.num_rows
    micros = (time - datetime(1970, 1, 1, tzinfo=time.tzinfo)) // timedelta(microseconds=1)
    header = events.Header(
        op=np.full(count, ord("R"), np.uint8),
        lsn=np.full(count, bound.value - 1, np.int64),
        seq=np.arange(first, first + count, dtype=np.int64),
        xid=np.zeros(count, np.int64),
        committed_at=np.full(count, micros, np.int64),
    )
    schema, kind = events.schema(relation), events.before_type(relation)
    own = [
        rows.column(number).cast(schema.field(column.stored).type)
        for number, column in enumerate(relation.columns)
    ]
    batch = events.batch(
        relation,
        era,
        header,
        own,
        pa.nulls(count, schema.field("_unchanged").type),
        None if kind is None else pa.nulls(count, kind),
        rows.column(rows.num_columns - 1).cast(events.RAW),
    )
    return events.EventBatch(relation, date(1970, 1, 1) + timedelta(microseconds=micros), batch)
