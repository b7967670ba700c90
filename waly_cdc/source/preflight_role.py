"""Preflight: what the role may do: replicate, read all tables, see who runs a transaction.

Rights to read are asked for by membership in PostgreSQL's own roles, not table by table: pg_dump
locks every table there is, also those made later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import LiteralString, NamedTuple

import psycopg

from waly_cdc.errors import SourceError
from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.relations import quote_identifier
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import source_errors
from waly_cdc.source.preflight_look import Look, some

READ_DATA = "pg_read_all_data"
READ_STATS = "pg_read_all_stats"

_INHERIT_OPTION = 160000
"""From this version on each membership says itself whether its rights are inherited."""


class Unreadable(NamedTuple):
    """A table, or its partitioned parent, or a sequence, of which a role cannot read all.

    `granted` says whether it may read it at all, `hidden` whether row level security hides rows.
    """

    kind: str
    schema: str
    name: str
    granted: bool
    hidden: bool

    @property
    def qualified_name(self) -> str:
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


def unreadable(connection: psycopg.Connection) -> list[Unreadable]:
    """What this role cannot read, or not all of. Raises SourceError."""
    with source_errors():
        return [Unreadable(*row) for row in connection.execute(_UNREADABLE)]


def reading_refused(connection: psycopg.Connection, tables: Sequence[Table]) -> SourceError | None:
    """Why the role cannot copy all rows of these tables, and what mends it; None if it can."""
    refused = {(table.schema, table.name) for table in tables if not table.readable}
    if not refused:
        return None
    found = [each for each in unreadable(connection) if (each.schema, each.name) in refused]
    role = _role(connection)
    denied = [each.qualified_name for each in found if not each.granted]
    hidden = [each.qualified_name for each in found if each.hidden]
    reasons, statements = [], []
    if denied:
        reasons.append(f"role {role} may not read {some(denied)}")
        statements.append(membership(connection, READ_DATA))
    if hidden:
        reasons.append(f"row level security hides rows of {some(hidden)} from role {role}")
        statements.append(_bypass(role))
    return SourceError("; ".join(reasons), hint=f"as a superuser: {' '.join(statements)}")


def membership(connection: psycopg.Connection, group: str) -> str:
    """The statement that gives the connection's role the rights of another one."""
    with source_errors():
        row = connection.execute(
            "SELECT rolname, rolinherit, pg_has_role(%s, 'MEMBER')"
            " FROM pg_roles WHERE rolname = current_user",
            (group,),
        ).fetchone()
    assert row is not None
    role, inherits, member = quote_identifier(row[0]), row[1], row[2]
    grant = f"GRANT {group} TO {role}"
    if inherits and not member:
        return f"{grant};"
    # A member without its rights: one that would first have to SET ROLE.
    if connection.info.server_version >= _INHERIT_OPTION:
        return f"{grant} WITH INHERIT TRUE;"
    return f"ALTER ROLE {role} INHERIT; {grant};"


def _role(connection: psycopg.Connection) -> str:
    with source_errors():
        row = connection.execute("SELECT current_user").fetchone()
    assert row is not None
    return str(row[0])


def _bypass(role: str) -> str:
    return f"ALTER ROLE {quote_identifier(role)} BYPASSRLS;"


def _replication(look: Look) -> Iterator[Finding]:
    role = look.facts.role
    if look.facts.can_replicate:
        yield Finding("replication", PASS, role, f"role {role} may use replication")
    else:
        yield Finding(
            "replication",
            FAIL,
            role,
            f"role {role} may not use replication: it has not the REPLICATION attribute",
            f"ALTER ROLE {quote_identifier(role)} REPLICATION;",
        )


def _actors(look: Look) -> Iterator[Finding]:
    """Whether the sampler sees the transactions of others in pg_stat_activity."""
    role = look.facts.role
    (sees,) = look.row("SELECT pg_has_role('pg_read_all_stats', 'USAGE')")
    if sees:
        message = f"role {role} may see who runs a transaction"
        yield Finding("actors", PASS, role, message)
    else:
        yield Finding(
            "actors",
            WARN,
            role,
            f"role {role} may not see who runs a transaction ({READ_STATS}): actors will be"
            " unknown unless they name themselves",
            membership(look.connection, READ_STATS),
        )


def _reading(look: Look) -> Iterator[Finding]:
    """The baseline reads every table, and pg_dump locks every one of them."""
    role = look.facts.role
    found = unreadable(look.connection)
    denied = [each for each in found if not each.granted]
    grant = membership(look.connection, READ_DATA) if denied else None
    for each in denied:
        if each.kind == "S":
            message = "its value cannot be read: a restored sequence begins at its start value"
            yield Finding("sequence_privilege", WARN, each.qualified_name, message, grant)
        else:
            message = f"role {role} may not read it: the baseline and pg_dump need that"
            yield Finding("table_privilege", FAIL, each.qualified_name, message, grant)
    for each in found:
        if each.hidden:
            message = f"row level security hides rows from role {role}"
            yield Finding("row_security", FAIL, each.qualified_name, message, _bypass(role))
    kinds = {each.kind for each in denied}
    if not kinds - {"S"}:
        yield _later_tables(look)
    if "S" not in kinds:
        message = "their values are recorded with each seal, because the stream does not carry them"
        yield Finding("sequence_privilege", PASS, "sequences", message)


def _later_tables(look: Look) -> Finding:
    """Whether a role that may read all tables will be able to read new ones too."""
    role = look.facts.role
    (reads,) = look.row("SELECT pg_has_role('pg_read_all_data', 'USAGE')")
    owner = bool(look.tables) and all(table.owned for table in look.tables)
    if reads or owner:
        return Finding("table_privilege", PASS, "tables", f"role {role} may read all tables")
    return Finding(
        "table_privilege",
        WARN,
        "tables",
        f"role {role} may read all tables that there are, but has no right to later ones"
        f" ({READ_DATA}): from the first that it may not read, no schema is archived",
        membership(look.connection, READ_DATA),
    )


ROLE_CHECKS: tuple[Callable[[Look], Iterator[Finding]], ...] = (_replication, _actors, _reading)

_UNREADABLE: LiteralString = """
SELECT * FROM (
    SELECT c.relkind::text AS kind, n.nspname, c.relname,
           has_schema_privilege(n.oid, 'USAGE')
           AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                    ELSE has_table_privilege(c.oid, 'SELECT') END AS granted,
           row_security_active(c.oid) AS hidden
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND c.oid >= 16384
          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')) AS r
WHERE NOT granted OR hidden
ORDER BY nspname, relname
"""
