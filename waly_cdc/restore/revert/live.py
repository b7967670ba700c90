"""Today's schema: what a revert has to know of the live tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import psycopg

from waly_cdc.history.subject import Subject
from waly_cdc.relations import Column, quote_identifier


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """A column as it is now, with its type as SQL. `always` is that of `GENERATED ALWAYS AS
    IDENTITY`, which no UPDATE may set."""

    attnum: int
    name: str
    type_name: str
    generated: bool
    always: bool

    @property
    def quoted(self) -> str:
        return quote_identifier(self.name)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of `child` that refers to `parent` (oids); columns are quoted, in pairs."""

    name: str
    child: int
    child_name: str
    child_columns: tuple[str, ...]
    parent: int
    parent_name: str
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A table as it is now; `name` is quoted and has its schema. `crowded`: it has another unique
    index or an exclusion constraint beside its key. `triggers` are the user's that fire, each with
    how it was enabled."""

    oid: int
    root: int
    name: str
    columns: tuple[LiveColumn, ...]
    crowded: bool
    triggers: tuple[tuple[str, str], ...]

    def find(self, subject: Subject, column: Column) -> LiveColumn | None:
        """What one of the subject's columns is now; None if it is gone or generated."""
        attnums = {each.attnum for each in subject.variants(column)} - {None}
        return next(
            (
                each
                for each in self.columns
                if not each.generated
                and (each.attnum in attnums if attnums else each.name == column.name)
            ),
            None,
        )


_TABLES = """
select c.oid, coalesce(pg_partition_root(c.oid)::oid, c.oid),
       format('%%I.%%I', n.nspname, c.relname),
       (select count(*) from pg_index i where i.indrelid = c.oid
        and (i.indisunique or i.indisexclusion)) > 1,
       coalesce((select array_agg(array[t.tgname::text, t.tgenabled::text] order by t.tgname)
                 from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal
                 and t.tgenabled in ('O', 'A')), '{}'),
       coalesce((select jsonb_agg(jsonb_build_array(a.attnum, a.attname,
                     format_type(a.atttypid, a.atttypmod), a.attgenerated, a.attidentity)
                     order by a.attnum)
                 from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = any(%s) and c.relkind = 'r'
"""

# Partitions have a row of their own for each foreign key, on both sides.
_FOREIGN_KEYS = """
select c.conname, c.conrelid, format('%%I.%%I', cn.nspname, cc.relname),
       (select array_agg(quote_ident(a.attname) order by k.place)
        from unnest(c.conkey) with ordinality k(number, place)
        join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.number),
       c.confrelid, format('%%I.%%I', pn.nspname, pc.relname),
       (select array_agg(quote_ident(a.attname) order by k.place)
        from unnest(c.confkey) with ordinality k(number, place)
        join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.number)
from pg_constraint c
join pg_class cc on cc.oid = c.conrelid join pg_namespace cn on cn.oid = cc.relnamespace
join pg_class pc on pc.oid = c.confrelid join pg_namespace pn on pn.oid = pc.relnamespace
where c.contype = 'f' and (c.conrelid = any(%(oids)s) or c.confrelid = any(%(oids)s))
order by c.conname, c.oid
"""


def live_tables(connection: psycopg.Connection, oids: Collection[int]) -> dict[int, LiveTable]:
    """Those of the tables that are still there, by oid."""
    return {
        oid: LiveTable(
            oid,
            root,
            name,
            tuple(
                LiveColumn(attnum, column, kind, generated != "", identity == "a")
                for attnum, column, kind, generated, identity in columns
            ),
            crowded,
            tuple((trigger, enabled) for trigger, enabled in triggers),
        )
        for oid, root, name, crowded, triggers, columns in connection.execute(
            _TABLES, (list(oids),)
        )
    }


def foreign_keys(connection: psycopg.Connection, oids: Collection[int]) -> list[ForeignKey]:
    """The foreign keys of the tables, and those that refer to them."""
    return [
        ForeignKey(name, child, child_name, tuple(columns), parent, parent_name, tuple(referenced))
        for name, child, child_name, columns, parent, parent_name, referenced in connection.execute(
            _FOREIGN_KEYS, {"oids": list(oids)}
        )
    ]


def parents_first(tables: Sequence[LiveTable], keys: Sequence[ForeignKey]) -> list[LiveTable]:
    """The tables in the order of their foreign keys; those that refer to each other in a ring in
    any order."""
    # A foreign key of a partitioned table has its root on one side at least.
    of_root: dict[int, set[int]] = {}
    for table in tables:
        for number in (table.oid, table.root):
            of_root.setdefault(number, set()).add(table.oid)
    needs: dict[int, set[int]] = {table.oid: set() for table in tables}
    for key in keys:
        for child in of_root.get(key.child, ()):
            needs[child] |= of_root.get(key.parent, set()) - {child}
    by_oid = {table.oid: table for table in tables}
    while True:
        try:
            return [by_oid[oid] for oid in TopologicalSorter(needs).static_order()]
        except CycleError as error:
            parent, child = error.args[1][:2]
            needs[child].discard(parent)
