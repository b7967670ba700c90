"""Preflight: whether a witness could be had, what it costs, and whether one was left behind."""

from __future__ import annotations

from collections.abc import Iterator

from waly_cdc.errors import SourceError
from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.source import synchronous
from waly_cdc.source.preflight_look import Look
from waly_cdc.source.synchronous import RELOAD, SETTING

_TRADE = (
    "`waly run --witness` tells who made every transaction: each commit of the cluster then waits"
    " until the sidecar has it on its disk, some milliseconds, and a sidecar that does not answer"
    " holds commits up for witness_patience (2 s)"
)


def witness(look: Look) -> Iterator[Finding]:
    value = synchronous.now(look.connection)
    name = synchronous.connection_name(look.slot_name)
    if value.has(name):
        connected = look.connection.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = %s", (name,)
        )
        if connected.rowcount:
            yield Finding("witness", PASS, name, f"commits wait for the sidecar: {SETTING} is set")
            return
        yield Finding(
            "witness",
            FAIL,
            name,
            f"{SETTING} names a sidecar that is not there: commits wait for ever",
            f"{value.without(name).statement()}; {RELOAD};",
        )
        return
    missing = synchronous.missing_rights(look.connection)
    try:
        value.joined_by(name)
    except SourceError as error:
        yield Finding("witness", WARN, "server", f"{_TRADE}. It cannot be had: {error.message}")
        return
    if missing:
        message = f"{_TRADE}. For that the role would need: {'; '.join(missing)}"
        yield Finding("witness", PASS, "server", message)
        return
    yield Finding("witness", PASS, "server", f"{_TRADE}. It can be had")
