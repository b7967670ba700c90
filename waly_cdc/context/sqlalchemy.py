"""SQLAlchemy 2: an engine whose transactions say who acts.

    engine = tell(create_engine("postgresql+psycopg://…"))
    tell(async_engine.sync_engine)

Sessions and pools need nothing of their own. Told are transactions that SQLAlchemy commits, not
those of the isolation level AUTOCOMMIT.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, event, text

from waly_cdc.context import STATEMENT, message

_TELL = text(STATEMENT.format("CAST(:told AS text)").replace("::text", ""))


def tell(engine: Engine) -> Engine:
    """Have the transactions of an engine say who acts. Gives the engine back."""
    if not event.contains(engine, "commit", _before_commit):
        event.listen(engine, "commit", _before_commit)
        event.listen(engine, "prepare_twophase", _before_prepare)
    return engine


def _before_commit(connection: Connection) -> None:
    if told := message():
        connection.execute(_TELL, {"told": told})


def _before_prepare(connection: Connection, _: object) -> None:
    _before_commit(connection)
