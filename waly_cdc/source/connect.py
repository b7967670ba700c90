"""Connections to the user's PostgreSQL, and what it refuses in words that help.

No message made here holds a password, nor any part of a connection string that libpq read amiss: an
unescaped `@` turns half of the password into a host name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import psycopg
from psycopg import conninfo as libpq
from psycopg import pq

from waly_cdc.errors import SourceError, SourceLost

RENDERING_SETTINGS: Mapping[str, str] = {
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "client_encoding": "UTF8",
    # Texts of regclass and its kin show a schema only where the search path does not find it.
    "search_path": "",
    "quote_all_identifiers": "off",
}
"""Settings that the text of values depends on (FORMAT.md, "Types"). The stream and every copy have
the same ones, or one value would have two texts."""

LOCK_WAIT = "60s"
"""How long a statement of ours waits for a lock before it fails and says so."""

_SESSION_SETTINGS: Mapping[str, str] = {
    # Whoever exports a snapshot is idle in a transaction for as long as the copies take.
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "lock_timeout": LOCK_WAIT,
    # Rows hidden by row level security are an error instead of missing from a baseline.
    "row_security": "off",
}

_DEFAULTS: Mapping[str, str] = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}

_P = ParamSpec("_P")
_T = TypeVar("_T")

_DDL_TRIES, _DDL_PAUSE = 20, 0.05
_GONE = (
    # "could not open relation with OID …" has no SQLSTATE of its own.
    psycopg.errors.InternalError_,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidSchemaName,
)

_UNREADABLE_HINT = (
    "write postgresql://user@host:port/database or host=… port=… dbname=… user=…;"
    " in a URL a special character of the password is written %XX (@ is %40, / is %2F)"
)

# One round trip, in the simple protocol, which replication connections understand too. Settings
# that this server does not have are passed over. SET, unlike startup options, also outdoes what
# `ALTER ROLE … SET` says, and leaves the connection string's own options alone.
_PIN = """
SELECT pg_catalog.set_config(name, value, false) FROM (VALUES {pairs}) AS pinned(name, value)
WHERE lower(name) IN (SELECT lower(s.name) FROM pg_catalog.pg_settings s)
"""


def conninfo(dsn: str, **overrides: str) -> str:
    """The connection string with parameters replaced, and defaults for timeouts it leaves open.

    What it does not name comes from libpq's `PG*` environment, service files and `~/.pgpass`, so it
    may be empty. Raises SourceError for one that libpq cannot read.
    """
    given = _parse(dsn)
    in_environment = {
        option.keyword.decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar and option.envvar.decode() in os.environ
    }
    defaults = {name: value for name, value in _DEFAULTS.items() if name not in in_environment}
    return libpq.make_conninfo(**{**defaults, **given, **overrides})


def connect(
    dsn: str,
    *,
    replication: bool = False,
    autocommit: bool = True,
    application_name: str = "waly",
    named: str | None = None,
) -> psycopg.Connection:
    """Connect, and pin the rendering settings. Raises SourceError, SourceLost.

    `application_name` is for connection strings that name none; `named` outdoes them. A replication
    connection takes replication commands and SQL through `execute`, in the simple protocol.
    """
    overrides = {"fallback_application_name": application_name}
    overrides["replication"] = "database" if replication else "false"
    if named is not None:
        overrides["application_name"] = named
    target = conninfo(dsn, **overrides)
    with source_errors():
        connection = psycopg.connect(
            target,
            autocommit=autocommit,
            prepare_threshold=None,
            cursor_factory=psycopg.ClientCursor if replication else psycopg.Cursor,
        )
        try:
            _pin_settings(connection)
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def source_errors() -> Iterator[None]:
    """Turn psycopg's errors into ours."""
    try:
        yield
    except psycopg.Error as error:
        raise source_error(error) from error


def source_error(error: psycopg.Error) -> SourceError:
    """Our error for psycopg's: SourceLost where trying again can mend it."""
    message = _describe(error)
    state = error.sqlstate
    if state is not None:
        retry = state[:2] in _RETRY_CLASSES or state in _RETRY_STATES
        hint = _hint_for_state(state, message)
    else:
        # libpq gives no SQLSTATE for a connection that never came about or broke.
        refusal = next((hint for part, hint in _REFUSALS if part in message), None)
        retry = refusal is None and isinstance(
            error, psycopg.OperationalError | psycopg.InterfaceError
        )
        hint = refusal or next((hint for part, hint in _LOSSES if part in message), None)
    return (SourceLost if retry else SourceError)(f"PostgreSQL: {message}", hint=hint)


def despite_ddl(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Have a read of the catalog repeated when it fails because a table was dropped meanwhile: some
    functions look at the catalog as it is, and know nothing of the statement's snapshot."""

    @wraps(read)
    def repeated(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for _ in range(_DDL_TRIES):
            try:
                return read(*args, **kwargs)
            except SourceError as error:
                if not isinstance(error.__cause__, _GONE):
                    raise
                time.sleep(_DDL_PAUSE)
        return read(*args, **kwargs)

    return repeated


def _parse(dsn: str) -> dict[str, str]:
    try:
        given = {
            name: str(value)
            for name, value in libpq.conninfo_to_dict(dsn).items()
            if value is not None
        }
    except psycopg.ProgrammingError:
        # libpq's own message quotes what it could not read, which may be the password.
        raise SourceError("the connection string cannot be read", hint=_UNREADABLE_HINT) from None
    ports = given.get("port", "").split(",")
    # A host that begins with @ is a socket in Linux's abstract namespace.
    misread = any("@" in host[1:] for host in given.get("host", "").split(","))
    if misread or not all(port.isdigit() for port in ports if port):
        raise SourceError(
            "the connection string cannot be read: its host or port is none",
            hint=_UNREADABLE_HINT,
        )
    return given


def _pin_settings(connection: psycopg.Connection) -> None:
    pairs = ", ".join(
        f"('{name}', '{value}')"
        for name, value in {**RENDERING_SETTINGS, **_SESSION_SETTINGS}.items()
    )
    result = connection.pgconn.exec_(_PIN.format(pairs=pairs).encode())
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise psycopg.errors.error_from_result(result)


def _describe(error: psycopg.Error) -> str:
    """What happened, in one line and without what psycopg puts before it."""
    if error.diag.message_primary:
        detail = error.diag.message_detail
        return f"{error.diag.message_primary} ({detail})" if detail else error.diag.message_primary
    text = str(error).split("\nMultiple connection attempts failed", 1)[0]
    text = text.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    # Lines that libpq indents are guesses, for which there are hints.
    lines = [line.strip() for line in text.splitlines() if not line.startswith("\t")]
    return "; ".join(dict.fromkeys(filter(None, lines))) or type(error).__name__


_RETRY_CLASSES = frozenset({"08", "57"})
_RETRY_STATES = frozenset({"53300", "40001", "40P01", "55P03"})

_AUTHENTICATION_HINT = (
    "set the password in ~/.pgpass, PGPASSWORD, a service file or the connection string"
)
_REJECTED_HINT = (
    "is the password right? It is taken from the connection string, PGPASSWORD, a service file or"
    " ~/.pgpass; the server says the same of a user that does not exist"
)
_HBA_HINT = "add a line for this user, database and address to the server's pg_hba.conf, and reload"
_REPLICATION_HINT = (
    "as a superuser: ALTER ROLE … REPLICATION (`waly check --fix-sql` prints the statement)"
)
_SLOTS_HINT = (
    "drop a slot that nobody uses (SELECT * FROM pg_replication_slots), or raise"
    " max_replication_slots and restart the server"
)
_SENDERS_HINT = "raise max_wal_senders and restart the server, or end a connection that nobody uses"
_CONNECTIONS_HINT = "raise max_connections, or end connections that nobody uses"

_HINTS = {
    "28P01": _REJECTED_HINT,
    "28000": _HBA_HINT,
    "3D000": "check the database's name: psql -l lists them",
    "42501": "`waly check --fix-sql` prints the statements that grant what the role lacks",
    "42704": "`waly check` says what is missing",
    "42710": "`waly slot show` describes it; `waly slot drop --yes` removes one that is left over",
    "55006": "another process has it open: is another sidecar running?",
    "55P03": "another session holds a lock on it: see pg_blocking_pids(), and try again",
    "57P01": "the server is shutting down, or an administrator ended the connection: try again",
    "57P03": "the server is starting up, shutting down or a standby: try again when it is ready",
    "57014": "the statement was cancelled on the server",
    "53100": "free space on the server's disk",
    "58P01": "install the output plugin on the server: `waly check` looks at it",
}

# By parts of libpq's messages, most telling first. Those the server sends are in its own language
# (lc_messages): what is not recognised gets no hint.
_REFUSALS = (
    ("password authentication failed", _REJECTED_HINT),
    ("no password supplied", _AUTHENTICATION_HINT),
    ("no pg_hba.conf entry", _HBA_HINT),
    ("pg_hba.conf rejects", _HBA_HINT),
    ("authentication failed", "check the user, and the server's pg_hba.conf"),
    ("START WAL sender", _REPLICATION_HINT),
    ("start WAL sender", _REPLICATION_HINT),
    ("must be superuser or replication role", _REPLICATION_HINT),
    ("permission denied for database", "as its owner: GRANT CONNECT ON DATABASE … TO …"),
    ("does not exist", "check the names of user and database"),
    ("is not permitted to log in", "as a superuser: ALTER ROLE … LOGIN"),
    ("not currently accepting connections", "ALTER DATABASE … ALLOW_CONNECTIONS true"),
    ("resolve host", "check the host name"),
    ("does not support SSL", "the server has no TLS: sslmode=disable or prefer connects without"),
    ("certificate", "check sslmode and sslrootcert against the server's certificate"),
    ("unrecognized configuration parameter", "check `options` in the connection string"),
    ("invalid port number", "check the port"),
    ("invalid sslmode value", "sslmode is one of disable, prefer, require, verify-ca, verify-full"),
)
_LOSSES = (
    ("max_wal_senders", _SENDERS_HINT),
    ("too many clients", _CONNECTIONS_HINT),
    ("remaining connection slots", _CONNECTIONS_HINT),
    ("too many connections", _CONNECTIONS_HINT),
    ("Connection refused", "is the server running there? check host and port"),
    ("No such file or directory", "is the server running there? check host and port"),
    ("timeout", "check host, port and firewall; connect_timeout says how long to wait"),
    ("imed out", "check host, port and firewall; connect_timeout says how long to wait"),
    ("starting up", _HINTS["57P03"]),
    ("shutting down", _HINTS["57P03"]),
    ("closed the connection", "the server stopped, or the network failed: try again"),
    ("connection is closed", "the connection is gone: try again"),
)


def _hint_for_state(state: str, message: str) -> str | None:
    if state == "55000" and "wal_level" in message:
        return "ALTER SYSTEM SET wal_level = 'logical', and restart the server"
    if state in ("53400", "53300") and "replication slots" in message:
        return _SLOTS_HINT
    if state == "53300":
        return _SENDERS_HINT if "wal_senders" in message else _CONNECTIONS_HINT
    if state == "42501" and "replication" in message.lower():
        return _REPLICATION_HINT
    return _HINTS.get(state)
