"""What a change between two looks means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from waly_cdc.capture.alterations import Alteration, alteration
from waly_cdc.tables import Heap, HeapColumn

ID = HeapColumn(1, "id", 23, -1, False, 700, "t")
TEXT = HeapColumn(2, "v", 25, -1, False, 700, "f")
MADE = HeapColumn(3, "made", 25, -1, True, 700, "f")
WAS = Heap(
    16384,
    5000,
    (),
    3,
    (ID, TEXT, MADE),
    (("label 9", "sad"),),
    "form",
    True,
    (("ours", "1 2 3"), ("other", "4 5 6")),
)


def changed(column: HeapColumn, **values: object) -> tuple[HeapColumn, ...]:
    new = column._replace(written_by=800, **values)
    return tuple(new if each is column else each for each in WAS.columns)


NEW = HeapColumn(4, "new", 25, -1, False, 800, "f")


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (WAS, None),
        (replace(WAS, filled=(4,), attributes=4, columns=(*WAS.columns, NEW)), Alteration.FILLED),
        (replace(WAS, columns=changed(TEXT, type_oid=1043)), Alteration.RETYPED),
        (replace(WAS, columns=changed(TEXT, typmod=44)), Alteration.RETYPED),
        (replace(WAS, columns=changed(TEXT, type_oid=1700)), Alteration.RETYPED),
        (replace(WAS, columns=changed(MADE, generated=False)), Alteration.REVEALED),
        (replace(WAS, texts=(("label 9", "blue"),)), Alteration.REWORDED),
        (replace(WAS, texts=(*WAS.texts, ("label 10", "new"))), None),
        (replace(WAS, published=(("ours", "1 2 9"),)), Alteration.REPUBLISHED),
        (replace(WAS, published=()), Alteration.REPUBLISHED),
        (replace(WAS, published=(*WAS.published[:1], ("other", "4 9 6"))), None),
        (replace(WAS, filenode=5001), Alteration.MOVED),
        (replace(WAS, filenode=5001, columns=changed(TEXT)), Alteration.REWRITTEN),
        (replace(WAS, attributes=4, columns=(*WAS.columns, NEW)), Alteration.RESHAPED),
        (replace(WAS, columns=(ID, MADE)), Alteration.RESHAPED),
        (replace(WAS, columns=changed(TEXT, name="w")), Alteration.RESHAPED),
        (replace(WAS, form="another name or key"), Alteration.RESHAPED),
        # Renamed, and named back: only who wrote it tells.
        (replace(WAS, columns=changed(TEXT)), Alteration.RESHAPED),
        # ALTER COLUMN … SET NOT NULL and its like.
        (replace(WAS, columns=changed(TEXT, rest="t")), None),
        # Dropped and added again under its name; and once more in between.
        (
            replace(WAS, attributes=4, columns=(ID, MADE, NEW._replace(name="v"))),
            Alteration.RENUMBERED,
        ),
        (
            replace(WAS, attributes=5, columns=(*WAS.columns, NEW._replace(attnum=5))),
            Alteration.RENUMBERED,
        ),
        (
            replace(WAS, columns=(ID._replace(name="v"), TEXT._replace(name="id"), MADE)),
            Alteration.RENUMBERED,
        ),
    ],
)
def test_a_change_is_told_by_what_the_catalog_says_after_it(
    now: Heap, expected: Alteration | None
) -> None:
    assert alteration(WAS, now, ["ours"]) is expected


def test_a_wider_numeric_is_another_shape_unless_the_rows_were_rewritten() -> None:
    was = replace(WAS, columns=changed(TEXT, type_oid=1700, typmod=327686))
    now = replace(WAS, columns=changed(TEXT, type_oid=1700, typmod=524294))
    assert alteration(was, now) is Alteration.RESHAPED
    assert alteration(was, replace(now, filenode=5001)) is Alteration.RETYPED


def test_updates_that_were_not_published_are_missed_events() -> None:
    was = replace(WAS, followed=False, form="without a key")
    assert alteration(was, WAS) is Alteration.FOLLOWED
    assert alteration(WAS, was) is Alteration.RESHAPED


def test_a_heap_survives_being_written_down() -> None:
    assert Heap.from_json(WAS.to_json()) == WAS
