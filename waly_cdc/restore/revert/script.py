"""A revert as SQL: one list of steps, which is either written to a file or run.

All of it is one transaction:

1. temporary tables with the rows that are wanted, typed as today's columns, and the rows as the
   horizon knows them, as texts;
2. every row that is to be changed is locked and compared with that, and every row that is to be
   made must not be there: what changed meanwhile is a conflict, not overwritten;
3. the changes, as a few statements over whole tables, parents before children to insert, children
   before parents to delete. Before each, rows are looked for that a foreign key forbids to change,
   or whose own changes would follow (ON DELETE CASCADE): they are conflicts, too;
4. the message that makes it a revert in the history.

User triggers fire as for any statement: what the application keeps right by them stays right. They
run under the role's own settings, so the ones that values are read under end before step 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from waly_cdc.relations import quote_identifier
from waly_cdc.restore.revert.live import ForeignKey, LiveColumn, LiveTable, parents_first
from waly_cdc.restore.revert.undo import Undo
from waly_cdc.source.connect import RENDERING_SETTINGS


@dataclass(frozen=True, slots=True)
class Run:
    """A statement; `table` names the one that it changes."""

    sql: str
    table: str = ""


@dataclass(frozen=True, slots=True)
class Fill:
    """COPY into a temporary table."""

    sql: str
    undo: Undo
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """A query for the rows that may not be changed: their `_number` in the plan, and their key as
    texts."""

    sql: str
    part: Part
    reason: str


Step = Run | Fill | Check


class Part:
    """One table's part of the script. `columns` pairs places in `Undo`'s plan with live columns."""

    def __init__(self, undo: Undo, table: LiveTable, number: int) -> None:
        self.undo = undo
        self.table = table
        self.temporary = f"pg_temp.waly_revert_{number}"
        found = [(i, table.find(undo.subject, c)) for i, c in enumerate(undo.subject.columns)]
        self.columns = [(i, live) for i, live in found if live is not None]
        self.gone = [i for i, live in found if live is None]
        places = dict(self.columns)
        self.key = [(i, places[i]) for i in undo.key if i in places]

    def of_shape(self, number: int) -> list[tuple[int, LiveColumn]]:
        """The columns that a relation version has, and that are there now."""
        version = self.undo.subject.contents.version(self.undo.subject.oid, number)
        columns = self.undo.subject.columns
        return [
            (i, live)
            for i, live in self.columns
            if self.undo.subject.has_column(version, columns[i]) is not None
        ]

    @property
    def named(self) -> str:
        """The texts that name a row of the temporary table `w`: of its key, or all of it."""
        texts = [f"coalesce(w.n{i}, {_text(f'w.w{i}')})" for i, _ in self.key or self.columns]
        return f"w.number, array[{', '.join(texts)}]::text[]"

    def name(self, texts: Sequence[str | None]) -> dict[str, str | None]:
        """What `named` gave, by column name."""
        places = [live.name for _, live in self.key or self.columns]
        return dict(zip(places, texts, strict=True))

    def same_key(self, table: str, side: str) -> str:
        """A row of the live table, called `table`, has the key of one of the sides of `w`."""
        return " and ".join(
            f"{table}.{live.quoted} = w.{side}{i}{f'::{live.type_name}' if side == 'n' else ''}"
            for i, live in self.key
        )

    def fill(self) -> Iterator[Step]:
        columns = ["number bigint", "has_w boolean", "has_n boolean", "early boolean"]
        columns += ["shape int", "now_shape int", "copies bigint"]
        columns += [f"w{i} {live.type_name}, n{i} text" for i, live in self.columns]
        yield Run(f"create temporary table {self.temporary} ({', '.join(columns)}) on commit drop")
        values = ["_number", "has_w", "has_n", "early", "shape", "now_shape", "copies"]
        for i, _ in self.columns:
            values += [f"CASE WHEN has_w THEN w{i} END", f"CASE WHEN has_n THEN n{i} END"]
        yield Fill(f"copy {self.temporary} from stdin", self.undo, tuple(values))
        yield Run(f"analyze {self.temporary}")

    def checks(self) -> Iterator[Step]:
        """That every row still is what it was at the horizon. Locks them."""
        if self.undo.by_content:
            yield Check(
                f"with found as materialized (select w.number from only {self.table.name} t"
                f" join {self.temporary} w on {self._same_content()} where w.has_n for update of t)"
                f" select {self.named} from {self.temporary} w where w.has_n and -w.copies >"
                " (select count(*) from found where found.number = w.number)",
                self,
                "it is not there any more",
            )
            return
        for shape in self.undo.shapes("now_shape"):
            same = " and ".join(
                f"w.n{i} is not distinct from {_text(f't.{live.quoted}')}"
                for i, live in self.of_shape(shape)
            )
            yield Check(
                f"with found as materialized (select w.number, {same} as same"
                f" from only {self.table.name} t join {self.temporary} w"
                f" on {self.same_key('t', 'n')} where w.has_n and w.now_shape = {shape}"
                f" order by w.number for update of t) select {self.named} from {self.temporary} w"
                f" where w.has_n and w.now_shape = {shape} and not exists"
                " (select from found where found.number = w.number and found.same)",
                self,
                "it is not what the archive last knew of it",
            )
        yield Check(
            f"select {self.named} from {self.temporary} w where w.has_w and not w.has_n and exists"
            f" (select from only {self.table.name} t where {self.same_key('t', 'w')})",
            self,
            "its key is used by a row that the archive does not know",
        )

    def _same_content(self) -> str:
        return f"{_content([_text(f't.{c.quoted}') for _, c in self.columns])} = " + _content(
            [f"w.n{i}" for i, _ in self.columns]
        )

    def inserts(self, keys: Sequence[ForeignKey]) -> Iterator[Step]:
        which = "w.has_w and (w.early or not w.has_n)"
        yield from self._without_parent(keys, which)
        for shape in self.undo.shapes("shape"):
            columns = self.of_shape(shape)
            names = ", ".join(live.quoted for _, live in columns)
            values = ", ".join(f"w.w{i}" for i, _ in columns)
            listed = f"({names}) overriding system value" if columns else ""
            yield Run(
                f"insert into {self.table.name} {listed} select {values} from {self.temporary} w,"
                f" generate_series(1, w.copies) where {which} and w.shape = {shape}",
                self.table.name,
            )

    def updates(self, keys: Sequence[ForeignKey]) -> Iterator[Step]:
        which = "w.has_w and w.has_n and not w.early"
        if self.undo.by_content:
            return
        yield from self._without_parent(keys, which)
        for shape in self.undo.shapes("shape"):
            columns = [(i, c) for i, c in self.of_shape(shape) if self.undo.changes(i, shape)]
            if columns:
                values = ", ".join(f"{live.quoted} = w.w{i}" for i, live in columns)
                yield Run(
                    f"update only {self.table.name} t set {values} from {self.temporary} w"
                    f" where {self.same_key('t', 'n')} and {which} and w.shape = {shape}",
                    self.table.name,
                )

    def deletes(self, keys: Sequence[ForeignKey], *, early: bool) -> Iterator[Step]:
        if self.undo.by_content:
            if not early:
                yield Run(
                    f"delete from only {self.table.name} where ctid in (select place from"
                    " (select t.ctid as place, w.copies, row_number() over"
                    f" (partition by w.number) as nth from only {self.table.name} t"
                    f" join {self.temporary} w on {self._same_content()} where w.has_n) s"
                    " where nth <= -copies)",
                    self.table.name,
                )
            return
        which = "w.early" if early else "w.has_n and not w.has_w and not w.early"
        for key in (key for key in keys if key.parent == self.table.oid):
            own = ""
            if key.child == self.table.oid:
                own = (
                    f" and not exists (select from {self.temporary} w where"
                    f" {self.same_key('c', 'n')} and {which})"
                )
            places = {live.quoted: f"w.n{i}::{live.type_name}" for i, live in self.columns}
            refers = " and ".join(
                f"c.{mine} = {places[other]}"
                for mine, other in zip(key.child_columns, key.parent_columns, strict=True)
            )
            yield Check(
                f"select {self.named} from {self.temporary} w where {which} and exists"
                f" (select from {key.child_name} c where {refers}{own})",
                self,
                f"rows of {key.child_name} refer to it",
            )
        yield Run(
            f"delete from only {self.table.name} t using {self.temporary} w"
            f" where {self.same_key('t', 'n')} and {which}",
            self.table.name,
        )

    def _without_parent(self, keys: Sequence[ForeignKey], which: str) -> Iterator[Step]:
        places = {live.quoted: f"w.w{i}" for i, live in self.columns}
        for key in keys:
            if key.child != self.table.oid or not set(key.child_columns) <= places.keys():
                continue
            pairs = list(zip(key.child_columns, key.parent_columns, strict=True))
            there = " and ".join(f"p.{other} = {places[mine]}" for mine, other in pairs)
            known = " and ".join(f"{places[mine]} is not null" for mine, _ in pairs)
            own = {live.quoted: f"o.w{i}" for i, live in self.columns}
            beside = ""
            if key.parent == self.table.oid:
                same = " and ".join(f"{own[other]} = {places[mine]}" for mine, other in pairs)
                beside = (
                    f" and not exists (select from {self.temporary} o where o.has_w and {same})"
                )
            yield Check(
                f"select {self.named} from {self.temporary} w where {which} and {known} and"
                f" not exists (select from {key.parent_name} p where {there}){beside}",
                self,
                f"the row of {key.parent_name} that it refers to is gone",
            )


def script(
    parts: Sequence[Part],
    keys: Sequence[ForeignKey],
    stamp: str,
    *,
    deletes_first: bool,
    triggers: bool,
) -> list[Step]:
    """The steps between BEGIN and COMMIT. `stamp` is the message's JSON. `deletes_first` is for
    tables whose other unique indexes have no room for what is inserted."""
    by_oid = {part.table.oid: part for part in parts}
    ordered = [by_oid[table.oid] for table in parents_first([p.table for p in parts], keys)]
    steps: list[Step] = [Run("set local standard_conforming_strings to on")]
    steps += [Run(f"set local {name} to {_literal(text)}") for name, text in _SETTINGS.items()]
    for part in ordered:
        steps += part.fill()
    for part in ordered:
        steps += part.checks()
    steps += [Run(f"set local {name} to default") for name in _SETTINGS]
    steps.append(Run("set constraints all deferred"))
    if not triggers:
        steps += _triggers(ordered, enable=False)
    for part in reversed(ordered):
        steps += part.deletes(keys, early=True)
    deletes = [step for part in reversed(ordered) for step in part.deletes(keys, early=False)]
    inserts = [step for part in ordered for step in part.inserts(keys)]
    updates = [step for part in ordered for step in part.updates(keys)]
    steps += [*deletes, *inserts, *updates] if deletes_first else [*inserts, *updates, *deletes]
    if not triggers:
        steps += _triggers(ordered, enable=True)
    steps.append(Run(f"select pg_logical_emit_message(true, 'waly', {_literal(stamp)})"))
    return steps


def _triggers(parts: Sequence[Part], *, enable: bool) -> Iterator[Step]:
    for part in parts:
        for name, mode in part.table.triggers:
            action = "disable"
            if enable:
                action = "enable always" if mode == "A" else "enable"
            trigger = quote_identifier(name)
            yield Run(f"alter table {part.table.name} {action} trigger {trigger}")


_SETTINGS = {name: value for name, value in RENDERING_SETTINGS.items() if name != "client_encoding"}


def _text(value: str) -> str:
    """The text that PostgreSQL prints for a value; a cast would print some types otherwise."""
    return f"case when {value} is distinct from null then format('%s', {value}) end"


def _content(texts: Sequence[str]) -> str:
    """All of a row in one text: NULL, and where each value ends, are told apart."""
    parts = [f"coalesce(octet_length({text}) || ':' || ({text}), '-')" for text in texts]
    return f"({' || '.join(parts) or chr(39) * 2})"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
