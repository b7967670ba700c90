"""Bounds of transactions, told without decoding."""

from __future__ import annotations

import struct

import pytest

from waly_cdc.decode.bounds import Bounds
from waly_cdc.decode.chunk import Chunk
from waly_cdc.lsn import ZERO, Lsn


def _frame(message: bytes) -> bytes:
    return b"w" + bytes(24) + message


def _begin(xid: int) -> bytes:
    return _frame(struct.pack(">cQqI", b"B", 0x4200, 0, xid))


def _commit(end: int) -> bytes:
    return _frame(struct.pack(">cBQQq", b"C", 0, end - 8, end, 0))


# Bytes of a row that look like a Begin are none.
ROW = _frame(b"I" + _begin(77))


@pytest.mark.parametrize(
    ("frames", "before", "expected"),
    [
        ([], True, Bounds([], ZERO, True)),
        ([ROW], False, Bounds([], ZERO, False)),
        ([ROW], True, Bounds([], ZERO, True)),
        ([ROW, _commit(0x100)], True, Bounds([], Lsn(0x100), False)),
        ([_begin(7), ROW], False, Bounds([7], ZERO, True)),
        ([_begin(7), _commit(0x100), ROW], False, Bounds([7], Lsn(0x100), False)),
        ([_commit(0x100), _begin(2**32 - 1), ROW], True, Bounds([2**32 - 1], Lsn(0x100), True)),
        (
            [_begin(7), _commit(0x100), _begin(8), _commit(0x200)],
            False,
            Bounds([7, 8], Lsn(0x200), False),
        ),
    ],
)
def test_bounds_are_those_of_the_messages(
    frames: list[bytes], before: bool, expected: Bounds
) -> None:
    assert Bounds.of(Chunk.of(frames), before) == expected
