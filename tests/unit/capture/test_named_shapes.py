from __future__ import annotations

from dataclasses import dataclass, field, replace

from waly_cdc.capture.named_shapes import NamedShapes
from waly_cdc.capture.names import TableNames
from waly_cdc.capture.shapes import Shapes
from waly_cdc.lsn import Lsn
from waly_cdc.relations import NamedColumn, NamedTable, RelationVersion
from waly_cdc.source.catalog import Table, TableColumn

NUMERIC = 1700


def typmod(type_name: str) -> int:
    """Of `text` and `numeric(p,2)`."""
    digits = type_name.removeprefix("numeric(").removesuffix(",2)")
    return (int(digits) << 16 | 2) + 4 if digits.isdigit() else -1


def described(attnum: int | None, name: str, type_name: str = "text") -> NamedColumn:
    return NamedColumn(attnum, name, 25 if type_name == "text" else NUMERIC, type_name)


def shown(action: str, columns: str = "", identity: str = "", key: str = "id") -> NamedTable:
    """A message: columns as `attnum:name[:type]`, names of the identity and of the key."""
    parts = [column.split(":") for column in columns.split()]
    return NamedTable(
        "public",
        "t",
        action,
        tuple(described(int(attnum), *rest) for attnum, *rest in parts),
        tuple(described(None, name) for name in identity.split()),
        tuple(key.split()),
    )


@dataclass
class Catalog:
    """The one table that the catalog shows now, and what is asked of it."""

    columns: str = "1:id 2:a"
    replica_identity: str = "d"
    generated: dict[int, str] = field(default_factory=dict)
    gone: bool = False
    strangers: list[str] = field(default_factory=list)

    def table(self) -> Table | None:
        if self.gone:
            return None
        parts = [column.split(":") for column in self.columns.split()]
        named = [described(int(attnum), *rest) for attnum, *rest in parts]
        columns = tuple(
            TableColumn(
                c.attnum or 0,
                c.name,
                c.type_oid,
                typmod(c.type_name),
                c.type_name,
                False,
                c.name == "id" or self.replica_identity == "f",
            )
            for c in named
        )
        return Table(
            1,
            "public",
            "t",
            self.replica_identity,
            "p",
            columns,
            self.generated,
            ("id",),
            True,
            0,
            0,
            True,
            True,
        )

    def shapes(self, *, every_table: bool = True) -> NamedShapes:
        return NamedShapes(
            Shapes({}, lambda _: self.table()),
            TableNames([]),
            find=lambda *_: self.table(),
            look_up=lambda _: self.table(),
            typmod_of=lambda _, name: typmod(name),
            on_stranger=self.strangers.append,
            every_table=every_table,
        )


def resolved(shapes: NamedShapes, table: NamedTable, lsn: int = 5) -> RelationVersion:
    version = shapes.resolve(table, Lsn(lsn))
    assert version is not None
    return version


def names(version: RelationVersion) -> list[str]:
    return [column.name for column in version.columns]


def test_what_a_message_leaves_out_of_an_update_was_not_changed() -> None:
    shapes = Catalog().shapes()
    first = resolved(shapes, shown("I", "1:id 2:a"))
    assert resolved(shapes, shown("U", "1:id", "id")) is first
    assert resolved(shapes, shown("D", "", "id")) is first
    assert resolved(shapes, shown("T")) is first


def test_a_shape_from_before_the_catalogs_is_put_together_from_the_message() -> None:
    catalog = Catalog()
    shapes = catalog.shapes()
    first = resolved(shapes, shown("I", "1:id 2:a"))
    catalog.columns = "1:id 2:renamed 4:later"
    second = resolved(shapes, shown("I", "1:id 2:a 3:gone"))
    third = resolved(shapes, shown("U", "1:id 2:renamed 3:gone", "id"))
    assert [names(v) for v in (first, second, third)] == [
        ["id", "a"],
        ["id", "a", "gone"],
        ["id", "renamed", "gone"],
    ]
    assert third.columns[1].stored == first.columns[1].stored
    assert [column.attnum for column in third.columns] == [1, 2, 3]
    last = resolved(shapes, shown("I", "1:id 2:renamed 4:later"))
    assert names(last) == ["id", "renamed", "later"]


def test_the_typmod_of_the_message_counts() -> None:
    catalog = Catalog("1:id 2:a:numeric(9,2)")
    shapes = catalog.shapes()
    old = resolved(shapes, shown("I", "1:id 2:a:numeric(5,2)"))
    new = resolved(shapes, shown("I", "1:id 2:a:numeric(9,2)"))
    assert [v.columns[1].storage for v in (old, new)] == ["decimal(5,2)", "decimal(9,2)"]
    assert old.columns[1].stored != new.columns[1].stored


def test_generated_columns_are_left_out() -> None:
    shapes = Catalog(replica_identity="f", generated={3: "g"}).shapes()
    version = resolved(shapes, shown("I", "1:id 2:a 3:g"))
    assert names(version) == ["id", "a"]
    assert resolved(shapes, shown("D", "", "id a g")) is version


def test_the_identity_that_was_sent_makes_another_version() -> None:
    catalog = Catalog()
    shapes = catalog.shapes()
    first = resolved(shapes, shown("I", "1:id 2:a"))
    whole = resolved(shapes, shown("D", "", "id a"))
    assert (first.replica_identity, whole.replica_identity) == ("d", "f")
    assert all(column.identity for column in whole.columns)


def test_another_primary_key_shows_in_inserts_too() -> None:
    shapes = Catalog().shapes()
    resolved(shapes, shown("I", "1:id 2:a"))
    moved = resolved(shapes, shown("I", "1:id 2:a", key="a"))
    assert [column.name for column in moved.columns if column.identity] == ["a"]


def test_a_table_that_nobody_knew_in_time_is_told_once() -> None:
    catalog = Catalog(gone=True)
    shapes = catalog.shapes()
    assert shapes.resolve(shown("I", "1:id"), Lsn(1)) is None
    assert shapes.resolve(shown("T"), Lsn(2)) is None
    assert catalog.strangers == ["public.t"]


def test_with_chosen_tables_a_new_one_is_not_captured() -> None:
    assert Catalog().shapes(every_table=False).resolve(shown("I", "1:id 2:a"), Lsn(1)) is None


def test_a_renamed_table_has_another_version() -> None:
    catalog = Catalog()
    shapes = catalog.shapes()
    first = resolved(shapes, shown("I", "1:id 2:a"))
    other = resolved(shapes, replace(shown("I", "1:id 2:a"), name="before"))
    assert (first.oid, first.name) == (1, "t")
    assert (other.oid, other.name, other.version) == (1, "before", 2)
