"""Reverts: what they are asked to undo, what they would do, and doing it."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import duckdb
import psycopg
import pyarrow as pa
from psycopg import sql

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import RevertConflict, SourceError, TargetError, UsageError
from waly_cdc.history.eras import newest_transaction
from waly_cdc.history.keys import parse_key
from waly_cdc.history.log import made_by
from waly_cdc.history.moment import Moment
from waly_cdc.history.moves import relations_named
from waly_cdc.history.session import read_files, rows
from waly_cdc.history.subject import Subject
from waly_cdc.lsn import Lsn
from waly_cdc.restore.revert.live import foreign_keys, live_tables
from waly_cdc.restore.revert.script import Check, Fill, Part, Run, Step, script
from waly_cdc.restore.revert.undo import Choice, Conflict, Undo
from waly_cdc.source.catalog import server_facts

BATCH_ROWS = 16_384
NAMED = 200
"""Transactions that the stamp names at most: a message that is longer is not kept whole."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be undone: transactions, or a row of a table since a moment."""

    xids: tuple[tuple[int | None, int], ...] = ()
    actor: str | None = None
    since: Moment | None = None
    table: str | None = None
    key: tuple[str, ...] = ()


@dataclass(slots=True)
class Revert:
    """A revert that is ready. `transactions` are the xids that are undone, oldest first;
    `conflicts` are those that the archive knows of, `left_out` what cannot be brought back."""

    horizon: Lsn
    transactions: list[int]
    parts: list[Part] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    other_order: list[Step] = field(default_factory=list)

    def tables(self) -> list[dict[str, Any]]:
        return [
            {"table": part.undo.subject.relation.qualified_name, **part.undo.counts()}
            for part in self.parts
        ]

    def require_no_conflicts(self) -> None:
        """Raises RevertConflict."""
        if self.conflicts:
            raise RevertConflict(
                f"others changed what is to be undone: {len(self.conflicts):,} rows in conflict",
                hint="--theirs leaves these rows as they are, --ours undoes the later changes too",
            )


def prepare(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    live: psycopg.Connection,
    request: Request,
    *,
    resolution: str | None = None,
    triggers: bool = True,
) -> Revert:
    """Compute a revert against the live database's schema of now. `resolution` is None, `theirs`
    or `ours`; rows in conflict are part of the script with `ours` only.

    Raises UsageError, PointNotInArchive, SourceError for another database than the archive's.
    """
    _require_source(contents, live)
    condition, first, xids = _transactions(connection, contents, store, request)
    found = Revert(contents.horizon, xids)
    undone = []
    for subject, choice in _subjects(connection, contents, store, request, condition, first):
        undo = Undo(connection, subject, choice, resolution)
        found.conflicts += undo.conflicts()
        if any(undo.counts().values()):
            undone.append(undo)
    tables = live_tables(live, [undo.subject.oid for undo in undone])
    for undo in undone:
        table = tables.get(undo.subject.oid)
        name = undo.subject.relation.qualified_name
        if table is None:
            raise UsageError(
                f"{name} was dropped since", hint=f"waly restore --table {name} brings it back"
            )
        part = Part(undo, table, len(found.parts))
        gone = [undo.subject.columns[i].name for i in part.gone if _used(undo, i)]
        found.left_out += [f"column {name}.{column}: it was dropped since" for column in gone]
        if len(part.key) < len(undo.key):
            raise UsageError(f"the key of {name} was dropped since: its rows cannot be told apart")
        found.parts.append(part)
    keys = foreign_keys(live, list(tables))
    crowded = any(part.table.crowded for part in found.parts)
    stamp = _stamp(live, found)
    found.steps, found.other_order = (
        script(found.parts, keys, stamp, deletes_first=order, triggers=triggers)
        for order in (crowded, not crowded)
    )
    return found


def _used(undo: Undo, place: int) -> bool:
    """Whether a wanted row has the column."""
    column = undo.subject.columns[place]
    versions = (undo.subject.contents.version(undo.subject.oid, n) for n in undo.shapes("shape"))
    return any(undo.subject.has_column(version, column) is not None for version in versions)


def _require_source(contents: Contents, live: psycopg.Connection) -> None:
    facts, source = server_facts(live), contents.source
    if source and source.identity != f"{facts.system_identifier}/{facts.database_oid}":
        raise SourceError(
            f"{facts.database} is not the database that the archive is of",
            hint=f"--dsn must lead to the database {source.database} that is captured",
        )


def _transactions(
    connection: duckdb.DuckDBPyConnection, contents: Contents, store: LocalStore, request: Request
) -> tuple[str, Lsn, list[int]]:
    """What is undone as a condition on `_lsn`, from which LSN on, and the xids."""
    if request.table is not None or request.actor is not None:
        assert request.since is not None
        if request.since.era != contents.era:
            raise UsageError("a revert does not reach into an earlier era")
    if request.table is not None and request.since is not None:
        return f"_lsn >= {request.since.bound.value}", request.since.bound, []
    if request.actor is not None and request.since is not None:
        first = request.since.bound
        condition = f"lsn IN ({made_by(contents, store, request.actor)})"
        files = read_files(store, contents.transaction_files())
        made = rows(
            connection,
            f"SELECT lsn, xid FROM {files} WHERE lsn >= {first.value} AND {condition} ORDER BY lsn",
        )
        if not made:
            raise UsageError(f"{request.actor} made no transaction since {request.since.name}")
    else:
        made = []
        for era, xid in request.xids:
            of_era, transaction = newest_transaction(connection, contents, store, xid, era)
            if of_era.era != contents.era:
                raise UsageError(f"transaction {xid} is of an earlier era")
            made.append({"lsn": transaction.lsn.value, "xid": xid})
    lsns = sorted({row["lsn"] for row in made})
    listed = ", ".join(map(str, lsns))
    return (
        f"_lsn IN ({listed})",
        Lsn(lsns[0]),
        [row["xid"] for row in sorted(made, key=lambda row: int(row["lsn"]))],
    )


def _subjects(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    store: LocalStore,
    request: Request,
    condition: str,
    first: Lsn,
) -> Iterator[tuple[Subject, Choice]]:
    """The tables that what is undone has touched."""
    if request.table is not None:
        for relation in relations_named(contents, request.table):
            subject = Subject(contents, store, relation.oid, contents.horizon)
            yield subject, Choice(condition, parse_key(relation, request.key), first)
        return
    for oid in sorted(contents.relations):
        subject = Subject(contents, store, oid, contents.horizon)
        files = [f for f in subject.files if f.kind == "events" and f.last_lsn >= first]
        if files:
            touched = f"({subject.events(files, ())}) WHERE _op <> 'R' AND ({condition}) LIMIT 1"
            if rows(connection, f"SELECT 1 FROM {touched}"):
                yield subject, Choice(condition)


def _stamp(live: psycopg.Connection, found: Revert) -> str:
    """The message that tells history what this transaction is, and who asked for it."""
    asked = socket.gethostname()
    with suppress(KeyError, OSError):
        asked = f"{getpass.getuser()}@{asked}"
    told: dict[str, Any] = {"actor": live.info.user, "operation": "revert"}
    reverted: dict[str, Any] = {"asked_by": asked, "transactions": found.transactions[:NAMED]}
    if len(found.transactions) > NAMED:
        reverted["and_more"] = len(found.transactions) - NAMED
    return json.dumps({**told, "revert": reverted})


def write(connection: duckdb.DuckDBPyConnection, steps: Sequence[Step], file: BinaryIO) -> None:
    """The script as psql runs it."""

    def line(text: str) -> None:
        file.write(text.encode() + b"\n")

    line("\\set ON_ERROR_STOP on")
    line("begin;")
    for step in steps:
        match step:
            case Run(statement):
                line(f"{statement};")
            case Fill(statement):
                line(f"{statement};")
                for block in _lines(connection, step):
                    file.write(block)
                line("\\.")
            case Check(query, part, reason):
                line(_refusal(query, f"{part.table.name}: {reason}"))
    line("commit;")


def _refusal(query: str, message: str) -> str:
    """A statement that fails where the query finds a row, and names it."""
    tag = "$waly$"
    while tag in query or tag in message:
        tag = f"{tag[:-1]}_$"
    quoted = message.replace("'", "''")
    return (
        f"do {tag} declare found text; begin select array_to_string(f.key, ' ', 'NULL') into found"
        f" from ({query}) as f(number, key) limit 1; if found is not null then raise exception"
        f" using message = '{quoted}: ' || found; end if; end {tag};"
    )


def _lines(connection: duckdb.DuckDBPyConnection, step: Fill) -> Iterator[memoryview]:
    """The rows in COPY's text format, in blocks: the Arrow buffers themselves."""
    relation = connection.sql(step.undo.texts(step.columns))
    for batch in relation.to_arrow_reader(BATCH_ROWS):
        yield _text_of(batch.column(0))


def _text_of(lines: pa.Array) -> memoryview:
    lines = lines.cast(pa.large_string())
    _, offsets, content = lines.buffers()
    at = memoryview(offsets).cast("q")
    return memoryview(content)[at[lines.offset] : at[lines.offset + len(lines)]]


def apply(
    connection: duckdb.DuckDBPyConnection,
    live: psycopg.Connection,
    found: Revert,
    *,
    theirs: bool,
) -> list[Conflict]:
    """Run the script in one transaction; the rows that it left alone because of what others did
    meanwhile, which only `theirs` allows: else they are raised as RevertConflict and nothing was
    done. Raises TargetError where the server refuses."""
    try:
        try:
            return _run(connection, live, found.steps, theirs=theirs)
        except psycopg.errors.UniqueViolation:
            return _run(connection, live, found.other_order, theirs=theirs)
    except psycopg.Error as error:
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        said = error.diag.message_primary or str(error)
        raise TargetError(
            f"nothing was reverted: {said}{detail}", hint=error.diag.message_hint
        ) from error


def _run(
    connection: duckdb.DuckDBPyConnection,
    live: psycopg.Connection,
    steps: Sequence[Step],
    *,
    theirs: bool,
) -> list[Conflict]:
    met: list[Conflict] = []
    with live.transaction(), live.cursor() as cursor:
        for step in steps:
            match step:
                case Run(_, table) if table and met and not theirs:
                    break
                case Run(statement):
                    cursor.execute(sql.SQL(statement))
                case Fill(statement):
                    with cursor.copy(sql.SQL(statement)) as copy:
                        for block in _lines(connection, step):
                            copy.write(block)
                case Check(query, part, reason):
                    cursor.execute(sql.SQL(query))
                    refused = cursor.fetchall()
                    table = part.undo.subject.relation.qualified_name
                    met += [Conflict(table, part.name(key), reason) for _, key in refused]
                    if refused and theirs:
                        numbers = [number for number, _ in refused]
                        cursor.execute(
                            sql.SQL(f"delete from {part.temporary} where number = any(%s)"),
                            (numbers,),
                        )
        if met and not theirs:
            found = RevertConflict(
                f"others changed what is to be undone: {len(met):,} rows in conflict;"
                " nothing was reverted",
                hint="--theirs leaves these rows as they are",
            )
            found.conflicts = tuple(conflict.to_json() for conflict in met)
            raise found
    return met
