"""The restore drill: a real restore into a scratch database, compared with the archive's state.

The comparison is exact, in text as PostgreSQL prints it, and takes no order for granted: tables are
multisets of rows. Hashes are compared first, rows only where those differ.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import conninfo, sql

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.store import LocalStore
from waly_cdc.embedded import EmbeddedServer
from waly_cdc.errors import CouldNotVerify, EmbeddedUnavailable, SourceError, TargetError
from waly_cdc.findings import FAIL, WARN, Finding
from waly_cdc.history.moment import Moment
from waly_cdc.restore.plan import Plan, plan_restore
from waly_cdc.restore.postgres import restore_postgres
from waly_cdc.restore.rows import Rows
from waly_cdc.source.connect import connect
from waly_cdc.verify.compare import compare
from waly_cdc.verify.report import Checked, DrillResult, Report

_SCRATCH = "waly_drill_"
_OF_THE_DATA = ("22", "23")
"""Classes of SQLSTATE that blame the rows (PostgreSQL documentation, appendix A): data exception
and violated integrity constraint."""


def drill(store: LocalStore, contents: Contents, moment: Moment, dsn: str | None = None) -> Report:
    """Restore everything as of `moment` into a new scratch database, and read it back.

    The database is made on the server that `dsn` names, or on an embedded one, and removed
    afterwards. Raises CouldNotVerify where it cannot be made or a restore is not possible there.
    """
    began = time.monotonic()
    planned = plan_restore(store, contents, moment)
    if planned.schema is None:
        raise CouldNotVerify(
            "the archive holds no schema dump, so nothing can be restored from it",
            hint="install pg_dump of the server's version where the sidecar runs",
        )
    with Rows(store, contents) as rows, _scratch_database(dsn) as scratch:
        findings, counts, seconds = _restore_and_compare(rows, planned, scratch)
    files = {file.path: file for table in planned.tables for file in table.files}
    return Report.of(
        findings,
        Checked(
            files=len(files),
            bytes=sum(file.bytes for file in files.values()),
            rows=sum(counts.values()),
            tables=len(counts),
        ),
        moment.bound,
        moment.time,
        DrillResult(tuple(counts.items()), seconds, time.monotonic() - began),
    )


def _restore_and_compare(
    rows: Rows, planned: Plan, scratch: str
) -> tuple[list[Finding], dict[str, int], float]:
    try:
        restored = restore_postgres(rows, planned, scratch)
    except TargetError as error:
        if not _blames_rows(error):
            raise CouldNotVerify(
                f"the drill's restore was not possible: {error.message}", hint=error.hint
            ) from error
        finding = Finding("drill.restore", FAIL, "restore", error.message)
        return [finding], {}, 0.0
    # Rows that break a constraint of their own time's schema are not the rows there were.
    broken = () if planned.dumped_later else restored.violated
    findings = [
        Finding("drill.constraint", FAIL, "restore", what)
        if what in broken
        else Finding("drill.left_out", WARN, "restore", f"left out: {what}")
        for what in restored.left_out
    ]
    found, counts = compare(rows, planned, scratch)
    return findings + found, counts, restored.seconds


def _blames_rows(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, psycopg.Error):
            return (error.sqlstate or "")[:2] in _OF_THE_DATA
        error = error.__cause__
    return False


@contextmanager
def _scratch_database(dsn: str | None) -> Iterator[str]:
    """The connection string of a new, empty database, dropped at the end."""
    if dsn is None:
        try:
            server = EmbeddedServer.start()
        except EmbeddedUnavailable as error:
            raise CouldNotVerify(
                f"no scratch server: {error.message}",
                hint=f"{error.hint or 'see above'}, or name a server: --drill DSN",
            ) from error
        with server, _scratch_database(server.dsn()) as scratch:
            yield scratch
        return
    name = _SCRATCH + uuid.uuid4().hex[:12]
    try:
        connection = connect(dsn, application_name="waly drill")
    except SourceError as error:
        raise CouldNotVerify(f"scratch server: {error.message}", hint=error.hint) from error
    with connection:
        try:
            connection.execute(
                sql.SQL("create database {} template template0 encoding 'UTF8' locale 'C'").format(
                    sql.Identifier(name)
                )
            )
        except psycopg.Error as error:
            raise CouldNotVerify(
                f"cannot create a scratch database: {error.diag.message_primary or error}",
                hint="grant the role createdb, or name another server",
            ) from error
        try:
            yield conninfo.make_conninfo(dsn, dbname=name)
        finally:
            connection.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )
