"""Transactions and who made them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.session import read_files, rows
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
    "pid": None,
    "query": None,
    "context": None,
    "source": "unknown",
}


def by_lsn(contents: Contents, store: LocalStore, lsns: Collection[Lsn]) -> dict[Lsn, Transaction]:
    """The transactions whose commit records begin at these LSNs."""
    if not lsns:
        return {}
    first, last = min(lsns), max(lsns)
    files = [
        file
        for file in contents.transaction_files()
        if file.last_lsn >= first and file.first_lsn <= last
    ]
    wanted = {lsn.value for lsn in lsns}
    found: dict[Lsn, Transaction] = {}
    for file in files:
        table = pq.read_table(
            store.path(file.path),
            partitioning=None,
            filters=[("lsn", ">=", first.value), ("lsn", "<=", last.value)],
        )
        mine = pc.is_in(table.column("lsn"), pa.array(sorted(wanted), pa.int64()))
        for values in table.filter(mine).to_pylist():
            found[Lsn(values["lsn"])] = _transaction(values)
    return found


def by_xid(
    connection: duckdb.DuckDBPyConnection, contents: Contents, store: LocalStore, xid: int
) -> Transaction:
    """The newest transaction with that xid. Raises PointNotInArchive."""
    files = contents.transaction_files()
    found = (
        rows(
            connection,
            "SELECT * EXCLUDE (committed_at), epoch_us(committed_at) AS committed_us"
            f" FROM {read_files(store, files)} WHERE xid = {xid} ORDER BY lsn DESC LIMIT 1",
        )
        if files
        else []
    )
    if not found:
        raise PointNotInArchive(
            f"no transaction {xid} in the archive",
            hint="only transactions that changed an archived table are there",
        )
    seconds, micros = divmod(found[0]["committed_us"], 1_000_000)
    time = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
    return _transaction({**found[0], "committed_at": time})


def _transaction(values: Mapping[str, Any]) -> Transaction:
    actor = {
        name: values[f"actor_{name}"]
        for name in ("user", "application_name", "client_addr", "pid", "query", "context")
    }
    return Transaction(
        xid=values["xid"],
        lsn=Lsn(values["lsn"]),
        end_lsn=Lsn(values["end_lsn"]),
        committed_at=values["committed_at"].astimezone(UTC),
        events=values["events"],
        actor={**actor, "source": values["actor_source"]},
    )
