from __future__ import annotations

from dataclasses import dataclass, field

from waly_cdc.capture.shapes import Shapes
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion, StreamColumn, StreamRelation
from waly_cdc.source.catalog import Table, TableColumn


@dataclass
class Catalog:
    """What the catalog says now: names by attnum, `id` (the key) first."""

    names: dict[int, str] = field(default_factory=dict)

    def table(self, oid: int) -> Table | None:
        if not self.names:
            return None
        columns = tuple(
            TableColumn(attnum, name, 25, -1, "text", False, attnum == 1)
            for attnum, name in self.names.items()
        )
        return Table(oid, "public", "t", "d", "p", columns, {}, ("id",), True, 0, 0, True, True)


def stream(names: str) -> StreamRelation:
    columns = tuple(StreamColumn(name, 25, -1, name == "id") for name in names.split())
    return StreamRelation(1, "public", "t", "d", columns)


def stored(version: RelationVersion) -> dict[str, str]:
    return {column.name: column.stored for column in version.columns}


def test_a_renamed_column_keeps_its_stored_name() -> None:
    catalog = Catalog({1: "id", 2: "a"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id a"), Lsn(1))
    catalog.names = {1: "id", 2: "b"}
    assert stored(shapes.resolve(stream("id b"), Lsn(2))) == {"id": "id", "b": "a"}


def test_a_column_dropped_and_added_again_gets_another_stored_name() -> None:
    catalog = Catalog({1: "id", 2: "a", 3: "c"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id a c"), Lsn(1))
    catalog.names = {1: "id", 3: "c", 4: "a"}
    assert stored(shapes.resolve(stream("id c a"), Lsn(2)))["a"] != "a"


def test_several_changes_between_two_looks_mix_no_values() -> None:
    """The catalog already shows the last of them when the first is seen in the stream."""
    catalog = Catalog({1: "id", 2: "kept", 3: "gone"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id kept gone"), Lsn(1))
    catalog.names = {1: "id", 2: "renamed", 4: "added"}
    added = shapes.resolve(stream("id kept gone added"), Lsn(2))
    renamed = shapes.resolve(stream("id renamed gone added"), Lsn(3))
    dropped = shapes.resolve(stream("id renamed added"), Lsn(4))
    assert [column.attnum for column in added.columns] == [1, 2, 3, 4]
    assert [column.attnum for column in renamed.columns] == [1, 2, 3, 4]
    assert stored(dropped) == {"id": "id", "renamed": "kept", "added": "added"}
    assert dropped.key == ("id",)


def test_a_name_that_came_and_went_unseen_is_told_by_its_place() -> None:
    catalog = Catalog({1: "id", 2: "a", 3: "z"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id a z"), Lsn(1))
    catalog.names = {1: "id", 2: "c", 3: "z"}
    between = shapes.resolve(stream("id b z"), Lsn(2))
    assert stored(between) == {"id": "id", "b": "a", "z": "z"}


def test_of_a_table_that_is_gone_names_are_matched() -> None:
    catalog = Catalog({1: "id", 2: "a"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id a"), Lsn(1))
    catalog.names = {}
    version = shapes.resolve(stream("id a b"), Lsn(2))
    assert stored(version) == {"id": "id", "a": "a", "b": "b"}
    assert version.key == ("id",)


def test_a_name_that_has_gone_to_another_column_since_means_the_former_one() -> None:
    catalog = Catalog({1: "id", 2: "a", 3: "b"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id a b"), Lsn(1))
    catalog.names = {1: "id", 3: "b", 4: "c", 5: "a"}
    version = shapes.resolve(stream("id a b c"), Lsn(2))
    assert [column.attnum for column in version.columns] == [1, 2, 3, 4]
    assert stored(version) == {"id": "id", "a": "a", "b": "b", "c": "c"}


def test_a_new_column_that_is_renamed_before_anybody_looks_keeps_its_values() -> None:
    catalog = Catalog({1: "id"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id"), Lsn(1))
    catalog.names = {1: "id", 2: "later"}
    new = shapes.resolve(stream("id new"), Lsn(2))
    renamed = shapes.resolve(stream("id later"), Lsn(3))
    assert stored(renamed)["later"] == stored(new)["new"]


def test_a_new_column_that_is_dropped_before_anybody_looks_lends_its_name_to_none() -> None:
    catalog = Catalog({1: "id"})
    shapes = Shapes({}, catalog.table)
    shapes.resolve(stream("id"), Lsn(1))
    catalog.names = {1: "id", 3: "other"}
    gone = shapes.resolve(stream("id gone"), Lsn(2))
    other = shapes.resolve(stream("id other"), Lsn(3))
    assert stored(other)["other"] not in stored(gone).values()


def test_stored_names_keep_their_meaning_in_a_new_era() -> None:
    catalog = Catalog({1: "id", 2: "a", 3: "c"})
    first = Shapes({}, catalog.table)
    old = first.resolve(stream("id a c"), Lsn(900))
    # Another database has another table under that oid: its second column is called x.
    catalog.names = {1: "id", 2: "x", 3: "c", 4: "a"}
    second = Shapes({}, catalog.table, [{1: [old]}])
    new = second.resolve(stream("id x c a"), Lsn(10))
    assert new.version == 1
    assert stored(new) == {"id": "id", "x": "x", "c": "c", "a": "a_2"}
