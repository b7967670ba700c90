"""Reverts of random transactions, compared with what triggers in the same database recorded."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import TestServer
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.cli.main import run
from waly_cdc.embedded import find_program
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


def _followed(group: set[Place], events: list[Any], xid: int) -> set[Place]:
    """The keys, and those that their rows got later: a conflict is named by the row's key now."""
    found = set(group)
    end = max(each[0] for each in events if each[2] == xid)
    for number, table, _, old, new in events:
        if number > end and TABLES[table] and old and new:
            was, now = ((table, tuple(row[n] for n in TABLES[table])) for row in (old, new))
            found |= {now} if was in found else set()
    return found


def _content(row: dict[str, Any]) -> str:
    return str(sorted(row.items()))


def _bag(live: psycopg.Connection) -> Counter[str]:
    found = live.execute("select to_jsonb(t) from public.bag t").fetchall()
    return Counter(_content(row) for (row,) in found)


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
        keyed = [each for each in conflicts if each.table != "public.bag"]
        found = places(keyed)
        named = [
            {(table, tuple(map(str, key))) for table, key in _followed(group, events, xid)}
            for group in dirty
        ]
        assert found <= set().union(*named), (xid, found, dirty)
        for group, texts in zip(dirty, named, strict=True):
            assert group <= idle or texts & found, (xid, group, found)
        revert = prepare(duck, contents, store, live, asked, resolution="theirs")
        before = _bag(live)
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
            if len(keyed) == len(conflicts):
                for _, table, by, old, new in events:
                    if (table, by) == ("bag", xid):
                        before.update([_content(old)] if old else [])
                        before.subtract([_content(new)] if new else [])
                assert +before == _bag(live), xid
            raise psycopg.Rollback


ITEMS = """
create table customers (id int generated always as identity primary key, name text);
create table items (id int primary key, customer int references customers on delete cascade,
    price numeric(10, 2), note text);
insert into customers (name) select 'c' || n from generate_series(1, 3) n;
insert into items select n, n % 3 + 1, n, 'n' from generate_series(1, 9) n;
"""
ALL = "select id, customer, price, note from items order by id"


@pytest.fixture
def items(shop: Shop) -> Shop:
    shop.execute(ITEMS)
    assert shop.waly("init") == 0
    return shop


def changed(shop: Shop, *statements: str, actor: str | None = None) -> int:
    """Run the statements in one transaction and archive it; its xid."""
    with psycopg.connect(shop.dsn) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        if actor:
            message = json.dumps({"actor": actor})
            connection.execute("select pg_logical_emit_message(true, 'waly', %s)", (message,))
        row = connection.execute("select pg_current_xact_id()::text::bigint").fetchone()
    assert shop.waly("run", "--once") == 0
    assert row is not None
    return int(row[0])


def answer(shop: Shop, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    capsys.readouterr()
    shop.waly(*arguments, "--json")
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_revert_is_told_as_one_and_can_itself_be_reverted(
    items: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    before = items.rows(ALL)
    xid = changed(items, "update items set price = 9.99", "delete from items where id < 4")
    after = items.rows(ALL)
    assert items.waly("revert", f"xid:{xid}", "--apply") == 0
    assert items.rows(ALL) == before
    assert items.waly("run", "--once") == 0
    (newest,) = answer(items, capsys, "log", "items", "-n", "1")
    assert json.loads(newest["actor"]["context"])["revert"]["transactions"] == [xid]
    assert newest["actor"]["source"] == "message"
    items.waly("log", "items", "-n", "1")
    assert f"reverting xid {xid}" in capsys.readouterr().out
    assert items.waly("revert", f"xid:{newest['xid']}", "--apply") == 0
    assert items.rows(ALL) == after


def test_rows_that_others_changed_later_are_listed_and_refused(
    items: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    xid = changed(items, "update items set price = 9.99")
    later = changed(items, "update items set note = 'sold' where id = 5")
    state = items.rows(ALL)
    assert items.waly("revert", f"xid:{xid}", "--apply") == 9
    assert items.rows(ALL) == state
    (told,) = answer(items, capsys, "revert", f"xid:{xid}", "--dry-run")
    (conflict,) = told["conflicts"]
    assert conflict == {
        "table": "public.items",
        "key": {"id": "5"},
        "reason": "changed later",
        "xid": later,
    }
    assert items.waly("revert", f"xid:{xid}", "--apply", "--theirs") == 0
    assert [row[2] for row in items.rows(ALL)][3:6] == [4, Decimal("9.99"), 6]


def test_with_ours_later_changes_of_the_same_rows_are_undone_too(items: Shop) -> None:
    before = items.rows(ALL)
    xid = changed(items, "update items set price = 9.99", "delete from items where id = 1")
    changed(items, "update items set note = 'sold' where id = 5")
    changed(items, "insert into items values (1, 2, 7, 'again')", "delete from items where id = 6")
    assert items.waly("revert", f"xid:{xid}", "--apply", "--ours") == 0
    assert items.rows(ALL) == before


def test_a_change_that_arrived_meanwhile_is_a_conflict(
    items: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    xid = changed(items, "update items set price = 9.99", "delete from items where id = 7")
    items.execute(
        "update items set note = 'late' where id = 2",
        "insert into items values (7, 1, 1, 'taken')",
        "delete from items where id = 3",
    )
    state = items.rows(ALL)
    assert items.waly("revert", f"xid:{xid}", "--apply") == 9
    assert items.rows(ALL) == state
    (told,) = answer(items, capsys, "revert", f"xid:{xid}", "--apply", "--theirs")
    assert sorted(each["key"]["id"] for each in told["conflicts"]) == ["2", "3", "7"]
    found = [(row[0], row[2]) for row in items.rows(ALL)]
    assert found[:3] == [(1, 1), (2, Decimal("9.99")), (4, 4)]


def test_rows_that_refer_to_what_is_undone_are_not_carried_away(items: Shop) -> None:
    xid = changed(
        items,
        "insert into customers overriding system value values (50, 'new')",
        "insert into items values (50, 50, 1, 'mine')",
    )
    changed(items, "insert into items values (51, 50, 1, 'theirs')")
    assert items.waly("revert", f"xid:{xid}", "--apply") == 9
    assert items.waly("revert", f"xid:{xid}", "--apply", "--theirs") == 0
    assert items.rows("select id from items where id >= 50") == [(51,)]
    assert items.rows("select id from customers where id = 50") == [(50,)]


def test_truncated_tables_come_back_with_what_was_in_them(items: Shop) -> None:
    before = items.rows(ALL), items.rows("select * from customers order by 1")
    xid = changed(items, "delete from items where id = 2", "truncate customers, items")
    assert items.waly("revert", f"xid:{xid}", "--apply") == 0
    assert (items.rows(ALL), items.rows("select * from customers order by 1")) == before


def test_a_row_goes_back_to_a_point(items: Shop) -> None:
    before = items.rows(ALL)
    xid = changed(items, "update items set price = 1 where id in (4, 5)")
    changed(items, "update items set price = 2, note = 'x' where id = 4")
    assert items.waly("revert", "items", "4", "--to", f"xid:{xid}^", "--apply") == 0
    found = items.rows(ALL)
    assert found[3] == before[3]
    assert found[4][2] == 1


def test_what_an_actor_did_since_a_point_is_undone(items: Shop) -> None:
    before = items.rows(ALL)
    first = changed(items, "update items set note = 'a' where id < 3", actor="bob")
    second = changed(items, "update items set note = 'b' where id < 5", actor="bob")
    changed(items, "update items set note = 'c' where id = 8", actor="ann")
    arguments = ("revert", "--actor", "bob", "--since")
    assert items.waly(*arguments, f"xid:{second}^", "--apply") == 0
    assert [row[3] for row in items.rows(ALL)][:5] == ["a", "a", "n", "n", "n"]
    assert items.waly("run", "--once") == 0
    assert items.waly(*arguments, f"xid:{first}^", "--dry-run") == 9
    assert items.waly(*arguments, f"xid:{first}^", "--apply", "--ours") == 0
    assert items.rows(ALL)[:7] == before[:7]


def test_a_revert_fits_the_schema_of_today(items: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    xid = changed(
        items, "update items set price = 0, note = null", "delete from items where id = 9"
    )
    items.execute(
        "alter table items rename column price to cost",
        "alter table items drop column note",
        "alter table items add column size int",
        "alter table items rename to goods",
    )
    changed(items, "insert into goods values (100, 1, 5, 3)")
    (told,) = answer(items, capsys, "revert", f"xid:{xid}", "--apply")
    assert told["left_out"] == ["column public.goods.note: it was dropped since"]
    found = items.rows("select id, cost, size from goods order by id")
    assert found == [*((n, n, None) for n in range(1, 10)), (100, 5, 3)]


def test_the_script_does_the_same_in_psql_and_refuses_what_changed(
    items: Shop, work_dir: Path
) -> None:
    items.execute("update items set note = E'tab\\t\\\\ new\\nline' where id = 3")
    before = items.rows(ALL)
    xid = changed(items, "update items set note = '', price = null", "delete from items")
    script = work_dir / "revert.sql"
    assert items.waly("revert", f"xid:{xid}", "--output", str(script)) == 0
    program = find_program("psql")
    assert program is not None
    items.execute("insert into items values (4, 1, 1, 'taken')")
    psql = [program, "-X", "-q", "-d", items.dsn, "-f", script]
    refused = subprocess.run(psql, capture_output=True, text=True, check=False)
    assert "its key is used by a row that the archive does not know: 4" in refused.stderr
    assert items.rows(ALL) == [(4, 1, 1, "taken")]
    items.execute("delete from items")
    subprocess.run(psql, check=True, capture_output=True)
    assert items.rows(ALL) == before


def test_triggers_fire_as_the_role_is_set_unless_asked_otherwise(items: Shop) -> None:
    items.execute(
        "create table fired (zone text)",
        "create function fire() returns trigger language plpgsql as $$ begin"
        " insert into fired values (current_setting('TimeZone')); return null; end $$",
        "create trigger fire after update on items for each row execute function fire()",
        "do $$ begin execute format('alter database %I set timezone = %L',"
        " current_database(), 'Asia/Tokyo'); end $$",
        "alter table items disable trigger fire",
    )
    xid = changed(items, "update items set price = 9.99 where id = 1")
    again = changed(items, "update items set price = 5 where id = 2")
    items.execute("alter table items enable trigger fire")
    assert items.waly("revert", f"xid:{xid}", "--apply", "--no-triggers") == 0
    assert items.rows("select * from fired") == []
    assert items.rows("select tgenabled from pg_trigger where tgname = 'fire'") == [("O",)]
    assert items.waly("revert", f"xid:{again}", "--apply") == 0
    assert items.rows("select * from fired") == [("Asia/Tokyo",)]


def test_a_sidecar_on_the_target_records_a_restore_as_one(
    items: Shop, database: str, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Shop(database, work_dir / "of the target")
    assert target.waly("init") == 0
    assert items.waly("restore", "--to", "latest", "--target", database, "--force") == 0
    assert target.waly("run", "--once") == 0
    made = answer(target, capsys, "query", "select actor from transactions where events > 0")
    told = [json.loads(each["actor"]["context"] or "{}") for each in made]
    assert made
    assert {each.get("operation") for each in told} == {"restore"}
