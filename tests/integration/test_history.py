"""Answers about the past, compared with what the server itself had."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import duckdb
import psycopg
import pytest

from tests.integration.sample import PHOTOS, Sample
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.history.diff import diff
from waly_cdc.history.jsonb import dumps
from waly_cdc.history.log import LogFilter, log
from waly_cdc.history.moment import Moment, resolve
from waly_cdc.history.query import query
from waly_cdc.history.row import show
from waly_cdc.history.session import session
from waly_cdc.points import AtLsn, Latest

NOT_AS_CAPTURED = {"public.newborn", "public.evolving", "public.inserted_only"}
"""Tables whose state is not the server's: without baseline, of several shapes, without identity."""


JSON_BY_CATALOG = {"a_composite", "a_domain", "an_hstore"}
"""Columns that to_jsonb shows by what the catalog says of their types; here they are texts."""


@pytest.fixture(scope="module")
def store(sample: Sample) -> LocalStore:
    return LocalStore(sample.archive)


@pytest.fixture(scope="module")
def contents(store: LocalStore) -> Contents:
    return load(store)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with session() as connection:
        yield connection


def _at(sample: Sample, contents: Contents, store: LocalStore, photo: str) -> Moment:
    return resolve(contents, store, AtLsn(sample.photos[photo].lsn))


def _same(value: Any) -> Any:
    """A JSON value with its numbers exact, for comparing."""
    return json.loads(dumps(value), parse_float=Decimal, parse_int=Decimal)


@pytest.mark.parametrize(("start", "end"), list(pairwise(PHOTOS)))
def test_a_difference_is_what_two_photographs_do_not_share(
    sample: Sample,
    contents: Contents,
    store: LocalStore,
    connection: duckdb.DuckDBPyConnection,
    start: str,
    end: str,
) -> None:
    before, after = sample.photos[start].rows, sample.photos[end].rows
    expected = {}
    for table in (before.keys() & after.keys()) - NOT_AS_CAPTURED:
        was, now = Counter(before[table]), Counter(after[table])
        counts = ((now - was).total(), (was - now).total())
        if any(counts):
            expected[table] = counts
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    moments = (_at(sample, contents, store, start), _at(sample, contents, store, end))
    for each in diff(connection, contents, store, None, (), *moments):
        found[each["table"]][0] += each["after"] is not None
        found[each["table"]][1] += each["before"] is not None
    names = {name: tuple(counts) for name, counts in found.items() if _unquoted(name) in expected}
    assert {_unquoted(name): counts for name, counts in names.items()} == expected


def _unquoted(name: str) -> str:
    return name.replace('"', "")


@pytest.mark.parametrize(
    "table", ["customers", "docs", "full_docs", "by_index", "types", "moments"]
)
def test_the_log_of_every_row_is_unbroken_and_ends_in_the_live_row(
    sample: Sample,
    contents: Contents,
    store: LocalStore,
    connection: duckdb.DuckDBPyConnection,
    table: str,
) -> None:
    events = list(log(connection, contents, store, table, (), LogFilter()))[::-1]
    living: dict[str, dict[str, Any]] = {}
    seen = set()
    for event in events:
        key = dumps(event["key"])
        if event["op"] == "T":
            living.clear()
            continue
        assert event["unknown"] == []
        old_key = key
        if event["op"] == "U":
            old_key = dumps({name: event["before"][name] for name in event["key"]})
        if event["op"] == "I":
            assert (event["version"], event["before"]) == (1, None)
        elif old_key in seen:
            was = living.pop(old_key)
            assert event["before"] == was["after"]
            assert event["version"] == was["version"] + 1
        else:
            assert event["version"] == 2
        seen |= {old_key, key}
        if event["after"] is not None:
            living[key] = event
            assert event["changed"] == (
                {
                    name: [event["before"][name], value]
                    for name, value in event["after"].items()
                    if event["before"][name] != value
                }
                if event["op"] == "U"
                else None
            )
    columns = contents.find_relation(table).key_columns
    with psycopg.connect(sample.dsn) as live:
        live.execute("set timezone = 'UTC'")
        rows = live.execute(f"select to_jsonb(t)::text from {table} t".encode()).fetchall()
    live_rows = {}
    for (text,) in rows:
        row = json.loads(text, parse_float=Decimal, parse_int=Decimal)
        live_rows[tuple(row[column.name] for column in columns)] = row
    for event in living.values():
        image = _same(event["after"])
        assert live_rows[tuple(image[column.name] for column in columns)] == image
    assert seen or table == "types"


def test_a_row_is_shown_as_to_jsonb_shows_it(
    sample: Sample,
    contents: Contents,
    store: LocalStore,
    connection: duckdb.DuckDBPyConnection,
) -> None:
    moment = resolve(contents, store, Latest())
    with psycopg.connect(sample.dsn) as live:
        live.execute("set timezone = 'UTC'")
        live.execute("set search_path = ''")
        rows = live.execute("select id::text, to_jsonb(t)::text from public.types t").fetchall()
    assert len(rows) >= 2
    for key, expected in rows:
        found = show(connection, contents, store, "types", [key], moment)["row"]
        wanted = json.loads(expected, parse_float=Decimal, parse_int=Decimal)
        for name, value in wanted.items():
            if name in JSON_BY_CATALOG:
                continue
            assert _same(found[name]) == value, name


def test_a_query_counts_what_a_photograph_shows(
    sample: Sample, contents: Contents, store: LocalStore
) -> None:
    for name in PHOTOS:
        moment = _at(sample, contents, store, name)
        for table in ("customers", "docs", "bag", "parts_01", '"Weird Name"."Täble.x"'):
            qualified = table if "." in table else f"public.{table}"
            expected = len(sample.photos[name].rows[_unquoted(qualified)])
            statement = f"select count(*) as n from {table}"
            with query(contents, store, moment, statement, {}) as result:
                assert result.reader.read_all().to_pylist() == [{"n": expected}], (name, table)
