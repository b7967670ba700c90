"""Random statements that make tables and change their shape, as their owner may do.

A statement may fail: a column cannot be cast, a name is taken. Names of columns and tables are few,
so that what is dropped comes again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.fuzz.statements import Table
from tests.fuzz.values import KEYS, LITERALS, plain, qualified
from waly_cdc.relations import quote_identifier as q

SCHEMAS = ("public", "Sch.ema", "other")
TABLES = ("t", "u", "T", "order", "Täble x", "_op", 'qu"ote', "n" * 63)
COLUMNS = ("a", "b", "A", "day", "_op", "select", "a b", "É", 'q"', "c" * 63)
TYPES = tuple(LITERALS)

# Making tables


def create(dice: random.Random, tables: Sequence[Table], schemas: Sequence[str]) -> list[str]:
    """Statements that make a table, or a partitioned one with its partitions."""
    name = f"{q(dice.choice(schemas))}.{q(dice.choice(TABLES))}"
    kind = dice.random()
    if kind < 0.15:
        return _create_partitioned(dice, name)
    if kind < 0.2:
        return [f"create table {name} as select n as a, n::text as b from generate_series(1, 9) n"]
    keys = dice.sample(tuple(KEYS), dice.choice((0, 1, 1, 1, 2)))
    columns = dice.sample(COLUMNS, len(keys) + dice.randrange(1, 5))
    parts = [
        f"{q(column)} {qualified(key)}"
        for column, key in zip(columns[: len(keys)], keys, strict=True)
    ]
    for column in columns[len(keys) :]:
        parts.append(f"{q(column)} {_column_type(dice)}")
    if dice.random() < 0.2:
        parts.append("\"made\" text generated always as ('x') stored")
    if dice.random() < 0.2:
        parts.append(f'"number" int generated {dice.choice(("always", "by default"))} as identity')
    if keys:
        parts.append("primary key (" + ", ".join(map(q, columns[: len(keys)])) + ")")
    parents = [t for t in tables if t.kind == "r" and t.key_name and not t.parent]
    if parents and dice.random() < 0.25:
        parent = dice.choice(parents)
        fields = [c for c in parent.columns if c.in_key]
        mine = [q(f"ref {n}") for n in range(len(fields))]
        parts += [f"{m} {qualified(plain(c.type))}" for m, c in zip(mine, fields, strict=True)]
        action = dice.choice(("cascade", "set null"))
        parts.append(
            f"foreign key ({', '.join(mine)}) references {parent.sql}"
            f" ({', '.join(c.sql for c in fields)}) on delete {action} on update cascade"
        )
    statements = [f"create table {name} ({', '.join(parts)})"]
    if kind > 0.93 and tables:
        parent = dice.choice(tables)
        if parent.kind == "r" and not parent.parent:
            statements = [f"create table {name} () inherits ({parent.sql})"]
    if dice.random() < 0.35:
        statements.append(f"alter table {name} replica identity full")
    return statements


def _create_partitioned(dice: random.Random, name: str) -> list[str]:
    key = dice.choice((", primary key (id)", "", ", primary key (id, v)"))
    schema, _, _ = name.rpartition(".")
    part = [f"{schema}.{q(f'part {n} {dice.randrange(3)}')}" for n in range(3)]
    statements = [
        f"create table {name} (id int, v text not null, w text{key}) partition by range (id)",
        f"create table {part[0]} partition of {name} for values from (0) to (10)",
        f"create table {part[1]} partition of {name} for values from (10) to (20)",
        f"create table {part[2]} partition of {name} default",
    ]
    if not key:
        statements += [f"alter table {each} replica identity full" for each in part[:2]]
    return statements


def _column_type(dice: random.Random) -> str:
    return qualified(dice.choice(("text", "text", "bytea", *TYPES)))


# Changes of shape

TYPE_CHANGES = (
    ("integer", "bigint", ""),
    ("integer", "text", ""),
    ("integer", "oid", ""),
    ("bigint", "numeric", ""),
    ("text", "text", " using upper({})"),
    ("text", "character varying(40)", " using left({}, 40)"),
    ("character varying(40)", "character varying(60)", ""),
    ("character varying(40)", "text", ""),
    ("numeric(10,2)", "numeric(12,2)", ""),
    ("numeric(10,2)", "numeric", ""),
    ("numeric", "text", ""),
    ("timestamp with time zone", "timestamp without time zone", ""),
    ("timestamp without time zone", "timestamp with time zone", ""),
    ("cidr", "inet", ""),
    ("posint", "integer", ""),
    ("mood", "text", ""),
    ("json", "jsonb", ""),
    ("real", "double precision", ""),
    ("bit varying(9)", "bit varying(12)", ""),
    ("date", "timestamp without time zone", ""),
)


def change_shape(dice: random.Random, table: Table, schemas: Sequence[str]) -> list[str]:
    """Statements that change a table without its rows' events."""
    return dice.choice(_SHAPES)(dice, table, schemas)


def _alter(table: Table, what: str) -> list[str]:
    return [f"alter table {table.sql} {what}"]


def _rename(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    return _alter(table, f"rename to {q(dice.choice(TABLES))}")


def _rename_column(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    if not table.columns:
        return _add_column(dice, table, _)
    column = dice.choice(table.columns)
    statements = _alter(table, f"rename column {column.sql} to {q(dice.choice(COLUMNS))}")
    if len(table.columns) > 1 and dice.random() < 0.2:
        # Two columns change names.
        one, other = dice.sample(table.columns, 2)
        statements = [
            *_alter(table, f"rename column {one.sql} to swapping"),
            *_alter(table, f"rename column {other.sql} to {one.sql}"),
            *_alter(table, f"rename column swapping to {other.sql}"),
        ]
    return statements


def _set_schema(dice: random.Random, table: Table, schemas: Sequence[str]) -> list[str]:
    return _alter(table, f"set schema {q(dice.choice(schemas))}")


def _add_column(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    name = q(dice.choice(COLUMNS))
    kind = dice.choice(
        (
            _column_type(dice),
            _column_type(dice),
            "int not null default 42",
            "text default 'constant'",
            "numeric(10,2) default 1.5",
            "uuid default gen_random_uuid()",
            "timestamptz default clock_timestamp()",
            "text generated always as ('g' || 'h') stored",
            "bigint generated by default as identity",
        )
    )
    statements = _alter(table, f"add column {name} {kind}")
    if dice.random() < 0.15:
        # Gone and there again, under its name.
        statements = [*_alter(table, f"drop column if exists {name} cascade"), *statements]
    return statements


def _drop_column(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    if not table.columns:
        return _add_column(dice, table, _)
    return _alter(table, f"drop column {dice.choice(table.columns).sql} cascade")


def _change_type(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    possible = [
        (column, new, using)
        for column in table.columns
        for old, new, using in TYPE_CHANGES
        if plain(column.type) == old
    ]
    if not possible:
        return _add_column(dice, table, _)
    column, new, using = dice.choice(possible)
    return _alter(table, f"alter {column.sql} type {qualified(new)}{using.format(column.sql)}")


def _drop_expression(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    generated = [c for c in table.columns if c.generated]
    if not generated:
        return _rename_column(dice, table, _)
    return _alter(table, f"alter {dice.choice(generated).sql} drop expression")


def _primary_key(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    if table.key_name and dice.random() < 0.3:
        return _alter(table, f"drop constraint {q(table.key_name)} cascade")
    columns = [c for c in table.columns if not c.generated]
    if not columns:
        return _add_column(dice, table, _)
    chosen = dice.sample(columns, min(len(columns), dice.choice((1, 1, 2))))
    names = ", ".join(c.sql for c in chosen)
    if table.key_name:
        return _alter(
            table, f"drop constraint {q(table.key_name)} cascade, add primary key ({names})"
        )
    return _alter(table, f"add primary key ({names})")


def _replica_identity(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    indexable = [c for c in table.columns if c.not_null and not c.generated]
    if indexable and dice.random() < 0.4:
        index = q(f"index {dice.randrange(10**6)}")
        return [
            f"create unique index {index} on {table.sql} ({dice.choice(indexable).sql})",
            *_alter(table, f"replica identity using index {index}"),
        ]
    return _alter(table, f"replica identity {dice.choice(('full', 'full', 'default', 'nothing'))}")


def _storage(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    long = [c for c in table.columns if plain(c.type) in ("text", "bytea")]
    if not long:
        return _drop_column(dice, table, _)
    return _alter(table, f"alter {dice.choice(long).sql} set storage external")


def _not_null(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    if not table.columns:
        return _add_column(dice, table, _)
    what = dice.choice(("set not null", "drop not null", "set default null", "drop default"))
    return _alter(table, f"alter {dice.choice(table.columns).sql} {what}")


def _persistence(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    return _alter(table, dice.choice(("set unlogged", "set logged", "set logged")))


def _attach(dice: random.Random, table: Table, _: Sequence[str]) -> list[str]:
    if table.parent:
        return [f"alter table {table.parent} detach partition {table.sql}"]
    if table.kind == "p":
        part = f"{q(table.schema)}.{q(f'part {dice.randrange(20, 24)}')}"
        return [
            f"create table if not exists {part} (id int, v text not null, w text)",
            f"insert into {part} values (31, 'a', 'b')",
            *_alter(table, f"attach partition {part} for values from (30) to (40)"),
        ]
    return _storage(dice, table, _)


_SHAPES: tuple[Callable[[random.Random, Table, Sequence[str]], list[str]], ...] = (
    _rename,
    _rename_column,
    _rename_column,
    _set_schema,
    _add_column,
    _add_column,
    _add_column,
    _drop_column,
    _drop_column,
    _change_type,
    _change_type,
    _change_type,
    _drop_expression,
    _primary_key,
    _primary_key,
    _replica_identity,
    _storage,
    _not_null,
    _persistence,
    _attach,
)


def change_type(dice: random.Random) -> str:
    """A statement that changes a type of our own under the columns that have it."""
    old, new = dice.sample(("sad", "ok", "happy", "blue"), 2)
    return dice.choice(
        (
            f"alter type public.mood rename value '{old}' to '{new}'",
            f"alter type public.mood add value if not exists '{new}'",
            f"alter type public.address add attribute more{dice.randrange(3)} int",
            f"alter type public.address drop attribute if exists more{dice.randrange(3)}",
        )
    )


def maintain(dice: random.Random, table: Table) -> str:
    """A statement that runs outside of transactions, and changes no row."""
    return dice.choice(
        (
            f"vacuum full {table.sql}",
            f"vacuum {table.sql}",
            f"analyze {table.sql}",
            f"reindex table {table.sql}",
        )
    )
