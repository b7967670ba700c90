"""The database's schema as `pg_dump` tells it, at a snapshot.

A dump holds what the catalogs say, options of user mappings included: archives are readable by
their owner alone.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from psycopg import conninfo, pq

from waly_cdc.errors import SourceError

LOCK_WAIT = "60s"
"""How long pg_dump waits for a table that somebody else has locked exclusively."""


def dump_schema(dsn: str, *, snapshot: str | None, program: Path) -> bytes:
    """The whole schema in pg_dump's custom format, without publications and subscriptions.

    `snapshot` is the name of an exported snapshot that another session holds open. Raises
    SourceError with what pg_dump said.
    """
    environment, rest = _connection(dsn)
    command = [
        str(program),
        "--format=custom",
        "--schema-only",
        "--no-publications",
        "--no-subscriptions",
        "--encoding=UTF8",
        "--no-password",
        f"--lock-wait-timeout={LOCK_WAIT}",
        f"--dbname={rest}",
    ]
    if snapshot is not None:
        command.append(f"--snapshot={snapshot}")
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
    except OSError as error:
        raise SourceError(
            f"cannot run {program}: {error.strerror}", hint="install the PostgreSQL client programs"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise SourceError(
            f"pg_dump could not read the schema: {said or f'exit code {done.returncode}'}",
            hint=_hint(said),
        )
    return done.stdout


def _connection(dsn: str) -> tuple[dict[str, str], str]:
    """The connection as environment variables, so that no secret stands on a command line, and a
    conninfo string of the settings that have no variable."""
    variables = {
        option.keyword.decode(): option.envvar.decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar
    }
    secret = {o.keyword.decode() for o in pq.Conninfo.get_defaults() if o.dispchar == b"*"}
    environment, rest = dict(os.environ), {}
    for keyword, value in conninfo.conninfo_to_dict(dsn).items():
        if value is None:
            continue
        if keyword in variables:
            environment[variables[keyword]] = str(value)
        elif keyword in secret:
            raise SourceError(
                f"{keyword} in the connection string cannot be handed to pg_dump in secret",
                hint="put it into a libpq service file, and name that: service=…",
            )
        else:
            rest[keyword] = value
    environment["LC_MESSAGES"] = "C"
    return environment, conninfo.make_conninfo("", **rest)


def _hint(said: str) -> str | None:
    if "permission denied" in said:
        return "pg_dump reads every table's definition: grant the role pg_read_all_data"
    if "server version mismatch" in said:
        return "install the client programs of the server's version, or newer"
    if "lock timeout" in said:
        return "somebody holds an exclusive lock on a table: try again when it is released"
    return None
