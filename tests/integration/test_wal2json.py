"""wal2json beside pgoutput: the same traffic gives the same archive, but for documented losses."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from tests.conftest import TestServer
from tests.debian import programs_with
from tests.integration.archived import archived_rows
from tests.integration.sample import PHOTOS, Beside, Sample, build, live_rows
from tests.integration.test_table_watch import CHANGES, SCHEMA
from tests.running import execute, running, wait_for
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.new_era import begin_era
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.capture.table_watch import DOUBTFUL
from waly_cdc.embedded import EmbeddedServer
from waly_cdc.errors import PointNotInArchive, SlotLost, SourceError, UsageError
from waly_cdc.history.session import identifier, session
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.lsn import Lsn
from waly_cdc.plugins import (
    MESSAGE_ZERO_BYTES,
    PGOUTPUT,
    SPECIAL_NUMBERS,
    TABLES_BY_NAME,
    WAL2JSON,
)
from waly_cdc.relations import RelationVersion
from waly_cdc.source import preflight

SPECIAL = {"NaN", "Infinity", "-Infinity"}
NUMBERS = {700, 701, 1700}

Event = dict[str, Any]


@pytest.fixture(scope="module")
def debian() -> Iterator[TestServer]:
    """A server that has wal2json."""
    bindir = programs_with("wal2json")
    settings = {"max_prepared_transactions": "10"}
    with EmbeddedServer.start(bindir=bindir, settings=settings) as embedded:
        yield TestServer(embedded.dsn(), embedded)


@dataclass(frozen=True)
class Archive:
    """An archive of the pair."""

    store: LocalStore
    contents: Contents

    @property
    def losses(self) -> tuple[str, ...]:
        assert self.contents.source is not None
        return self.contents.source.losses


@dataclass(frozen=True)
class Pair:
    """Archives of one database by both plugins."""

    sample: Sample
    pgoutput: Archive
    wal2json: Archive


@pytest.fixture(scope="module")
def pair(debian: TestServer) -> Iterator[Pair]:
    name = debian.create_database()
    folder = Path(tempfile.mkdtemp(prefix="waly-pair-"))
    try:
        beside = Beside(folder / "wal2json", "beside", WAL2JSON)
        sample = build(debian.dsn(name), folder / "pgoutput", beside)
        stores = [LocalStore(folder / plugin) for plugin in (PGOUTPUT, WAL2JSON)]
        yield Pair(sample, *(Archive(store, load(store)) for store in stores))
    finally:
        debian.drop_database(name)
        shutil.rmtree(folder, ignore_errors=True)


def _events(archive: Archive, pair: Pair) -> dict[tuple[int, int, int], Event]:
    """All events but those of baselines, by table and position."""
    found = {}
    for file in archive.contents.files:
        if file.kind == "events":
            assert file.oid is not None
            assert file.version is not None
            relation = archive.contents.relations[file.oid][file.version - 1]
            for row in pq.read_table(archive.store.path(file.path), partitioning=None).to_pylist():
                found[file.oid, row["_lsn"], row["_seq"]] = _event(pair, relation, row)
    return found


def _event(pair: Pair, relation: RelationVersion, row: dict[str, Any]) -> Event:
    """An event with its values under the names that their columns had."""
    raw = dict(row["_raw"] or ())
    names = {column.stored: column.name for column in relation.columns}

    def values(row: dict[str, Any] | None, prefix: str = "") -> dict[str, Any] | None:
        return row and {
            name: _without_special_numbers(
                pair, relation, raw.get(prefix + stored, row[stored]), name
            )
            for stored, name in names.items()
            if stored in row
        }

    return {
        "table": relation.qualified_name,
        "op": row["_op"],
        "xid": row["_xid"],
        "committed_at": row["_committed_at"],
        "values": values(row),
        "before": values(row.get("_before"), "_before."),
        "unchanged": sorted(names[stored] for stored in row["_unchanged"] or ()),
    }


def _transactions(archive: Archive) -> list[dict[str, Any]]:
    columns = ["lsn", "end_lsn", "xid", "committed_at", "events"]
    rows = [
        row
        for file in archive.contents.transaction_files()
        for row in pq.read_table(
            archive.store.path(file.path), columns=columns, partitioning=None
        ).to_pylist()
    ]
    return sorted(rows, key=lambda row: row["lsn"])


def _states(archive: Archive, pair: Pair, bound: Lsn) -> dict[str, list[tuple[str, ...]]]:
    """The rows, as texts, of every table that has a known state at the point."""
    found = {}
    with session() as connection:
        for oid in archive.contents.relations:
            relation = archive.contents.version_at(oid, bound)
            if relation is None:
                continue
            try:
                state = state_query(archive.contents, archive.store, relation, bound)
            except PointNotInArchive:
                continue
            texts = [f"{column_text(c)} as {identifier(c.stored)}" for c in relation.columns]
            query = f"select {', '.join(texts) or '1'} from ({state})"
            rows = connection.execute(query).fetchall()
            found[relation.qualified_name] = sorted(
                tuple(
                    str(_without_special_numbers(pair, relation, value, column.name))
                    for value, column in zip(row, relation.columns, strict=False)
                )
                for row in rows
            )
    return found


def _without_special_numbers(pair: Pair, relation: RelationVersion, value: Any, name: str) -> Any:
    """A value as the version at hand of wal2json gives it."""
    (column,) = [column for column in relation.columns if column.name == name]
    lost = SPECIAL_NUMBERS in pair.wal2json.losses and column.type_oid in NUMBERS
    return None if lost and str(value) in SPECIAL | {"nan", "inf", "-inf"} else value


def test_both_archives_have_the_same_events_but_for_special_numbers(pair: Pair) -> None:
    expected, found = _events(pair.pgoutput, pair), _events(pair.wal2json, pair)
    assert found == expected
    ops = {event["op"] for event in found.values()}
    assert ops == {"I", "U", "D", "T"}
    assert any(event["unchanged"] for event in found.values())
    assert any(event["op"] == "U" and event["before"] for event in found.values())


def test_the_losses_of_the_version_at_hand_are_recorded(pair: Pair, debian: TestServer) -> None:
    lost = {MESSAGE_ZERO_BYTES, TABLES_BY_NAME}
    with psycopg.connect(debian.admin_dsn) as connection:
        if connection.info.server_version < 160000:
            # Debian 12 has version 2.5.
            lost.add(SPECIAL_NUMBERS)
    assert set(pair.wal2json.losses) == lost
    assert pair.pgoutput.losses == ()


def test_both_archives_have_the_same_transactions(pair: Pair) -> None:
    assert _transactions(pair.wal2json) == _transactions(pair.pgoutput) != []


CHANGED_BETWEEN_LOOKS = {
    "public.audit",
    "public.doomed",
    "public.evolving",
    "public.gains_key",
    "public.key_moves",
    "public.loses_key",
    "public.newborn",
    "public.renamed_later",
    "public.renamed_now",
}
"""Tables that the sample makes, alters and drops between two runs."""


@pytest.mark.parametrize("photo", PHOTOS)
def test_both_archives_have_the_same_states_but_for_special_numbers(pair: Pair, photo: str) -> None:
    bound = pair.sample.photos[photo].lsn
    expected, found = _states(pair.pgoutput, pair, bound), _states(pair.wal2json, pair, bound)
    compared = expected.keys() & found.keys()
    # A gap ends with a baseline or look of its own in each archive; and where a shape changes,
    # pgoutput's events show it more narrowly.
    assert (expected.keys() ^ found.keys()) <= CHANGED_BETWEEN_LOOKS
    if SPECIAL_NUMBERS in pair.wal2json.losses:
        # Its rows are told apart by all of their values.
        compared -= {"public.bag"}
    for table in compared:
        assert found[table] == expected[table], table
    assert len(compared) > 15


@pytest.fixture
def settings(debian: TestServer, work_dir: Path) -> Iterator[CaptureSettings]:
    """A database of the test's own, captured by wal2json."""
    name = debian.create_database()
    execute(debian.dsn(name), SCHEMA)
    made = CaptureSettings(
        debian.dsn(name), work_dir / "archive", seal_interval=0.2, sample_interval=0
    )
    initialise(made, plugin=WAL2JSON)
    yield made
    debian.drop_database(name)


ALL_AT_ONCE = [
    statement
    for name, statements in CHANGES.items()
    if name != "moved to another schema"
    for statement in statements
]


def test_a_running_sidecar_follows_every_change_of_shape(settings: CaptureSettings) -> None:
    store = LocalStore(settings.archive)

    def caught_up() -> bool:
        contents = load(store)
        if any(gap.end is None for gap in contents.gaps):
            return False
        try:
            return archived_rows(settings) == live_rows(settings.dsn)
        except PointNotInArchive:
            return False

    with running(settings):
        execute(settings.dsn, *ALL_AT_ONCE)
        wait_for(caught_up)
    assert archived_rows(settings) == live_rows(settings.dsn)


NAMES_THAT_PASS = (
    "create table second (id int primary key, v text)",
    "insert into second values (1, 'of the second')",
    "update kept set v = 'of the first' where id = 1",
    "begin; alter table kept rename to middle; alter table second rename to kept;"
    " alter table middle rename to second; commit",
    "update kept set v = v || ', now kept'",
    "update second set v = v || ', now second' where id = 1",
)


def test_a_name_that_passes_to_another_table_is_a_gap_and_no_mixture(
    settings: CaptureSettings,
) -> None:
    with psycopg.connect(settings.dsn, autocommit=True) as connection:
        for number, statement in enumerate(NAMES_THAT_PASS):
            connection.execute(statement.encode())
            if number == 1:
                run(settings, once=True)
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)
    contents = load(LocalStore(settings.archive))
    reasons = [gap.reason for gap in contents.gaps]
    assert reasons.count(DOUBTFUL) == 2
    execute(settings.dsn, "update kept set v = 'later'", "delete from second where id > 3")
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_a_key_that_comes_after_updates_takes_a_new_baseline(settings: CaptureSettings) -> None:
    execute(
        settings.dsn,
        "create table keyless (id int not null, v text)",
        "insert into keyless values (1, 'a'), (2, 'b'), (3, 'c')",
    )
    run(settings, once=True)
    execute(
        settings.dsn,
        "update keyless set v = 'not sent' where id = 1",
        "delete from keyless where id = 2",
        "alter table keyless add primary key (id)",
        "update keyless set v = 'sent' where id = 3",
    )
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_values_of_every_kind_arrive_as_the_texts_they_are(settings: CaptureSettings) -> None:
    execute(
        settings.dsn,
        'create schema "My S"',
        """create type "My S"."mo,od" as enum ('a"b', 'c')""",
        """create table "My S"."t""x" (id int primary key, e "My S"."mo,od", es "My S"."mo,od"[],
           c "char", big numeric, b bytea, t text, ok boolean, o oid, i interval year)""",
        """insert into "My S"."t""x" values (1, 'a"b', '{c}', 'x', repeat('9', 6000)::numeric,
           '\\x00ff', E'\\t\\x01\\x7f"\\\\u0041\\\\', false, 4294967295, '3 years')""",
        """insert into "My S"."t""x" (id) values (2)""",
        """update "My S"."t""x" set ok = true, t = '' where id = 1""",
    )
    run(settings, once=True)
    assert archived_rows(settings) == live_rows(settings.dsn)
    contents = load(LocalStore(settings.archive))
    (versions,) = [v for v in contents.relations.values() if v[-1].schema == "My S"]
    assert len(versions) == 1


def test_a_dropped_column_is_gone_though_only_updates_follow(settings: CaptureSettings) -> None:
    execute(settings.dsn, "alter table kept add column w text", "update kept set w = 'w'")
    run(settings, once=True)
    execute(settings.dsn, "alter table kept drop column v")
    run(settings, once=True)
    with running(settings):
        # Looks come with the sidecar; the update is after one that has missed the column.
        store = LocalStore(settings.archive)
        before = load(store).looked_at
        wait_for(lambda: _touched(settings.dsn) and load(store).looked_at > before)
        wait_for(lambda: archived_rows(settings) == live_rows(settings.dsn))


def _touched(dsn: str) -> bool:
    execute(dsn, "update kept set w = w || '.' where id = 1")
    return True


def test_an_archive_keeps_its_plugin(settings: CaptureSettings) -> None:
    initialise(settings, if_not_exists=True)
    initialise(settings, if_not_exists=True, plugin=WAL2JSON)
    with pytest.raises(UsageError, match="captured by wal2json"):
        initialise(settings, if_not_exists=True, plugin=PGOUTPUT)


def test_after_a_lost_slot_a_new_era_goes_on_with_the_same_plugin(
    settings: CaptureSettings,
) -> None:
    execute(
        settings.dsn,
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        " where database = current_database()",
    )
    with pytest.raises(SlotLost):
        run(settings, once=True)
    begin_era(settings)
    execute(settings.dsn, "insert into doomed values (2)")
    run(settings, once=True)
    contents = load(LocalStore(settings.archive))
    assert contents.source is not None
    assert (contents.era, contents.source.plugin) == (2, WAL2JSON)
    assert archived_rows(settings) == live_rows(settings.dsn)


def test_messages_name_the_actor(settings: CaptureSettings) -> None:
    execute(
        settings.dsn,
        "begin; select pg_logical_emit_message(true, 'waly', '{\"user\": \"ann\"}');"
        " insert into doomed values (2); commit",
        "begin; insert into doomed values (3); prepare transaction 'p'",
        "commit prepared 'p'",
    )
    run(settings, once=True)
    store = LocalStore(settings.archive)
    (path,) = [store.path(file.path) for file in load(store).transaction_files()]
    rows = pq.read_table(path, partitioning=None).to_pylist()
    assert [row["actor_source"] for row in rows] == ["message", "unknown"]
    assert rows[0]["actor_user"] == "ann"


def test_with_chosen_tables_the_others_are_left_alone(debian: TestServer, work_dir: Path) -> None:
    name = debian.create_database()
    try:
        chosen = CaptureSettings(debian.dsn(name), work_dir / "archive", sample_interval=0)
        execute(chosen.dsn, SCHEMA)
        initialise(chosen, plugin=WAL2JSON, tables=["kept"])
        execute(
            chosen.dsn,
            "insert into doomed values (2)",
            "create table newborn (id int primary key)",
            "insert into newborn values (1)",
            "alter table kept rename to still_kept",
            "update still_kept set v = 'u' where id = 1",
        )
        run(chosen, once=True)
        assert list(archived_rows(chosen)) == ["public.still_kept"]
        live = live_rows(chosen.dsn)["public.still_kept"]
        assert archived_rows(chosen) == {"public.still_kept": live}
    finally:
        debian.drop_database(name)


def test_a_database_that_is_not_in_utf8_is_refused(debian: TestServer, work_dir: Path) -> None:
    name = "latin"
    with psycopg.connect(debian.admin_dsn, autocommit=True) as connection:
        connection.execute("create database latin template template0 encoding 'LATIN1'")
    try:
        with pytest.raises(SourceError, match="LATIN1"):
            initialise(CaptureSettings(debian.dsn(name), work_dir / "archive"), plugin=WAL2JSON)
        found = preflight.check(debian.dsn(name), None, plugin=WAL2JSON)
        assert [f.severity for f in found if f.id == "plugin_encoding"] == ["fail"]
    finally:
        debian.drop_database(name)


def test_check_names_the_losses_of_the_version_at_hand(pair: Pair) -> None:
    found = preflight.check(pair.sample.dsn, None, plugin=WAL2JSON)
    losses = {f.subject for f in found if f.id == "plugin_loss" and f.severity == "warn"}
    assert losses == set(pair.wal2json.losses)
    assert [f.severity for f in found if f.id == "plugin_installed"] == ["pass"]
    assert not [f for f in found if f.id == "publication"]
    told = "\n".join(f.subject for f in found if f.id == "special_numbers")
    assert ("public.bag (f, n)" in told) == (SPECIAL_NUMBERS in losses)


def test_a_plugin_that_is_not_there_blocks(database: str) -> None:
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "select (pg_stat_file(setting || '/wal2json.so', true)).size is null"
            " from pg_config() where name = 'PKGLIBDIR'"
        ).fetchone()
    found = preflight.check(database, None, plugin=WAL2JSON)
    (finding,) = [f for f in found if f.id == "plugin_installed"]
    assert row is not None
    assert finding.severity == ("fail" if row[0] else "pass")
