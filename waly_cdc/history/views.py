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
from itertools import islice

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import File
from waly_cdc.archive.segments import TRANSACTIONS
from waly_cdc.archive.store import LocalStore
from waly_cdc.decode.events import BEFORE_PREFIX
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.eras import in_other_era
from waly_cdc.history.events import may_be_raw, sql_type
from waly_cdc.history.log import changed_texts
from waly_cdc.history.moment import Moment
from waly_cdc.history.rows import RowEvent, Texts, row_events
from waly_cdc.history.session import identifier, literal
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.history.transactions import UNKNOWN_ACTOR, by_lsn
from waly_cdc.relations import Column, RelationVersion

TRANSACTIONS_SOURCE = "waly transactions"
CHUNK_EVENTS = 10_000

_ACTOR = (
    "struct_pack(user := t.actor_user, application_name := t.actor_application_name,"
    " client_addr := t.actor_client_addr, pid := t.actor_pid, query := t.actor_query,"
    " context := t.actor_context, source := t.actor_source)"
)
_ACTOR_TYPE = pa.struct(
    [(name, pa.int32() if name == "pid" else pa.string()) for name in UNKNOWN_ACTOR]
)
_LSN = "printf('%X/%X', {0} >> 32, {0} & 4294967295)"


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
        self.names: list[str] = ["transactions", "changes"]
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
            self._table(relation, raw)
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
            f" {_LSN.format('t.end_lsn')} as lsn,"
            f' t.end_lsn as "position", t.committed_at, t.events, {_ACTOR} as actor'
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
            for c, name in zip(relation.columns, _names(relation.columns), strict=True)
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
        """Stored names of the columns with a value that is kept as text only, or that had another
        type in an earlier era."""
        storages = {column.name: column.storage for column in relation.columns}
        found: set[str] = set()
        for era, own in self._in_eras(relation):
            names = {column.stored: column.name for column in own.columns}
            found |= {c.name for c in own.columns if storages.get(c.name, "") != c.storage}
            if not any(may_be_raw(column) for column in own.columns):
                continue
            for files in self._by_version(era, own.oid):
                keys = self._connection.execute(
                    "select distinct unnest(map_keys(_raw))"
                    f" from {self._scan(self._store, files)} where _raw is not null"
                ).fetchall()
                stored = (key.removeprefix(BEFORE_PREFIX) for (key,) in keys)
                found |= {names[each] for each in stored if each in names}
        raw = [column for column in relation.columns if column.name in found]
        self.notes += [
            f"{relation.qualified_name}.{column.name} is VARCHAR here, because it holds or has held"
            f" values that DuckDB's {sql_type(column.storage)} cannot"
            for column in raw
        ]
        return frozenset(column.stored for column in raw)

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
            f' {_LSN.format("t.end_lsn")} as lsn, t.end_lsn as "position", e._seq as seq,'
            f" e._xid as xid, e._committed_at as committed_at, {_ACTOR} as actor"
            f" from (\n{events}\n) e join temp.main.{identifier(TRANSACTIONS_SOURCE)} t"
            f" on t.lsn = e._lsn and t._era = e._era where {self._before}"
        )

    def _history(self, relation: RelationVersion, raw: frozenset[str]) -> None:
        name = f"waly history {relation.oid}"
        self._connection.register(name, self._events(relation))
        rows = [f"{_row(relation.columns, raw, side)} as {side}" for side in ("before", "after")]
        key = _row(relation.key_columns, raw, "key") if relation.key else "NULL"
        self._view(
            "history",
            relation,
            'select era, op, lsn, "position", seq, xid, committed_at, version, row_hash,'
            f" relation_version, actor, {key} as key, changed, {', '.join(rows)}"
            f" from temp.main.{identifier(name)}",
        )

    def _events(self, relation: RelationVersion) -> pa.Table:
        """A relation's events before the bound, rows as structs of PostgreSQL's texts."""
        row = pa.struct([(column.stored, pa.string()) for column in relation.columns])
        key = pa.struct([(column.stored, pa.string()) for column in relation.key_columns])
        schema = pa.schema(
            [
                ("era", pa.int32()),
                ("op", pa.string()),
                ("lsn", pa.string()),
                ("position", pa.int64()),
                ("seq", pa.int64()),
                ("xid", pa.int64()),
                ("committed_at", pa.timestamp("us", "UTC")),
                ("version", pa.int64()),
                ("row_hash", pa.string()),
                ("relation_version", pa.int32()),
                ("actor", _ACTOR_TYPE),
                ("key", key),
                ("changed", pa.map_(pa.string(), pa.list_(pa.string()))),
                ("before", row),
                ("after", row),
            ]
        )
        batches = []
        for era, own in self._in_eras(relation):
            bound = self._bound if era is self._contents else era.horizon
            found = (
                event
                for event in row_events(self._connection, era, self._store, own, bound)
                if event.op != "R"
            )
            while chunk := list(islice(found, CHUNK_EVENTS)):
                batches.append(self._batch(era, own, relation, chunk, schema))
        return pa.Table.from_batches(batches, schema)

    def _batch(
        self,
        era: Contents,
        own: RelationVersion,
        relation: RelationVersion,
        events: Sequence[RowEvent],
        schema: pa.Schema,
    ) -> pa.RecordBatch:
        """Events of `own` as rows of `relation`, whose columns are told by their names."""
        transactions = by_lsn(era, self._store, {event.lsn for event in events})
        stored = {column.name: column.stored for column in relation.columns}
        renamed = {c.stored: stored[c.name] for c in own.columns if c.name in stored}

        def shown(row: Texts | None) -> Texts | None:
            return row and {renamed[name]: row[name] for name in row if name in renamed}

        names = [renamed.get(column.stored, column.stored) for column in own.key_columns]
        rows = []
        for event in events:
            transaction = transactions[event.lsn]
            changed = changed_texts(event)
            rows.append(
                {
                    "era": era.era,
                    "op": event.op,
                    "lsn": str(transaction.end_lsn),
                    "position": transaction.end_lsn.value,
                    "seq": event.seq,
                    "xid": event.xid,
                    "committed_at": event.committed_at,
                    "version": event.version,
                    "row_hash": event.row_hash,
                    "relation_version": event.relation_version,
                    "actor": transaction.actor,
                    "key": dict(zip(names, event.key, strict=True)) if event.key else None,
                    "changed": None if changed is None else list(changed.items()),
                    "before": shown(event.before),
                    "after": shown(event.after),
                }
            )
        return pa.RecordBatch.from_pylist(rows, schema)


def _names(columns: Sequence[Column]) -> list[str]:
    """The columns' names, told apart where they differ in case only."""
    folded = Counter(column.name.casefold() for column in columns)
    return [
        column.name if folded[column.name.casefold()] == 1 else f"{column.name}~{number}"
        for number, column in enumerate(columns, start=1)
    ]


def _row(columns: Sequence[Column], raw: frozenset[str], side: str) -> str:
    """A struct of typed values from one of texts."""
    fields = []
    for column, name in zip(columns, _names(columns), strict=True):
        text = f"{side}.{identifier(column.stored)}"
        match column.storage:
            case "text":
                value = text
            case "bytes" if column.stored not in raw:
                value = f"unhex(substr({text}, 3))"
            case _:
                value = (
                    text if column.stored in raw else f"cast({text} as {sql_type(column.storage)})"
                )
        fields.append(f"{identifier(name)} := {value}")
    if not fields:
        return "NULL"
    return f"case when {side} is not null then struct_pack({', '.join(fields)}) end"
