"""Eras in the sum of a manifest's entries."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Entry, EraGap, File
from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.lsn import Lsn

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def entry(contents: Contents, kind: str, start: int, end: int, **more: object) -> Entry:
    made = Entry(
        number=contents.entries,
        previous=contents.head,
        kind=kind,
        era=contents.era,
        start=Lsn(start),
        end=Lsn(end),
        horizon_time=NOW,
        written_at=NOW,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def add(contents: Contents, made: Entry) -> None:
    contents.apply(made, made.to_bytes())


def file(name: str) -> File:
    return File("schema", name, "", 0, 0, Lsn(1), Lsn(1))


def one_era() -> Contents:
    contents = Contents()
    add(contents, entry(contents, "init", 0, 0))
    add(contents, entry(contents, "baseline", 500, 500, files=(file("first"),)))
    add(contents, entry(contents, "seal", 500, 900, transactions=3, events=7))
    return contents


def gap(start: int, end: int) -> EraGap:
    return EraGap(Lsn(start), NOW, Lsn(end), NOW, "the slot is gone")


def two_eras() -> Contents:
    contents = one_era()
    more = {"era": 2, "gap": gap(900, 300), "files": (file("second"),)}
    add(contents, entry(contents, "era", 300, 300, **more))
    add(contents, entry(contents, "seal", 300, 400, transactions=1, events=1))
    return contents


def test_an_era_ends_as_it_was_and_the_next_begins_with_nothing_of_it() -> None:
    contents = two_eras()
    first, second = contents.eras
    assert second is contents
    assert (first.era, first.beginning, first.horizon) == (1, Lsn(500), Lsn(900))
    assert (second.era, second.beginning, second.horizon) == (2, Lsn(300), Lsn(400))
    assert (first.transactions, second.transactions) == (3, 1)
    assert [[each.path for each in era.files] for era in contents.eras] == [["first"], ["second"]]
    assert (first.gap, second.gap) == (None, gap(900, 300))
    assert contents.in_era(1) is first


def test_a_checkpoint_holds_all_eras() -> None:
    contents = two_eras()
    assert Contents.from_checkpoint(contents.to_checkpoint()) == contents


@pytest.mark.parametrize("more", [{"era": 3}, {"gap": None}, {"gap": gap(800, 300)}])
def test_an_era_begins_only_after_a_gap_from_the_horizon(more: dict[str, object]) -> None:
    contents = one_era()
    wrong = {"era": 2, "gap": gap(900, 300), **more}
    with pytest.raises(ArchiveCorrupt, match="does not begin era 2"):
        add(contents, entry(contents, "era", 300, 300, **wrong))


def test_an_entry_that_begins_elsewhere_is_no_era() -> None:
    contents = one_era()
    with pytest.raises(ArchiveCorrupt, match="begins at"):
        add(contents, entry(contents, "seal", 950, 960))
