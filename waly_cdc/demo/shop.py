"""The shop: its schema, its people and programs, and what they do to it."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg import conninfo, sql

TABLES = ("customers", "products", "orders", "order_items")
MISTAKE = "UPDATE products SET price = 9.99"
"""What alice runs. She meant to add: WHERE sku = 'SKU-007'"""

LOOKED_FOR = 0.6
"""Seconds for which alice looks at the result before she commits."""

_STEPS = {
    "order": (
        "with placed as (insert into orders (customer_id) values (%(customer)s) returning id)"
        " insert into order_items select id, 1, %(sku)s, %(quantity)s, price from placed, products"
        " where sku = %(sku)s",
        "update products set stock = stock - %(quantity)s where sku = %(sku)s",
    ),
    "pay": (
        "update orders set status = 'paid' where id = (select min(id) from orders"
        " where status = 'new')",
    ),
    "ship": (
        "update orders set status = 'shipped' where id = (select min(id) from orders"
        " where status = 'paid')",
    ),
    "cancel": (
        "delete from order_items where order_id = (select max(id) from orders"
        " where status = 'new')",
        "update orders set status = 'cancelled' where id = (select max(id) from orders"
        " where status = 'new')",
    ),
    "rename": ("update customers set name = name || '.' where id = %(customer)s",),
}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, or some program, that writes: role, application_name, steps, and the seconds that a
    transaction stays open."""

    role: str
    application: str
    steps: tuple[str, ...]
    pause: float


PEOPLE = (
    Person("webshop", "webshop", ("order", "order", "pay", "rename"), 0.0),
    Person("warehouse", "packing-station", ("ship",), 0.06),
    Person("bob", "support-desk", ("cancel",), 0.15),
)
ALICE = Person("alice", "psql", (), LOOKED_FOR)


class Shop:
    """The shop's database. `dsn` is its owner's."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def create(self) -> None:
        """Make its tables and roles."""
        script = resources.files(__package__).joinpath("shop.sql").read_text()
        with psycopg.connect(self.dsn) as connection:
            connection.execute(script.encode())
            for person in (*PEOPLE, ALICE):
                role = sql.Identifier(person.role)
                with suppress(psycopg.errors.DuplicateObject), connection.transaction():
                    connection.execute(sql.SQL("create role {} login").format(role))
                connection.execute(
                    sql.SQL(
                        "grant select, insert, update, delete on all tables in schema public to {}"
                    ).format(role)
                )

    def trade(self, seconds: float) -> int:
        """Let everybody work for so long; how many transactions they made."""
        stop = threading.Event()
        counts: list[int] = []
        workers = [
            threading.Thread(target=lambda p=person: counts.append(self._work(p, stop)))
            for person in PEOPLE
        ]
        for worker in workers:
            worker.start()
        try:
            time.sleep(seconds)
        finally:
            stop.set()
            for worker in workers:
                worker.join()
        return sum(counts)

    def make_mistake(self) -> int:
        """Alice's UPDATE without a WHERE; the rows it changed."""
        with self._connect(ALICE) as connection:
            cursor = connection.execute(MISTAKE)
            time.sleep(LOOKED_FOR)
            return cursor.rowcount

    def current_lsn(self) -> str:
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        return str(row[0])

    def _work(self, person: Person, stop: threading.Event) -> int:
        dice = random.Random(person.role)  # noqa: S311 - a repeatable demonstration
        count = 0
        with self._connect(person) as connection:
            while not stop.is_set():
                values = {
                    "customer": dice.randint(1, 400),
                    "sku": f"SKU-{dice.randint(1, 60):03}",
                    "quantity": dice.randint(1, 3),
                }
                with connection.transaction():
                    for statement in _STEPS[dice.choice(person.steps)]:
                        connection.execute(statement.encode(), values)
                    stop.wait(person.pause)
                count += 1
                stop.wait(dice.uniform(0.002, 0.01))
        return count

    def _connect(self, person: Person) -> psycopg.Connection:
        return psycopg.connect(
            conninfo.make_conninfo(self.dsn, user=person.role, application_name=person.application)
        )


def fingerprints(dsn: str) -> dict[str, tuple[int, str]]:
    """Rows and a digest of all rows, for each of the shop's tables."""
    found = {}
    with psycopg.connect(dsn) as connection:
        for table in TABLES:
            row = connection.execute(
                sql.SQL(
                    "select count(*), md5(string_agg(t::text, ',' order by t::text)) from {} t"
                ).format(sql.Identifier(table))
            ).fetchone()
            assert row is not None
            found[table] = (row[0], row[1])
    return found
