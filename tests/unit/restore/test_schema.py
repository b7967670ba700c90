from __future__ import annotations

from pathlib import Path

import pytest

from waly_cdc.restore.dump import Item, Section, read_items
from waly_cdc.restore.schema import (
    PG_CLASS,
    Schema,
    partitions_of,
    some_tables,
    table_items,
    whole,
)

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[14, 15, 16, 17, 18])
def items(request: pytest.FixtureRequest) -> list[Item]:
    return read_items((HERE / f"postgres-{request.param}.dump").read_bytes())


def chosen(items: list[Item], *names: str) -> Schema:
    oids = {table.oid for table in table_items(items) if table.name in names}
    return some_tables(items, partitions_of(items, oids))


def what(schema: Schema) -> set[str]:
    return {statement.what for statement in schema.before + schema.after}


def test_the_whole_database_has_everything_but_privileges(items: list[Item]) -> None:
    schema = whole(items)
    made = what(schema)
    assert {"view app.totals", "sequence app.lonely", "policy app.orders everyone"} <= made
    assert not any(name.startswith(("acl", "database", "searchpath")) for name in made)
    assert {table.name for table in schema.tables} >= {"orders", "customers", "parts_2026"}
    assert ("app", "lonely") in schema.sequences


def test_rows_come_between_tables_and_constraints(items: list[Item]) -> None:
    schema = whole(items)
    before = {statement.kind for statement in schema.before}
    after = {statement.kind for statement in schema.after}
    assert {"TABLE", "TABLE ATTACH", "DEFAULT", "TYPE", "EXTENSION"} <= before
    assert {"CONSTRAINT", "FK CONSTRAINT", "INDEX", "TRIGGER", "POLICY"} <= after
    assert not before & after - {"COMMENT"}


def test_materialized_views_are_filled_after_the_indexes(items: list[Item]) -> None:
    last = whole(items).after[-1]
    assert last.sql == "REFRESH MATERIALIZED VIEW app.stored;"
    assert last.optional


def test_schemas_are_made_only_where_they_are_missing() -> None:
    item = Item(1, "SCHEMA", "", 'pub"lic', Section.PRE_DATA, "CREATE SCHEMA x;\n")
    (statement,) = whole([item]).before
    assert statement.sql == 'CREATE SCHEMA IF NOT EXISTS "pub""lic";'


def test_a_table_brings_what_it_depends_on(items: list[Item]) -> None:
    schema = chosen(items, "customers")
    made = what(schema)
    assert {"schema app", "type app.mood", "function app.code()"} <= made
    assert {"sequence app.customers_id_seq", "trigger app.customers touch"} <= made
    assert "function app.touch()" in made
    assert not any("orders" in name for name in made)
    assert schema.sequences == {("app", "customers_id_seq")}
    assert schema.left_out == ()


def test_a_foreign_key_needs_both_sides(items: list[Item]) -> None:
    key = "fk constraint app.orders orders_customer_fkey"
    alone = chosen(items, "orders")
    assert key not in what(alone)
    assert key in alone.left_out
    assert {"view app.totals", "materialized view app.stored"} <= set(alone.left_out)
    assert key in what(chosen(items, "orders", "customers"))


def test_a_table_keeps_its_own_parts(items: list[Item]) -> None:
    made = what(chosen(items, "orders"))
    assert {"index app.orders_total", "comment app.TABLE orders", "extension hstore"} <= made
    assert {"default app.orders id", "sequence owned by app.orders_id_seq"} <= made
    assert "policy app.orders everyone" in made


def test_a_partition_brings_its_parent_and_a_parent_its_partitions(items: list[Item]) -> None:
    for name in ("parts", "parts_2026"):
        made = what(chosen(items, name))
        assert {"table public.parts", "table attach public.parts_2026"} <= made
    assert {table.name for table in chosen(items, "parts").tables} == {"parts", "parts_2026"}
    assert {table.name for table in chosen(items, "parts_2026").tables} == {"parts_2026"}


def test_a_table_made_only_for_another_is_reported() -> None:
    parent = Item(1, "TABLE", "s", "a", Section.PRE_DATA, "create", PG_CLASS, 10, "heap")
    child = Item(
        2, "TABLE", "s", "b", Section.PRE_DATA, "create", PG_CLASS, 11, "heap", depends_on=(1,)
    )
    schema = some_tables([parent, child], {11})
    assert what(schema) == {"table s.a", "table s.b"}
    assert schema.left_out == ("rows of table s.a",)


def test_another_access_method_is_asked_for() -> None:
    item = Item(1, "TABLE", "s", "a", Section.PRE_DATA, "create", PG_CLASS, 10, 'Co"l')
    (statement,) = whole([item]).before
    assert statement.sql.startswith('set default_table_access_method = "Co""l";\n')
    assert statement.sql.endswith("set default_table_access_method = heap;")


def test_passwords_of_user_mappings_stay_out() -> None:
    item = Item(1, "USER MAPPING", "", "USER MAPPING x", Section.PRE_DATA, "create … password")
    schema = whole([item])
    assert not schema.before
    assert schema.left_out == ("user mapping USER MAPPING x",)
