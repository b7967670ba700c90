"""Histories of rows, compared with what triggers in the same database recorded."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from tests.conftest import TestServer
from waly_cdc.archive.contents import Contents, load
from waly_cdc.archive.store import LocalStore
from waly_cdc.cli.main import run
from waly_cdc.history.diff import diff
from waly_cdc.history.jsonb import dumps
from waly_cdc.history.log import LogFilter, log, transaction_events
from waly_cdc.history.moment import resolve
from waly_cdc.history.query import query
from waly_cdc.history.row import blame, show
from waly_cdc.history.session import session
from waly_cdc.history.transactions import by_xid
from waly_cdc.lsn import Lsn
from waly_cdc.points import AtLsn, AtTransaction, Latest

SCHEMA = """
create extension hstore;
create table audit (
    id bigint generated always as identity primary key, relation text, op text, xid bigint,
    old text, new text, hash text);
create function audit_hash(texts hstore, relation oid) returns text language sql as $$
    select 'sha256:' || encode(sha256(convert_to(coalesce(string_agg(
               octet_length(attname) || ':' || attname
               || coalesce(octet_length(texts -> attname) || ':' || (texts -> attname), '-'),
               '' order by attnum), ''), 'UTF8')), 'hex')
    from (select attname::text, attnum from pg_attribute
          where attrelid = relation and attnum > 0 and not attisdropped) a
$$;
create function record() returns trigger language plpgsql as $$
begin
    insert into audit (relation, op, xid, old, new, hash) values (
        tg_table_schema || '.' || tg_table_name, left(tg_op, 1),
        pg_current_xact_id()::text::bigint,
        case when tg_op in ('UPDATE', 'DELETE') then to_jsonb(old)::text end,
        case when tg_op in ('UPDATE', 'INSERT') then to_jsonb(new)::text end,
        case tg_op when 'DELETE' then audit_hash(hstore(old), tg_relid)
                   when 'TRUNCATE' then null else audit_hash(hstore(new), tg_relid) end);
    return null;
end $$;
"""
COLUMNS = (
    "note text, body text, extra bytea, n numeric(10, 2), x numeric, f float8, r real, b boolean,"
    " day date, at timestamptz, j jsonb, list text[]"
)
TABLES = {
    "by_id": f"id int primary key, {COLUMNS}",
    "by_two": f"a int, {COLUMNS}, b2 text, primary key (b2, a)",
    "by_index": f"id int not null, {COLUMNS}",
    "whole": f"id int primary key, {COLUMNS}",
    "no_key": f"id int, {COLUMNS}",
}
MORE = """
create unique index by_index_id on by_index (id);
alter table by_index replica identity using index by_index_id;
alter table whole replica identity full;
alter table no_key replica identity full;
"""
KEYS = {"by_id": ("id",), "by_two": ("b2", "a"), "by_index": ("id",), "whole": ("id",)}
TRIGGERS = """
alter table {0} alter body set storage external, alter extra set storage external;
create trigger record after insert or update or delete on {0} for each row
    execute function record();
create trigger record_truncate after truncate on {0} for each statement execute function record();
"""


@dataclass(frozen=True)
class Recorded:
    """A database with triggers, and its archive."""

    dsn: str
    archive: Path

    def connect(self) -> psycopg.Connection:
        connection = psycopg.connect(self.dsn, autocommit=True)
        connection.execute("set timezone = 'UTC'")
        return connection

    def waly(self, *arguments: str) -> None:
        assert run(["--dsn", self.dsn, "--archive", str(self.archive), "--quiet", *arguments]) == 0

    def truth(self) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """What the triggers recorded, by table and transaction, in order."""
        found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        with self.connect() as connection:
            rows = connection.execute(
                "select relation, xid, op, old, new, hash from audit order by id"
            ).fetchall()
        for relation, xid, op, old, new, hashed in rows:
            found[relation, xid].append(
                {"op": op, "before": _parsed(old), "after": _parsed(new), "row_hash": hashed}
            )
        return dict(found)


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text, parse_float=Decimal, parse_int=Decimal)


def _exact(event: Any) -> Any:
    return _parsed(dumps(event))


class Writer:
    """Random statements on the tables, some transactions of which are rolled back."""

    def __init__(self, connection: psycopg.Connection, seed: int) -> None:
        self._connection = connection
        self._random = random.Random(seed)

    def work(self, transactions: int) -> None:
        for _ in range(transactions):
            self._transaction()

    def _transaction(self) -> None:
        chance = self._random
        self._run("begin")
        for _ in range(chance.choice((1, 1, 2, 5))):
            self._run("savepoint s")
            try:
                self._run(self._statement())
            except psycopg.errors.UniqueViolation:
                self._run("rollback to s")
                continue
            if chance.random() < 0.1:
                self._run("rollback to s")
        self._run("rollback" if chance.random() < 0.1 else "commit")

    def _run(self, statement: str) -> None:
        self._connection.execute(statement.encode())

    def _statement(self) -> str:
        chance = self._random
        table = chance.choice(list(TABLES))
        kind = chance.random()
        if kind < 0.02:
            return f"truncate {table}, {chance.choice(list(TABLES))}"
        if kind < 0.30:
            names, values = zip(*self._values(table, everything=True), strict=True)
            return f"insert into {table} ({', '.join(names)}) values ({', '.join(values)})"
        where = self._where(table)
        if kind < 0.40:
            return f"delete from {table} where {where}"
        if kind < 0.55 and table in KEYS:
            name = chance.choice(KEYS[table])
            return f"update {table} set {name} = {self._value(name)} where {where}"
        values = self._values(table, everything=False)
        return f"update {table} set {', '.join(f'{n} = {v}' for n, v in values)} where {where}"

    def _where(self, table: str) -> str:
        if self._random.random() < 0.1:
            return "true"
        keys = KEYS.get(table, ("id",))
        return " and ".join(f"{name} = {self._value(name)}" for name in keys)

    def _values(self, table: str, *, everything: bool) -> list[tuple[str, str]]:
        names = [part.split()[0] for part in COLUMNS.replace("10, 2", "").split(", ")]
        chosen = [name for name in names if self._random.random() < (0.7 if everything else 0.2)]
        keys = list(KEYS.get(table, ("id",))) if everything else []
        return [(name, self._value(name)) for name in keys + (chosen or ["note"])]

    def _value(self, name: str) -> str:
        chance = self._random
        if name in ("id", "a"):
            return str(chance.randint(1, 12))
        if name == "b2":
            return chance.choice(("'one'", "'two'", "'it''s'"))
        if chance.random() < 0.2:
            return "null"
        size = chance.choice((0, 3, 4000))
        return {
            "note": lambda: f"'{chance.choice('abc')}'",
            "body": lambda: f"repeat('{chance.choice('xyé')}', {size})",
            "extra": lambda: f"decode(repeat('{chance.randint(10, 99)}', {size}), 'hex')",
            "n": lambda: chance.choice(("'NaN'", f"{chance.randint(-999, 999)}.5", "0.05")),
            "x": lambda: chance.choice(("1e40", "0.000", f"{chance.random():.20f}")),
            "f": lambda: chance.choice(("'-0'", "'NaN'", "1e300", f"{chance.random()}")),
            "r": lambda: chance.choice(("'-Infinity'", "1e-30", f"{chance.random()}")),
            "b": lambda: chance.choice(("true", "false")),
            "day": lambda: chance.choice(("'infinity'", "'0044-03-15 BC'", "'2026-02-28'")),
            "at": lambda: chance.choice(("'-infinity'", "'2026-11-23 14:02:11.1+01'")),
            "j": lambda: f"'{{\"a\": [{chance.randint(0, 3)}, null, 1.50]}}'",
            "list": lambda: chance.choice(("'{}'", "'{a,NULL,\"b,c\"}'")),
        }[name]()


@pytest.fixture(scope="module")
def seed() -> int:
    seed = int(os.environ.get("WALY_SEED", random.randrange(1 << 30)))
    print(f"WALY_SEED={seed}")
    return seed


@pytest.fixture(scope="module")
def recorded(
    server: TestServer, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    """Random work over several seals, begun on tables that had rows already."""
    name = server.create_database()
    recorded = Recorded(server.dsn(name), tmp_path_factory.mktemp("history") / "archive")
    try:
        with recorded.connect() as connection:
            connection.execute(SCHEMA)
            for table, columns in TABLES.items():
                connection.execute(f"create table {table} ({columns})".encode())
            connection.execute(MORE)
            writer = Writer(connection, seed)
            writer.work(60)
            for table in TABLES:
                connection.execute(TRIGGERS.format(table).encode())
            recorded.waly("init", "--exclude", "audit")
            for _ in range(4):
                writer.work(60)
                recorded.waly("run", "--once")
        yield recorded
    finally:
        server.drop_database(name)


@pytest.fixture(scope="module")
def store(recorded: Recorded) -> LocalStore:
    return LocalStore(recorded.archive)


@pytest.fixture(scope="module")
def contents(store: LocalStore) -> Contents:
    return load(store)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with session() as connection:
        yield connection


@pytest.fixture(scope="module")
def whole_log(contents: Contents, store: LocalStore) -> list[dict[str, Any]]:
    """All events, oldest first."""
    with session() as connection:
        return list(log(connection, contents, store, None, (), LogFilter()))[::-1]


def test_every_event_has_the_rows_that_a_trigger_saw(
    recorded: Recorded, whole_log: list[dict[str, Any]]
) -> None:
    found: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for event in whole_log:
        assert event["unknown"] == []
        exact = _exact(event)
        found[event["table"], event["xid"]].append(
            {name: exact[name] for name in ("op", "before", "after", "row_hash")}
        )
        if event["op"] == "U":
            assert exact["changed"] == {
                name: [exact["before"][name], value]
                for name, value in exact["after"].items()
                if exact["before"][name] != value
            }
        else:
            assert event["changed"] is None
    truth = recorded.truth()
    assert found.keys() == truth.keys()
    for each, events in truth.items():
        assert found[each] == events, each
    assert sum(map(len, truth.values())) > 200


def _chains(events: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The events of each row, followed by key, or where there is none by content."""
    living: dict[Any, list[list[dict[str, Any]]]] = defaultdict(list)
    for event in events:
        table = event["table"]
        if event["op"] == "T":
            for identity in [each for each in living if each[0] == table]:
                yield from living.pop(identity)
            continue
        names = KEYS.get(table.removeprefix("public."))

        def identity(row: dict[str, Any]) -> Any:
            return table, dumps({n: row[n] for n in names} if names else row)  # noqa: B023

        chain: list[dict[str, Any]] = []
        if event["before"] is not None and living[identity(event["before"])]:
            chain = living[identity(event["before"])].pop(0)
        chain.append(event)
        if event["after"] is None:
            yield chain
        else:
            living[identity(event["after"])].append(chain)
    for chains in living.values():
        yield from chains


def test_versions_count_from_one(whole_log: list[dict[str, Any]]) -> None:
    number = 0
    for chain in _chains([event for event in whole_log if event["table"] != "public.no_key"]):
        first = chain[0]
        # Rows from before the archive have their baseline image as version 1.
        start = 1 if first["op"] == "I" else 2
        assert [event["version"] for event in chain] == list(range(start, start + len(chain)))
        assert all(event["op"] != "I" for event in chain[1:])
        number += 1
    assert number > 20


def test_versions_of_rows_without_a_key_count_too(whole_log: list[dict[str, Any]]) -> None:
    mine = [event for event in whole_log if event["table"] == "public.no_key"]
    assert {event["version"] for event in mine if event["op"] == "I"} == {1}
    assert max(event["version"] for event in mine if event["op"] == "U") > 2


def _followed(events: list[dict[str, Any]], table: str, key: dict[str, Any]) -> list[Any]:
    """The positions of the events of all rows that have or had a key."""
    found = []
    for chain in _chains([event for event in events if event["table"] == f"public.{table}"]):
        rows = [row for event in chain for row in (event["before"], event["after"]) if row]
        if any(all(row[name] == value for name, value in key.items()) for row in rows):
            found += [(event["lsn"], event["seq"]) for event in chain]
    return found


@pytest.mark.parametrize("table", list(KEYS))
def test_the_log_of_a_row_is_its_part_of_the_whole_log(
    contents: Contents,
    store: LocalStore,
    connection: duckdb.DuckDBPyConnection,
    whole_log: list[dict[str, Any]],
    table: str,
) -> None:
    by_position = {(event["lsn"], event["seq"], event["table"]): event for event in whole_log}
    keys = {dumps(e["key"]): e["key"] for e in whole_log if e["table"] == f"public.{table}"}
    for key in [key for key in keys.values() if key is not None][:6]:
        values = [str(value) for value in key.values()]
        found = list(log(connection, contents, store, table, values, LogFilter()))
        mine = [event for event in found if event["op"] != "T"]
        positions = [(event["lsn"], event["seq"]) for event in mine]
        assert sorted(positions) == sorted(_followed(whole_log, table, key)), key
        for event in mine:
            assert event == by_position[event["lsn"], event["seq"], event["table"]]
        newest = list(log(connection, contents, store, table, values, LogFilter(limit=3)))
        assert newest == found[:3]


def test_a_part_of_the_log_is_the_same_as_in_the_whole(
    contents: Contents,
    store: LocalStore,
    connection: duckdb.DuckDBPyConnection,
    whole_log: list[dict[str, Any]],
) -> None:
    backwards = whole_log[::-1]

    def filtered(**wanted: Any) -> list[dict[str, Any]]:
        return list(log(connection, contents, store, None, (), LogFilter(**wanted)))

    positions = [(event["table"], event["lsn"], event["seq"]) for event in backwards]
    assert len(set(positions)) == len(positions)
    assert filtered(limit=20) == backwards[:20]
    deletes = [event for event in backwards if event["op"] == "D"]
    assert filtered(ops=("D",)) == deletes
    assert filtered(ops=("D",), limit=7) == deletes[:7]
    bodies = [event for event in backwards if "body" in (event["changed"] or {})]
    assert filtered(column="body") == bodies
    middle = backwards[len(backwards) // 2]
    until = resolve(contents, store, AtTransaction(middle["xid"], before=False))
    later = [e for e in backwards if Lsn.parse(e["lsn"]) > until.bound]
    assert filtered(since=until) == later
    assert filtered(until=until) == backwards[len(later) :]
    for xid in {event["xid"] for event in backwards[:: len(backwards) // 4]}:
        mine = [event for event in whole_log if event["xid"] == xid]
        assert filtered(xid=xid) == mine[::-1]
        transaction = by_xid(connection, contents, store, xid)
        assert list(transaction_events(connection, contents, store, transaction)) == mine


@pytest.mark.parametrize("table", list(TABLES))
def test_the_history_view_has_what_the_log_has(
    contents: Contents,
    store: LocalStore,
    whole_log: list[dict[str, Any]],
    table: str,
) -> None:
    statement = (
        "select op, lsn, seq, xid, version, row_hash, relation_version, key, changed,"
        f" before.body as old_body, after.body as new_body, after.note as note, unknown"
        f' from history.public.{table} order by "position", seq'
    )
    moment = resolve(contents, store, Latest())
    with query(contents, store, moment, statement, {}) as result:
        found = result.reader.read_all().to_pylist()
    mine = [event for event in whole_log if event["table"] == f"public.{table}"]
    assert len(found) == len(mine)
    for row, event in zip(found, mine, strict=True):
        for name in ("op", "lsn", "seq", "xid", "version", "row_hash", "relation_version"):
            assert row[name] == event[name], name
        assert row["old_body"] == (event["before"] or {}).get("body")
        assert row["new_body"] == (event["after"] or {}).get("body")
        assert row["note"] == (event["after"] or {}).get("note")
        if table in KEYS:
            assert row["key"] == json.loads(dumps(event["key"]))
        if event["changed"] is None:
            assert row["changed"] is None
        else:
            assert {name for name, _ in row["changed"]} == event["changed"].keys()


@pytest.mark.parametrize("table", list(KEYS))
def test_a_row_and_its_blame_are_what_the_log_leads_to(
    contents: Contents,
    store: LocalStore,
    connection: duckdb.DuckDBPyConnection,
    whole_log: list[dict[str, Any]],
    table: str,
) -> None:
    mine = [event for event in whole_log if event["table"] == f"public.{table}"]
    living = [event for event in mine if event["after"] is not None]
    for event in living[:: len(living) // 3]:
        moment = resolve(contents, store, AtLsn(Lsn.parse(event["lsn"])))
        earlier = [event for event in mine if Lsn.parse(event["lsn"]) <= moment.bound]
        truncates = [i for i, event in enumerate(earlier) if event["op"] == "T"]
        alive = [
            chain
            for chain in _chains(earlier[truncates[-1] + 1 :] if truncates else earlier)
            if chain[-1]["after"] is not None
        ]
        for chain in alive[-2:]:
            last = chain[-1]
            key = [str(value) for value in last["key"].values()]
            row = show(connection, contents, store, table, key, moment)
            for name in ("lsn", "xid", "version", "row_hash"):
                assert row[name] == last[name]
            assert row["row"] == last["after"]
            blamed = blame(connection, contents, store, table, key, moment)
            for name, column in blamed["columns"].items():
                assert column["value"] == last["after"][name]
                setters = [e for e in chain if e["op"] == "I" or name in (e["changed"] or {})]
                expected = setters[-1]["xid"] if setters else None
                assert column["xid"] == expected, name


CHANGES = (
    "alter table changing add added text",
    "alter table changing rename note to remark",
    "alter table changing drop constraint changing_pkey, add primary key (other)",
    "alter table changing drop constraint changing_pkey, replica identity full",
    "alter table changing drop added",
    "alter table changing add primary key (id, other), replica identity default",
    "alter table changing rename to changed",
    "alter table changed add filled text default 'filled'",
    "alter table changed alter n type numeric(14, 2)",
    "alter table changed drop constraint changing_pkey, add primary key (id)",
)


@pytest.mark.parametrize("sealed_between", [True, False])
def test_events_keep_the_shape_and_key_of_their_time(
    database: str, work_dir: Path, sealed_between: bool
) -> None:
    recorded = Recorded(database, work_dir / "archive")
    dice = random.Random(os.environ.get("WALY_SEED", "7"))
    with recorded.connect() as live:
        live.execute(SCHEMA)
        live.execute(
            "create table changing (id int primary key, other int not null, note text, body text,"
            " n numeric(10, 2))"
        )
        live.execute(TRIGGERS.format("changing").replace(", alter extra set storage external", ""))
        live.execute(
            "insert into changing select i, 100 + i, 'n' || i, repeat('b', 4000) || i, i"
            " from generate_series(1, 6) i"
        )
        recorded.waly("init", "--exclude", "audit")
        live.execute("truncate audit")
        for number, change in enumerate(("", *CHANGES)):
            if change:
                live.execute(change.encode())
            renamed = number > CHANGES.index("alter table changing rename to changed")
            table = "changed" if renamed else "changing"
            note = "note" if number < 2 else "remark"
            for _ in range(6):
                row = dice.randint(1, 6)
                live.execute(
                    dice.choice(
                        (
                            f"update {table} set {note} = {note} || '+' where id = {row}",
                            f"update {table} set n = n + 0.25 where id = {row}",
                            f"update {table} set other = other + 1000 where id = {row}",
                            f"update {table} set body = repeat('c', 4000) || n where id = {row}",
                            f"delete from {table} where id = {row}",
                            f"insert into {table} (id, other) select {row}, {number}00 + {row}"
                            f" where not exists (select from {table} where id = {row})",
                        )
                    ).encode()
                )
            if sealed_between:
                recorded.waly("run", "--once")
        recorded.waly("run", "--once")
        rows = live.execute("select id, to_jsonb(t)::text from changed t").fetchall()
    store = LocalStore(recorded.archive)
    contents = load(store)
    with session() as connection:
        events = list(log(connection, contents, store, "changed", (), LogFilter()))[::-1]
        truth = {xid: saw for (_, xid), (saw,) in recorded.truth().items()}
        assert [event["xid"] for event in events] == list(truth)
        unknown = 0
        for event in events:
            saw, exact = truth[event["xid"]], _exact(event)
            assert event["op"] == saw["op"]
            for side in ("before", "after"):
                if saw[side] is None:
                    assert exact[side] is None
                    continue
                lost = {n for n in saw[side] if n not in exact[side]}
                assert lost <= set(event["unknown"])
                unknown += len(lost)
                assert exact[side] == {n: v for n, v in saw[side].items() if n not in lost}, event
            if not event["unknown"]:
                assert event["row_hash"] == saw["row_hash"], event
        # Only the gap of the column with a default hides something.
        assert unknown == 0 or contents.gaps
        moment = resolve(contents, store, Latest())
        statement = "select id, n::varchar as n, remark, filled, strlen(body) as b from changed"
        with query(contents, store, moment, statement, {}) as result:
            state = {str(row["id"]): row for row in result.reader.read_all().to_pylist()}
        assert len(state) == len(rows)
        for key, live_row in rows:
            then, now = state[str(key)], _parsed(live_row)
            assert then["n"] == (None if now["n"] is None else str(now["n"]))
            assert (then["remark"], then["filled"]) == (now["remark"], now["filled"])
            found = show(connection, contents, store, "changed", [str(key)], moment)
            assert _exact(found["row"]) == _parsed(live_row)
            mine = [e for e in events if (e["after"] or e["before"]).get("id") == str(key)]
            alone = list(log(connection, contents, store, "changed", [str(key)], LogFilter()))
            assert alone == mine[::-1]


def test_a_numeric_that_becomes_wider_keeps_its_values(database: str, work_dir: Path) -> None:
    recorded = Recorded(database, work_dir / "archive")
    with recorded.connect() as live:
        live.execute("create table t (id int primary key, n numeric(6, 2), m numeric(6, 2))")
        live.execute("insert into t values (1, 0.50, 'NaN'), (2, 'NaN', 0.5), (3, null, null)")
        recorded.waly("init")
        live.execute("update t set n = 7 where id = 3")
        live.execute("alter table t alter n type numeric(8, 2), alter m type numeric")
        live.execute("update t set n = 123456.78 where id = 1")
        recorded.waly("run", "--once")
        expected = live.execute("select id, n::text, m::text from t order by id").fetchall()
    store = LocalStore(recorded.archive)
    contents = load(store)
    moment = resolve(contents, store, Latest())
    statement = "select id, n::varchar as n, m::varchar as m from t order by id"
    with query(contents, store, moment, statement, {}) as result:
        assert [tuple(row.values()) for row in result.reader.read_all().to_pylist()] == expected
    with session() as connection:
        newest, _ = log(connection, contents, store, "t", (), LogFilter())
    assert newest["changed"] == {"n": ["0.50", "123456.78"]}
    assert newest["before"]["m"] == "NaN"


def test_a_partitioned_table_is_the_union_of_its_partitions(database: str, work_dir: Path) -> None:
    recorded = Recorded(database, work_dir / "archive")
    with recorded.connect() as live:
        live.execute(
            "create table measure (id int, day date, v int, primary key (id, day))"
            " partition by range (day)"
        )
        for month in (1, 2):
            live.execute(
                f"create table measure_{month} partition of measure for values from"
                f" ('2026-0{month}-01') to ('2026-0{month + 1}-01')".encode()
            )
        live.execute("insert into measure values (1, '2026-01-05', 0), (2, '2026-02-05', 0)")
        recorded.waly("init")
        live.execute("update measure set v = 1 where id = 1")
        live.execute("update measure set day = '2026-02-07' where id = 1")
        live.execute("update measure set v = 2 where id = 1")
        live.execute("create table measure_3 (id int, day date, v int, primary key (id, day))")
        recorded.waly("run", "--once")
        live.execute(
            "alter table measure attach partition measure_3 for values from ('2026-03-01') to"
            " ('2026-04-01')"
        )
        recorded.waly("run", "--once")
        live.execute("update measure set day = '2026-03-03' where id = 1")
        live.execute("alter table measure detach partition measure_1")
        recorded.waly("run", "--once")
        live.execute("insert into measure_1 values (9, '2026-01-09', 0)")
        recorded.waly("run", "--once")
    store = LocalStore(recorded.archive)
    contents = load(store)
    moment = resolve(contents, store, Latest())
    with session() as connection:
        events = list(log(connection, contents, store, "measure", (), LogFilter()))[::-1]
        mine = list(log(connection, contents, store, "measure", ("1", "2026-01-05"), LogFilter()))
        moved = show(connection, contents, store, "measure", ("1", "2026-03-03"), moment)
    steps = [(event["op"], event["table"].removeprefix("public.")) for event in events]
    expected = [
        ("U", "measure_1"),
        ("D", "measure_1"),
        ("I", "measure_2"),
        ("U", "measure_2"),
        ("D", "measure_2"),
        ("I", "measure_3"),
    ]
    assert steps == expected
    assert mine == events[::-1]
    assert (moved["table"], moved["row"]["v"]) == ("public.measure_3", "2")
    assert [event["before"] and event["before"]["v"] for event in events] == [
        "0",
        "1",
        None,
        "1",
        "2",
        None,
    ]


def test_the_format_s_statement_gives_the_hash_of_a_row(database: str, work_dir: Path) -> None:
    recorded = Recorded(database, work_dir / "archive")
    document = (Path(__file__).parents[2] / "archive" / "FORMAT.md").read_text()
    (statement,) = re.findall(r"```sql\n(.*?)```", document, re.DOTALL)
    with recorded.connect() as live:
        live.execute("create extension hstore")
        live.execute("create table t (id int primary key, note text)")
        live.execute("insert into t values (7, 'é')")
        hashed = live.execute(statement.encode()).fetchone()
    recorded.waly("init")
    store = LocalStore(recorded.archive)
    contents = load(store)
    with session() as connection:
        row = show(connection, contents, store, "t", ["7"], resolve(contents, store, Latest()))
    assert hashed == (row["row_hash"],)
    text = re.search(r"has the text `(.*?)`", document)
    assert text is not None
    assert row["row_hash"] == "sha256:" + hashlib.sha256(text[1].encode()).hexdigest()


def test_what_a_gap_hides_is_unknown(database: str, work_dir: Path) -> None:
    recorded = Recorded(database, work_dir / "archive")
    with recorded.connect() as live:
        live.execute("create table t (id int primary key, n int, v text)")
        live.execute("alter table t alter v set storage external")
        live.execute("insert into t values (1, 1, repeat('v', 5000)), (2, 2, repeat('w', 5000))")
        recorded.waly("init")
        live.execute("update t set n = 10 where id = 1")
        recorded.waly("run", "--once")
        # A rewrite that no event and no new shape tells of.
        live.execute(
            "alter table t alter v type text using repeat('x', 6000), alter v set storage external"
        )
        live.execute("update t set n = 20 where id = 1")
        recorded.waly("run", "--once")
        live.execute("update t set n = 30 where id = 1")
        recorded.waly("run", "--once")
    store = LocalStore(recorded.archive)
    contents = load(store)
    assert [gap.reason for gap in contents.gaps] == ["its rows were rewritten"]
    with session() as connection:
        newest, hidden, _ = log(connection, contents, store, "t", ("1",), LogFilter())
    assert hidden["unknown"] == ["n", "v"]
    assert (hidden["before"], hidden["after"]) == ({"id": "1"}, {"id": "1", "n": "20"})
    assert (hidden["changed"], hidden["row_hash"]) == ({}, None)
    assert newest["before"] == {"id": "1", "n": "20", "v": "x" * 6000}
    assert newest["changed"] == {"n": ["20", "30"]}
    assert newest["unknown"] == []


def test_a_value_that_was_not_sent_is_followed_through_chains_of_keys(
    database: str, work_dir: Path
) -> None:
    recorded = Recorded(database, work_dir / "archive")
    with recorded.connect() as live:
        live.execute("create table t (id int primary key, n int, v text)")
        live.execute("alter table t alter v set storage external")
        live.execute("insert into t values (1, 0, repeat('v', 5000)), (9, 0, repeat('w', 5000))")
        recorded.waly("init")
        live.execute(
            "begin; update t set id = 2 where id = 1; update t set id = 1 where id = 9;"
            " update t set id = 3 where id = 2; update t set n = 1 where id = 3; commit"
        )
        live.execute("update t set id = 9 where id = 3")
        recorded.waly("run", "--once")
        live.execute("delete from t where id = 9")
        recorded.waly("run", "--once")
    store = LocalStore(recorded.archive)
    contents = load(store)
    with session() as connection:
        events = list(log(connection, contents, store, "t", ("3",), LogFilter()))[::-1]
        steps = [(e["op"], (e["after"] or e["before"])["id"], e["version"]) for e in events]
        expected = [("U", "2", 2), ("U", "3", 3), ("U", "3", 4), ("U", "9", 5), ("D", "9", 6)]
        assert steps == expected
        assert {e["before"]["v"] for e in events} == {"v" * 5000}
        assert events[-1]["before"] == {"id": "9", "n": "1", "v": "v" * 5000}
        # Two rows have had this key, one after the other.
        both = list(log(connection, contents, store, "t", ("9",), LogFilter()))
        assert len(both) == 6
        assert {e["before"]["v"][0] for e in both} == {"v", "w"}
        before_delete = resolve(contents, store, AtTransaction(both[0]["xid"], before=True))
        row = show(connection, contents, store, "t", ["9"], before_delete)
        assert (row["row"]["v"], row["version"]) == ("v" * 5000, 5)
        start = resolve(contents, store, AtLsn(contents.beginning or contents.horizon))
        differences = list(diff(connection, contents, store, "t", (), start, before_delete))
        assert {d["after"]["v"][0] for d in differences if d["after"]} == {"v", "w"}
