"""Preflight: capture from a standby, and a slot that is there after a failover."""

from __future__ import annotations

from collections.abc import Iterator

from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.source.preflight_look import Look
from waly_cdc.source.slot import FAILOVER_SINCE, STANDBY_SINCE

_RELOAD = "SELECT pg_reload_conf();"


def standby(look: Look) -> Iterator[Finding]:
    """What is different where the server is a standby."""
    if not look.facts.is_in_recovery:
        return
    major = look.facts.server_version // 10000
    if major < STANDBY_SINCE:
        message = f"a standby of PostgreSQL {major} has no logical slots: connect to its primary"
        yield Finding("standby", FAIL, "server", message)
        return
    message = (
        "this is a standby: its slot can be lost when the primary removes rows that it needs."
        " Publications are made on the primary, new tables join them there, and who made a"
        " transaction is known only from messages in it"
    )
    if look.settings.get("hot_standby_feedback") == "on":
        yield Finding("standby", PASS, "server", message)
        return
    fix = f"ALTER SYSTEM SET hot_standby_feedback = on; {_RELOAD}"
    yield Finding("standby", WARN, "server", f"{message}; hot_standby_feedback is off", fix)


def failover(look: Look) -> Iterator[Finding]:
    """Whether the slot is there after a failover (PostgreSQL documentation, section 47.2.3)."""
    major = look.facts.server_version // 10000
    if look.slot_info is None or look.facts.is_in_recovery or major < FAILOVER_SINCE:
        return
    if not look.slot_info.failover:
        yield Finding(
            "failover",
            PASS,
            look.slot_name,
            "standbys keep no copy of the slot: after a failover a new era begins. `waly init"
            " --failover` makes one that they keep",
        )
        return
    kept = (
        "standbys keep a copy of the slot if each has sync_replication_slots = on,"
        " hot_standby_feedback = on, a primary_slot_name, and a dbname in primary_conninfo"
    )
    if look.settings.get("synchronized_standby_slots"):
        yield Finding("failover", PASS, look.slot_name, kept)
        return
    yield Finding(
        "failover",
        WARN,
        look.slot_name,
        f"{kept}. synchronized_standby_slots is empty: the archive can be ahead of a standby, and"
        " if that is promoted a new era begins. Name the physical slots of the standbys there:"
        " changes are then sent to us only when these standbys have them",
        f"ALTER SYSTEM SET synchronized_standby_slots = 'SLOT_OF_THE_STANDBY'; {_RELOAD}",
    )
