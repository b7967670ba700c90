"""Preflight: whether this server, role and archive folder can do what capture asks of them.

Looks only, inside a read-only transaction. Every finding says why it matters; where a statement
mends it, `fix_sql` holds it, for whoever has the right to run it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from waly_cdc import embedded
from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.plugins import WAL2JSON
from waly_cdc.sizes import size_text
from waly_cdc.source import catalog, slot
from waly_cdc.source.connect import connect, source_errors
from waly_cdc.source.preflight_look import Look
from waly_cdc.source.preflight_role import ROLE_CHECKS
from waly_cdc.source.preflight_standby import failover, standby
from waly_cdc.source.preflight_tables import TABLE_CHECKS
from waly_cdc.source.preflight_wal2json import WAL2JSON_CHECKS
from waly_cdc.source.preflight_witness import witness

OLDEST, NEWEST = 14, 18
"""The major versions of PostgreSQL that waly is made for."""

_PATIENCE_SECONDS = 10
"""A transaction that has been open for longer is reported: creating a slot waits for it."""

_UNFIT_ENCODINGS = ("SQL_ASCII", "MULE_INTERNAL")
_SHORT_TIMEOUT_MS = 10_000
_RELOAD = "SELECT pg_reload_conf();"
_RESTART = f"{_RELOAD}\n-- then restart the server"
"""After a setting that only a restart changes: the reload makes the server say that it waits."""


def check(
    dsn: str, archive: Path | None, slot_name: str | None = None, plugin: str | None = None
) -> list[Finding]:
    """Everything that stands in the way of capture, and what was found in order.

    `slot_name` None means the one named after the database, `plugin` None that of the slot, or
    pgoutput. Raises SourceError, SourceLost when the
    server cannot be asked at all.
    """
    with (
        source_errors(),
        connect(dsn, autocommit=False, application_name="waly check") as connection,
    ):
        connection.read_only = True
        findings = list(_server_findings(connection, slot_name, plugin))
        size = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        major = connection.info.server_version // 10000
    if archive is not None:
        findings += _archive_findings(archive, size[0] if size else 0)
        findings.append(_pg_dump(major))
    return findings


def _server_findings(
    connection: psycopg.Connection, slot_name: str | None, plugin: str | None
) -> Iterator[Finding]:
    facts = catalog.server_facts(connection)
    yield Finding(
        "connection",
        PASS,
        facts.database,
        f"the database is reachable as role {facts.role}, at {facts.current_lsn}",
    )
    encoding = _encoding(facts)
    yield encoding
    if encoding.severity == FAIL:
        # Names and values cannot be read either.
        return
    look = Look(
        connection=connection,
        facts=facts,
        slot_name=slot.check_name(slot_name or slot.default_name(facts.database)),
        tables=catalog.tables(connection, unlogged=True),
        wanted_plugin=plugin,
    )
    plugin_checks = WAL2JSON_CHECKS if look.plugin == WAL2JSON else ()
    for examine in (*_SERVER_CHECKS, *plugin_checks, *ROLE_CHECKS, *TABLE_CHECKS):
        yield from examine(look)


def _encoding(facts: catalog.ServerFacts) -> Finding:
    if facts.encoding in _UNFIT_ENCODINGS:
        return Finding(
            "encoding",
            FAIL,
            facts.database,
            f"the encoding {facts.encoding} cannot be converted to UTF8, so texts have no certain"
            " meaning: dump the database and load it into one with encoding UTF8",
        )
    return Finding("encoding", PASS, facts.database, f"the encoding is {facts.encoding}")


def _version(look: Look) -> Iterator[Finding]:
    major = look.facts.server_version // 10000
    if major < OLDEST:
        message = f"PostgreSQL {major} is too old: {OLDEST} to {NEWEST} are supported"
        yield Finding("version", FAIL, "server", message)
    elif major > NEWEST:
        message = f"PostgreSQL {major} is newer than {NEWEST}, the last version that was tried"
        yield Finding("version", WARN, "server", message)
    else:
        yield Finding("version", PASS, "server", f"PostgreSQL {major}")


def _wal_level(look: Look) -> Iterator[Finding]:
    level = look.facts.wal_level
    if level == "logical":
        yield Finding("wal_level", PASS, "server", "wal_level is logical")
        return
    yield Finding(
        "wal_level",
        FAIL,
        "server",
        f"wal_level is {level}, and logical replication needs logical"
        + _restart(look, "wal_level"),
        _after_restart(look, "wal_level", "'logical'"),
    )


def _restart(look: Look, name: str) -> str:
    if name in look.waiting:
        return f": another {name} is set, and waits for a restart of the server"
    return "; the change takes a restart of the server"


def _after_restart(look: Look, name: str, value: str) -> str | None:
    """The statement for a setting that only a restart changes; None if one is waited for."""
    return None if name in look.waiting else f"ALTER SYSTEM SET {name} = {value}; {_RESTART}"


def _free_slot(look: Look) -> Iterator[Finding]:
    """Room for a slot, unless ours exists, and for the connection that reads it."""
    slots, senders = look.row(
        "SELECT (SELECT count(*) FROM pg_replication_slots),"
        " (SELECT count(*) FROM pg_stat_get_wal_senders())"
    )
    found = look.slot_info
    for name, used, limit, held in (
        ("max_replication_slots", slots, look.facts.max_replication_slots, found is not None),
        ("max_wal_senders", senders, look.facts.max_wal_senders, bool(found and found.active)),
    ):
        if used < limit or held:
            yield Finding(name, PASS, "server", f"{used} of {name} = {limit} are in use")
        else:
            yield Finding(
                name,
                FAIL,
                "server",
                f"all of {name} = {limit} are in use{_restart(look, name)}",
                _after_restart(look, name, str(limit + 5)),
            )


def _slot(look: Look) -> Iterator[Finding]:
    found = look.slot_info
    retained = size_text(found.retained_bytes if found else None, "an unknown amount")
    if found is None:
        message = "the slot does not exist yet: `waly init` makes it"
        yield Finding("slot", PASS, look.slot_name, message)
    elif found.database != look.facts.database or found.plugin != look.plugin:
        yield Finding(
            "slot",
            FAIL,
            look.slot_name,
            f"the slot belongs to database {found.database} and plugin {found.plugin}: choose"
            " another name with --slot",
        )
    elif found.lost:
        reason = found.invalidation or "log that it needs was removed"
        yield Finding(
            "slot",
            FAIL,
            look.slot_name,
            f"the slot is lost ({reason}): history has a gap from here: begin a new era with"
            " `waly init --new-era`",
        )
    elif found.wal_status == "unreserved":
        yield Finding(
            "slot",
            WARN,
            look.slot_name,
            f"the slot is about to be lost: it retains {retained} of log, more"
            " than the server is set to keep; run the sidecar",
        )
    elif found.active:
        message = f"the slot is being read by process {found.active_pid}"
        yield Finding("slot", PASS, look.slot_name, message)
    else:
        yield Finding(
            "slot",
            PASS,
            look.slot_name,
            f"the slot exists, retains {retained} of log, and nobody reads it now",
        )


def _retention(look: Look) -> Iterator[Finding]:
    """How long the server waits for an absent sidecar, and what happens then."""
    limit, idle, sender = map(
        look.settings.get,
        ("max_slot_wal_keep_size", "idle_replication_slot_timeout", "wal_sender_timeout"),
    )
    if limit == "-1":
        yield Finding(
            "max_slot_wal_keep_size",
            WARN,
            "server",
            "max_slot_wal_keep_size is unlimited: while the sidecar is away, log is kept for it"
            " until the disk is full. With a limit the slot is lost there instead, which leaves a"
            " gap in history: choose one that fits the disk",
            f"ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'; {_RELOAD}",
        )
    else:
        kept = size_text(int(limit) << 20) if limit else "not known"
        message = (
            f"max_slot_wal_keep_size is {kept}: a sidecar that falls back further loses its slot"
        )
        yield Finding("max_slot_wal_keep_size", PASS, "server", message)
    if idle not in (None, "0"):
        yield Finding(
            "idle_replication_slot_timeout",
            WARN,
            "server",
            f"idle_replication_slot_timeout is {idle} s: a sidecar that is away for longer loses"
            " its slot",
            f"ALTER SYSTEM SET idle_replication_slot_timeout = 0; {_RELOAD}",
        )
    if 0 < int(sender or 0) < _SHORT_TIMEOUT_MS:
        yield Finding(
            "wal_sender_timeout",
            WARN,
            "server",
            f"wal_sender_timeout is {sender} ms: a short stall of disk or network breaks the"
            " stream",
            f"ALTER SYSTEM SET wal_sender_timeout = '60s'; {_RELOAD}",
        )
    else:
        message = f"wal_sender_timeout is {sender} ms"
        yield Finding("wal_sender_timeout", PASS, "server", message)


def _plugin(look: Look) -> Iterator[Finding]:
    """Newer minor versions load no output plugin but those that a setting names."""
    # None also where the role may not see it.
    allowed = look.settings.get("output_plugin_libraries")
    if allowed is None or look.plugin in listed_names(allowed):
        yield Finding("output_plugin", PASS, look.plugin, "the output plugin may be used")
        return
    yield Finding(
        "output_plugin",
        FAIL,
        look.plugin,
        f"the output plugin may not be used: output_plugin_libraries is {allowed}. It must be a"
        " list, in which each name has quotes of its own",
        permission(allowed, look.plugin),
    )


def permission(allowed: str, plugin: str) -> str:
    """The statements that let the server use a plugin besides those that it may use.

    A string that holds several names is one name to the server, which fits no plugin: it is taken
    apart, because all of them were meant.
    """
    meant = [part.strip() for name in listed_names(allowed) for part in name.split(",")]
    names = dict.fromkeys([*filter(None, meant), plugin])
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    return f"ALTER SYSTEM SET output_plugin_libraries = {listed}; {_RELOAD}"


def listed_names(setting: str) -> list[str]:
    """The names in a setting that is a list of quoted or plain identifiers."""
    names, name, quoted = [], "", False
    for character in setting:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            names.append(name.strip())
            name = ""
        else:
            name += character
    return [name for name in (*names, name.strip()) if name]


def _blockers(look: Look) -> Iterator[Finding]:
    if look.slot_info is not None:
        return
    blockers = slot.blockers(look.connection)
    long = [b for b in blockers if b.age is None or b.age.total_seconds() > _PATIENCE_SECONDS]
    for blocker in long:
        since = "for an unknown time" if blocker.age is None else f"for {blocker.age}"
        yield Finding(
            "open_transaction",
            WARN,
            blocker.what,
            f"the transaction has been open {since}: `waly init` waits until it ends",
            blocker.end_sql,
        )
    if not long:
        message = "no transaction has been open for long: `waly init` has nothing to wait for"
        yield Finding("open_transaction", PASS, "transactions", message)


_SERVER_CHECKS: tuple[Callable[[Look], Iterator[Finding]], ...] = (
    _version,
    standby,
    _wal_level,
    _free_slot,
    _slot,
    failover,
    _retention,
    _plugin,
    _blockers,
    witness,
)


def _archive_findings(archive: Path, database_bytes: int) -> list[Finding]:
    folder = archive.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    subject = str(archive)
    if not folder.is_dir():
        return [Finding("archive", FAIL, subject, f"{folder} is not a folder")]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [Finding("archive", FAIL, subject, f"no permission to write in {folder}")]
    free = shutil.disk_usage(folder).free
    enough = free >= database_bytes
    message = f"{size_text(free)} are free; the database has {size_text(database_bytes)}"
    if not enough:
        message += ": a baseline takes less, being compressed, but the changes come on top"
    return [
        Finding("archive", PASS, subject, "the archive's folder can be written"),
        Finding("free_space", PASS if enough else WARN, subject, message),
    ]


def _pg_dump(major: int) -> Finding:
    program = embedded.find_program("pg_dump", major)
    if program is None:
        return Finding(
            "pg_dump",
            WARN,
            "pg_dump",
            f"no pg_dump of version {major} or newer was found: without it the archive holds no"
            " schema, and restores need one made by other means; install"
            f" postgresql-client-{major}",
        )
    return Finding("pg_dump", PASS, "pg_dump", f"the program is {program}")
