"""Dumps of one schema, made by the pg_dump of every supported major (`postgres-*.dump`)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waly_cdc.errors import ArchiveCorrupt
from waly_cdc.restore.dump import Section, read_items

HERE = Path(__file__).parent
MAJORS = (14, 15, 16, 17, 18)


def content(major: int) -> bytes:
    return (HERE / f"postgres-{major}.dump").read_bytes()


@pytest.mark.parametrize("major", MAJORS)
def test_every_object_is_read_with_its_section(major: int) -> None:
    items = read_items(content(major))
    sections = {(item.kind, item.schema, item.tag): item.section for item in items}
    assert sections["TABLE", "app", "orders"] is Section.PRE_DATA
    assert sections["TABLE", "Odd.Schema", 'ta"ble; é'] is Section.PRE_DATA
    assert sections["FK CONSTRAINT", "app", "orders orders_customer_fkey"] is Section.POST_DATA
    assert sections["TRIGGER", "app", "customers touch"] is Section.POST_DATA
    assert sections["COMMENT", "app", "TABLE orders"] is Section.NONE


@pytest.mark.parametrize("major", MAJORS)
def test_dependencies_come_first(major: int) -> None:
    seen: set[int] = set()
    ids = {item.id for item in read_items(content(major))}
    for item in read_items(content(major)):
        assert set(item.depends_on) & ids <= seen
        seen.add(item.id)


@pytest.mark.parametrize("major", MAJORS)
def test_a_partitioned_table_is_told_from_its_partition(major: int) -> None:
    tables = {i.tag: i.partitioned for i in read_items(content(major)) if i.kind == "TABLE"}
    assert tables["parts"]
    assert not tables["parts_2026"]
    assert not tables["orders"]


@pytest.mark.parametrize("major", MAJORS)
def test_statements_are_whole(major: int) -> None:
    sql = {(item.kind, item.tag): item.sql for item in read_items(content(major))}
    assert sql["COMMENT", "TABLE orders"].startswith("COMMENT ON TABLE app.orders IS ")
    assert "\\restrict x" in sql["COMMENT", "TABLE orders"]
    assert "'it''s bad'" in sql["TYPE", "mood"]
    assert all(not text.startswith("\\") for text in sql.values())


def test_a_newer_format_is_refused_with_a_hint() -> None:
    newer = bytearray(content(17))
    newer[6] = 17
    with pytest.raises(ArchiveCorrupt, match=r"version 1\.17") as caught:
        read_items(bytes(newer))
    assert caught.value.hint == "use a newer version of waly"


@pytest.mark.parametrize("other", [b"", b"PGDM", b"--\n-- PostgreSQL database dump\n--\n"])
def test_what_is_no_dump_is_refused(other: bytes) -> None:
    with pytest.raises(ArchiveCorrupt):
        read_items(other)


@given(st.data())
def test_a_cut_dump_is_refused(data: st.DataObject) -> None:
    whole = content(17)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ArchiveCorrupt):
        read_items(whole[:end])


@given(st.data())
def test_a_damaged_dump_raises_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(content(data.draw(st.sampled_from(MAJORS))))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    with suppress(ArchiveCorrupt):
        read_items(bytes(damaged))
