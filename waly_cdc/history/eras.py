"""Histories over all eras: each is answered for by itself, and they follow each other.

What is asked for a table is asked for the table of that name in each era: after a dump and restore
it has another oid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive, UsageError
from waly_cdc.history.log import LogFilter, log, transaction_events
from waly_cdc.history.moment import Moment, named_era
from waly_cdc.history.transactions import Transaction, by_xid
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion


def whole_log(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    table: str | None,
    key: Sequence[str],
    wanted: LogFilter,
) -> Iterator[dict[str, Any]]:
    """The log over all eras, newest first: `log`'s objects, each with its `era`.

    Raises UsageError where no era has the table or column, or a key that fits.
    """
    left, refused, answered = wanted.limit, None, False
    for era in reversed(contents.eras):
        narrowed = _within(era, replace(wanted, limit=left))
        if narrowed is None:
            continue
        try:
            for event in log(connection, era, store, table, key, narrowed):
                yield {**event, "era": era.era}
                left = None if left is None else left - 1
            answered = True
        except UsageError as error:
            refused = refused or error
        if left == 0:
            return
    if refused is not None and not answered:
        raise refused


def _within(era: Contents, wanted: LogFilter) -> LogFilter | None:
    """What is wanted of one era; None if that is nothing."""

    def side(moment: Moment | None) -> Moment | None:
        return moment if moment is not None and moment.era == era.era else None

    too_old = wanted.since is not None and wanted.since.era > era.era
    too_new = wanted.until is not None and wanted.until.era < era.era
    if too_old or too_new:
        return None
    return replace(wanted, since=side(wanted.since), until=side(wanted.until))


def newest_transaction(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    xid: int,
    number: int | None = None,
) -> tuple[Contents, Transaction]:
    """The newest transaction with that xid, and its era; of one era if that is named. Raises
    PointNotInArchive."""
    eras = contents.eras if number is None else [named_era(contents, number)]
    for era in reversed(eras[1:]):
        with suppress(PointNotInArchive):
            return era, by_xid(connection, era, store, xid)
    return eras[0], by_xid(connection, eras[0], store, xid)


def whole_transaction(
    connection: duckdb.DuckDBPyConnection, era: Contents, store: LocalStore, found: Transaction
) -> Iterator[dict[str, Any]]:
    """All events of a transaction in order, each with its `era`."""
    for event in transaction_events(connection, era, store, found):
        yield {**event, "era": era.era}


def in_other_era(
    relation: RelationVersion, era: Contents, other: Contents, bound: Lsn
) -> RelationVersion | None:
    """The version in force at `bound` of what a table of `era` is in another era: the table of the
    same oid where both are of one database, else the one of the same name. None if there is none.
    """
    if era.source and other.source and era.source.identity == other.source.identity:
        return other.version_at(relation.oid, bound)
    there = (other.version_at(oid, bound) for oid in other.relations)
    name = (relation.schema, relation.name)
    return next((v for v in there if v is not None and (v.schema, v.name) == name), None)
