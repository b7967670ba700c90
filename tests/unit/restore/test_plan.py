from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Baseline, File, SequenceValue
from waly_cdc.archive.store import LocalStore
from waly_cdc.errors import TargetError, UsageError
from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion
from waly_cdc.restore.dump import Item, Section
from waly_cdc.restore.plan import Plan, SchemaDump, read_dump
from waly_cdc.restore.plan import plan as plan_from
from waly_cdc.restore.schema import PG_CLASS

ID = Column("id", "id", "int32", 23, -1, "integer", True, 1)


def relation(oid: int, name: str, since: int = 99) -> RelationVersion:
    return RelationVersion(oid, 1, "public", name, "d", (ID,), ("id",), Lsn(since))


def table(oid: int, name: str, *, schema: str = "public", partitioned: bool = False) -> Item:
    return Item(
        oid, "TABLE", schema, name, Section.PRE_DATA, "create", PG_CLASS, oid, "", partitioned
    )


def events(oid: int, first: int, last: int, **ops: int) -> File:
    path = f"events/{oid}/{first}"
    kind = "baseline" if "R" in ops else "events"
    rows = sum(ops.values())
    return File(kind, path, "", 10, rows, Lsn(first), Lsn(last), oid=oid, version=1, ops=ops)


@pytest.fixture
def contents() -> Contents:
    """Two tables with a baseline at 100, one of them with two; a schema dump at 100."""
    return Contents(
        beginning=Lsn(100),
        horizon=Lsn(1000),
        files=[
            File("schema", "schema/100", "", 1, 0, Lsn(100), Lsn(100)),
            events(1, 99, 99, R=7),
            events(1, 150, 199, I=5, D=2),
            events(1, 499, 499, R=10),
            events(1, 500, 600, I=1),
            events(2, 99, 99, R=1),
        ],
        relations={1: [relation(1, "orders")], 2: [relation(2, "customers")]},
        baselines=[
            Baseline(1, 1, Lsn(100), 7),
            Baseline(1, 1, Lsn(500), 10),
            Baseline(2, 1, Lsn(100), 1),
        ],
        sequences=[
            (Lsn(100), (SequenceValue("public", "s", 1, False),)),
            (Lsn(700), (SequenceValue("public", "s", 9, True),)),
        ],
    )


ITEMS = [
    table(1, "orders"),
    table(2, "customers"),
    Item(9, "SEQUENCE", "public", "s", Section.PRE_DATA, "create", PG_CLASS, 9),
]


def plan(
    contents: Contents,
    items: list[Item] | None,
    bound: Lsn,
    time: None,
    tables: tuple[str, ...] | list[str] = (),
    dumped: int = 100,
) -> Plan:
    dump = None if items is None else SchemaDump(Lsn(dumped), Lsn(dumped), items)
    return plan_from(contents, dump, bound, time, tables)


def paths(planned: Plan, number: int = 0) -> set[str]:
    return {file.path for file in planned.tables[number].files}


def test_replay_starts_at_the_newest_baseline(contents: Contents) -> None:
    early, late = plan(contents, ITEMS, Lsn(300), None), plan(contents, ITEMS, Lsn(550), None)
    assert paths(early) == {"events/1/99", "events/1/150"}
    assert early.tables[0].rows == 7 + 5 - 2
    assert paths(late) == {"events/1/499", "events/1/500"}
    assert late.to_json()["tables"][0]["baseline"] == "0/1F4"


def test_files_after_the_point_are_not_read(contents: Contents) -> None:
    assert paths(plan(contents, ITEMS, Lsn(150), None)) == {"events/1/99"}


def test_sequences_are_those_that_are_made(contents: Contents) -> None:
    (value,) = plan(contents, ITEMS, Lsn(300), None).sequences
    assert value.last_value == 9
    assert plan(contents, ITEMS[:2], Lsn(300), None).sequences == ()


def test_a_table_that_was_dropped_before_does_not_come_back(contents: Contents) -> None:
    planned = plan(contents, ITEMS[1:], Lsn(300), None)
    assert [t.name.name for t in planned.tables] == ["customers"]


def test_the_name_is_the_one_of_that_time(contents: Contents) -> None:
    renamed = [table(1, "Old Orders", schema="app"), ITEMS[1]]
    planned = plan(contents, renamed, Lsn(300), None, ['app."Old Orders"'])
    assert [t.name.qualified_name for t in planned.tables] == ['app."Old Orders"']


def test_a_name_newer_than_the_dump_is_understood(contents: Contents) -> None:
    old = [table(1, "older"), ITEMS[1]]
    (planned,) = plan(contents, old, Lsn(300), None, ["orders"]).tables
    assert planned.name.name == planned.made_as.name == "older"


def test_a_table_gets_the_name_that_it_had_at_the_point(contents: Contents) -> None:
    after = replace(relation(1, "orders"), version=2, name="renamed", since=Lsn(400))
    contents.relations[1].append(after)
    (earlier, _) = plan(contents, ITEMS, Lsn(450), None).tables
    assert (earlier.made_as.name, earlier.name.name) == ("orders", "renamed")
    dumped_later = [table(1, "renamed"), ITEMS[1]]
    (later, _) = plan(contents, dumped_later, Lsn(300), None, dumped=500).tables
    assert (later.made_as.name, later.name.name) == ("renamed", "orders")


def test_only_the_tables_asked_for(contents: Contents) -> None:
    planned = plan(contents, ITEMS, Lsn(300), None, ["Public.ORDERS"])
    assert [t.name.name for t in planned.tables] == ["orders"]


def test_an_unknown_table_is_refused(contents: Contents) -> None:
    with pytest.raises(UsageError, match="nothing"):
        plan(contents, ITEMS, Lsn(300), None, ["nothing"])
    with pytest.raises(UsageError, match="did not exist"):
        plan(contents, ITEMS[1:], Lsn(300), None, ["orders"])


def test_an_ambiguous_name_is_refused(contents: Contents) -> None:
    items = [table(3, "orders", schema="b"), table(4, "orders", schema="a")]
    with pytest.raises(UsageError, match="several schemas") as caught:
        plan(contents, items, Lsn(300), None, ["orders"])
    assert caught.value.hint == "name one of: a.orders, b.orders"
    planned = plan(contents, [*items, ITEMS[0]], Lsn(300), None, ["orders"])
    assert planned.tables[0].name.schema == "public"


def test_what_the_archive_lacks_is_said(contents: Contents) -> None:
    items = [*ITEMS, table(3, "unlogged"), table(4, "parent", partitioned=True)]
    planned = plan(contents, items, Lsn(300), None)
    assert planned.left_out == ("rows of table public.unlogged: they are not in the archive",)


def test_a_table_that_no_dump_describes_is_made_from_its_relation_version(
    contents: Contents,
) -> None:
    contents.relations[5] = [relation(5, "newer", since=200)]
    planned = plan(contents, ITEMS, Lsn(300), None)
    assert [t.name.name for t in planned.tables] == ["orders", "customers", "newer"]
    assert "all of table public.newer but columns and key" in planned.left_out[0]
    schema = planned.required_schema()
    assert "create table public.newer (id integer);" in [s.sql for s in schema.before]
    assert "alter table public.newer add primary key (id);" in [s.sql for s in schema.after]


def test_a_later_dump_brings_no_later_tables(contents: Contents) -> None:
    contents.relations[5] = [relation(5, "newer", since=400)]
    key = Item(6, "CONSTRAINT", "public", "newer k", Section.POST_DATA, "alter", depends_on=(5,))
    planned = plan(contents, [*ITEMS, table(5, "newer"), key], Lsn(300), None, dumped=500)
    assert [t.name.name for t in planned.tables] == ["orders", "customers"]
    schema = planned.required_schema()
    assert {s.tag for s in (*schema.before, *schema.after)} == {"orders", "customers", "s"}


def test_a_table_that_a_later_dump_lacks_was_there_if_it_has_events_after(
    contents: Contents,
) -> None:
    planned = plan(contents, [], Lsn(300), None, dumped=900)
    assert [t.name.name for t in planned.tables] == ["orders"]


def test_the_dump_is_the_one_before_unless_a_shape_changed_since(
    contents: Contents, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    dump = (Path(__file__).parent / "postgres-17.dump").read_bytes()
    for lsn in (100, 400):
        store.put(f"schema/{lsn}", dump)
    contents.files.append(File("schema", "schema/400", "", 1, 0, Lsn(400), Lsn(420)))

    def chosen(bound: int) -> int:
        found = read_dump(store, contents, Lsn(bound))
        assert found is not None
        return found.lsn.value

    assert (chosen(300), chosen(410), chosen(420)) == (100, 100, 400)
    contents.relations[1].append(replace(relation(1, "orders"), version=2, since=Lsn(250)))
    assert (chosen(250), chosen(251), chosen(410)) == (100, 400, 400)


def test_without_a_schema_dump_only_files_can_be_made(contents: Contents) -> None:
    planned = plan(contents, None, Lsn(300), None)
    assert [t.name.name for t in planned.tables] == ["orders", "customers"]
    with pytest.raises(TargetError, match="no schema dump"):
        planned.required_schema()


def test_a_relation_not_yet_known_is_not_there(contents: Contents) -> None:
    contents.relations[2] = [replace(relation(2, "customers"), since=Lsn(400))]
    assert [t.name.name for t in plan(contents, None, Lsn(300), None).tables] == ["orders"]


def test_json(contents: Contents) -> None:
    data = plan(contents, ITEMS, Lsn(300), None, ["orders"]).to_json()
    assert data["at"] == {"era": 1, "lsn": "0/12C", "time": None}
    assert data["tables"] == [
        {
            "table": "public.orders",
            "rows_estimate": 10,
            "baseline": "0/64",
            "files": 2,
            "bytes": 20,
        }
    ]
