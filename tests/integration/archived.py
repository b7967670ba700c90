"""The rows of an archive, as PostgreSQL prints rows."""

from __future__ import annotations

from pathlib import Path

import duckdb

from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.errors import PointNotInArchive
from waly_cdc.history.jsonb import pg_text
from waly_cdc.history.session import identifier, session
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion

Tables = dict[int, tuple[str, list[str]]]
"""By oid, a table's name and its sorted rows."""


def archived_rows(settings: CaptureSettings, bound: Lsn | None = None) -> dict[str, list[str]]:
    """The sorted rows of every table as of a point, by name. Raises PointNotInArchive for a table
    whose rows are not known then."""
    return dict(archived_tables(settings.archive, bound).values())


def archived_tables(
    archive: Path, bound: Lsn | None = None, schemas: str = "", refused: set[int] | None = None
) -> Tables:
    """Every table as of a point, the horizon if none is given; only those in schemas whose name
    begins with `schemas`.

    Those whose rows are not known then, or said to be only what was inserted, are added to
    `refused`; without it PointNotInArchive is raised for the former.
    """
    store = LocalStore(archive)
    contents = load(store)
    bound = bound or contents.horizon
    found = {}
    with session() as connection:
        for oid in contents.relations:
            relation = contents.version_at(oid, bound)
            if relation is None or not relation.schema.startswith(schemas):
                continue
            if refused is not None and not relation.followed:
                refused.add(oid)
                continue
            try:
                state = state_query(contents, store, relation, bound)
            except PointNotInArchive:
                if refused is None:
                    raise
                refused.add(oid)
                continue
            rows = archived_texts(connection, relation, state)
            found[oid] = (f"{relation.schema}.{relation.name}", rows)
    return found


def archived_texts(
    connection: duckdb.DuckDBPyConnection, relation: RelationVersion, state: str
) -> list[str]:
    """The rows that a state's statement gives, sorted."""
    texts = [f"{column_text(c)} as {identifier(c.stored)}" for c in relation.columns] or ["1"]
    rows = connection.execute(f"select {', '.join(texts)} from ({state})").fetchall()
    return sorted(
        "("
        + ",".join(
            _in_row(pg_text(column, text))
            for column, text in zip(relation.columns, row, strict=False)
        )
        + ")"
        for row in rows
    )


def _in_row(text: str | None) -> str:
    if text is None:
        return ""
    quoted = not text or any(character in text for character in '(),"\\ \t\n\r\v\f')
    return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"' if quoted else text
