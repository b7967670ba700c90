"""What `waly status` tells: the archive, the sidecar and the slot, put together."""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from waly_cdc.archive import attribution, layout
from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import format_time
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.state import read_state
from waly_cdc.errors import SourceError
from waly_cdc.lsn import Lsn
from waly_cdc.plugins import LOSSES
from waly_cdc.source import catalog as source_catalog
from waly_cdc.source import slot as source_slot
from waly_cdc.source.connect import connect
from waly_cdc.tables import Gap


@dataclass(frozen=True, slots=True)
class Server:
    """What the source says now."""

    now: datetime
    lsn: Lsn
    slot: source_slot.SlotInfo | None


def status(
    contents: Contents, store: LocalStore, dsn: str, last_verify: dict[str, Any] | None
) -> dict[str, Any]:
    """The object of `waly status --json`. What a server that is out of reach would tell is null,
    and `slot.error` says why. `state` is `running` or `stopped`, by the archive's lock."""
    sidecar = read_state(store.root)
    running = is_locked(store.root)
    server, error = _ask(contents, dsn)
    return {
        "state": "running" if running else "stopped",
        "horizon": {
            "era": contents.era,
            "lsn": str(contents.horizon),
            "time": format_time(contents.horizon_time),
        },
        "lag": _lag(contents, server, sidecar if running else None),
        "slot": _slot(contents, server, error),
        "source": _source(contents),
        "archive": _archive(contents, store),
        "attribution": attribution.shares(contents, store),
        "contradictions": [asdict(each) for each in attribution.contradictions(contents, store)],
        "last_verify": last_verify,
        "sidecar": sidecar,
    }


def degradations(found: dict[str, Any], max_lag: float) -> list[str]:
    """Why the state is worse than it should be; `max_lag` is in seconds."""
    reasons = []
    slot = found["slot"]
    if slot["error"] is not None:
        reasons.append(f"the server cannot be asked: {slot['error']}")
    elif slot["wal_status"] in (None, "lost"):
        reasons.append(
            "the replication slot is lost: changes since the horizon cannot be had. `waly run` says"
            " how to go on"
        )
    elif slot["wal_status"] == "unreserved":
        reasons.append("the slot is about to be lost: it retains more log than the server allows")
    lag = found["lag"]["seconds"]
    if lag is not None and lag > max_lag:
        reasons.append(f"the archive is {lag:.0f} s behind, more than {max_lag:.0f} s")
    for gap in found["archive"]["gaps"]:
        if gap["to"] is None and gap["era"] == found["archive"]["eras"]:
            table = gap["table"] or f"the table with oid {gap['oid']}"
            reasons.append(
                f"the rows of {table} are not known after {gap['from']}: {gap['reason']}"
            )
    sidecar = found["sidecar"]
    if sidecar is not None and sidecar["state"] == "failed":
        reasons.append(f"the sidecar ended with an error: {sidecar['error']}")
    if sidecar is not None and found["state"] == "running" and sidecar["state"] == "disconnected":
        reasons.append(f"the sidecar waits for its server: {sidecar.get('error')}")
    if (
        sidecar is not None
        and found["state"] == "stopped"
        and sidecar["state"] not in ("stopped", "failed")
    ):
        reasons.append("the sidecar ended without a word: it was killed, or its machine stopped")
    if found["last_verify"] is not None and found["last_verify"].get("result") == "mismatch":
        reasons.append("the last verify found a mismatch")
    return reasons


def is_locked(root: Path) -> bool:
    """Whether a process holds the archive open for writing."""
    try:
        descriptor = os.open(root / layout.LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _ask(contents: Contents, dsn: str) -> tuple[Server | None, str | None]:
    try:
        with connect(dsn, application_name="waly status") as connection:
            facts = source_catalog.server_facts(connection)
            source = contents.source
            if source is not None and (facts.system_identifier, facts.database_oid) != (
                source.system_identifier,
                source.database_oid,
            ):
                return None, "the connection leads to another database than the archive's"
            slot = source_slot.info(connection, source.slot) if source else None
            return Server(facts.now, facts.current_lsn, slot), None
    except SourceError as error:
        return None, error.message


def _lag(
    contents: Contents, server: Server | None, sidecar: dict[str, Any] | None
) -> dict[str, Any]:
    """How far what is durable is behind the server: with a running sidecar its journal counts."""
    safe = Lsn.parse(sidecar["safe"]) if sidecar else contents.horizon
    since = contents.horizon_time
    if sidecar and sidecar["state"] == "running" and safe > contents.horizon:
        since = datetime.fromisoformat(sidecar["at"])
    behind = max(0, server.lsn.value - safe.value) if server else None
    seconds: float | None = None
    if behind == 0:
        seconds = 0.0
    elif since is not None:
        now = server.now if server else datetime.now(UTC)
        seconds = max(0.0, round((now - since).total_seconds(), 3))
    return {"bytes": behind, "seconds": seconds}


def _slot(contents: Contents, server: Server | None, error: str | None) -> dict[str, Any]:
    slot = server.slot if server else None
    if server is not None and slot is None:
        error = "there is no such slot; `waly run` says how to go on"
    return {
        "name": contents.source.slot if contents.source else None,
        "active": slot.active if slot else None,
        "wal_status": slot.wal_status if slot else None,
        "retained_bytes": slot.retained_bytes if slot else None,
        "safe_wal_size": slot.safe_wal_size if slot else None,
        "confirmed_flush_lsn": str(slot.confirmed_flush_lsn) if slot else None,
        "error": error,
    }


def _source(contents: Contents) -> dict[str, Any]:
    source = contents.source
    losses = source.losses if source else ()
    return {
        "plugin": source.plugin if source else None,
        "losses": [{"name": loss, "message": LOSSES.get(loss, loss)} for loss in losses],
    }


def _gaps(contents: Contents) -> list[dict[str, Any]]:
    """Gaps of tables, and those before an era: of no table, or of all."""
    found: list[dict[str, Any]] = []
    for era in contents.eras:
        if era.gap is not None:
            found.append({"table": None, "oid": None, "era": era.era, **era.gap.to_json()})
        found += [_gap(era, gap) for gap in era.gaps]
    return found


def _gap(era: Contents, gap: Gap) -> dict[str, Any]:
    versions = era.relations.get(gap.oid)
    name = versions[-1].qualified_name if versions else None
    return {"table": name, "era": era.era, **gap.to_json()}


def _archive(contents: Contents, store: LocalStore) -> dict[str, Any]:
    files = [file for era in contents.eras for file in era.files]
    begins = contents.eras[0].beginning
    return {
        "path": str(store.root),
        "database": contents.source.database if contents.source else None,
        "tables": len(contents.relations),
        "events": sum(era.events for era in contents.eras),
        "transactions": sum(era.transactions for era in contents.eras),
        "segments": sum(file.kind == "events" for file in files),
        "bytes": sum(file.bytes for file in files),
        "eras": contents.era,
        "gaps": _gaps(contents),
        "begins_at": str(begins) if begins else None,
    }
