"""Transactions with who made them, on their way into a transactions file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from waly_cdc.archive.segments import ACTOR_FIELDS, TRANSACTIONS

TEXT_LIMIT = 16_384
"""Bytes kept of a message or a query: both are the client's, of any size."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who made a transaction, and how that is known."""

    source: str = "unknown"
    user: str | None = None
    application_name: str | None = None
    client_addr: str | None = None
    pid: int | None = None
    query: str | None = None
    context: str | None = None


UNKNOWN = Actor()


def told(messages: Sequence[bytes], seen: Actor = UNKNOWN) -> Actor:
    """The actor that a transaction's own messages name; the last one counts.

    The content is the application's, so anything may be in it: what is no JSON object is kept as
    text and names nobody.
    """
    text = messages[-1][:TEXT_LIMIT].decode("utf-8", errors="replace").replace("\0", "\ufffd")
    user = None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        name = content.get("actor", content.get("user"))
        # JSON can name half a surrogate pair, which no UTF-8 text can hold.
        user = name.encode("utf-8", "replace").decode() if isinstance(name, str) else None
    return replace(seen, source="message", user=user or seen.user, context=text)


def transactions_table(
    committed: Sequence[pa.RecordBatch], actors: Sequence[Actor], era: int
) -> pa.Table:
    """Decoded transactions (at least one) and their actors in the schema of transactions files."""
    table = pa.Table.from_batches(committed).combine_chunks()
    columns = {name: table.column(name) for name in table.column_names}
    for name in ACTOR_FIELDS:
        kind = TRANSACTIONS.field(name).type
        values = [getattr(actor, name.removeprefix("actor_")) for actor in actors]
        columns[name] = pa.array(values, kind)
    columns["_era"] = pa.array(np.full(len(table), era, np.int32))
    columns["day"] = table.column("committed_at").cast(pa.date32())
    return pa.table([columns[field.name] for field in TRANSACTIONS], schema=TRANSACTIONS)
