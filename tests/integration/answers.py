"""Everything that an archive answers at some points, for comparing with another archive."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive, UsageError
from waly_cdc.history.diff import diff
from waly_cdc.history.eras import whole_log
from waly_cdc.history.log import LogFilter
from waly_cdc.history.moment import resolve
from waly_cdc.history.session import rows, session
from waly_cdc.lsn import Lsn
from waly_cdc.points import AtLsn
from waly_cdc.restore.rows import Rows


@dataclass(frozen=True)
class Answers:
    """States by LSN and table (None where they are not known), the whole log, the histories of
    single rows, and the differences between neighbouring points."""

    states: dict[tuple[str, str], list[str] | None]
    log: list[Any]
    rows: dict[tuple[str, str], list[Any]]
    differences: list[Any]


def random_points(archive: Path, dice: random.Random, count: int) -> list[Lsn]:
    """Ends of transactions of the newest era, in order, with the horizon."""
    contents, store = load(LocalStore(archive)), LocalStore(archive)
    paths = [str(store.path(file.path)) for file in contents.transaction_files()]
    with session() as connection:
        found = rows(connection, f"select end_lsn from read_parquet({paths}) order by 1")
    ends = [Lsn(each["end_lsn"]) for each in found]
    return [*sorted(dice.sample(ends, min(count, len(ends)))), contents.horizon]


def answers(archive: Path, points: Sequence[Lsn], *, contents: Contents | None = None) -> Answers:
    """What the archive answers; with the given contents, as a reader that opened it earlier."""
    store = LocalStore(archive)
    contents = contents or load(store)
    with session() as connection:
        log = list(whole_log(connection, contents, store, None, (), LogFilter()))
        histories = {}
        for event in log:
            key = event["key"]
            name = (event["table"], str(key))
            if key is None or name in histories or len(histories) > 6:
                continue
            texts = [str(value) for value in key.values()]
            wanted = (connection, contents, store, event["table"], texts, LogFilter())
            histories[name] = []
            with suppress(UsageError):  # a table that lost its key, or a key of another shape
                histories[name] = list(whole_log(*wanted))
        moments = [resolve(contents, store, AtLsn(point)) for point in points]
        differences = [
            sorted(map(str, diff(connection, contents, store, None, (), one, other)))
            for one, other in itertools.pairwise(moments)
        ]
    return Answers(states(archive, points, contents), log, histories, differences)


def states(
    archive: Path, points: Sequence[Lsn], contents: Contents
) -> dict[tuple[str, str], list[str] | None]:
    """States of all tables by LSN and oid."""
    with Rows(LocalStore(archive), contents) as opened:
        return {
            (str(point), f"{oid}"): _state(opened, contents, oid, point)
            for point in points
            for oid in contents.relations
        }


def _state(opened: Rows, contents: Contents, oid: int, point: Lsn) -> list[str] | None:
    version = contents.version_at(oid, point)
    if version is None:
        return None
    try:
        batches = list(opened.texts(version, point))
    except PointNotInArchive:
        return None
    return sorted(str(row) for batch in batches for row in batch.to_pylist())
