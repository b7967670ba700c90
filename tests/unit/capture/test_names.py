from __future__ import annotations

from waly_cdc.capture.names import TableNames
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion
from waly_cdc.source.catalog import Table, TableColumn


def table(oid: int, name: str, attnums: tuple[int, ...] = (1,), generated: str = "") -> Table:
    columns = tuple(TableColumn(n, f"c{n}", 25, -1, "text", False, n == 1) for n in attnums)
    beside = {9: generated} if generated else {}
    return Table(oid, "s", name, "d", "p", columns, beside, ("c1",), True, 0, 0, True, True)


def version(oid: int, name: str, since: int) -> RelationVersion:
    return RelationVersion(oid, 1, "s", name, "d", (), (), Lsn(since))


def look(names: TableNames, lsn: int, *tables: Table) -> set[int]:
    return names.look(tables, lambda: Lsn(lsn))


def test_a_name_is_the_last_holders_until_a_look_shows_another() -> None:
    names = TableNames([version(1, "a", 5)])
    assert look(names, 100, table(2, "a")) == {1, 2}
    assert names.oid_at(("s", "a"), Lsn(99)) == 1
    assert names.oid_at(("s", "a"), Lsn(100)) == 2
    assert look(names, 200, table(2, "a")) == set()


def test_tables_that_exchange_their_names_are_both_in_doubt() -> None:
    names = TableNames([version(1, "a", 5), version(2, "b", 5)])
    assert look(names, 100, table(2, "a"), table(1, "b")) == {1, 2}
    assert [names.oid_at(("s", name), Lsn(150)) for name in "ab"] == [2, 1]


def test_a_new_name_has_always_been_its_tables() -> None:
    names = TableNames([version(1, "a", 5)])
    assert look(names, 100, table(1, "renamed")) == set()
    assert names.oid_at(("s", "renamed"), Lsn(7)) == 1
    assert names.oid_at(("s", "a"), Lsn(7)) == 1
    assert names.oid_at(("s", "unknown"), Lsn(7)) is None


def test_of_two_tables_the_younger_shape_has_the_name() -> None:
    names = TableNames([version(2, "a", 50), version(1, "a", 5)])
    assert names.oid_at(("s", "a"), Lsn(60)) == 2


def test_a_column_is_gone_from_the_look_on_that_misses_it() -> None:
    names = TableNames([])
    look(names, 100, table(1, "a", (1, 2, 3)))
    look(names, 200, table(1, "a", (1, 3)))
    assert names.columns_at(1, Lsn(99)) is None
    assert names.columns_at(1, Lsn(199)) == {1, 2, 3}
    assert names.columns_at(1, Lsn(200)) == {1, 3}


def test_a_column_that_is_no_longer_generated_is_a_doubt() -> None:
    names = TableNames([])
    assert look(names, 100, table(1, "a", generated="g")) == set()
    assert names.generated(1) == {9: "g"}
    assert look(names, 200, table(1, "a", (1, 9))) == {1}
