"""The replication stream: frames from a logical slot, and our word on how far they are safe.

Speaks the streaming replication protocol (PostgreSQL documentation, section 53.4) over libpq, and
knows no output plugin: a frame is bytes. The socket is drained without pause; whoever reads must
come back soon, or the server stalls.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg

from waly_cdc.decode.chunk import COPYDATA_HEADER, Chunk
from waly_cdc.errors import SourceError
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.source import transport
from waly_cdc.source.connect import connect, source_errors

STATUS_EVERY = 1.0
"""Seconds between two status messages, which also keep the connection alive."""

BUSY_RETRY = 15.0
"""Seconds to wait for the server to notice that the slot's last reader is gone."""

_KEEPALIVE = ord("k")
_KEEPALIVE_MESSAGE = struct.Struct(">xQqB")
_STATUS_MESSAGE = struct.Struct(">cQQQqB")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Received:
    """XLogData frames in the order they came, and the newest keepalive that came with them.

    `server_end`: every transaction that commits before it has been sent, in these frames or before
    them. `server_time` is the server's clock when it said so.
    """

    chunk: Chunk
    server_end: Lsn
    server_time: datetime | None


class ReplicationStream:
    """An open stream. Used by one thread, but for `acknowledge`."""

    def __init__(
        self,
        dsn: str,
        slot: str,
        start: Lsn,
        options: dict[str, str],
        *,
        synchronous_as: str | None = None,
    ) -> None:
        """Start at `start` or where the slot stands, whichever is later.

        `options` are the plugin's. `synchronous_as` is the name that the connection has as a
        synchronous standby: frames are then handed on at once. Raises SourceError, SourceLost.
        """
        self._acknowledged = start
        self._last_status = 0.0
        self._server_end = ZERO
        self._server_time: datetime | None = None
        self._reply_wanted = False
        self._prompt = synchronous_as is not None
        self._connection = connect(dsn, replication=True, named=synchronous_as)
        given = ", ".join(f'"{name}" {_literal(value)}' for name, value in options.items())
        command = f'START_REPLICATION SLOT "{slot}" LOGICAL {start} ({given})'
        deadline = time.monotonic() + BUSY_RETRY
        while (begun := self._begin(command)) is None:
            if time.monotonic() > deadline:
                raise SourceError(
                    f"slot {slot} is in use by another connection",
                    hint="is another sidecar running on it? `waly slot show` tells its process",
                )
            time.sleep(0.2)
        self._transport = begun

    def _begin(self, command: str) -> transport.Transport | None:
        """The stream, begun; None while another connection has the slot."""
        with source_errors():
            try:
                return transport.start(self._connection.pgconn, command, prompt=self._prompt)
            except psycopg.errors.ObjectInUse:
                return None

    @property
    def pid(self) -> int:
        """The server's process that sends the stream."""
        return self._connection.info.backend_pid

    def receive(self) -> Received:
        """Frames up to a chunk's size; fewer, or none, when no more come within `LINGER` seconds.

        Sends status messages when they are due. Raises SourceLost when the connection breaks.
        """
        chunk = self._transport.receive()
        if len(chunk):
            at = chunk.starts + COPYDATA_HEADER
            keepalives = np.frombuffer(chunk.data, np.uint8)[at] == _KEEPALIVE
            if keepalives.any():
                for position in at[keepalives].tolist():
                    self._keepalive(chunk.data[position : position + _KEEPALIVE_MESSAGE.size])
                chunk = transport.cut(chunk, ~keepalives)
        self.keep_alive()
        return Received(chunk, self._server_end, self._server_time)

    def acknowledge(self, lsn: Lsn) -> None:
        """Let the next status message tell the server that it may forget its log up to `lsn`.

        The caller answers for rule 1. Never goes back.
        """
        self._acknowledged = max(self._acknowledged, lsn)

    def keep_alive(self) -> None:
        """Send a status message if one is due or the server wants one."""
        if self._reply_wanted or time.monotonic() - self._last_status >= STATUS_EVERY:
            self.send_status()

    def send_status(self, *, ask: bool = True) -> None:
        """Tell the server how far everything is durable, and `ask` how far it has sent."""
        position = self._acknowledged.value
        clock = int((datetime.now(UTC) - _EPOCH) / timedelta(microseconds=1))
        self._transport.send(_STATUS_MESSAGE.pack(b"r", position, position, position, clock, ask))
        self._reply_wanted = False
        self._last_status = time.monotonic()

    def _keepalive(self, message: bytes) -> None:
        end, clock, reply = _KEEPALIVE_MESSAGE.unpack(message)
        self._server_end = max(self._server_end, Lsn(end))
        self._server_time = _EPOCH + timedelta(microseconds=clock)
        # A reply to our own request asks for nothing; the server asks when its patience ends.
        self._reply_wanted = self._reply_wanted or bool(reply)

    def close(self) -> None:
        self._transport.close()
        self._connection.close()


def pgoutput_options(publications: Sequence[str]) -> dict[str, str]:
    """Options of pgoutput: text values, whole transactions, our logical messages."""
    names = ",".join('"' + name.replace('"', '""') + '"' for name in publications)
    return {"proto_version": "1", "publication_names": names, "messages": "true"}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
