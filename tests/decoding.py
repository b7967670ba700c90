"""What the columnar and the reference decoder give, in a form in which it can be compared."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from waly_cdc.capture.shapes import Shapes
from waly_cdc.decode import events
from waly_cdc.decode.chunk import Chunk
from waly_cdc.decode.pgoutput import ColumnarDecoder
from waly_cdc.decode.reference import ReferenceDecoder
from waly_cdc.errors import DecodeError
from waly_cdc.relations import RelationVersion

Group = tuple[RelationVersion, date]


@dataclass
class Outcome:
    """Everything decoded: rows by relation version and day, transactions, own messages."""

    rows: dict[Group, list[dict[str, Any]]]
    transactions: list[dict[str, Any]]
    messages: list[tuple[int, bytes]]


def plain(value: Any) -> Any:
    """A value that is equal to another only if the two are the same in every respect."""
    match value:
        case float():
            return ("float", struct.pack(">d", value))
        case bool():
            return ("bool", value)
        case Decimal():
            return str(value)
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case _:
            return value


def columnar(pieces: Sequence[Sequence[bytes]], *, restart: bool = False) -> Outcome:
    shapes = Shapes({}, lambda _: None)
    decoder = ColumnarDecoder(shapes.resolve, 3)
    outcome = Outcome(defaultdict(list), [], [])
    for piece in pieces:
        decoded = decoder.decode(Chunk.of(piece))
        for batch in decoded.batches:
            assert batch.events.schema == events.schema(batch.relation)
            batch.events.validate(full=True)
            for row in batch.events.to_pylist():
                if row["_raw"] is not None:
                    pairs = row["_raw"]
                    row["_raw"] = dict(pairs)
                    assert len(row["_raw"]) == len(pairs)
                outcome.rows[batch.relation, batch.day].append(plain(row))
        outcome.transactions += decoded.transactions.to_pylist()
        outcome.messages += decoded.messages
        if restart and not decoder.in_transaction:
            decoder = ColumnarDecoder(shapes.resolve, 3, shapes.newest())
    return outcome


def reference(frames: Iterable[bytes]) -> Outcome:
    decoder = ReferenceDecoder(Shapes({}, lambda _: None).resolve, 3)
    decoded = decoder.decode(frames)
    rows: dict[Group, list[dict[str, Any]]] = defaultdict(list)
    for relation, row in decoded.events:
        rows[relation, row["day"]].append(plain(row))
    return Outcome(rows, decoded.transactions, decoded.messages)


def attempt(decode: Callable[[], Outcome]) -> Outcome | None:
    """The outcome; None for a DecodeError. Any other exception is one too many."""
    try:
        return decode()
    except DecodeError:
        return None


def without_typed_values(outcome: Outcome) -> Outcome:
    """The outcome as far as damage to a value's text makes no difference to it: such a text is not
    one that PostgreSQL prints, and the two need not agree on whether a typed column holds it."""
    rows = {
        group: [
            {
                name: value
                for name, value in row.items()
                if name not in ("_before", "_raw")
                and all(c.stored != name or c.storage == "text" for c in group[0].columns)
            }
            | {"_before": row.get("_before") is None}
            for row in rows
        ]
        for group, rows in outcome.rows.items()
    }
    return Outcome(rows, outcome.transactions, outcome.messages)
