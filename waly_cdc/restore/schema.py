"""What of a schema dump is restored, as SQL statements before and after the rows.

The whole database, or some tables with all that they need. Owners, privileges, publications and
subscriptions are never restored: they belong to the server, not to its contents. User mappings are
left out too, for they hold passwords.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from waly_cdc.relations import quote_identifier
from waly_cdc.restore.dump import Item, Section

_HEAP = "set default_table_access_method = heap;"
SETTINGS = f"""
set statement_timeout = 0;
set lock_timeout = 0;
set idle_in_transaction_session_timeout = 0;
set client_encoding = 'UTF8';
set standard_conforming_strings = on;
set client_min_messages = warning;
set search_path = '';
set check_function_bodies = false;
set xmloption = content;
set row_security = off;
set default_tablespace = '';
{_HEAP}
"""
"""What a dump's statements and a table's rows expect of the session that runs them."""

PG_CLASS = 1259

_RELATIONS = frozenset({"TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"})
_SESSION_ITEMS = frozenset(
    {"ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE", "DATABASE PROPERTIES"}
)
_NOT_RESTORED = _SESSION_ITEMS | {
    "ACL",
    "DEFAULT ACL",
    "PUBLICATION",
    "PUBLICATION TABLE",
    "PUBLICATION TABLES IN SCHEMA",
    "SUBSCRIPTION",
    "SUBSCRIPTION TABLE",
    "USER MAPPING",
    "STATISTICS DATA",
}
# A failure of these is reported and does not fail the restore: they need a role, an owner or a
# superuser of the old server, and no row depends on them. Without its policies a table that has row
# security shows nothing, so leaving one out opens nothing.
_OPTIONAL = frozenset({"COMMENT", "SECURITY LABEL", "POLICY", "EVENT TRIGGER"})
# They would fire for whatever is made after them.
_LAST = ("EVENT TRIGGER",)
_VIEWS = frozenset({"VIEW", "MATERIALIZED VIEW"})
_VIEW_RULE = " _RETURN"


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL that makes one object of a dump. A restore goes on without an `optional` one."""

    sql: str
    kind: str
    schema: str
    tag: str
    optional: bool = False

    @property
    def what(self) -> str:
        """The object for people."""
        return describe(self)


@dataclass(frozen=True, slots=True)
class TableItem:
    """A table that a dump describes, by the name it had then."""

    oid: int
    schema: str
    name: str
    partitioned: bool = False

    @property
    def qualified_name(self) -> str:
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


@dataclass(frozen=True, slots=True)
class Schema:
    """The chosen part of a dump: what is made before the rows, after them, and when all else is
    done. `tables` are those whose rows belong to it, `left_out` names what belongs to them and yet
    is not made."""

    before: tuple[Statement, ...]
    after: tuple[Statement, ...]
    tables: tuple[TableItem, ...]
    sequences: frozenset[tuple[str, str]]
    last: tuple[Statement, ...] = ()
    left_out: tuple[str, ...] = ()


def table_items(items: Iterable[Item]) -> list[TableItem]:
    """The tables of a dump, in its order."""
    return [
        TableItem(item.oid, item.schema, item.tag, item.partitioned)
        for item in items
        if item.kind == "TABLE" and item.catalog == PG_CLASS
    ]


def partitions_of(items: Sequence[Item], oids: Collection[int]) -> set[int]:
    """The oids, and those of all partitions of those tables, however deep."""
    by_id = {item.id: item for item in items}
    wanted = {item.id for item in items if _is_table(item) and item.oid in oids}
    attachments = _attachments(items)
    growing = True
    while growing:
        growing = False
        for child, parent in attachments:
            if parent in wanted and child not in wanted:
                wanted.add(child)
                growing = True
    return {by_id[number].oid for number in wanted}


def without_tables(items: Sequence[Item], oids: Collection[int]) -> list[Item]:
    """The items, but for those tables and all that depends on them."""
    graph = _Graph(items)
    gone = {item.id for item in items if _is_table(item) and item.oid in oids}
    return [item for item in items if not graph.closure({item.id}) & gone]


def whole(items: Sequence[Item]) -> Schema:
    """Everything in the dump that is restored at all."""
    chosen = {item.id for item in items if item.kind not in _NOT_RESTORED}
    left_out = [describe(item) for item in items if item.kind == "USER MAPPING"]
    return _schema(items, chosen, {t.oid for t in table_items(items)}, left_out)


def some_tables(items: Sequence[Item], oids: Collection[int]) -> Schema:
    """Those tables, what they depend on (types, functions, extensions, sequences, the parents of
    partitions) and what belongs to them (indexes, constraints, triggers, policies), foreign keys
    only where both sides are restored."""
    graph = _Graph(items)
    mine = {item.id for item in items if _is_table(item) and item.oid in oids}
    chosen = graph.closure(mine)
    graph.attach(chosen, mine)
    left_out = []
    for item in items:
        if item.id in chosen or item.kind in _NOT_RESTORED or item.kind in _LAST:
            continue
        needed = graph.closure({item.id})
        relations = {n for n in needed if graph.by_id[n].kind in _RELATIONS}
        if not relations & mine:
            continue
        if item.section is Section.POST_DATA and relations <= chosen:
            chosen |= needed
        elif item.kind in _VIEWS or item.tag.endswith(_VIEW_RULE) or graph.belongs_to(item, mine):
            left_out.append(describe(item))
    graph.attach(chosen, mine)
    left_out += [
        f"rows of {describe(item)}"
        for item in items
        if item.id in chosen - mine and _is_table(item) and not item.partitioned
    ]
    return _schema(items, chosen, oids, left_out)


def describe(item: Item | Statement) -> str:
    """The object for people: `fk constraint app.orders orders_customer_id_fkey`."""
    return f"{item.kind.lower()} {item.schema}{'.' if item.schema else ''}{item.tag}"


class _Graph:
    """What depends on what in a dump."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.by_id = {item.id: item for item in items}

    def closure(self, ids: Iterable[int]) -> set[int]:
        """The items and all they depend on. A dependency that the dump does not hold is there in
        every database."""
        found: set[int] = set()
        pending = list(ids)
        while pending:
            number = pending.pop()
            if number in found or number not in self.by_id:
                continue
            found.add(number)
            pending.extend(self.by_id[number].depends_on)
        return found

    def attach(self, chosen: set[int], mine: set[int]) -> None:
        """Add to the chosen items those that complete them: defaults and sequences of `mine`,
        attachments of partitions, comments and labels."""
        growing = True
        while growing:
            before = len(chosen)
            for item in self.items:
                if item.id not in chosen and self._completes(item, chosen, mine):
                    chosen |= self.closure({item.id})
            growing = len(chosen) > before

    def _completes(self, item: Item, chosen: set[int], mine: set[int]) -> bool:
        if item.kind in ("SEQUENCE", "DEFAULT"):
            tables = set(_tables(item, self.by_id))
            return bool(tables & mine) and tables <= chosen
        if item.kind in ("SEQUENCE OWNED BY", "TABLE ATTACH", "COMMENT", "SECURITY LABEL"):
            known = {number for number in item.depends_on if number in self.by_id}
            return bool(known) and known <= chosen
        return False

    def belongs_to(self, item: Item, tables: set[int]) -> bool:
        """Whether it is a part of one of the tables, as its constraints and triggers are: their
        tags begin with the table's name."""
        owners = [
            self.by_id[number]
            for number in self.closure({item.id})
            if self.by_id[number].kind in _RELATIONS
            and self.by_id[number].schema == item.schema
            and item.tag.startswith(self.by_id[number].tag + " ")
        ]
        return bool(owners) and max(owners, key=lambda owner: len(owner.tag)).id in tables


def _schema(
    items: Sequence[Item], chosen: set[int], oids: Collection[int], left_out: list[str]
) -> Schema:
    before, after, last = [], [], []
    sections = {item.id: item.section for item in items}
    for item in items:
        if item.id not in chosen or not item.sql.strip():
            continue
        section = item.section
        if section is Section.NONE:
            section = max((sections[n] for n in item.depends_on if n in sections), default=section)
        if item.kind in _LAST:
            last.append(_statement(item))
        elif section is Section.POST_DATA:
            after.append(_statement(item))
        elif section is not Section.DATA:
            before.append(_statement(item))
    refreshes = [_refresh(i) for i in items if i.id in chosen and i.kind == "MATERIALIZED VIEW"]
    return Schema(
        before=tuple(before),
        after=(*after, *refreshes),
        last=tuple(last),
        tables=tuple(table for table in table_items(items) if table.oid in oids),
        sequences=frozenset(
            (i.schema, i.tag) for i in items if i.id in chosen and i.kind == "SEQUENCE"
        ),
        left_out=tuple(left_out),
    )


def _statement(item: Item) -> Statement:
    sql = item.sql
    if item.kind == "SCHEMA":
        # Every new database has its `public` already.
        sql = f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(item.tag)};"
    elif item.access_method not in ("", "heap"):
        method = quote_identifier(item.access_method)
        sql = f"set default_table_access_method = {method};\n{sql}\n{_HEAP}"
    return Statement(sql, item.kind, item.schema, item.tag, item.kind in _OPTIONAL)


def _refresh(item: Item) -> Statement:
    name = f"{quote_identifier(item.schema)}.{quote_identifier(item.tag)}"
    sql = f"REFRESH MATERIALIZED VIEW {name};"
    return Statement(sql, "MATERIALIZED VIEW DATA", item.schema, item.tag, True)


def _is_table(item: Item) -> bool:
    return item.kind == "TABLE" and item.catalog == PG_CLASS


def _attachments(items: Sequence[Item]) -> list[tuple[int, int]]:
    """The ids of each partition and of the table it is attached to."""
    by_id = {item.id: item for item in items}
    pairs = []
    for item in items:
        if item.kind == "TABLE ATTACH":
            tables = _tables(item, by_id)
            child = [
                n for n in tables if (by_id[n].schema, by_id[n].tag) == (item.schema, item.tag)
            ]
            pairs += [(child[0], parent) for parent in tables if child and parent != child[0]]
    return pairs


def _tables(item: Item, by_id: dict[int, Item]) -> list[int]:
    return [n for n in item.depends_on if n in by_id and _is_table(by_id[n])]
