from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psycopg
import pytest
from psycopg import conninfo, sql

from tests.conftest import TestServer
from tests.integration.sample import PHOTOS, Rows, Sample, live_rows, table_rows
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.embedded import find_program
from waly_cdc.errors import ArchiveCorrupt, PointNotInArchive, TargetError, UsageError
from waly_cdc.history.moment import resolve
from waly_cdc.lsn import Lsn
from waly_cdc.points import AtLsn, Latest, When
from waly_cdc.restore.files import restore_duckdb
from waly_cdc.restore.plan import Plan, plan_restore
from waly_cdc.restore.postgres import restore_postgres
from waly_cdc.restore.result import RestoreResult
from waly_cdc.restore.rows import Rows as StateRows
from waly_cdc.restore.target import MARKER, ORIGIN
from waly_cdc.source.connect import connect

UNLOGGED = "rows of table public.unlogged_one: they are not in the archive"


def planned(archive: Path, when: When, *tables: str) -> Plan:
    store = LocalStore(archive)
    contents = load(store)
    return plan_restore(store, contents, resolve(contents, store, when), tables)


def restore(
    archive: Path, dsn: str, when: When, *tables: str, force: bool = False
) -> RestoreResult:
    store = LocalStore(archive)
    with StateRows(store, load(store)) as rows:
        return restore_postgres(rows, planned(archive, when, *tables), dsn, force=force)


def restore_file(archive: Path, path: Path, when: When, *tables: str) -> RestoreResult:
    store = LocalStore(archive)
    with StateRows(store, load(store)) as rows:
        return restore_duckdb(rows, planned(archive, when, *tables), path)


def query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with connect(dsn) as connection:
        return connection.execute(statement.encode()).fetchall()


def differences(expected: Rows, found: Rows) -> dict[str, tuple[list[str], list[str]]]:
    """Per table the rows of one side only; a table that one side lacks has none there."""
    return {
        name: (
            [row[:200] for row in expected.get(name, []) if row not in found.get(name, [])],
            [row[:200] for row in found.get(name, []) if row not in expected.get(name, [])],
        )
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    }


@pytest.fixture
def owned(server: TestServer) -> Iterator[str]:
    """A database, as its owner who has no other privilege."""
    role, name = "waly_restore_owner", server.create_database()
    with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        admin.execute(
            sql.SQL("alter database {} owner to {}").format(
                sql.Identifier(name), sql.Identifier(role)
            )
        )
        yield conninfo.make_conninfo(server.dsn(name), user=role)
        server.drop_database(name)
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


CHANGED_BETWEEN_LOOKS = {
    "public.newborn",
    "public.evolving",
    "public.doomed",
    "public.renamed_later",
}
"""Tables that the sample makes, alters and drops between two runs."""


@pytest.mark.parametrize("name", PHOTOS)
def test_a_restore_equals_a_snapshot_copied_at_that_lsn(
    sample: Sample, database: str, name: str
) -> None:
    photo = sample.photos[name]
    result = restore(sample.archive, database, AtLsn(photo.lsn))
    found = live_rows(database)
    dropped = found.keys() - photo.rows.keys()
    contents = load(LocalStore(sample.archive))
    unknown = {
        contents.relations[gap.oid][0].qualified_name
        for gap in contents.gaps
        if gap.holds(photo.lsn) and photo.rows.get(contents.relations[gap.oid][0].qualified_name)
    }
    assert unknown <= CHANGED_BETWEEN_LOOKS
    assert (
        differences(
            {k: v for k, v in photo.rows.items() if k not in unknown},
            {k: v for k, v in found.items() if k not in dropped | unknown},
        )
        == {}
    )
    dropped -= unknown
    # Nothing tells when exactly a table is dropped, so it is there until the next schema dump.
    assert dropped <= {"public.doomed", "public.renamed_now"}
    # Their rows are known again from a new baseline or a new look on.
    assert all(any(table in what for what in result.left_out) for table in unknown)
    notes = [what for what in result.left_out if what != UNLOGGED and "are not known" not in what]
    if dropped or name == "amid change of shape":
        # The schema is from a later dump: constraints of then are not those of the point.
        notes = [n for n in notes if "public.doomed" not in n and "gains_key_pkey" not in n]
    assert notes == []
    assert dict(result.tables)["public.docs"] == len(photo.rows["public.docs"])


def test_a_restore_to_latest_equals_the_live_database(sample: Sample, database: str) -> None:
    result = restore(sample.archive, database, Latest())
    assert differences(live_rows(sample.dsn), live_rows(database)) == {}
    assert schema_of(database) == schema_of(sample.dsn)
    assert result.lsn == load(LocalStore(sample.archive)).horizon
    assert query(database, "select count(*) from public.customer_names") == [(1,)]


def schema_of(dsn: str) -> str:
    """What pg_dump says of a database, but for what is never restored."""
    program = find_program("pg_dump")
    assert program is not None
    options = ["--schema-only", "--no-owner", "--no-privileges", "--no-publications"]
    done = subprocess.run([program, *options, dsn], capture_output=True, text=True, check=True)
    return re.sub(r"(?m)^(\\(un)?restrict .*|--.*|)\n", "", done.stdout)


def test_the_stream_of_the_target_tells_that_it_was_a_restore(
    sample: Sample, database: str
) -> None:
    name = conninfo.conninfo_to_dict(database)["dbname"]
    with connect(database) as connection:
        connection.execute("create publication p for all tables with (publish = 'insert')")
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        restore(sample.archive, database, AtLsn(sample.photos["churn"].lsn), "docs", "bag")
        rows = connection.execute(
            "select data from pg_logical_slot_get_binary_changes(%s, null, null,"
            " 'proto_version', '1', 'publication_names', 'p')",
            (name,),
        ).fetchall()
    transactions = b"\n".join(data for (data,) in rows if data[:1] in b"BOI").split(b"\nB")
    loading = [messages for messages in transactions if b"\nI" in messages]
    assert loading
    assert all(ORIGIN.encode() in messages.partition(b"\nI")[0] for messages in loading)


def test_sequences_never_give_a_used_value_again(sample: Sample, database: str) -> None:
    restore(sample.archive, database, AtLsn(sample.photos["churn"].lsn))
    with connect(database) as connection:
        connection.execute("insert into public.customers (name) values ('new')")
        connection.execute("insert into public.orders (customer_id) values (1)")
    (free,) = query(database, "select nextval('public.counter')")
    photo = sample.photos["churn"]
    used = max(int(row[1:-1].rpartition(",")[2] or 0) for row in photo.rows["public.orders"])
    assert int(str(free[0])) > used > 100


def test_triggers_come_back_and_have_not_fired(sample: Sample, database: str) -> None:
    photo = sample.photos["churn"]
    restore(sample.archive, database, AtLsn(photo.lsn))
    with connect(database) as connection:
        assert table_rows(connection, "public", "audit") == photo.rows["public.audit"]
        connection.execute("update public.orders set number = 1 where id = 1")
        after = table_rows(connection, "public", "audit")
    assert len(after) == len(photo.rows["public.audit"]) + 1


def test_an_owner_who_is_no_superuser_can_restore(sample: Sample, owned: str) -> None:
    photo = sample.photos["traps"]
    result = restore(sample.archive, owned, AtLsn(photo.lsn))
    assert differences(photo.rows, live_rows(owned)) == {}
    assert result.left_out[0] == UNLOGGED
    (event_trigger, origin) = result.left_out[1:]
    assert "event trigger drops_noted: permission denied" in event_trigger
    assert "replication origin" in origin


def test_one_table_comes_with_what_belongs_to_it(sample: Sample, database: str) -> None:
    photo = sample.photos["traps"]
    result = restore(sample.archive, database, AtLsn(photo.lsn), "order_items")
    assert live_rows(database) == {"public.order_items": photo.rows["public.order_items"]}
    assert [table for table, _ in result.tables] == ["public.order_items"]
    indexes = query(database, "select indexname from pg_indexes where schemaname = 'public'")
    assert {str(name) for (name,) in indexes} == {"order_items_pkey", "order_items_product"}
    assert "fk constraint public.order_items order_items_order_id_fkey" in result.left_out
    assert any("order_totals" in what for what in result.left_out)


def test_a_foreign_key_is_kept_where_both_tables_are_restored(
    sample: Sample, database: str
) -> None:
    when = AtLsn(sample.photos["traps"].lsn)
    restore(sample.archive, database, when, "order_items", "orders")
    keys = query(database, "select conname from pg_constraint where contype = 'f'")
    assert keys == [("order_items_order_id_fkey",)]
    (ahead,) = query(
        database, "select nextval('public.orders_id_seq') > max(id) from public.orders"
    )
    assert ahead == (True,)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ('"Weird Name"."Täble.x"', {"Weird Name.Täble.x"}),
        ("parts", {"public.parts_01", "public.parts_02", "public.parts_rest"}),
        ("types", {"public.types"}),
        ("no_columns", {"public.no_columns"}),
    ],
)
def test_a_single_table_of_any_kind(
    sample: Sample, database: str, table: str, names: set[str]
) -> None:
    photo = sample.photos["churn"]
    restore(sample.archive, database, AtLsn(photo.lsn), table)
    assert live_rows(database) == {name: photo.rows[name] for name in names}


def test_a_duckdb_file_holds_the_same_values(sample: Sample, work_dir: Path) -> None:
    photo = sample.photos["traps"]
    path = work_dir / "state.duckdb"
    result = restore_file(sample.archive, path, AtLsn(photo.lsn))
    with duckdb.connect(str(path), read_only=True) as connection:
        counted = {
            table: connection.execute(f"select count(*) from {quoted(table)}").fetchall()[0][0]
            for table in photo.rows
            if table != "public.no_columns"
        }
        moments = connection.execute(
            """select "at", note from public.moments where note = 'later'"""
        ).fetchall()
        bag = connection.execute("select count(*) from public.bag where a = 7").fetchall()
        strange = connection.execute('select "É", "day" from "Weird Name"."Täble.x"').fetchall()
    assert counted == {t: len(rows) for t, rows in photo.rows.items() if t != "public.no_columns"}
    assert moments == [("infinity", "later")]
    assert bag == [(4,)]
    assert [str(value) for value in strange[0]] == ["É", "2026-01-01"]
    assert "table public.no_columns: DuckDB has no tables without columns" in result.left_out
    assert [p.name for p in work_dir.iterdir()] == ["state.duckdb"]


def quoted(table: str) -> str:
    schema, _, name = table.partition(".")
    return f'"{schema}"."{name}"'


def test_a_duckdb_file_is_not_overwritten(sample: Sample, work_dir: Path) -> None:
    path = work_dir / "state.duckdb"
    path.write_bytes(b"mine")
    with pytest.raises(TargetError, match="exists already") as caught:
        restore_file(sample.archive, path, Latest())
    assert "--force" in (caught.value.hint or "")
    assert path.read_bytes() == b"mine"
    with pytest.raises(TargetError, match="no folder"):
        restore_file(sample.archive, work_dir / "no" / "x.duckdb", Latest())


def test_a_target_that_is_not_empty_is_refused(sample: Sample, database: str) -> None:
    with connect(database) as connection:
        connection.execute("create table public.precious as select 1 as id")
    with pytest.raises(TargetError, match=r"not empty: table public\.precious") as caught:
        restore(sample.archive, database, Latest())
    assert "--force" in (caught.value.hint or "")
    assert list(live_rows(database)) == ["public.precious"]
    restore(sample.archive, database, Latest(), force=True)
    assert live_rows(database)["public.precious"] == ["(1)"]
    assert differences(live_rows(sample.dsn), live_rows(database)).keys() == {"public.precious"}


def test_force_never_replaces_a_table(sample: Sample, database: str) -> None:
    with connect(database) as connection:
        connection.execute("create table public.docs (mine int)")
    with pytest.raises(TargetError, match=r"table public\.docs"):
        restore(sample.archive, database, Latest(), force=True)
    assert live_rows(database) == {"public.docs": []}


def test_a_restore_that_fails_half_way_says_that_the_target_is_not_whole(
    sample: Sample, database: str
) -> None:
    with connect(database) as connection:
        connection.execute(
            "create function public.refuse() returns event_trigger language plpgsql as"
            " $$ begin raise exception 'no indexes here'; end $$;"
            "create event trigger refuse on ddl_command_end when tag in ('CREATE INDEX')"
            " execute function public.refuse()"
        )
    with pytest.raises(TargetError, match=r"no indexes here.*not whole"):
        restore(sample.archive, database, Latest(), force=True)
    (marked,) = query(database, f"select to_regnamespace('{MARKER}') is not null")
    assert marked == (True,)
    with pytest.raises(TargetError, match="did not finish"):
        restore(sample.archive, database, Latest(), force=True)


def test_an_error_outside_the_target_leaves_the_mark_too(sample: Sample, database: str) -> None:
    store = LocalStore(sample.archive)

    def interrupt(_table: str, _rows: int) -> None:
        raise KeyboardInterrupt

    with StateRows(store, load(store)) as rows, pytest.raises(KeyboardInterrupt):
        restore_postgres(rows, planned(sample.archive, Latest()), database, on_rows=interrupt)
    (marked,) = query(database, f"select to_regnamespace('{MARKER}') is not null")
    assert marked == (True,)


def test_a_connection_that_breaks_half_way_is_one_clear_line(
    sample: Sample, server: TestServer, database: str
) -> None:
    name = str(conninfo.conninfo_to_dict(database)["dbname"])

    def cut(_table: str, _rows: int) -> None:
        with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,)
            )

    store = LocalStore(sample.archive)
    with (
        StateRows(store, load(store)) as rows,
        pytest.raises(TargetError, match=r"^target: [^\n]*; the target is not whole") as caught,
    ):
        restore_postgres(rows, planned(sample.archive, Latest()), database, on_rows=cut)
    assert caught.value.hint is not None


def test_a_schema_alone_has_no_rows(sample: Sample, database: str) -> None:
    store = LocalStore(sample.archive)
    with StateRows(store, load(store)) as rows:
        result = restore_postgres(
            rows, planned(sample.archive, Latest()), database, schema_only=True
        )
    assert result.tables == ()
    assert schema_of(database) == schema_of(sample.dsn)
    assert not any(live_rows(database).values())


def test_unknown_tables_and_points_are_refused(sample: Sample) -> None:
    with pytest.raises(UsageError, match="nothing"):
        planned(sample.archive, Latest(), "nothing")
    with pytest.raises(UsageError, match="newborn"):
        planned(sample.archive, AtLsn(sample.photos["baseline"].lsn), "newborn")
    horizon = load(LocalStore(sample.archive)).horizon
    for outside in (Lsn(16), horizon + 1):
        with pytest.raises(PointNotInArchive):
            planned(sample.archive, AtLsn(outside))


def test_an_unreachable_target_is_refused_without_its_password(sample: Sample) -> None:
    dsn = "host=127.0.0.1 port=1 dbname=x user=x password=hunter2"
    with pytest.raises(TargetError, match=r"^target: ") as caught:
        restore(sample.archive, dsn, Latest())
    assert "hunter2" not in f"{caught.value.message}{caught.value.hint}"


def test_a_plan_touches_nothing_and_says_what_there_will_be(sample: Sample) -> None:
    photo = sample.photos["truncated"]
    data = planned(sample.archive, AtLsn(photo.lsn)).to_json()
    estimates = {table["table"]: table["rows_estimate"] for table in data["tables"]}
    assert estimates["public.types"] == len(photo.rows["public.types"])
    assert [what for what in data["left_out"] if "are not known" not in what] == [UNLOGGED]
    assert data["at"]["lsn"] == str(photo.lsn)


def test_a_missing_file_of_the_archive_stops_a_restore(
    sample: Sample, database: str, work_dir: Path
) -> None:
    archive = work_dir / "archive"
    subprocess.run(["cp", "-r", sample.archive, archive], check=True)
    next(archive.glob("events/public.types~*/*/*.parquet")).unlink()
    with pytest.raises(ArchiveCorrupt) as caught:
        restore(archive, database, Latest(), "types")
    assert caught.value.hint == "run: waly verify"
