"""Reverts of random transactions, compared with what triggers in the same database recorded."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import TestServer
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.cli.main import run
from waly_cdc.history.session import session
from waly_cdc.restore.revert.revert import Request, apply, prepare
from waly_cdc.restore.revert.undo import Conflict
from waly_cdc.source.connect import connect

SAMPLE = int(os.environ.get("WALY_REVERTS", "40"))
SCHEMA = """
create table audit (id bigint generated always as identity primary key, relation text,
    xid bigint, old jsonb, new jsonb);
create function record() returns trigger language plpgsql as $$
begin
    insert into audit (relation, xid, old, new) values (tg_table_name,
        pg_current_xact_id()::text::bigint,
        case when tg_op in ('UPDATE', 'DELETE') then to_jsonb(old) end,
        case when tg_op in ('UPDATE', 'INSERT') then to_jsonb(new) end);
    return null;
end $$;
create function record_truncate() returns trigger language plpgsql as $$
begin
    execute format('insert into audit (relation, xid, old) select %L,
        pg_current_xact_id()::text::bigint, to_jsonb(t) from %I t', tg_table_name, tg_table_name);
    return null;
end $$;
create table parent (
    id int primary key, note text, doubled int generated always as (id * 2) stored);
create table child (id int primary key, parent int references parent on delete cascade
    on update cascade, note text, tags text[], ok boolean, code char(4));
create table nulled (a int, b text, parent int references parent on delete set null, n numeric,
    primary key (b, a));
create table whole (id int generated always as identity primary key, note text, j jsonb);
alter table whole replica identity full;
create table bag (id int, note text, f float8);
alter table bag replica identity full;
"""
TABLES = {"parent": ["id"], "child": ["id"], "nulled": ["b", "a"], "whole": ["id"], "bag": []}


class Work:
    """Random transactions; `xids` are those that changed something."""

    def __init__(self, connection: psycopg.Connection, seed: int) -> None:
        self._connection = connection
        self._dice = random.Random(seed)
        self.xids: list[int] = []

    def do(self, transactions: int) -> None:
        for _ in range(transactions):
            with self._connection.transaction():
                for _ in range(self._dice.choice((1, 1, 2, 4))):
                    try:
                        with self._connection.transaction():
                            self._connection.execute(self._statement().encode())
                    except (psycopg.errors.UniqueViolation, psycopg.errors.ForeignKeyViolation):
                        continue
                row = self._connection.execute(
                    "select pg_current_xact_id_if_assigned()::text::bigint where exists (select"
                    " from audit where xid = pg_current_xact_id_if_assigned()::text::bigint)"
                ).fetchone()
                if row is not None:
                    self.xids.append(row[0])

    def _statement(self) -> str:
        dice = self._dice
        number, other = dice.randint(1, 25), dice.randint(1, 25)
        word = dice.choice(("'a'", "'tab\t\\'", "'new\nline'", "null", "repeat('é', 3000)"))
        table = dice.choice(list(TABLES))
        if dice.random() < 0.02:
            return f"truncate {dice.choice(('child', 'nulled', 'whole', 'bag', 'parent cascade'))}"
        kind = dice.choice(("insert", "insert", "update", "update", "key", "delete"))
        if kind == "insert":
            return {
                "parent": f"insert into parent values ({number}, {word})",
                "child": f"insert into child values ({number}, {other}, {word},"
                " '{\"a b\",NULL,\"\\\\\"}', true, 'x')",
                "nulled": f"insert into nulled values ({number}, 'b{other % 2}', {other}, 1.50)",
                "whole": f"insert into whole (note, j) values ({word}, '{{\"a\": 1.0}}')",
                "bag": f"insert into bag values ({other % 4}, 'n', {number}e-7)",
            }[table]
        if kind == "delete":
            return f"delete from {table} where {'a' if table == 'nulled' else 'id'} = {number}"
        if kind == "key" and table in ("parent", "child"):
            return f"update {table} set id = {number} where id = {other}"
        return {
            "parent": f"update parent set note = {word} where id = {number}",
            "child": f"update child set parent = {other}, ok = not ok where id = {number}",
            "nulled": f"update nulled set n = n + 0.05 where a = {number}",
            "whole": f"update whole set note = {word} where id = {number}",
            "bag": f"update bag set f = f + 1 where id = {number % 4}",
        }[table]


class Shop:
    def __init__(self, dsn: str, archive: Path) -> None:
        self.dsn, self.archive = dsn, archive

    def waly(self, *arguments: str) -> int:
        return run(["--dsn", self.dsn, "--archive", str(self.archive), "--quiet", *arguments])

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query.encode()).fetchall()


@pytest.fixture
def shop(server: TestServer, work_dir: Path) -> Iterator[Shop]:
    name = server.create_database()
    yield Shop(server.dsn(name), work_dir / "archive")
    server.drop_database(name)


def test_a_revert_gives_back_all_rows_that_nobody_touched_later(shop: Shop) -> None:
    seed = int(os.environ.get("WALY_SEED", random.randrange(1 << 30)))
    print(f"WALY_SEED={seed} WALY_REVERTS={SAMPLE}")
    shop.execute(SCHEMA)
    for table in TABLES:
        shop.execute(
            f"create trigger record after insert or update or delete on {table}"
            " for each row execute function record()",
            f"create trigger record_truncate before truncate on {table}"
            " for each statement execute function record_truncate()",
        )
    with psycopg.connect(shop.dsn, autocommit=True) as connection:
        work = Work(connection, seed)
        work.do(60)
        assert shop.waly("init", "--exclude", "audit") == 0
        work.xids.clear()
        for _ in range(3):
            work.do(max(SAMPLE, 60) // 2)
            assert shop.waly("run", "--once") == 0
    for table in TABLES:
        shop.execute(f"alter table {table} disable trigger user")
    events = shop.rows("select id, relation, xid, old, new from audit order by id")
    store = LocalStore(shop.archive)
    chosen = random.Random(seed).sample(work.xids, min(SAMPLE, len(work.xids)))
    for xid in chosen:
        _check(shop, store, events, xid)


Place = tuple[str, tuple[Any, ...]]
"""A table and a key."""


def _expected(events: list[Any], xid: int) -> tuple[dict[Place, Any], list[set[Place]], set[Place]]:
    """From what triggers saw: what is to be at each key that the transaction touched and nobody
    did later; groups of keys of which one was touched later; and keys that may be in neither,
    because the transaction left them as they had been."""
    first: dict[Place, Any] = {}
    last: dict[Place, Any] = {}
    groups: dict[Place, set[Place]] = {}
    later: set[Place] = set()
    end = max(each[0] for each in events if each[2] == xid)
    for number, table, by, old, new in events:
        if not TABLES[table]:
            continue
        sides = [
            ((table, tuple(row[n] for n in TABLES[table])), row) if row else None
            for row in (old, new)
        ]
        keys = {side[0] for side in sides if side}
        if number > end:
            later |= keys
        if by != xid:
            continue
        group = set().union(keys, *(groups.get(key, set()) for key in keys))
        groups |= dict.fromkeys(group, group)
        for key in keys:
            row = sides[0][1] if sides[0] and sides[0][0] == key else None
            first.setdefault(key, row)
            last[key] = sides[1][1] if sides[1] and sides[1][0] == key else None
    dirty = [group for group in groups.values() if group & later]
    clean = {key: row for key, row in first.items() if not groups[key] & later}
    return clean, dirty, {key for key in first if first[key] is None and last[key] is None}


def _check(shop: Shop, store: LocalStore, events: list[Any], xid: int) -> None:
    """Revert one transaction with --theirs, look, and roll the live database back."""
    clean, dirty, idle = _expected(events, xid)
    asked = Request(xids=((None, xid),))

    def places(conflicts: list[Conflict]) -> set[Place]:
        return {
            (c.table.removeprefix("public."), tuple(map(str, c.key.values()))) for c in conflicts
        }

    with session() as duck, connect(shop.dsn) as live:
        contents = load(store)
        conflicts = prepare(duck, contents, store, live, asked).conflicts
        found = places([each for each in conflicts if each.table != "public.bag"])
        named = [{(table, tuple(map(str, key))) for table, key in group} for group in dirty]
        assert found <= set().union(*named), (xid, found, dirty)
        for group, texts in zip(dirty, named, strict=True):
            assert group <= idle or texts & found, (xid, group, found)
        revert = prepare(duck, contents, store, live, asked, resolution="theirs")
        with live.transaction():
            met = apply(duck, live, revert, theirs=True)
            assert all("refer" in each.reason for each in met), (xid, met)
            for (table, key), row in clean.items():
                if (table, tuple(map(str, key))) in places(met):
                    continue
                where = " and ".join(f"{name} = %s" for name in TABLES[table])
                now = live.execute(
                    f"select to_jsonb(t) from public.{table} t where {where}".encode(), key
                ).fetchone()
                assert (now[0] if now else None) == row, (xid, table, key)
            raise psycopg.Rollback
