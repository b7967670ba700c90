from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from waly_cdc.errors import SourceLost
from waly_cdc.source import transport
from waly_cdc.source.transport import SocketTransport, message_starts

XLOGDATA = b"w" + bytes(24)


def copy_data(frame: bytes) -> bytes:
    return b"d" + struct.pack(">I", len(frame) + 4) + frame


def lookalike(noise: random.Random) -> bytes:
    """A frame in whose values there are bytes that look like the beginning of a frame."""
    inside = b"d\0\0\0" + bytes([noise.randrange(256)]) + noise.choice([b"w", b"k"])
    return XLOGDATA + inside * noise.randrange(1, 3) + noise.randbytes(noise.randrange(20))


@pytest.fixture
def noise() -> random.Random:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return random.Random(seed)


def test_messages_are_found_whatever_lies_in_them_and_wherever_the_buffer_ends(
    noise: random.Random,
) -> None:
    for _ in range(300):
        plain = [XLOGDATA + noise.randbytes(noise.randrange(60)) for _ in range(5)]
        odd = [lookalike(noise), b"k" + bytes(17)]
        messages = [copy_data(noise.choice(plain + odd)) for _ in range(noise.randrange(12))]
        if noise.random() < 0.2:
            messages.insert(noise.randrange(len(messages) + 1), b"N\0\0\0\x05\0")
        if noise.random() < 0.05:
            messages.append(copy_data(XLOGDATA + bytes(1 << 24)))
        ends = np.cumsum([len(message) for message in messages], dtype=np.int64)
        data = bytearray(b"".join(messages))
        for filled in {noise.randrange(len(data) + 1) for _ in range(5)} | {len(data)}:
            starts, end = message_starts(data, filled)
            whole = ends[ends <= filled]
            assert end == (whole[-1] if len(whole) else 0)
            assert starts.tolist() == [0, *whole.tolist()][: len(whole)]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SocketTransport, socket.socket]]:
    monkeypatch.setattr(transport, "CHUNK_BYTES", 1 << 12)
    ours, theirs = socket.socketpair()
    reading = SocketTransport(ours)
    with theirs:
        yield reading, theirs
    reading.close()


def test_frames_come_through_whole_and_in_order_however_they_are_cut(
    wire: tuple[SocketTransport, socket.socket], noise: random.Random
) -> None:
    reading, theirs = wire
    frames = [XLOGDATA + noise.randbytes(noise.randrange(400)) for _ in range(500)]
    frames[250] = XLOGDATA + noise.randbytes(100_000)
    data = b"".join(map(copy_data, frames))

    def send() -> None:
        at = 0
        while at < len(data):
            size = noise.randrange(1, 5000)
            theirs.sendall(data[at : at + size])
            at += size

    sender = threading.Thread(target=send)
    sender.start()
    received: list[bytes] = []
    while len(received) < len(frames):
        chunk = reading.receive()
        pieces = zip(chunk.starts, chunk.lengths, strict=True)
        received += [chunk.data[start + 5 : start + length] for start, length in pieces]
    sender.join()
    assert received == frames


def test_notices_are_passed_over_and_errors_end_the_stream(
    wire: tuple[SocketTransport, socket.socket],
) -> None:
    reading, theirs = wire
    frames = [copy_data(XLOGDATA + b"one"), b"S\0\0\0\x08a\0b\0", copy_data(XLOGDATA + b"two")]
    theirs.sendall(b"".join(frames))
    assert reading.receive().data == frames[0] + frames[2]
    error = b"SFATAL\0C57P01\0Mterminating connection\0\0"
    theirs.sendall(b"E" + struct.pack(">I", len(error) + 4) + error)
    with pytest.raises(SourceLost, match="terminating connection"):
        reading.receive()


def test_a_closed_connection_is_lost(wire: tuple[SocketTransport, socket.socket]) -> None:
    reading, theirs = wire
    theirs.close()
    with pytest.raises(SourceLost, match="closed"):
        reading.receive()
