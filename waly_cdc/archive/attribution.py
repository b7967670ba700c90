"""How well transactions are attributed, and where a transaction's sources contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waly_cdc.archive.actors import GRADES
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import ArchiveCorrupt

SOURCES = (*GRADES, "unknown")


@dataclass(frozen=True, slots=True)
class Contradiction:
    """So many transactions say that `says` made them, and ran in a session of `session`."""

    says: str
    session: str
    transactions: int


def shares(contents: Contents, store: LocalStore) -> dict[str, int]:
    """Transactions by what their actor is known from. Raises ArchiveCorrupt."""
    counts: Counter[str] = Counter()
    for column in _column(contents, store, "actor_source"):
        for count in pc.value_counts(column).to_pylist():
            counts[count["values"]] += count["counts"]
    return {source: counts[source] for source in SOURCES}


def contradictions(contents: Contents, store: LocalStore) -> list[Contradiction]:
    """Where a message names a user who has a role of his own on the server, and the session was of
    another role. That an application names its own users, in sessions of one role, is none.

    Raises ArchiveCorrupt.
    """
    roles: set[str | None] = set()
    pairs: Counter[tuple[str, str]] = Counter()
    for column in _column(contents, store, "actor_sources"):
        listed = column.combine_chunks()
        actors = pc.list_flatten(listed)
        kinds, users = (pc.struct_field(actors, name) for name in ("source", "user"))
        flat = pa.table({"row": pc.list_parent_indices(listed), "kind": kinds, "user": users})
        told = flat.filter(pc.equal(flat["kind"], "message"))
        seen = flat.filter(pc.not_equal(flat["kind"], "message"))
        roles.update(pc.unique(seen["user"]).to_pylist())
        both = told.join(seen, "row", join_type="inner", right_suffix="_seen")
        other = both.filter(pc.not_equal(both["user"], both["user_seen"]))
        # A session that both the witness and the sampler saw is one.
        other = other.select(["row", "user", "user_seen"]).group_by(["row", "user", "user_seen"])
        counted = other.aggregate([]).group_by(["user", "user_seen"]).aggregate([("row", "count")])
        for found in counted.to_pylist():
            pairs[found["user"], found["user_seen"]] += found["row_count"]
    return [
        Contradiction(says, session, count)
        for (says, session), count in sorted(pairs.items())
        if says in roles
    ]


def _column(contents: Contents, store: LocalStore, name: str) -> Iterator[pa.ChunkedArray]:
    files: Iterable[File] = (file for era in contents.eras for file in era.transaction_files())
    for file in files:
        try:
            table = pq.read_table(store.path(file.path), columns=[name], partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveCorrupt(
                f"{file.path} cannot be read: {error}", hint="run: waly verify"
            ) from error
        yield table.column(0)
