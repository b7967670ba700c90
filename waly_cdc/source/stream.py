"""The replication stream: frames from a logical slot, and our word on how far they are safe.

Speaks the streaming replication protocol (PostgreSQL documentation, section 53.4) over libpq, and
knows no output plugin: a frame is bytes. The socket is drained without pause; whoever reads must
come back soon, or the server stalls.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import pq

from waly_cdc.errors import SourceError, SourceLost
from waly_cdc.lsn import ZERO, Lsn
from waly_cdc.source.connect import connect, source_errors

STATUS_EVERY = 1.0
"""Seconds between two status messages, which also keep the connection alive."""

CHUNK_FRAMES = 10_000
CHUNK_BYTES = 4 << 20
LINGER = 0.05
"""Seconds that frames may wait for more of them before they are handed on."""

WAKE_BYTES = 64 << 10
"""Bytes in the socket's buffer for which the receiver is woken before `LINGER` is over."""

LOOPBACK_BUFFER_BYTES = 512 << 10
"""Bytes that a server on this machine may send ahead of us."""

BUSY_RETRY = 15.0
"""Seconds to wait for the server to notice that the slot's last reader is gone."""

_XLOGDATA, _KEEPALIVE = ord("w"), ord("k")
_KEEPALIVE_MESSAGE = struct.Struct(">xQqB")
_STATUS_MESSAGE = struct.Struct(">cQQQqB")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Received:
    """XLogData frames in the order they came, and the newest keepalive that came with them.

    `server_end`: every transaction that commits before it has been sent, in these frames or before
    them. `server_time` is the server's clock when it said so.
    """

    frames: list[memoryview]
    server_end: Lsn
    server_time: datetime | None


class ReplicationStream:
    """An open stream. Used by one thread, but for `acknowledge`."""

    def __init__(self, dsn: str, slot: str, start: Lsn, options: dict[str, str]) -> None:
        """Start at `start` or where the slot stands, whichever is later.

        `options` are the plugin's. Raises SourceError, SourceLost.
        """
        self._acknowledged = start
        self._last_status = 0.0
        self._server_end = ZERO
        self._server_time: datetime | None = None
        self._reply_wanted = False
        self._connection = connect(dsn, replication=True)
        self._pgconn = self._connection.pgconn
        given = ", ".join(f"{name} {_literal(value)}" for name, value in options.items())
        command = f'START_REPLICATION SLOT "{slot}" LOGICAL {start} ({given})'
        deadline = time.monotonic() + BUSY_RETRY
        while not self._begin(command):
            if time.monotonic() > deadline:
                raise SourceError(
                    f"slot {slot} is in use by another connection",
                    hint="is another sidecar running on it? `waly slot show` tells its process",
                )
            time.sleep(0.2)
        _wait_for_much(self._pgconn.socket)
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)

    def _begin(self, command: str) -> bool:
        """Whether streaming has begun; False while another connection has the slot."""
        with source_errors():
            result = self._pgconn.exec_(command.encode())
            if result.status == pq.ExecStatus.COPY_BOTH:
                return True
            if result.error_field(pq.DiagnosticField.SQLSTATE) == b"55006":
                return False
            raise psycopg.errors.error_from_result(result, encoding="utf-8")

    def receive(self) -> Received:
        """Frames up to a chunk's size; fewer, or none, when no more come within `LINGER` seconds.

        Sends status messages when they are due. Raises SourceLost when the connection breaks.
        """
        frames: list[memoryview] = []
        append, get = frames.append, self._pgconn.get_copy_data
        size, deadline = 0, time.monotonic() + LINGER
        drained = late = False
        try:
            while True:
                length, data = get(1)
                if length > 0:
                    drained = False
                    if data[0] == _XLOGDATA:
                        append(data)
                        size += length
                        if len(frames) >= CHUNK_FRAMES or size >= CHUNK_BYTES:
                            break
                    elif data[0] == _KEEPALIVE:
                        self._keepalive(bytes(data))
                elif length == 0:
                    if drained and late:
                        break
                    if drained:
                        remaining = deadline - time.monotonic()
                        late = remaining <= 0 or not self._poll.poll(remaining * 1000)
                    self._pgconn.consume_input()
                    drained = True
                else:
                    raise self._ended()
        except psycopg.Error as error:
            raise SourceLost(f"the connection to PostgreSQL broke: {error}".strip()) from error
        self.keep_alive()
        return Received(frames, self._server_end, self._server_time)

    def _ended(self) -> SourceLost:
        """Why the server sends no more: it says so after the last frame."""
        result = self._pgconn.get_result()
        told = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) if result else None
        if told is None:
            return SourceLost("the server ended the stream", hint="is it shutting down?")
        return SourceLost(f"the server ended the stream: {told.decode('utf-8', 'replace')}")

    def acknowledge(self, lsn: Lsn) -> None:
        """Let the next status message tell the server that it may forget its log up to `lsn`.

        The caller answers for rule 1. Never goes back.
        """
        self._acknowledged = max(self._acknowledged, lsn)

    def keep_alive(self) -> None:
        """Send a status message if one is due or the server wants one."""
        if self._reply_wanted or time.monotonic() - self._last_status >= STATUS_EVERY:
            self.send_status()

    def send_status(self) -> None:
        """Tell the server how far everything is durable, and ask how far it has sent."""
        position = self._acknowledged.value
        clock = int((datetime.now(UTC) - _EPOCH) / timedelta(microseconds=1))
        message = _STATUS_MESSAGE.pack(b"r", position, position, position, clock, 1)
        try:
            self._pgconn.put_copy_data(message)
            self._pgconn.flush()
        except psycopg.Error as error:
            raise SourceLost(f"the connection to PostgreSQL broke: {error}".strip()) from error
        self._reply_wanted = False
        self._last_status = time.monotonic()

    def _keepalive(self, message: bytes) -> None:
        end, clock, reply = _KEEPALIVE_MESSAGE.unpack(message)
        self._server_end = max(self._server_end, Lsn(end))
        self._server_time = _EPOCH + timedelta(microseconds=clock)
        # A reply to our own request asks for nothing; the server asks when its patience ends.
        self._reply_wanted = self._reply_wanted or bool(reply)

    def close(self) -> None:
        self._connection.close()


def _wait_for_much(descriptor: int) -> None:
    """Let `poll` wake us for a good part of the receive buffer instead of for every message.

    The server sends message by message; a wake-up for each would cost more than all the rest. What
    is less is read when `LINGER` is over. Has no effect on a unix socket.

    A server on this machine also does the work of receiving, message by message, as long as there
    is room in our buffer: with a small one its messages wait on its own side, and come together.
    """
    with socket.socket(fileno=os.dup(descriptor)) as view:
        view.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, WAKE_BYTES)
        if view.family == socket.AF_UNIX:
            return
        if ipaddress.ip_address(view.getpeername()[0]).is_loopback:
            view.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOOPBACK_BUFFER_BYTES)


def plugin_options(publications: Sequence[str]) -> dict[str, str]:
    """Options of pgoutput: text values, whole transactions, our logical messages."""
    names = ",".join('"' + name.replace('"', '""') + '"' for name in publications)
    return {"proto_version": "1", "publication_names": names, "messages": "true"}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
