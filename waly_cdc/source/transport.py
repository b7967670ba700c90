"""How the bytes of a replication stream get here: from the socket itself, or through libpq.

After START_REPLICATION the server sends one CopyData message per frame. libpq hands them out one at
a time, each in memory of its own, which costs more than all that is done with them afterwards.
Where nothing lies between us and the server, `SocketTransport` reads the socket in large blocks
and finds the messages in a block all at once. Behind TLS or GSSAPI encryption the bytes are
libpq's, and `LibpqTransport` asks it for them.

Message formats: PostgreSQL documentation, section 53.7.

The server sends a message of some 250 bytes at a time. On one machine its own process does the work
of receiving them too, message by message, as long as there is room in our buffer: twice the work of
decoding the log. When there is none, they wait on its own side and come together. So the receive
buffer is kept small there, and is emptied every few milliseconds, not whenever something comes.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import pq

from waly_cdc.decode.chunk import COPYDATA_HEADER, Chunk
from waly_cdc.errors import SourceLost

CHUNK_FRAMES = 10_000
CHUNK_BYTES = 4 << 20
LINGER = 0.05
"""Seconds that frames may wait for more of them before they are handed on."""

QUIET = 0.006
"""Seconds without a byte after which no more are waited for."""

PAUSE = 0.004
"""Seconds between two looks at a TCP socket that was empty: less than it takes a server to fill its
own send buffer."""

PROMPT_PAUSE = 0.0002
"""The same where somebody waits for the answer, and seconds without a byte after which no more are
waited for: others that commit at the same time are answered with the first."""

UNIX_PAUSE = 0.0001
"""The same for a unix socket, which holds no more than some 200 messages."""

LOOPBACK_BUFFER_BYTES = 64 << 10
"""Bytes that a server on this machine may send ahead of us."""

LIBPQ_LOOPBACK_BUFFER_BYTES = 512 << 10
"""The same where libpq reads, and takes longer over it."""

LIBPQ_WAKE_BYTES = 64 << 10
"""Bytes in the socket's buffer for which we are woken before `LINGER` is over."""

_COPYDATA, _ERROR, _COPY_BOTH = b"dEW"
_PASSED_OVER = frozenset(b"WNSA")
"""The stream's own beginning, notices, changed parameters and notifications."""

_XLOGDATA, _KEEPALIVE = b"wk"
_MESSAGE = struct.Struct(">cI")
_length = struct.Struct(">I").unpack_from


class Transport(Protocol):
    """Whole frames of an open stream, keepalives too, in the order they came."""

    def receive(self) -> Chunk:
        """Frames up to about a chunk's size; fewer, or none, when no more come within `LINGER`
        seconds. Raises SourceLost when the stream ends or the connection breaks."""

    def send(self, frame: bytes) -> None:
        """Send a frame to the server. Raises SourceLost."""

    def close(self) -> None:
        """Give up what is this object's own; the connection is its opener's."""


def start(pgconn: pq.abc.PGconn, command: str, *, prompt: bool = False) -> Transport:
    """Send a START_REPLICATION command and give the stream that it opens.

    A `prompt` one hands frames on at once, for somebody waits for the answer; otherwise they wait
    a moment for more. Raises psycopg's error for what the server answers instead.
    """
    pgconn.send_query(command.encode())
    while pgconn.flush():
        select.select([], [pgconn.socket], [])
    select.select([pgconn.socket], [], [])
    plain = socket.socket(fileno=os.dup(pgconn.socket))
    # The answer shows whether these are the bytes that the server wrote: no record of TLS and no
    # packet of GSSAPI begins like CopyBothResponse.
    if plain.recv(1, socket.MSG_PEEK) == bytes([_COPY_BOTH]):
        return SocketTransport(plain, prompt=prompt)
    plain.close()
    result = pgconn.get_result()
    assert result is not None
    if result.status != pq.ExecStatus.COPY_BOTH:
        while pgconn.get_result() is not None:
            pass
        raise psycopg.errors.error_from_result(result, encoding="utf-8")
    return LibpqTransport(pgconn, prompt=prompt)


class SocketTransport:
    """Reads blocks from a socket that nobody else reads any more.

    `_filled` bytes of `_buffer` have been read; they begin with a message's first byte.
    """

    def __init__(self, plain: socket.socket, *, prompt: bool = False) -> None:
        plain.setblocking(False)
        self._socket = plain
        self._pause = UNIX_PAUSE if plain.family == socket.AF_UNIX else PAUSE
        self._quiet = QUIET
        if prompt:
            self._pause = self._quiet = PROMPT_PAUSE
        if _on_loopback(plain):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LOOPBACK_BUFFER_BYTES)
        self._buffer = bytearray(CHUNK_BYTES)
        self._filled = 0

    def receive(self) -> Chunk:
        try:
            self._fill()
        except OSError as error:
            raise SourceLost(f"the connection to PostgreSQL broke: {error}") from error
        starts, end = message_starts(self._buffer, self._filled)
        block = bytes(memoryview(self._buffer)[:end])
        self._keep_rest(end)
        lengths = np.diff(starts, append=end)
        others = np.frombuffer(block, np.uint8)[starts] != _COPYDATA
        if others.any():
            return self._without(block, starts, lengths, others)
        return Chunk(block, lengths)

    def send(self, frame: bytes) -> None:
        message = memoryview(_MESSAGE.pack(b"d", len(frame) + 4) + frame)
        try:
            while message:
                try:
                    message = message[self._socket.send(message) :]
                except BlockingIOError:
                    select.select([], [self._socket], [])
        except OSError as error:
            raise SourceLost(f"the connection to PostgreSQL broke: {error}") from error

    def close(self) -> None:
        self._socket.close()

    def _fill(self) -> None:
        """Read until the buffer is full, or nothing more comes in time."""
        view = memoryview(self._buffer)
        select.select([self._socket], [], [], LINGER)
        now = last = time.monotonic()
        deadline = now + LINGER
        while self._filled < len(view):
            try:
                count = self._socket.recv_into(view[self._filled :])
            except BlockingIOError:
                if now >= deadline or now - last > self._quiet:
                    return
                time.sleep(self._pause)
                now = time.monotonic()
                continue
            if not count:
                raise SourceLost("the server closed the connection", hint="is it shutting down?")
            self._filled += count
            last = now

    def _keep_rest(self, end: int) -> None:
        """Begin the next block with what follows the last whole message of this one, in a buffer
        that holds that message."""
        if not end and self._filled < len(self._buffer):
            return
        rest = self._buffer[end : self._filled]
        size = CHUNK_BYTES
        if len(rest) >= COPYDATA_HEADER:
            size = max(size, _length(rest, 1)[0] + 1)
        if size != len(self._buffer):
            self._buffer = bytearray(size)
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)

    def _without(
        self,
        block: bytes,
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        others: npt.NDArray[np.bool_],
    ) -> Chunk:
        """The frames of a block in which there are messages that are no CopyData."""
        for number in np.flatnonzero(others).tolist():
            message = block[starts[number] : starts[number] + lengths[number]]
            if message[0] not in _PASSED_OVER:
                raise _ended(_primary(message) if message[0] == _ERROR else None)
        return cut(Chunk(block, lengths), ~others)


class LibpqTransport:
    """Asks libpq for one frame after the other, and drains the socket meanwhile."""

    def __init__(self, pgconn: pq.abc.PGconn, *, prompt: bool = False) -> None:
        self._pgconn = pgconn
        self._prompt = prompt
        self._poll = select.poll()
        self._poll.register(pgconn.socket, select.POLLIN)
        with socket.socket(fileno=os.dup(pgconn.socket)) as view:
            if not prompt:
                # A wake-up for every message would cost more than all the rest.
                view.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LIBPQ_WAKE_BYTES)
            if _on_loopback(view):
                view.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LIBPQ_LOOPBACK_BUFFER_BYTES)

    def receive(self) -> Chunk:
        frames: list[memoryview] = []
        append, get = frames.append, self._pgconn.get_copy_data
        size, deadline = 0, time.monotonic() + LINGER
        drained = late = False
        try:
            while len(frames) < CHUNK_FRAMES and size < CHUNK_BYTES:
                length, data = get(1)
                if length > 0:
                    drained = False
                    append(data)
                    size += length
                elif length == 0:
                    if drained and (late or (self._prompt and frames)):
                        break
                    if drained:
                        remaining = deadline - time.monotonic()
                        late = remaining <= 0 or not self._poll.poll(remaining * 1000)
                    self._pgconn.consume_input()
                    drained = True
                else:
                    result = self._pgconn.get_result()
                    primary = pq.DiagnosticField.MESSAGE_PRIMARY
                    raise _ended(result.error_field(primary) if result else None)
        except psycopg.Error as error:
            raise SourceLost(f"the connection to PostgreSQL broke: {error}".strip()) from error
        return Chunk.of(frames)

    def send(self, frame: bytes) -> None:
        try:
            self._pgconn.put_copy_data(frame)
            self._pgconn.flush()
        except psycopg.Error as error:
            raise SourceLost(f"the connection to PostgreSQL broke: {error}".strip()) from error

    def close(self) -> None:
        return None


def _on_loopback(connected: socket.socket) -> bool:
    """Whether TCP leads to a server on this machine."""
    if connected.family == socket.AF_UNIX:
        return False
    return ipaddress.ip_address(connected.getpeername()[0]).is_loopback


def message_starts(buffer: bytearray, filled: int) -> tuple[npt.NDArray[np.int64], int]:
    """Where each whole message in the first `filled` bytes begins, and where the last one ends.

    Every message tells where the next one begins. All places that look like the beginning of a
    frame are taken at once; when each of them leads to the next, they are the messages, by
    induction from the first. Where one does not (a value's bytes look like a frame, or another kind
    of message is there), they are followed one by one.
    """
    if filled < COPYDATA_HEADER + 1:
        return np.zeros(0, np.int64), 0
    data = np.frombuffer(buffer, np.uint8, filled)
    looks = np.flatnonzero((data[: 1 - COPYDATA_HEADER - 1] == _COPYDATA) & (data[1:-4] == 0))
    kinds = data[looks + COPYDATA_HEADER]
    starts = looks[(kinds == _XLOGDATA) | (kinds == _KEEPALIVE)]
    lengths = np.ndarray((filled - 3,), ">u4", buffer, 0, (1,))[starts + 1].astype(np.int64)
    ends = starts + 1 + lengths
    if len(starts) and starts[0] == 0 and (ends[:-1] == starts[1:]).all():
        whole = len(starts) - int(ends[-1] > filled)
        following = int(ends[whole - 1]) if whole else 0
        if whole < len(starts) or filled - following <= COPYDATA_HEADER:
            return starts[:whole], following
    return _follow(buffer, filled)


def _follow(buffer: bytearray, filled: int) -> tuple[npt.NDArray[np.int64], int]:
    starts = []
    at = 0
    while at + COPYDATA_HEADER <= filled:
        end = at + 1 + _length(buffer, at + 1)[0]
        if end > filled:
            break
        starts.append(at)
        at = end
    return np.array(starts, np.int64), at


def cut(chunk: Chunk, kept: npt.NDArray[np.bool_]) -> Chunk:
    """Only the frames of a chunk that are `kept`; few are not."""
    starts = chunk.starts
    parts, begin = [], 0
    for number in np.flatnonzero(~kept).tolist():
        parts.append(chunk.data[begin : starts[number]])
        begin = int(starts[number] + chunk.lengths[number])
    parts.append(chunk.data[begin:])
    return Chunk(b"".join(parts), chunk.lengths[kept])


def _primary(message: bytes) -> bytes | None:
    """The text of an ErrorResponse: its fields are a letter and a string each."""
    fields = message[COPYDATA_HEADER:].split(b"\0")
    return next((field[1:] for field in fields if field.startswith(b"M")), None)


def _ended(told: bytes | None) -> SourceLost:
    """Why the server sends no more: it says so after the last frame."""
    if told is None:
        return SourceLost("the server ended the stream", hint="is it shutting down?")
    return SourceLost(f"the server ended the stream: {told.decode('utf-8', 'replace')}")
