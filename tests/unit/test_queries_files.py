"""The queries that are shipped: their headers, and that they run on any archive."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

QUERIES = Path(__file__).parents[2] / "queries"
FILES = sorted(QUERIES.glob("*.sql"))

_PARAMETER = re.compile(r"-- param ([a-z_]+): (.+?)(?: \[default: (.+)\])?")

_ACTOR = (
    'struct("user" varchar, application_name varchar, client_addr varchar, pid integer,'
    " query varchar, context varchar, source varchar,"
    ' sources struct(source varchar, "user" varchar, application_name varchar)[])'
)
_VIEWS = f"""
create table transactions (
    era int default 1, xid bigint, lsn varchar, committed_at timestamptz, events bigint,
    actor {_ACTOR});
create table changes (
    "table" varchar, era int default 1, op varchar, lsn varchar, seq bigint, xid bigint,
    committed_at timestamptz, actor {_ACTOR});
"""
# An insert by night, a mass update by day, and a truncate by nobody knows whom, on a Saturday.
_ROWS = """
insert into transactions (xid, lsn, committed_at, events, actor) values
    (1, '0/10', '2026-11-20T23:30:00Z', 2, row('alice', 'psql', '::1', 7, '…', null, 'witness',
        [row('witness', 'alice', 'psql')])),
    (2, '0/20', '2026-11-20T12:30:00Z', 300, row('bob', 'web', null, 8, '…', '{}', 'message',
        [row('message', 'alice', null), row('witness', 'bob', 'web')])),
    (3, '0/30', '2026-11-21T12:30:00Z', 1, row(null, null, null, null, null, null, 'unknown',
        []));
insert into changes ("table", op, lsn, seq, xid, committed_at, actor)
    select case xid when 3 then 's.items' else 'public.orders' end,
           case xid when 1 then 'I' when 2 then 'U' else 'T' end, lsn, seq, xid, committed_at, actor
    from transactions, range(events) as r(seq);
"""


def _header(path: Path) -> tuple[str, dict[str, str | None], list[str]]:
    """The description, the parameters with their defaults, and the columns."""
    lines = path.read_text().splitlines()
    header = lines[: next(n for n, line in enumerate(lines) if not line.startswith("--"))]
    parameters: dict[str, str | None] = {}
    for line in header[1:-1]:
        match = _PARAMETER.fullmatch(line)
        assert match, f"{path.name}: not a parameter: {line}"
        parameters[match[1]] = match[3]
    assert header[-1].startswith("-- columns: "), path.name
    columns = header[-1].removeprefix("-- columns: ").split(", ")
    return header[0].removeprefix("-- "), parameters, columns


def _answer(path: Path, connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    _, parameters, _ = _header(path)
    values = {name: "bob" if value is None else value for name, value in parameters.items()}
    return connection.sql(path.read_text(), params=values).to_arrow_table().to_pylist()


@pytest.fixture(params=["UTC", "America/New_York"])
def archive(request: pytest.FixtureRequest) -> duckdb.DuckDBPyConnection:
    """What a query sees of an archive, with nothing in it. No extension can be loaded."""
    connection = duckdb.connect(":memory:")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set autoload_known_extensions = false")
    connection.execute(f"set TimeZone = '{request.param}'")
    connection.execute(_VIEWS)
    return connection


def test_there_are_queries_to_begin_with() -> None:
    assert len(FILES) >= 8
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", path.stem) for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_says_what_it_tells_and_what_it_takes(path: Path) -> None:
    description, parameters, columns = _header(path)
    assert 20 <= len(description) <= 100
    assert not description.endswith(".")
    (statement,) = duckdb.connect(":memory:").extract_statements(path.read_text())
    assert statement.named_parameters == set(parameters)
    assert len(columns) == len(set(columns))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_is_a_single_select(path: Path) -> None:
    statements = duckdb.connect(":memory:").extract_statements(path.read_text())
    assert [statement.type for statement in statements] == [duckdb.StatementType.SELECT]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_runs_on_an_archive_without_changes(
    path: Path, archive: duckdb.DuckDBPyConnection
) -> None:
    assert _answer(path, archive) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_finds_what_its_header_promises(
    path: Path, archive: duckdb.DuckDBPyConnection
) -> None:
    archive.execute(_ROWS)
    rows = _answer(path, archive)
    assert rows
    _, _, columns = _header(path)
    assert list(rows[0]) == columns


def test_hours_and_days_are_those_of_utc_whatever_the_session_says(
    archive: duckdb.DuckDBPyConnection,
) -> None:
    archive.execute(_ROWS)
    hours = {row["hour"].strftime("%d %H") for row in _answer(QUERIES / "activity.sql", archive)}
    assert hours == {"20 12", "20 23", "21 12"}
    days = [str(row["day"]) for row in _answer(QUERIES / "attribution.sql", archive)]
    assert days == ["2026-11-21", "2026-11-20", "2026-11-20"]


def test_nights_and_weekends_are_outside_working_hours(archive: duckdb.DuckDBPyConnection) -> None:
    archive.execute(_ROWS)
    assert [row["xid"] for row in _answer(QUERIES / "off-hours.sql", archive)] == [3, 1]


def test_a_transaction_of_nobody_is_called_unknown(archive: duckdb.DuckDBPyConnection) -> None:
    archive.execute(_ROWS)
    rows = _answer(QUERIES / "who-changed.sql", archive)
    assert [(row["who"], row["table"]) for row in rows] == [
        ("alice", "public.orders"),
        ("bob", "public.orders"),
        ("unknown", "s.items"),
    ]


def test_who_names_another_role_than_the_session_s_is_found(
    archive: duckdb.DuckDBPyConnection,
) -> None:
    archive.execute(_ROWS)
    rows = _answer(QUERIES / "contradictions.sql", archive)
    assert [(row["xid"], row["says"], row["session"]) for row in rows] == [(2, "alice", "bob")]
