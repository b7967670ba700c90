"""The database's schema as `pg_dump` tells it, at a snapshot.

A dump holds what the catalogs say, options of user mappings included: archives are readable by
their owner alone.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg
from psycopg import conninfo, pq

from waly_cdc.errors import SourceError
from waly_cdc.source.connect import source_errors

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


def fingerprint(connection: psycopg.Connection) -> str:
    """A text that changes whenever a dump would tell something else. Raises SourceError.

    Made of the catalogs' rows by who wrote them (`xmin`); temporary tables are passed over. Rows of
    pg_class, which the server also updates by itself, are taken by their content.
    """
    with source_errors():
        row = connection.execute(_FINGERPRINT).fetchone()
    assert row is not None
    return str(row[0])


_FINGERPRINT = """
WITH spaces AS (SELECT oid FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)'),
kept AS (SELECT c.oid FROM pg_class c JOIN spaces s ON s.oid = c.relnamespace WHERE c.oid >= 16384),
facts (fact) AS (
    SELECT format('class %s %s %s %s %s %s %s %s %s %s', c.oid, c.relname, c.relnamespace,
                  c.relkind, c.relowner, c.relreplident, c.relrowsecurity, c.relpersistence,
                  c.reloptions, c.relacl)
    FROM pg_class c JOIN kept USING (oid)
    UNION ALL SELECT format('attribute %s %s %s', attrelid, attnum, a.xmin)
    FROM pg_attribute a JOIN kept ON kept.oid = attrelid WHERE attnum > 0
    UNION ALL SELECT format('default %s %s', d.oid, d.xmin)
    FROM pg_attrdef d JOIN kept ON kept.oid = adrelid
    UNION ALL SELECT format('constraint %s %s', c.oid, c.xmin)
    FROM pg_constraint c JOIN spaces s ON s.oid = connamespace WHERE c.oid >= 16384
    UNION ALL SELECT format('index %s %s', indexrelid, i.xmin)
    FROM pg_index i JOIN kept ON kept.oid = indexrelid
    UNION ALL SELECT format('inherits %s %s %s', inhrelid, inhparent, i.xmin)
    FROM pg_inherits i JOIN kept ON kept.oid = inhrelid
    UNION ALL SELECT format('trigger %s %s', t.oid, t.xmin)
    FROM pg_trigger t JOIN kept ON kept.oid = tgrelid
    UNION ALL SELECT format('rule %s %s', r.oid, r.xmin)
    FROM pg_rewrite r JOIN kept ON kept.oid = ev_class
    UNION ALL SELECT format('policy %s %s', p.oid, p.xmin)
    FROM pg_policy p JOIN kept ON kept.oid = polrelid
    UNION ALL SELECT format('sequence %s %s', seqrelid, s.xmin)
    FROM pg_sequence s JOIN kept ON kept.oid = seqrelid
    UNION ALL SELECT format('type %s %s', t.oid, t.xmin)
    FROM pg_type t JOIN spaces s ON s.oid = typnamespace WHERE t.oid >= 16384
    UNION ALL SELECT format('function %s %s', p.oid, p.xmin)
    FROM pg_proc p JOIN spaces s ON s.oid = pronamespace WHERE p.oid >= 16384
    UNION ALL SELECT format('label %s %s', oid, xmin) FROM pg_enum
    UNION ALL SELECT format('schema %s %s', n.oid, n.xmin)
    FROM pg_namespace n JOIN spaces s ON s.oid = n.oid
    UNION ALL SELECT format('extension %s %s', oid, xmin) FROM pg_extension
    UNION ALL SELECT format('statistics %s %s', oid, xmin) FROM pg_statistic_ext
    UNION ALL SELECT format('event trigger %s %s', oid, xmin) FROM pg_event_trigger
)
SELECT md5(string_agg(fact, E'\n' ORDER BY fact)) FROM facts
"""


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
