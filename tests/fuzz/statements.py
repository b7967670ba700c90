"""Tables as a session sees them, and random statements that change their rows.

A statement may fail (a key is there already, a row is referred to): applications' do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz.values import literal, plain, qualified
from waly_cdc.relations import quote_identifier as q


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    generated: bool
    identity: str
    not_null: bool
    in_key: bool

    @property
    def sql(self) -> str:
        return q(self.name)

    def value(self, dice: random.Random) -> str:
        return literal(self.type, dice, key=self.in_key, null=not self.not_null)


@dataclass(frozen=True)
class Table:
    """A table as a session sees it. `kind` is `r` or `p`; `parent` the partitioned table's name."""

    schema: str
    name: str
    kind: str
    parent: str | None
    columns: tuple[Column, ...]
    key_name: str | None

    @property
    def sql(self) -> str:
        return f"{q(self.schema)}.{q(self.name)}"

    @property
    def writable(self) -> list[Column]:
        return [c for c in self.columns if not c.generated and c.identity != "a"]


LOOK = """
select n.nspname, c.relname, c.relkind::text,
       (select quote_ident(pn.nspname) || '.' || quote_ident(p.relname)
        from pg_inherits i join pg_class p on p.oid = i.inhparent
        join pg_namespace pn on pn.oid = p.relnamespace
        where i.inhrelid = c.oid and c.relispartition),
       coalesce((select jsonb_agg(jsonb_build_array(
                     a.attname, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '',
                     a.attidentity, a.attnotnull, coalesce(a.attnum = any(k.indkey), false))
                     order by a.attnum)
                 from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]'),
       kc.conname
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_index k on k.indrelid = c.oid and k.indisprimary
left join pg_constraint kc on kc.conindid = k.indexrelid and kc.contype = 'p'
where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
order by n.nspname, c.relname
"""


def tables_of(rows: Sequence[Sequence[object]]) -> list[Table]:
    """The tables that `LOOK` tells of."""
    return [
        Table(
            str(schema),
            str(name),
            str(kind),
            None if parent is None else str(parent),
            tuple(Column(*column) for column in columns),  # type: ignore[attr-defined]
            None if key_name is None else str(key_name),
        )
        for schema, name, kind, parent, columns, key_name in rows
    ]


# Changes of rows


def insert(dice: random.Random, table: Table) -> str:
    columns = [c for c in table.writable if c.in_key or c.not_null or dice.random() < 0.85]
    if not columns:
        return f"insert into {table.sql} default values"
    rows = ", ".join(
        "(" + ", ".join(c.value(dice) for c in columns) + ")"
        for _ in range(dice.choice((1, 1, 1, 3, 8)))
    )
    names = ", ".join(c.sql for c in columns)
    conflict = ""
    if table.key_name and dice.random() < 0.6:
        changed = [c for c in columns if not c.in_key]
        keys = ", ".join(c.sql for c in table.columns if c.in_key)
        conflict = " on conflict do nothing"
        if changed and dice.random() < 0.5:
            column = dice.choice(changed)
            conflict = f" on conflict ({keys}) do update set {column.sql} = excluded.{column.sql}"
    return f"insert into {table.sql} ({names}) values {rows}{conflict}"


def _some_rows(dice: random.Random, table: Table) -> str:
    count, skip = dice.choice((1, 1, 1, 2, 5)), dice.randrange(12)
    return (
        f"(tableoid, ctid) in (select tableoid, ctid from {table.sql} offset {skip} limit {count})"
    )


def update(dice: random.Random, table: Table) -> str:
    columns = table.writable
    if not columns:
        return delete(dice, table)
    others = [c for c in columns if not c.in_key] or columns
    chosen = dice.sample(others, min(len(others), dice.choice((1, 1, 2))))
    if dice.random() < 0.2:
        chosen = [dice.choice(columns)]
    sets = ", ".join(f"{c.sql} = {c.value(dice)}" for c in chosen)
    return f"update {table.sql} set {sets} where {_some_rows(dice, table)}"


def delete(dice: random.Random, table: Table) -> str:
    return f"delete from {table.sql} where {_some_rows(dice, table)}"


def merge(dice: random.Random, table: Table) -> str:
    columns = table.writable
    keys = [c for c in columns if c.in_key]
    others = [c for c in columns if not c.in_key]
    if not keys or not others:
        return insert(dice, table)
    given = ", ".join(f"{c.value(dice)}::{qualified(plain(c.type))} as {c.sql}" for c in columns)
    same = " and ".join(f"t.{c.sql} = s.{c.sql}" for c in keys)
    column = dice.choice(others)
    action = dice.choice((f"update set {column.sql} = s.{column.sql}", "delete"))
    names = ", ".join(c.sql for c in columns)
    values = ", ".join(f"s.{c.sql}" for c in columns)
    return (
        f"merge into {table.sql} t using (select {given}) s on {same} when matched then {action}"
        f" when not matched then insert ({names}) values ({values})"
    )


def truncate(dice: random.Random, tables: Sequence[Table]) -> str:
    chosen = dice.sample(tables, min(len(tables), dice.choice((1, 1, 2, 3))))
    restart = dice.choice(("", " restart identity"))
    return f"truncate {', '.join(t.sql for t in chosen)}{restart} cascade"
