"""The rows of an archive, as PostgreSQL prints rows."""

from __future__ import annotations

import duckdb

from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.history.jsonb import pg_text
from waly_cdc.history.session import identifier, session
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion


def archived_rows(settings: CaptureSettings, bound: Lsn | None = None) -> dict[str, list[str]]:
    """The rows of every table as of a point, as PostgreSQL prints rows."""
    store = LocalStore(settings.archive)
    contents = load(store)
    bound = bound or contents.horizon
    found = {}
    with session() as connection:
        for oid in contents.relations:
            relation = contents.version_at(oid, bound)
            if relation is not None:
                state = state_query(contents, store, relation, bound)
                found[f"{relation.schema}.{relation.name}"] = archived_texts(
                    connection, relation, state
                )
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
