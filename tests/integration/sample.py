"""A small database that has one of everything, its traffic, and its archive."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.sidecar import run
from waly_cdc.lsn import Lsn
from waly_cdc.plugins import PGOUTPUT
from waly_cdc.source import slot
from waly_cdc.source.connect import connect
from waly_cdc.source.copy import snapshot_transaction

SCHEMA = Path(__file__).with_name("sample.sql").read_text()

PHOTOS = (
    "baseline",
    "churn",
    "traps",
    "truncated",
    "before change of shape",
    "amid change of shape",
    "after change of shape",
    "latest",
)

Rows = dict[str, list[str]]
"""Per table, the sorted texts of its rows."""


@dataclass(frozen=True)
class Photo:
    """The rows of every table as a snapshot at `lsn` sees them."""

    lsn: Lsn
    rows: Rows


@dataclass(frozen=True)
class Sample:
    """A live database, its archive, and photographs of it in the order of their LSNs."""

    dsn: str
    archive: Path
    photos: dict[str, Photo] = field(repr=False)


def rows_of(connection: psycopg.Connection[Any]) -> Rows:
    """The rows of every ordinary table and leaf partition that is logged."""
    tables = connection.execute(
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where c.relkind = 'r' and c.relpersistence = 'p'"
        " and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' order by 1, 2"
    ).fetchall()
    return {f"{schema}.{name}": table_rows(connection, schema, name) for schema, name in tables}


def table_rows(connection: psycopg.Connection[Any], schema: str, name: str) -> list[str]:
    # A row without columns has no text.
    query = sql.SQL('select coalesce("the row"::text, \'()\') from only {} "the row"').format(
        sql.Identifier(schema, name)
    )
    return sorted(row[0] for row in connection.execute(query))


def live_rows(dsn: str) -> Rows:
    with connect(dsn) as connection:
        return rows_of(connection)


@contextmanager
def snapshot_of_now(dsn: str) -> Iterator[tuple[Lsn, psycopg.Connection[Any]]]:
    """An LSN, and a connection that sees what the transactions that commit before it made."""
    with connect(dsn, replication=True) as replication:
        # The slot of one before goes only when the server has noticed that its session ended.
        name = f"photo_{replication.info.backend_pid}"
        created = slot.create(replication, name, temporary=True)
        with snapshot_transaction(dsn, created.snapshot) as connection:
            yield created.consistent_point, connection


def photograph(dsn: str) -> Photo:
    with snapshot_of_now(dsn) as (lsn, connection):
        return Photo(lsn, rows_of(connection))


@dataclass(frozen=True)
class Beside:
    """Another archive of the same database, with a slot and a plugin of its own."""

    archive: Path
    slot: str
    plugin: str


def build(dsn: str, archive: Path, beside: Beside | None = None) -> Sample:
    """Make the database, its history and its archive, and one beside it if wanted."""
    photos: dict[str, Photo] = {}
    captures = [(CaptureSettings(dsn, archive, seal_size=20_000, sample_interval=0), PGOUTPUT)]
    if beside is not None:
        settings = CaptureSettings(
            dsn, beside.archive, slot=beside.slot, seal_size=20_000, sample_interval=0
        )
        captures.append((settings, beside.plugin))

    def capture() -> None:
        """Everything up to now, in small seals."""
        for settings, _ in captures:
            run(settings, once=True)

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
        churn(connection, 1, 20)
        for settings, plugin in captures:
            initialise(settings, plugin=plugin)
        photos["baseline"] = photograph(dsn)
        churn(connection, 2, 60)
        photos["churn"] = photograph(dsn)
        _exact_traps(connection)
        photos["traps"] = photograph(dsn)
        capture()
        churn(connection, 3, 60)
        capture()
        connection.execute(
            "truncate docs, bag; insert into docs values ('after', repeat('x', 9000), 't', '');"
            "update docs set title = 'u'; insert into bag values (1, 1, 'one', 1)"
        )
        photos["truncated"] = photograph(dsn)
        churn(connection, 4, 40)
        photos["before change of shape"] = photograph(dsn)
        _change_shapes(connection, lambda: photos.update({PHOTOS[5]: photograph(dsn)}))
        churn(connection, 5, 20)
        photos["after change of shape"] = photograph(dsn)
        capture()
        churn(connection, 6, 20)
        connection.execute("truncate customers cascade")
        connection.execute("insert into customers (name) values ('last')")
        photos["latest"] = photograph(dsn)
        capture()
    return Sample(dsn, archive, photos)


def _exact_traps(connection: psycopg.Connection[Any]) -> None:
    """What is easily got wrong, each once."""
    statements = (
        # Keys swapped in one transaction.
        "insert into docs values ('a', repeat('A', 9000), 'ta', repeat('a', 9000)::bytea),"
        " ('b', repeat('B', 9000), 'tb', repeat('b', 9000)::bytea)",
        "begin; update docs set id = 'tmp' where id = 'a'; update docs set id = 'a' where id = 'b';"
        " update docs set id = 'b' where id = 'tmp'; commit",
        # A value that is not sent for two changes of the key, and an update after each.
        "update docs set id = 'b2' where id = 'b'",
        "update docs set title = 'again' where id = 'b2'",
        "begin; update docs set id = 'b3' where id = 'b2'; update docs set title = 'more'"
        " where id = 'b3'; commit",
        # One column set anew and the other left.
        "update docs set body = 'short' where id = 'a'",
        "update docs set title = null where id = 'a'",
        # Deleted and inserted again under the same key, and a key that moves onto a deleted one.
        "begin; delete from docs where id = 'a'; insert into docs values ('a', null, 'new', null);"
        " commit",
        "begin; delete from docs where id = 'a'; update docs set id = 'a' where id = 'b3'; commit",
        "update docs set title = 'end' where id = 'a'",
        "insert into docs values ('b3', 'fresh', 'fresh', null)",
        # The same rows in a table without a key, changed and deleted one at a time.
        "insert into bag select 7, 'NaN', 'same', 1.50 from generate_series(1, 5)",
        "delete from bag where ctid = (select min(ctid) from bag where a = 7)",
        "update bag set t = 'other' where ctid = (select min(ctid) from bag where a = 7)",
        "insert into bag values (8, '-0', '', null), (8, '0', '', null), (null, null, null, null)",
        "delete from bag where a = 8 and f::text = '0'",
        "insert into moments values ('infinity', 'NaN', 'x'), ('-infinity', 1, 'y'),"
        " ('0044-03-15 12:00+00 BC', 2, 'z')",
        "update moments set note = 'later' where at = 'infinity'",
        "update moments set at = '2026-01-01' where at = '-infinity'",
        "delete from moments where at < '0001-01-01'",
        "update external_key set note = note || '!'",
        "begin; insert into orders (customer_id) values (1); rollback",
        "begin; insert into orders (customer_id) values (1); savepoint s;"
        " delete from order_items; rollback to s; commit",
    )
    for statement in statements:
        for part in statement.split(";"):
            connection.execute(part.encode())


def _change_shapes(
    connection: psycopg.Connection[Any], photograph_amid: Callable[[], None]
) -> None:
    statements = (
        "alter table evolving add column added text",
        "insert into evolving values (10, 'x', 'y', 'added')",
        "update evolving set added = 'set' where id = 1",
        "alter table evolving rename column kept to renamed",
        "update evolving set renamed = 'r' where id = 2",
        "alter table evolving drop column gone",
        "insert into evolving values (11, 'after drop', 'z')",
        "delete from evolving where id = 3",
        "create table newborn (id int primary key, customer int references customers, note text)",
        "create index newborn_note on newborn (note)",
        "insert into newborn values (1, 1, 'first'), (2, null, 'second')",
        "alter table renamed_later rename to renamed_now",
        "insert into renamed_now values (3, 'new name')",
        "drop table doomed",
        # Another key, and rows named by the one and by the other.
        "delete from key_moves where a = 1",
        "update key_moves set a = 20, b = b + 1 where a = 2",
        "update key_moves set b = 31 where a = 3",
        "alter table key_moves drop constraint key_moves_pkey, add primary key (b)",
        "update key_moves set a = a + 100",
        "delete from key_moves where b = 40",
        "update key_moves set b = 55, a = 1 where b = 50",
        "delete from gains_key where ctid = (select min(ctid) from gains_key where id = 1)",
        "update gains_key set n = -1 where id = 2",
        "alter table gains_key add primary key (id), replica identity default",
        "delete from gains_key where id = 3",
        "update gains_key set t = 'eins' where id = 1",
        "insert into gains_key values (4, 'vier', 0)",
        "update gains_key set n = 1 where id = 2",
        "delete from loses_key where id = 1",
        "alter table loses_key drop constraint loses_key_pkey, replica identity full",
        "insert into loses_key select * from loses_key",
        "delete from loses_key where ctid = (select min(ctid) from loses_key where id = 2)",
        "update loses_key set t = 'drei' where ctid ="
        " (select max(ctid) from loses_key where id = 3)",
    )
    for statement in statements:
        if statement.startswith("alter table renamed_later"):
            photograph_amid()
        connection.execute(statement.encode())


_WORDS = ("", "a", "line\nbreak", 'q"uote', "back\\slash", "tab\t", "\\.", "x\n\\.\ny", "NULL", "é")


def churn(connection: psycopg.Connection[Any], seed: int, transactions: int) -> None:
    """Random transactions over few keys, so that keys meet again and again."""
    chance = random.Random(seed)

    def big() -> str | None:
        word = chance.choice(_WORDS)
        return chance.choice((None, word, (word + chr(97 + chance.randrange(26))) * 4000))

    def key() -> str:
        return f"k{chance.randrange(8)}"

    def docs(table: str) -> tuple[str, tuple[Any, ...]]:
        match chance.randrange(10):
            case 0 | 1 | 2:
                return (
                    f"insert into {table} values (%s, %s, %s, %s) on conflict do nothing",
                    (key(), big(), chance.choice(_WORDS), (big() or "").encode()),
                )
            case 3 | 4 | 5:
                title = chance.choice(_WORDS)
                return f"update {table} set title = %s where id = %s", (title, key())
            case 6:
                return f"update {table} set body = %s where id = %s", (big(), key())
            case 7 | 8:
                new = key()
                return (
                    f"update {table} set id = %s where id = %s"
                    f" and not exists (select from {table} where id = %s)",
                    (new, key(), new),
                )
            case _:
                if chance.random() < 0.1:
                    return f"truncate {table}", ()
                return f"delete from {table} where id = %s", (key(),)

    def bag() -> tuple[str, tuple[Any, ...]]:
        pick = "ctid in (select ctid from bag where a = %s limit 1)"
        match chance.randrange(5):
            case 0 | 1:
                text = chance.choice((*_WORDS, "z" * 9000, None))
                number = chance.choice(("0", "-0", "NaN", "1e300", "0.1", None))
                return (
                    "insert into bag select %s, %s, %s, %s from generate_series(1, %s)",
                    (chance.randrange(4), number, text, chance.choice((1, "NaN", None)), 2),
                )
            case 2:
                return f"delete from bag where {pick}", (chance.randrange(4),)
            case 3:
                return f"update bag set a = a where {pick}", (chance.randrange(4),)
            case _:
                change = (chance.choice(_WORDS), chance.randrange(4))
                return f"update bag set t = %s where {pick}", change

    def shop() -> tuple[str, tuple[Any, ...]]:
        number = chance.randrange(1, 8)
        match chance.randrange(5):
            case 0:
                return "insert into orders (customer_id) values (%s)", (1,)
            case 1:
                return (
                    "insert into order_items (order_id, line, product, quantity, price)"
                    " select id, %s, 'p', %s, 9.90 from orders order by id desc limit 1"
                    " on conflict do nothing",
                    (chance.randrange(3), number),
                )
            case 2:
                return "update order_items set quantity = quantity + 1 where line = %s", (1,)
            case 3:
                return (
                    "insert into parts (id, day, v) values (%s, date '2026-01-01' + %s, 'v')"
                    " on conflict do nothing",
                    (number, chance.randrange(3) * 31),
                )
            case _:
                return (
                    "update parts set day = '2026-02-10' where ctid ="
                    " (select min(ctid) from parts where day < '2026-02-01' and id = %s"
                    " and not exists (select from parts q where q.id = parts.id"
                    " and q.day = '2026-02-10')) and day < '2026-02-01'",
                    (number,),
                )

    choices = (lambda: docs("docs"), lambda: docs("full_docs"), lambda: docs("by_index"), bag, shop)
    for _ in range(transactions):
        with connection.transaction(force_rollback=chance.random() < 0.1):
            for _ in range(chance.choice((1, 1, 2, 5))):
                query, values = chance.choice(choices)()
                connection.execute(query.encode(), values or None)
