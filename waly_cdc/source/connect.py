"""Connections to the user's PostgreSQL, and its errors in words that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import conninfo as libpq

from waly_cdc.errors import SourceError, SourceLost

RENDERING_SETTINGS = {
    "datestyle": "ISO, MDY",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
}
"""Settings that the text of values depends on (FORMAT.md, "Types"): the stream and every copy have
the same ones, or one value would have two texts. `client_encoding` is UTF8 everywhere."""

_SESSION_SETTINGS = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": "10s",
    "search_path": "pg_catalog",
}
_DEFAULTS = {"connect_timeout": "10", "keepalives_idle": "10", "keepalives_interval": "5"}


def conninfo(dsn: str, **overrides: str) -> str:
    """The connection string with parameters replaced; defaults for what it leaves open.

    Raises SourceError for one that libpq cannot read.
    """
    try:
        given = libpq.conninfo_to_dict(dsn)
        return libpq.make_conninfo(**{**_DEFAULTS, **given, **overrides, "client_encoding": "UTF8"})
    except psycopg.ProgrammingError as error:
        raise SourceError(
            "the connection string cannot be read",
            hint="write postgresql://user@host:port/database or host=… port=… dbname=… user=…",
        ) from error


def connect(
    dsn: str, *, replication: bool = False, autocommit: bool = True, application_name: str = "waly"
) -> psycopg.Connection:
    """Connect with the rendering settings pinned. Raises SourceError."""
    settings = RENDERING_SETTINGS if replication else {**RENDERING_SETTINGS, **_SESSION_SETTINGS}
    options = libpq.conninfo_to_dict(conninfo(dsn)).get("options") or ""
    pinned = " ".join(f"-c {name}={_escape(value)}" for name, value in settings.items())
    overrides = {"options": f"{options} {pinned}".strip(), "application_name": application_name}
    if replication:
        overrides["replication"] = "database"
    with source_errors():
        return psycopg.connect(conninfo(dsn, **overrides), autocommit=autocommit)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


@contextmanager
def source_errors() -> Iterator[None]:
    """Turn psycopg's errors into ours."""
    try:
        yield
    except psycopg.Error as error:
        raise source_error(error) from error


_HINTS = {
    "28P01": "check the password: ~/.pgpass, PGPASSWORD or a service file",
    "28000": "check the user, and pg_hba.conf on the server",
    "3D000": "check the database name",
    "42501": "grant the role what it lacks; `waly check` prints the statements",
    "53300": "raise max_connections or max_wal_senders on the server",
    "53400": "raise max_replication_slots or max_wal_senders, or drop a slot that nobody uses",
    "55000": "set wal_level = logical in postgresql.conf and restart the server",
    "42704": "`waly check` tells what is missing",
    "42710": "see `waly slot show`; `waly slot drop --yes` removes a slot that is left over",
    "57P03": "the server is starting up or shutting down: try again",
}


def source_error(error: psycopg.Error) -> SourceError:
    """Our error for psycopg's: what happened and what to do about it."""
    state = error.sqlstate or ""
    message = error.diag.message_primary or str(error).strip() or type(error).__name__
    hint = _HINTS.get(state)
    if not state and isinstance(error, psycopg.OperationalError):
        hint = "is the server running, and is the address right? `waly check --dsn …` looks closer"
        for part, better in (
            ("password authentication failed", _HINTS["28P01"]),
            ("no password supplied", _HINTS["28P01"]),
            ("no pg_hba.conf entry", _HINTS["28000"]),
            ("does not exist", "check the names of user and database"),
            ("must be superuser or replication role", "alter role … with replication"),
            ("permission denied to start WAL sender", "alter role … with replication"),
        ):
            if part in message:
                hint = better
    lost = state[:2] in ("08", "57") or (
        not state and ("closed the connection" in message or "the connection is" in message)
    )
    return (SourceLost if lost else SourceError)(f"PostgreSQL: {message}", hint=hint)
