from __future__ import annotations

from dataclasses import replace

from waly_cdc.lsn import Lsn
from waly_cdc.relations import Column, RelationVersion
from waly_cdc.restore.fit import Fitted, TargetColumn, fit, made_from_version
from waly_cdc.restore.schema import TableItem

TABLE = TableItem(1, "public", "t")


def column(name: str, attnum: int, *, stored: str = "", type_name: str = "text") -> Column:
    return Column(name, stored or name, "text", 25, -1, type_name, attnum == 1, attnum)


def version(number: int, *columns: Column) -> RelationVersion:
    return RelationVersion(1, number, "public", "t", "d", columns, ("a",), Lsn(number * 100))


def fitted(
    wanted: RelationVersion,
    *others: RelationVersion,
    present: str,
    dumped_later: bool = False,
) -> Fitted:
    columns = [TargetColumn(name, "text") for name in present.split()]
    versions = sorted((wanted, *others), key=lambda v: v.version)
    return fit(TABLE, wanted, versions, columns, dumped_later=dumped_later)


A, B, C = column("a", 1), column("b", 2), column("c", 3)


def test_a_table_that_fits_is_left_alone() -> None:
    assert fitted(version(1, A, B), present="a b") == Fitted((), ())


def test_a_column_that_the_dump_does_not_know_is_added_and_said() -> None:
    found = fitted(version(2, A, B, C), version(1, A, B), present="a b")
    assert found.actions == ("add column c text",)
    assert "public.t.c: its default" in found.left_out[0]


def test_a_renamed_column_is_renamed_whichever_name_the_dump_has() -> None:
    before = version(1, A, column("Old", 2, stored="b"))
    after = version(2, A, column("b", 2))
    assert fitted(after, before, present="a Old").actions == ('rename column "Old" to b',)
    later = fitted(before, after, present="a b", dumped_later=True)
    assert later.actions == ('rename column b to "Old"',)


def test_a_column_that_was_dropped_or_added_since_is_dropped() -> None:
    before, after = version(1, A, B), version(2, A, C)
    assert fitted(after, before, present="a b c").actions == ("drop column b cascade",)
    assert fitted(before, after, present="a b c", dumped_later=True).actions == (
        "drop column c cascade",
    )


def test_a_column_without_any_event_is_kept() -> None:
    """It has its default in every row, or is NULL."""
    assert fitted(version(1, A, B), present="a b never_written").actions == ()
    assert fitted(version(1, A), version(2, A, B), present="a b").actions == ()


def test_generated_columns_are_none_of_our_business() -> None:
    columns = [TargetColumn("a", "text"), TargetColumn("g", "text", generated=True)]
    assert fit(TABLE, version(1, A), [version(1, A)], columns, dumped_later=False).actions == ()


def test_a_built_in_type_that_changed_is_changed() -> None:
    wide = replace(B, type_oid=20, storage="int64", type_name="bigint")
    found = fitted(version(1, A, wide), present="a b")
    assert found.actions == ("alter column b type bigint using null::bigint",)
    own = replace(B, type_oid=99999, type_name="public.mood")
    assert fitted(version(1, A, own), present="a b").actions == ()


def test_a_table_is_made_from_its_version() -> None:
    odd = replace(column("Order", 2), storage="decimal(10,2)", type_name="")
    (schema, table), (key,) = made_from_version(version(1, A, odd))
    assert schema.sql == "create schema if not exists public;"
    assert table.sql == 'create table public.t (a text, "Order" numeric(10,2));'
    assert key.sql == "alter table public.t add primary key (a);"
    assert made_from_version(replace(version(1, A), key=()))[1] == []
