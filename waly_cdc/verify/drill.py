"""The restore drill: a real restore into a scratch database, compared with the archive's state.

The comparison is exact, in text as PostgreSQL prints it, and takes no order for granted: tables are
multisets of rows. Hashes are compared first, rows only where those differ.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
    """Restore everything as of `moment` into a new scratch database, and read it back. `contents`
    are those of the moment's era.

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
        done = _restore_and_compare(rows, planned, scratch)
    files = {file.path: file for table in planned.tables for file in table.files}
    report = Report.of(
        done.findings,
        Checked(
            files=len(files),
            bytes=sum(file.bytes for file in files.values()),
            rows=sum(done.counts.values()),
            tables=len(done.counts),
        ),
        moment.bound,
        moment.time,
        DrillResult(tuple(done.counts.items()), done.seconds, time.monotonic() - began),
        moment.era,
    )
    for constraint in done.violated:
        message = f"{constraint}: it was dropped since the last schema dump, or rows are wrong"
        report = report.undecided(Finding("drill.constraint", WARN, "restore", message))
    return report


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of a restore: `counts` are the rows of each table, `seconds` how long it took."""

    findings: list[Finding]
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    violated: tuple[str, ...] = ()


def _restore_and_compare(rows: Rows, planned: Plan, scratch: str) -> _Done:
    try:
        restored = restore_postgres(rows, planned, scratch)
    except TargetError as error:
        if not _blames_rows(error):
            raise CouldNotVerify(
                f"the drill's restore was not possible: {error.message}", hint=error.hint
            ) from error
        return _Done([Finding("drill.restore", FAIL, "restore", error.message)])
    # A schema dump from after the point may ask for what was not yet so.
    violated = () if planned.dumped_later else restored.violated
    findings = [
        Finding("drill.left_out", WARN, "restore", f"left out: {what}")
        for what in restored.left_out
        if what not in violated
    ]
    try:
        found, counts = compare(rows, planned, scratch)
    except (TargetError, SourceError) as error:
        raise CouldNotVerify(
            f"what was restored could not be read back: {error.message}", hint=error.hint
        ) from error
    return _Done(findings + found, counts, restored.seconds, violated)


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
