"""Narrowing a history to some rows, so that only their events are read.

Rows are named by their key, and may have had others: the keys that follow from each other by
updates of the key are collected first, from the few files that have such updates. What is read then
holds the chains of the rows asked for whole, and perhaps some others'.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from waly_cdc.archive.manifest import File
from waly_cdc.history.events import old_name
from waly_cdc.history.session import identifier, literal, rows
from waly_cdc.history.subject import Keying, Subject
from waly_cdc.relations import Column

Key = tuple[str | None, ...]
"""A key's values in key order, as PostgreSQL prints them."""

LISTED = 64
"""Up to so many keys stand in the statement itself, where files can be pruned by them."""

_COMPARED = ("int16", "int32", "int64", "text")
"""Storages whose typed values compare as their texts do."""


class Narrowing:
    """The keys of the rows asked for, in each keying of a subject: tables of the session, which
    is a database of its own.

    `wanted` selects keys in the newest keying, as texts in the order of its columns.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, subject: Subject, wanted: str
    ) -> None:
        self._connection = connection
        self._subject = subject
        numbers = range(len(subject.keyings))
        self._keys = [f"keys_{subject.oid}_{number}" for number in numbers]
        for number in reversed(numbers):
            self._collect(number, wanted)
            if number:
                # A row that was deleted before its table got the later keys has no key in them.
                by = sorted({number, numbers[-1]})
                wanted = " UNION ".join(self._former(number - 1, later) for later in by)

    def source(self) -> str:
        """A statement for the events of these rows and all truncates, with typed values: they are
        read once, into a table."""
        table = f"events_{self._subject.oid}"
        self._connection.execute(f"CREATE OR REPLACE TABLE {table} AS\n{self._events()}")
        return f"SELECT * FROM {table}"

    def _events(self) -> str:
        subject, parts = self._subject, []
        for keying, keys in zip(subject.keyings, self._keys, strict=True):
            files = [file for file in subject.files if file.version in keying.versions]
            own = self._having(
                keying, keys, [subject.own_text(c) for c in keying.columns], typed=True
            )
            parts.append(f"SELECT * FROM (\n{subject.events(files)}\n) WHERE _op <> 'T' AND {own}")
            moved = _moved_files(files)
            if moved:
                texts = [subject.old_text(column) for column in keying.columns]
                old = self._having(keying, keys, texts)
                parts.append(
                    f"SELECT * FROM (\n{subject.events(moved)}\n) WHERE _op = 'U' AND _has_before"
                    f" AND {old} AND NOT coalesce({own}, FALSE)"
                )
        truncates = [file for file in subject.files if file.ops.get("T")]
        if truncates:
            parts.append(f"SELECT * FROM (\n{subject.events(truncates)}\n) WHERE _op = 'T'")
        return "\nUNION ALL\n".join(parts)

    def _collect(self, number: int, wanted: str) -> None:
        """Make the table of a keying's keys: those wanted, and all that the same rows had."""
        keying = self._subject.keyings[number]
        names = _names(keying)
        files = [file for file in self._subject.files if file.version in keying.versions]
        moved = _moved_files(files)
        statement = wanted
        if moved:
            own = [self._subject.own_text(c) for c in keying.columns]
            old = [self._subject.old_text(c) for c in keying.columns]
            source = self._subject.events(moved, keying.columns)
            pairs = [f"{text} AS {name}" for text, name in zip(own, names, strict=True)]
            pairs += [f"{text} AS was_{name}" for text, name in zip(old, names, strict=True)]
            was = [f"was_{name}" for name in names]
            self._connection.execute(
                f"CREATE OR REPLACE TABLE moves AS SELECT * FROM (\n"
                f"SELECT DISTINCT {', '.join(pairs)} FROM (\n{source}\n)"
                f" WHERE _op = 'U' AND _has_before) WHERE ({', '.join(names)})"
                f" IS DISTINCT FROM ({', '.join(was)})"
            )
            both = (
                f"SELECT {', '.join(names)}, {', '.join(was)} FROM moves UNION ALL"
                f" SELECT {', '.join(was)}, {', '.join(names)} FROM moves"
            )
            same = " AND ".join(f"b.{name} IS NOT DISTINCT FROM k.{name}" for name in names)
            statement = (
                f"WITH RECURSIVE both_ways AS MATERIALIZED ({both}),"
                f" known({', '.join(names)}) AS ({wanted} UNION"
                f" SELECT {', '.join(f'b.{name}' for name in was)}"
                f" FROM known k JOIN both_ways b ON {same}) SELECT * FROM known"
            )
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {self._keys[number]} AS"
            f" SELECT * FROM ({statement}) found({', '.join(names)})"
        )

    def _former(self, number: int, later: int) -> str:
        """Select the keys, in one keying, of events with values that are keys in a later one."""
        former, keying = self._subject.keyings[number], self._subject.keyings[later]
        files = [file for file in self._subject.files if file.version in former.versions]
        texts = [self._subject.own_text(column) for column in keying.columns]
        having = self._having(keying, self._keys[later], texts)
        own = ", ".join(self._subject.own_text(column) for column in former.columns)
        return (
            f"SELECT DISTINCT {own} FROM (\n{self._subject.events(files, ())}\n)"
            f" WHERE _op <> 'T' AND {having}"
        )

    def _having(
        self, keying: Keying, keys: str, texts: Sequence[str], *, typed: bool = False
    ) -> str:
        """A condition: the texts are one of the keys. `typed`: they are the row's own values."""
        listed = ", ".join(texts)
        found = rows(self._connection, f"SELECT * FROM {keys} LIMIT {LISTED + 1}")
        values: list[Key] = [tuple(row.values()) for row in found]
        if not values:
            return "FALSE"
        if len(values) > LISTED or any(None in value for value in values):
            same = " AND ".join(
                f"k.{name} IS NOT DISTINCT FROM {text}"
                for name, text in zip(_names(keying), texts, strict=True)
            )
            return f"EXISTS (SELECT 1 FROM {keys} k WHERE {same})"
        tuples = ", ".join(f"({', '.join(literal(text or '') for text in v)})" for v in values)
        condition = f"({listed}) IN ({tuples})"
        if len(keying.columns) == 1:
            condition = f"{listed} IN ({', '.join(literal(v[0] or '') for v in values)})"
        if typed:
            for number, column in enumerate(keying.columns):
                if column.storage in _COMPARED and len(self._subject.variants(column)) == 1:
                    each = ", ".join(
                        sorted({_typed(column, value[number] or "") for value in values})
                    )
                    condition += f" AND {identifier(column.stored)} IN ({each})"
        return condition


def has_key(columns: Sequence[Column], keys: Sequence[Key], *, old: bool) -> str:
    """A condition on events of printed texts: the row (or the old one) has one of the keys."""
    names = [old_name(c) if old else identifier(c.stored) for c in columns]
    tuples = ", ".join(f"({', '.join(literal(text or '') for text in key)})" for key in keys)
    listed = f"({', '.join(names)})"
    return f"{listed} IN ({tuples})" if keys else "FALSE"


def literal_keys(keys: Sequence[Key], width: int) -> str:
    """A statement that selects keys given as texts."""
    if not keys:
        return f"SELECT {', '.join(['CAST(NULL AS VARCHAR)'] * width)} WHERE FALSE"
    listed = ", ".join(
        f"({', '.join('NULL' if text is None else literal(text) for text in key)})" for key in keys
    )
    return f"SELECT * FROM (VALUES {listed})"


def _names(keying: Keying) -> list[str]:
    return [f"k{number}" for number in range(len(keying.columns))]


def _typed(column: Column, text: str) -> str:
    return literal(text) if column.storage == "text" else text


def _moved_files(files: Sequence[File]) -> list[File]:
    return [file for file in files if file.rekeyed]
