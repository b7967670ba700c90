"""Streams that a server really sent, for the decoders, whole and damaged."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from tests import pgoutput_bytes as build
from tests.decoding import Outcome, attempt, columnar, reference, without_typed_values
from waly_cdc.source.connect import connect

SLOT = "fuzz_recording"
MEMORY = 400 << 10
"""Kilobytes by which decoding damaged bytes may raise the process's memory."""

_TELLING = b"nutNKOBCIUDTRM\x00\x7f\x80\xff"
"""Bytes that the format gives a meaning to."""


def begin(dsn: str) -> None:
    """Keep from now on what a sidecar of this database is sent."""
    with connect(dsn) as connection:
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))


def end(dsn: str, publications: Sequence[str]) -> list[bytes]:
    """The frames of everything since `begin`; the slot is gone then."""
    with connect(dsn) as connection:
        rows = connection.execute(
            "select data from pg_logical_slot_get_binary_changes(%s, null, null, 'proto_version',"
            " '1', 'publication_names', %s, 'messages', 'true')",
            (SLOT, ",".join(f'"{name}"' for name in publications)),
        ).fetchall()
        connection.execute("select pg_drop_replication_slot(%s)", (SLOT,))
    return build.frames(row[0] for row in rows)


def disagreements(frames: Sequence[bytes], dice: random.Random, damages: int) -> Iterator[str]:
    """What the two decoders do not agree on: of a stream as it is, cut in chunks anywhere, and of
    as many damaged copies of its beginnings."""
    expected = reference(frames)
    if columnar([frames]) != expected or columnar(_cut(frames, dice), restart=True) != expected:
        yield "the decoders do not agree on the stream as it was sent"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(damages):
        seed = dice.randrange(2**32)
        damaged = damage(frames, random.Random(seed))
        found = attempt(partial(columnar, _cut(damaged, dice)))
        plain = attempt(partial(reference, damaged))
        if not _agree(found, plain):
            yield f"the decoders do not agree on damage({seed}): {found is None}, {plain is None}"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if used > MEMORY:
        yield f"decoding damaged bytes took {used} kB"


def _agree(found: Outcome | None, plain: Outcome | None) -> bool:
    if found is None or plain is None:
        return found is plain
    return without_typed_values(found) == without_typed_values(plain)


def _cut(frames: Sequence[bytes], dice: random.Random) -> list[Sequence[bytes]]:
    cuts = sorted({dice.randrange(1, len(frames) + 1) for _ in range(5)}) if frames else []
    edges = [0, *cuts, len(frames)]
    return [frames[a:b] for a, b in pairwise(edges) if a < b]


def damage(frames: Sequence[bytes], dice: random.Random) -> list[bytes]:
    """The beginning of a stream, in which some bytes or frames are changed, lost or repeated."""
    found = list(frames[: dice.randrange(1, len(frames) + 1)][-600:])
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(found))
        frame = found[at]
        place = dice.randrange(len(frame))
        match dice.choice(("byte", "byte", "byte", "cut", "lose", "repeat", "move")):
            case "byte":
                new = dice.choice(_TELLING) if dice.random() < 0.6 else dice.randrange(256)
                found[at] = frame[:place] + bytes([new]) + frame[place + 1 :]
            case "cut":
                found[at] = frame[:place]
            case "lose" if len(found) > 1:
                del found[at]
            case "repeat":
                found.insert(dice.randrange(len(found) + 1), frame)
            case _:
                other = dice.randrange(len(found))
                found[at], found[other] = found[other], found[at]
    return found


def keep(frames: Sequence[bytes], path: Path) -> None:
    """Write a stream to a file, in the frames' own order, each after its length (4 bytes)."""
    with path.open("wb") as file:
        for frame in frames:
            file.write(len(frame).to_bytes(4, "big") + frame)
