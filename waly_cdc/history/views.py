"""The tables that a query sees.

* every table as of the moment, under its own schema, name and column names;
* `history.<schema>.<table>`: a row per event, oldest first;
* `transactions`: a row per transaction, with its actor;
* `changes`: a row per event of any table, without the rows themselves.

A column that somewhere holds a value which its type cannot hold in DuckDB (`NaN` in a numeric,
`infinity` in a date, …) is VARCHAR with PostgreSQL's text: no value is ever lost in a NULL.

DuckDB does not tell names apart that differ in case only. Such tables and columns carry `~` and the
oid or the column's number behind their names, and the bare names are refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.segments import TRANSACTIONS
from waly_cdc.archive.store import LocalStore
from waly_cdc.decode.events import BEFORE_PREFIX
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.eras import in_other_era
from waly_cdc.history.events import sql_type
from waly_cdc.history.history_view import ACTOR, LSN, history_select, names
from waly_cdc.history.images import unsent_columns
from waly_cdc.history.moment import Moment
from waly_cdc.history.session import identifier, literal
from waly_cdc.history.state import state_query
from waly_cdc.history.subject import Subject
from waly_cdc.history.texts import column_text, may_be_raw
from waly_cdc.relations import RelationVersion

TRANSACTIONS_SOURCE = "waly transactions"


OWN_NAMES = (("public", "transactions"), ("public", "changes"))
"""Tables that hide a view of waly's own where no schema is named."""


class Views:
    """Makes the views in a session. `names` are the tables, as a user would write them; `notes` say
    which columns are not what they are in PostgreSQL, `unknown` why
    a table has no view."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        contents: Contents,
        store: LocalStore,
        moment: Moment,
    ) -> None:
        self._connection = connection
        self._contents = contents.in_era(moment.era)
        self._eras = [era for era in contents.eras if era.era <= moment.era]
        self._store = store
        self._bound = moment.bound
        self._before = f"(t._era, t.lsn) < ({moment.era}, {moment.bound.value})"
        self._registered: dict[tuple[str, ...], str] = {}
        self._ambiguous: set[int] = set()
        self.names: list[str] = [name for _, name in OWN_NAMES]
        self.notes: list[str] = []
        self.unknown: dict[str, PointNotInArchive] = {}

    def create(self, statement: str) -> None:
        """Make the views. Only those whose name stands in `statement` have to be right, so that a
        query over one table does not pay for all."""
        execute = self._connection.execute
        execute("attach ':memory:' as history")
        execute("set search_path = 'main'")
        self._transactions()
        folded = statement.casefold()
        shown = self._shown()
        for relation in shown:
            named = relation.name.replace('"', '""').casefold() in folded
            raw = self._raw_columns(relation) if named else frozenset()
            self._note_raw(relation, raw)
            self._table(relation, raw)
            if named and (relation.schema, relation.name) in OWN_NAMES:
                self.notes.append(
                    f"{relation.name} is the table public.{relation.name} here; what waly tells"
                    f" under this name is main.{relation.name}"
                )
            if named and not relation.followed:
                self.notes.append(
                    f"{relation.qualified_name} has no replica identity: its updates and deletes"
                    " are not archived, and its rows here are what was inserted"
                )
            if named and "history" in folded:
                self._history(relation, raw)
        if "changes" in folded:
            self._changes()
        self.names += sorted(relation.qualified_name for relation in shown)
        if any(relation.schema == "public" for relation in shown):
            execute("set search_path = 'public,main'")

    def raise_unknown(self, statement: str) -> None:
        """Raise PointNotInArchive if the statement names a table whose rows are not known."""
        for name, error in self.unknown.items():
            if name in statement.casefold():
                raise error

    def _shown(self) -> list[RelationVersion]:
        """The tables there are at the bound, of those with one name the newest."""
        newest: dict[tuple[str, str], RelationVersion] = {}
        for oid in self._contents.relations:
            relation = self._contents.version_at(oid, self._bound)
            if relation is not None:
                name = (relation.schema, relation.name)
                newest[name] = max(newest.get(name, relation), relation, key=lambda r: r.since)
        folded = Counter(f"{schema}.{name}".casefold() for schema, name in newest)
        self._ambiguous = {
            r.oid for (s, n), r in newest.items() if folded[f"{s}.{n}".casefold()] > 1
        }
        return list(newest.values())

    def _transactions(self) -> None:
        files = [file for era in self._eras for file in era.transaction_files()]
        paths = [str(self._store.path(file.path)) for file in files]
        self._connection.register(
            TRANSACTIONS_SOURCE,
            ds.dataset(paths, schema=TRANSACTIONS, format="parquet", partitioning=None)
            if paths
            else TRANSACTIONS.empty_table(),
        )
        self._connection.execute(
            f"create view transactions as select t._era as era, t.xid,"
            f" {LSN.format('t.end_lsn')} as lsn,"
            f' t.end_lsn as "position", t.committed_at, t.events, {ACTOR} as actor'
            f" from temp.main.{identifier(TRANSACTIONS_SOURCE)} t where {self._before}"
        )

    def _table(self, relation: RelationVersion, raw: frozenset[str]) -> None:
        try:
            state = state_query(self._contents, self._store, relation, self._bound, self._scan)
        except PointNotInArchive as error:
            self.unknown[relation.name.casefold()] = error
            return
        columns = [
            f"{column_text(c) if c.stored in raw else identifier(c.stored)} as {identifier(name)}"
            for c, name in zip(relation.columns, names(relation.columns), strict=True)
        ]
        select = f"select {', '.join(columns) or 'NULL'} from (\n{state}\n)"
        self._view("memory", relation, select)

    def _view(self, database: str, relation: RelationVersion, select: str) -> None:
        """A view under the table's name, or beside a refusal of that name where it is ambiguous."""
        # Named with its database, or a schema called like one would be ambiguous.
        schema = f"{database}.{identifier(relation.schema)}"
        self._connection.execute(f"create schema if not exists {schema}")
        name = relation.name
        if relation.oid in self._ambiguous:
            name = f"{relation.name}~{relation.oid}"
            told = literal(
                f"{relation.qualified_name} is ambiguous here, where names that differ only in case"
                f" are the same: it is {identifier(name)}, and so the others with their oids"
            )
            self._connection.execute(
                f"create or replace view {schema}.{identifier(relation.name)} as"
                f" select error({told}) as ambiguous"
            )
        self._connection.execute(f"create or replace view {schema}.{identifier(name)} as {select}")

    def _scan(self, store: LocalStore, files: Sequence[File]) -> str:
        """Files of one relation version as a registered dataset."""
        paths = tuple(str(store.path(file.path)) for file in files)
        name = self._registered.get(paths)
        if name is None:
            name = self._registered[paths] = f"waly files {len(self._registered)}"
            schema = pq.read_schema(paths[0])
            dataset = ds.dataset(list(paths), schema=schema, format="parquet", partitioning=None)
            self._connection.register(name, dataset)
        return f"temp.main.{identifier(name)}"

    def _by_version(self, era: Contents, oid: int) -> list[list[File]]:
        """A relation's files up to the bound, each version's by themselves."""
        files: dict[int | None, list[File]] = defaultdict(list)
        for file in era.event_files(oid):
            if era is not self._contents or file.first_lsn < self._bound:
                files[file.version].append(file)
        return list(files.values())

    def _name(self, era: Contents, oid: int) -> str:
        """What a relation was called last, up to the bound."""
        versions = era.relations[oid]
        until = [v for v in versions if era is not self._contents or v.since < self._bound]
        return (until or versions)[-1].qualified_name

    def _in_eras(self, relation: RelationVersion) -> list[tuple[Contents, RelationVersion]]:
        """What a table is in each era up to the moment's, oldest first."""
        earlier = [
            (era, found)
            for era in self._eras[:-1]
            if (found := in_other_era(relation, self._contents, era, era.horizon + 1)) is not None
        ]
        return [*earlier, (self._contents, relation)]

    def _raw_columns(self, relation: RelationVersion) -> frozenset[str]:
        """Stored names of the columns, of any version, with a value that is kept as text only, or
        that had another type in an earlier era."""
        columns = self._subject(self._contents, relation).columns
        storages = {column.name: column.storage for column in columns}
        found: set[str] = set()
        for era, own in self._in_eras(relation):
            subject = self._subject(era, own)
            if era is not self._contents:
                found |= {c.name for c in subject.columns if storages.get(c.name) != c.storage}
            if not any(may_be_raw(column) for column in subject.columns):
                continue
            for files in self._by_version(era, own.oid):
                keys = self._connection.execute(
                    "select distinct unnest(map_keys(_raw))"
                    f" from {self._scan(self._store, files)} where _raw is not null"
                ).fetchall()
                stored = (key.removeprefix(BEFORE_PREFIX) for (key,) in keys)
                found |= {subject.column(each).name for each in stored}
        return frozenset(column.stored for column in columns if column.name in found)

    def _note_raw(self, relation: RelationVersion, raw: frozenset[str]) -> None:
        self.notes += [
            f"{relation.qualified_name}.{column.name} is VARCHAR here, because it holds or has held"
            f" values that DuckDB's {sql_type(column.storage)} cannot"
            for column in relation.columns
            if column.stored in raw
        ]

    def _changes(self) -> None:
        parts = [
            f"select {literal(self._name(era, oid))} as relation, _era, _op, _lsn, _seq,"
            f" _xid, _committed_at from {self._scan(self._store, files)} where _op <> 'R'"
            for era in self._eras
            for oid in era.relations
            for files in self._by_version(era, oid)
        ]
        events = "\nunion all\n".join(parts) or (
            "select '' as relation, 0 as _era, '' as _op, 0 as _lsn, 0 as _seq, 0 as _xid,"
            " cast(null as timestamptz) as _committed_at where false"
        )
        self._connection.execute(
            f'create view changes as select e.relation as "table", e._era as era, e._op as op,'
            f' {LSN.format("t.end_lsn")} as lsn, t.end_lsn as "position", e._seq as seq,'
            f" e._xid as xid, e._committed_at as committed_at, {ACTOR} as actor"
            f" from (\n{events}\n) e join temp.main.{identifier(TRANSACTIONS_SOURCE)} t"
            f" on t.lsn = e._lsn and t._era = e._era where {self._before}"
        )

    def _history(self, relation: RelationVersion, raw: frozenset[str]) -> None:
        """Events of all eras up to the moment, in the shape that the table has at it."""
        shown = self._subject(self._contents, relation)
        # Texts of a type that a column had may not be values of the one it has.
        several = {c.stored for c in shown.columns if len(shown.variants(c)) > 1}
        transactions = f"temp.main.{identifier(TRANSACTIONS_SOURCE)}"
        parts = []
        for era, own in self._in_eras(relation):
            subject = shown if era is self._contents else self._subject(era, own)
            unsent = unsent_columns(self._connection, subject)
            parts.append(history_select(subject, shown, raw | several, unsent, transactions))
        select = "\nUNION ALL\n".join(f"SELECT * FROM (\n{part}\n)" for part in parts)
        self._view("history", relation, select)

    def _subject(self, era: Contents, relation: RelationVersion) -> Subject:
        bound = self._bound if era is self._contents else era.horizon
        return Subject(era, self._store, relation.oid, bound, self._scan)
