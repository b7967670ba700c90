"""Relations and relation versions: the shape of a table, from one LSN to its next change.

A *stored name* is the name of a column in event files. It means one PostgreSQL column (relation oid
and attnum) with one storage type, for ever: a renamed column keeps it, a column that is dropped and
added again, or whose type changes, gets another. Stored names are unique within a relation without
regard to case, and never one of `RESERVED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from waly_cdc.lsn import Lsn

RESERVED = frozenset(
    {
        "day",
        "_op",
        "_era",
        "_lsn",
        "_seq",
        "_xid",
        "_committed_at",
        "_relation",
        "_unchanged",
        "_before",
        "_raw",
    }
)
"""Column names that event files use for themselves."""

IDENTITY_DEFAULT, IDENTITY_NOTHING, IDENTITY_FULL, IDENTITY_INDEX = "d", "n", "f", "i"


@dataclass(frozen=True, slots=True)
class StreamColumn:
    """A column as a Relation message describes it (PostgreSQL documentation, section 53.9)."""

    name: str
    type_oid: int
    typmod: int
    identity: bool
    """Part of the replica identity: sent with the old row of updates and deletes."""


@dataclass(frozen=True, slots=True)
class StreamRelation:
    """A table as a Relation message describes it: its columns in order, dropped ones left out."""

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[StreamColumn, ...]


@dataclass(frozen=True, slots=True)
class NamedColumn:
    """A column as a message of wal2json describes it: `type_name` as `format_type` prints it,
    `attnum` None where the message tells only that the column is part of the identity."""

    attnum: int | None
    name: str
    type_oid: int
    type_name: str


@dataclass(frozen=True, slots=True)
class NamedTable:
    """A table as a message of wal2json describes it: by name, and as far as the action shows it.

    `action` is I, U, D or T. `columns` are those of the new row, generated ones among them, without
    unchanged TOASTed ones; `identity` those of the replica identity (updates and deletes); `key`
    names the primary key's. A truncate shows none of them.
    """

    schema: str
    name: str
    action: str
    columns: tuple[NamedColumn, ...]
    identity: tuple[NamedColumn, ...]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a relation version.

    `storage` names how its values are stored: see `waly_cdc.decode.values`. `attnum` is None where
    the catalog could not be asked in time.
    """

    name: str
    stored: str
    storage: str
    type_oid: int
    typmod: int
    type_name: str
    identity: bool
    attnum: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stored": self.stored,
            "storage": self.storage,
            "type_oid": self.type_oid,
            "typmod": self.typmod,
            "type": self.type_name,
            "identity": self.identity,
            "attnum": self.attnum,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Column:
        return cls(
            name=data["name"],
            stored=data["stored"],
            storage=data["storage"],
            type_oid=data["type_oid"],
            typmod=data["typmod"],
            type_name=data["type"],
            identity=data["identity"],
            attnum=data["attnum"],
        )


@dataclass(frozen=True, slots=True)
class RelationVersion:
    """The shape of a relation from `since` until its next version.

    `key` holds the stored names of the columns that identify a row, in key order: the primary key,
    or the index of the replica identity. Empty for a table without a key, whose state is a
    multiset.
    """

    oid: int
    version: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    since: Lsn

    @property
    def qualified_name(self) -> str:
        """`schema.name`, for people and for JSON. Quoted as in SQL where it needs quoting."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"

    def by_stored_name(self, stored: str) -> Column:
        """The column stored under that name. Raises KeyError."""
        for column in self.columns:
            if column.stored == stored:
                return column
        raise KeyError(stored)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The key's columns, in key order."""
        return tuple(self.by_stored_name(stored) for stored in self.key)

    @property
    def followed(self) -> bool:
        """Whether updates and deletes can be published at all: without a replica identity they
        cannot, and only inserts and truncates of the table are archived."""
        return any(column.identity for column in self.columns)

    def matches(self, relation: StreamRelation) -> bool:
        """Whether a Relation message describes this very shape."""
        return self.to_stream() == relation

    def to_stream(self) -> StreamRelation:
        """The relation as a Relation message describes it."""
        return StreamRelation(
            self.oid,
            self.schema,
            self.name,
            self.replica_identity,
            tuple(StreamColumn(c.name, c.type_oid, c.typmod, c.identity) for c in self.columns),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "oid": self.oid,
            "version": self.version,
            "schema": self.schema,
            "name": self.name,
            "replica_identity": self.replica_identity,
            "columns": [column.to_json() for column in self.columns],
            "key": list(self.key),
            "since": str(self.since),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RelationVersion:
        return cls(
            oid=data["oid"],
            version=data["version"],
            schema=data["schema"],
            name=data["name"],
            replica_identity=data["replica_identity"],
            columns=tuple(Column.from_json(column) for column in data["columns"]),
            key=tuple(data["key"]),
            since=Lsn.parse(data["since"]),
        )


def stored_name(name: str, taken: Iterable[str]) -> str:
    """A stored name for a new column called `name`, apart from `RESERVED` and from `taken`."""
    used = {other.casefold() for other in taken} | RESERVED
    base = "c" + name if name.startswith("_") else name
    candidate, number = base, 2
    while candidate.casefold() in used:
        candidate = f"{base}_{number}"
        number += 1
    return candidate


def quote_identifier(name: str) -> str:
    """The identifier as SQL wants it: in double quotes unless it is plain lower case."""
    if name.isascii() and name.isidentifier() and name == name.lower() and name not in _KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'


# The reserved words of PostgreSQL (documentation, appendix C): these cannot name a table or a
# column without quotes.
_KEYWORDS = frozenset(
    [
        "all",
        "analyse",
        "analyze",
        "and",
        "any",
        "array",
        "as",
        "asc",
        "asymmetric",
        "authorization",
        "binary",
        "both",
        "case",
        "cast",
        "check",
        "collate",
        "collation",
        "column",
        "concurrently",
        "constraint",
        "create",
        "cross",
        "current_catalog",
        "current_date",
        "current_role",
        "current_schema",
        "current_time",
        "current_timestamp",
        "current_user",
        "default",
        "deferrable",
        "desc",
        "distinct",
        "do",
        "else",
        "end",
        "except",
        "false",
        "fetch",
        "for",
        "foreign",
        "freeze",
        "from",
        "full",
        "grant",
        "group",
        "having",
        "ilike",
        "in",
        "initially",
        "inner",
        "intersect",
        "into",
        "is",
        "isnull",
        "join",
        "lateral",
        "leading",
        "left",
        "like",
        "limit",
        "localtime",
        "localtimestamp",
        "natural",
        "not",
        "notnull",
        "null",
        "offset",
        "on",
        "only",
        "or",
        "order",
        "outer",
        "overlaps",
        "placing",
        "primary",
        "references",
        "returning",
        "right",
        "select",
        "session_user",
        "similar",
        "some",
        "symmetric",
        "system_user",
        "table",
        "tablesample",
        "then",
        "to",
        "trailing",
        "true",
        "union",
        "unique",
        "user",
        "using",
        "variadic",
        "verbose",
        "when",
        "where",
        "window",
        "with",
    ]
)
