"""Transactions and who made them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.session import arrow, read_files
from waly_cdc.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction of the archive. `lsn` is where its commit record begins, `end_lsn` the first
    LSN at which it is visible, which is what people are shown."""

    xid: int
    lsn: Lsn
    end_lsn: Lsn
    committed_at: datetime
    events: int
    actor: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "xid": self.xid,
            "lsn": str(self.end_lsn),
            "committed_at": format_time(self.committed_at),
            "events": self.events,
            "actor": dict(self.actor),
        }


UNKNOWN_ACTOR: Mapping[str, Any] = {
    "user": None,
    "application_name": None,
    "client_addr": None,
    "client_port": None,
    "pid": None,
    "backend_start": None,
    "query": None,
    "context": None,
    "source": "unknown",
    "sources": [],
}


def by_lsn(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    lsns: Collection[Lsn],
) -> dict[Lsn, Transaction]:
    """The transactions whose commit records begin at these LSNs."""
    wanted = sorted(lsn.value for lsn in lsns)
    files = [
        file
        for file in contents.transaction_files()
        if (at := bisect_left(wanted, file.first_lsn.value)) < len(wanted)
        and wanted[at] <= file.last_lsn.value
    ]
    if not files:
        return {}
    listed = ", ".join(map(str, wanted))
    found = _found(connection, f"FROM {read_files(store, files)} WHERE lsn IN ({listed})")
    transactions = map(_transaction, found)
    return {transaction.lsn: transaction for transaction in transactions}


def by_xid(
    connection: duckdb.DuckDBPyConnection, contents: Contents, store: LocalStore, xid: int
) -> Transaction:
    """The newest transaction with that xid. Raises PointNotInArchive."""
    files = contents.transaction_files()
    found = (
        _found(
            connection,
            f"FROM {read_files(store, files)} WHERE xid = {xid} ORDER BY lsn DESC LIMIT 1",
        )
        if files
        else []
    )
    if not found:
        raise PointNotInArchive(
            f"no transaction {xid} in the archive",
            hint="only transactions that changed an archived table are there",
        )
    return _transaction(found[0])


def _found(connection: duckdb.DuckDBPyConnection, where: str) -> list[dict[str, Any]]:
    # Not DuckDB's own rows: its times with a zone take a package that we do without.
    return arrow(connection, f"SELECT * {where}").to_pylist()  # type: ignore[no-any-return]


def _transaction(values: Mapping[str, Any]) -> Transaction:
    actor = _actor({name: values[f"actor_{name}"] for name in UNKNOWN_ACTOR})
    return Transaction(
        xid=values["xid"],
        lsn=Lsn(values["lsn"]),
        end_lsn=Lsn(values["end_lsn"]),
        committed_at=values["committed_at"].astimezone(UTC),
        events=values["events"],
        actor={**actor, "sources": [_actor(source) for source in actor["sources"]]},
    )


def _actor(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "backend_start": format_time(told["backend_start"])}
