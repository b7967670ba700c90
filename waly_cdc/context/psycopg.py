"""psycopg 3: connections whose transactions say who acts.

    with Connection.connect(…) as connection: …
    pool = ConnectionPool(…, connection_class=Connection)

Told are transactions that end by `commit`, by the connection's own `with`, or by the outermost
`transaction()`. A single statement in autocommit mode is not: put it into `transaction()`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from waly_cdc.context import STATEMENT, message

_TELL = STATEMENT.format("%s").encode()


class Connection(psycopg.Connection[Any]):
    """A connection whose transactions say who acts."""

    def commit(self) -> None:
        self._tell()
        super().commit()

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        outermost = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            yield transaction
            if outermost and not force_rollback:
                self._tell()

    def _tell(self) -> None:
        if self.info.transaction_status == TransactionStatus.INTRANS and (text := message()):
            with psycopg.Cursor(self, row_factory=tuple_row) as cursor:
                cursor.execute(_TELL, (text,))


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """The same for asyncio."""

    async def commit(self) -> None:
        await self._tell()
        await super().commit()

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        outermost = self.info.transaction_status == TransactionStatus.IDLE
        async with super().transaction(savepoint_name, force_rollback) as transaction:
            yield transaction
            if outermost and not force_rollback:
                await self._tell()

    async def _tell(self) -> None:
        if self.info.transaction_status == TransactionStatus.INTRANS and (text := message()):
            async with psycopg.AsyncCursor(self, row_factory=tuple_row) as cursor:
                await cursor.execute(_TELL, (text,))
