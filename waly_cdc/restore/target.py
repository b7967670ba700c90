"""A PostgreSQL database that is restored into.

Invariant: from the first object that is made until the last, the target holds the schema
`MARKER`, whose comment says what is going on. It is made in the transaction that makes the tables
and dropped in the one that finishes the restore, so a target without it is either untouched or
whole. After a failure or a kill it stays, and no restore goes into such a target again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import conninfo, sql

from waly_cdc.errors import SourceError, TargetError
from waly_cdc.restore.fit import TargetColumn
from waly_cdc.restore.schema import SETTINGS, Statement
from waly_cdc.source.connect import connect

MARKER = "waly_restore_incomplete"
ORIGIN = "waly_restore"
"""Replication origins of our sessions begin with it, so that subscriptions of the target can leave
restored rows out (`origin = none`). A sidecar is told by `stamp`."""

_DROP_HINT = "drop the database, create it again and restart the restore"

# Whatever a person would miss if it were overwritten. What belongs to an extension does not count.
_USER_OBJECTS = """
with user_schemas as (
    select oid, nspname from pg_catalog.pg_namespace
    where nspname !~ '^pg_' and nspname <> 'information_schema'),
objects as (
    select 'schema' as kind, quote_ident(nspname) as name, 'pg_namespace'::regclass as class, oid
    from user_schemas where nspname not in ('public', %(marker)s)
    union all
    select case relkind when 'S' then 'sequence' when 'v' then 'view' when 'm'
           then 'materialized view' else 'table' end,
           format('%%I.%%I', nspname, relname), 'pg_class'::regclass, c.oid
    from pg_catalog.pg_class c join user_schemas n on n.oid = relnamespace
    where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select 'function', format('%%I.%%I', nspname, proname), 'pg_proc'::regclass, p.oid
    from pg_catalog.pg_proc p join user_schemas n on n.oid = pronamespace
    union all
    select 'type', format('%%I.%%I', nspname, typname), 'pg_type'::regclass, t.oid
    from pg_catalog.pg_type t join user_schemas n on n.oid = typnamespace
    left join pg_catalog.pg_class c on c.oid = typrelid
    where typtype in ('d', 'e', 'r') or c.relkind = 'c')
select kind || ' ' || name from objects o
where not exists (select from pg_catalog.pg_depend d
                  where d.classid = o.class and d.objid = o.oid and d.deptype = 'e')
order by kind <> 'table', 1 limit 4
"""

_COLUMNS = """
select n.nspname, c.relname, coalesce(pg_partition_root(c.oid), c.oid)::regclass::text,
       a.attname, format_type(a.atttypid, a.atttypmod), a.attgenerated <> ''
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
order by c.oid, a.attnum
"""

_ROOT = """
select coalesce(pg_catalog.pg_partition_root(%s::regclass), %s::regclass)::text
"""

_EXISTS = (
    psycopg.errors.DuplicateTable,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateFunction,
    psycopg.errors.DuplicateSchema,
)


def masked(dsn: str) -> str:
    """The connection string without secrets."""
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "(a connection string that cannot be read)"
    return conninfo.make_conninfo("", **{k: v for k, v in parts.items() if "password" not in k})


@contextmanager
def session(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection to the target, ready for a dump's statements and a table's rows.

    What the server refuses inside becomes a TargetError.
    """
    try:
        connection = connect(dsn, application_name="waly restore")
    except SourceError as error:
        raise TargetError(f"target: {error.message}", hint=error.hint) from error
    with connection, target_errors():
        connection.execute(SETTINGS)
        yield connection


@contextmanager
def target_errors(doing: str = "") -> Iterator[None]:
    """Turn psycopg's errors into ours, saying what was being done."""
    try:
        yield
    except psycopg.Error as error:
        raise TargetError(_message(error, doing), hint=_hint(error)) from error


def require_empty(connection: psycopg.Connection, *, force: bool) -> None:
    """Raises TargetError for a target that holds anything (unless `force`), or an unfinished
    restore."""
    marked = connection.execute("select to_regnamespace(%s) is not null", (MARKER,)).fetchone()
    if marked is not None and marked[0]:
        raise TargetError("the target holds a restore that did not finish", hint=_DROP_HINT)
    rows = connection.execute(_USER_OBJECTS, {"marker": MARKER}).fetchall()
    if rows and not force:
        names = ", ".join(row[0] for row in rows[:3]) + (", …" if len(rows) > 3 else "")
        raise TargetError(
            f"the target database is not empty: {names}",
            hint="restore into a new database, or add --force to restore beside what is there"
            " (nothing there is replaced)",
        )


def columns(
    connection: psycopg.Connection,
) -> dict[tuple[str, str], tuple[str, list[TargetColumn]]]:
    """The columns of every table, by schema and name; and the table, in SQL, that decides on them:
    itself, or the root of a partition."""
    found: dict[tuple[str, str], tuple[str, list[TargetColumn]]] = {}
    for schema, name, root, column, kind, generated in connection.execute(_COLUMNS):
        _, listed = found.setdefault((schema, name), (root, []))
        if column is not None:
            listed.append(TargetColumn(column, kind, generated))
    return found


def mark(connection: psycopg.Connection, what: str) -> None:
    """Say in the target that a restore is under way."""
    connection.execute(sql.SQL("create schema {}").format(sql.Identifier(MARKER)))
    comment = f"{what} has begun and not finished: this database is not whole"
    connection.execute(
        sql.SQL("comment on schema {} is {}").format(sql.Identifier(MARKER), sql.Literal(comment))
    )


def unmark(connection: psycopg.Connection) -> None:
    connection.execute(sql.SQL("drop schema {}").format(sql.Identifier(MARKER)))


@contextmanager
def under_way() -> Iterator[None]:
    """Errors inside leave a target that is not whole, and say so."""
    try:
        with target_errors():
            yield
    except TargetError as error:
        raise TargetError(
            f"{error.message}; the target is not whole, which its schema {MARKER} says too",
            hint=error.hint or _DROP_HINT,
        ) from error


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An object that was not made, and why; `kept` when one of that name was there already,
    `violated` when the rows do not satisfy it."""

    statement: Statement
    reason: str
    kept: bool = False
    violated: bool = False

    def __str__(self) -> str:
        return f"{self.statement.what}: {self.reason}"


def run(
    connection: psycopg.Connection,
    statements: Iterable[Statement],
    *,
    keep_existing: bool,
    may_violate: bool = False,
    may_fail: bool = False,
) -> list[LeftOut]:
    """Run the statements in the open transaction; what was left out of them.

    With `keep_existing` an object of that name that is there already is kept, but for tables; with
    `may_violate` one is left out that the rows do not satisfy, with `may_fail` any that fails.
    Raises TargetError, naming the object.
    """
    left_out = []
    for statement in statements:
        keep = keep_existing and statement.kind != "TABLE"
        # A dump's text is SQL already: there is nothing to put into it.
        query = sql.SQL(statement.sql)
        with target_errors(statement.what):
            if not (statement.optional or keep or may_violate or may_fail):
                connection.execute(query)
                continue
            try:
                with connection.transaction():
                    connection.execute(query)
            except psycopg.Error as error:
                reason = error.diag.message_primary or str(error)
                if keep and isinstance(error, _EXISTS):
                    left_out.append(LeftOut(statement, "there already, kept as it is", kept=True))
                elif may_violate and isinstance(error, psycopg.errors.IntegrityError):
                    reason = f"the rows do not satisfy it ({reason})"
                    left_out.append(LeftOut(statement, reason, violated=True))
                elif (statement.optional or may_fail) and _refused(error):
                    left_out.append(LeftOut(statement, reason))
                else:
                    raise
    return left_out


def relax(connection: psycopg.Connection, error: BaseException | None) -> str | None:
    """Take the constraint off its table that a row has violated, and say so; None where the error
    is another."""
    if isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name:
        name = error.diag.constraint_name
        action = sql.SQL("drop constraint {}").format(sql.Identifier(name))
    elif isinstance(error, psycopg.errors.NotNullViolation) and error.diag.column_name:
        name = f"not null of {error.diag.column_name}"
        action = sql.SQL("alter column {} drop not null").format(
            sql.Identifier(error.diag.column_name)
        )
    else:
        return None
    if error.diag.schema_name is None or error.diag.table_name is None:
        return None  # of a domain
    table = sql.Identifier(error.diag.schema_name, error.diag.table_name)
    row = connection.execute(_ROOT, [table.as_string(connection)] * 2).fetchone()
    assert row is not None
    with target_errors(f"constraint {name}"):
        connection.execute(sql.SQL("alter table {} {}").format(sql.SQL(row[0]), action))
    return (
        f"constraint {table.as_string(connection)} {name}: the rows do not satisfy it"
        f" ({error.diag.message_primary})"
    )


def _refused(error: psycopg.Error) -> bool:
    """Whether the server refused the statement, rather than that it stops or runs out of room."""
    return (error.sqlstate or "57")[:2] not in ("53", "57", "58", "XX")


def tag(connection: psycopg.Connection, number: int) -> str | None:
    """Give the session a replication origin. Returns None, or why the server would not.

    An origin serves one session at a time, so every session has its own.
    """
    name = f"{ORIGIN}_{number}"
    try:
        with connection.transaction():
            connection.execute(
                "select pg_replication_origin_create(%s)"
                " where not exists (select from pg_replication_origin where roname = %s)",
                (name, name),
            )
        connection.execute("select pg_replication_origin_session_setup(%s)", (name,))
    except psycopg.Error as error:
        if connection.broken:
            raise
        return error.diag.message_primary or str(error)
    return None


def stamp(connection: psycopg.Connection, point: str) -> None:
    """Say in the open transaction that it is a restore: a sidecar that captures the target records
    its rows as that, and not as somebody's work."""
    told = {"actor": connection.info.user, "operation": "restore", "restore": {"to": point}}
    connection.execute(
        "select pg_logical_emit_message(true, 'waly', %s::text)", (json.dumps(told),)
    )


def untag(connection: psycopg.Connection, number: int) -> None:
    """Take the session's origin off again and remove it."""
    connection.execute("select pg_replication_origin_session_reset()")
    connection.execute("select pg_replication_origin_drop(%s)", (f"{ORIGIN}_{number}",))


def _message(error: psycopg.Error, doing: str) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # What libpq says after the first line are guesses.
    said = error.diag.message_primary or lines[0]
    if error.diag.context:
        said += f" ({error.diag.context.splitlines()[0]})"
    return f"target: {doing + ': ' if doing else ''}{said}"


def _hint(error: psycopg.Error) -> str | None:
    if isinstance(error, psycopg.errors.UndefinedFile | psycopg.errors.FeatureNotSupported):
        return "install the extension's files on the target's server"
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "restore as the owner of the target database, or as a superuser"
    if isinstance(error, psycopg.errors.OutOfMemory):
        return "raise max_locks_per_transaction on the target's server"
    if isinstance(error, psycopg.errors.DiskFull):
        return "free space on the target's server"
    if isinstance(error, _EXISTS):
        return "restore into a new database"
    return error.diag.message_hint
