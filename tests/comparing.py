"""Comparing tables of two databases row for row."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql


def digests(
    dsn: str, tables: Sequence[str], snapshot: str | None = None
) -> dict[str, tuple[int, str]]:
    """Rows and a digest of the multiset of all rows' texts, by table (`name` or `schema.name`);
    as a snapshot that another session exported sees them, if one is named."""
    found = {}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("begin isolation level repeatable read")
        if snapshot is not None:
            connection.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot)))
        for table in tables:
            row = connection.execute(
                sql.SQL(
                    "select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text"
                    " || '/' || coalesce(sum(hashtextextended(t::text, 1)::numeric), 0)::text"
                    " from {} t"
                ).format(sql.Identifier(*table.split(".")))
            ).fetchone()
            assert row is not None
            found[table] = (row[0], row[1])
    return found
