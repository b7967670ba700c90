"""Traps: whatever is done to tables, every state that the archive tells is what the server had."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.conftest import TestServer
from tests.integration.archived import Tables, archived_tables
from tests.integration.sample import live_rows, snapshot_of_now
from tests.integration.test_restore import restore
from tests.integration.traps import TRAPS, Trap
from tests.running import running, wait_for
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.lsn import Lsn
from waly_cdc.points import Latest
from waly_cdc.source.connect import connect


@dataclass(frozen=True)
class Photo:
    """The rows of a trap's tables, without generated columns, as a snapshot at `lsn` sees them."""

    step: str
    lsn: Lsn
    tables: Tables


@dataclass(frozen=True)
class Sprung:
    """All traps, sprung: the database, its archive, and what was photographed by trap."""

    dsn: str
    archive: Path
    photos: dict[str, list[Photo]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def sprung(server: TestServer) -> Iterator[Sprung]:
    name = server.create_database()
    folder = Path(tempfile.mkdtemp(prefix="waly-traps-"))
    sprung = Sprung(server.dsn(name), folder / "archive")
    try:
        _spring(sprung)
        yield sprung
    finally:
        server.drop_database(name)
        shutil.rmtree(folder, ignore_errors=True)


def _spring(sprung: Sprung) -> None:
    settings = CaptureSettings(sprung.dsn, sprung.archive, seal_interval=0.3, sample_interval=0)
    with psycopg.connect(sprung.dsn, autocommit=True) as application:
        traps = {
            name: trap
            for name, trap in TRAPS.items()
            if application.info.server_version >= trap.since * 10_000
        }
        for name, trap in traps.items():
            application.execute(f"create schema {name}; set search_path = {name}".encode())
            application.execute(trap.setup.encode())
        initialise(settings)
        with running(settings):
            for name, trap in traps.items():
                application.execute(f"set search_path = {name}".encode())
                sprung.photos[name] = [_run(sprung.dsn, application, name, s) for s in trap.steps]
            wait_for(lambda: _is_caught_up(sprung, application), 120)


def _run(dsn: str, application: psycopg.Connection, name: str, step: str) -> Photo:
    application.execute(step.encode())
    with snapshot_of_now(dsn) as (lsn, inside):
        return Photo(step, lsn, _tables_of(inside, name))


def _tables_of(connection: psycopg.Connection, schemas: str) -> Tables:
    tables = connection.execute(
        "select c.oid, n.nspname, c.relname, array(select attname::text from pg_attribute"
        " where attrelid = c.oid and attnum > 0 and attgenerated = '' and not attisdropped"
        " order by attnum) from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where relkind = 'r' and relpersistence = 'p' and starts_with(n.nspname, %s)",
        (schemas,),
    ).fetchall()
    found = {}
    for oid, schema, name, columns in tables:
        query = sql.SQL("select row({})::text from only {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(schema, name)
        )
        rows = sorted(row for (row,) in connection.execute(query))
        found[oid] = (f"{schema}.{name}", rows)
    return found


def _is_caught_up(sprung: Sprung, application: psycopg.Connection) -> bool:
    # An idle server gives no reason to write down that somebody has looked.
    application.execute("select pg_logical_emit_message(false, '', '')")
    contents = load(LocalStore(sprung.archive))
    last = max(photo.lsn for photos in sprung.photos.values() for photo in photos)
    return contents.looked_at > last and not any(gap.end is None for gap in contents.gaps)


def _trap(sprung: Sprung, name: str) -> Trap:
    if name not in sprung.photos:
        pytest.skip(f"it came with PostgreSQL {TRAPS[name].since}")
    return TRAPS[name]


@pytest.mark.parametrize("name", TRAPS)
def test_a_state_is_what_the_server_had_or_it_is_refused(sprung: Sprung, name: str) -> None:
    trap = _trap(sprung, name)
    for photo in sprung.photos[name]:
        found = archived_tables(sprung.archive, photo.lsn, name, set() if trap.unseen else None)
        # A table that is new is not there before the look that finds it.
        told = found.keys() & photo.tables.keys() if trap.unseen else photo.tables.keys()
        assert {oid: found[oid][1] for oid in told} == {
            oid: photo.tables[oid][1] for oid in told
        }, photo.step


@pytest.mark.parametrize("name", TRAPS)
def test_in_the_end_the_archive_has_what_the_server_has(sprung: Sprung, name: str) -> None:
    _trap(sprung, name)
    with connect(sprung.dsn) as connection:
        assert archived_tables(sprung.archive, None, name) == _tables_of(connection, name)


def test_a_restore_gives_back_all_of_it(sprung: Sprung, database: str) -> None:
    restore(sprung.archive, database, Latest())
    assert live_rows(database) == live_rows(sprung.dsn)
