"""Transactions with who made them, on their way into a transactions file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from waly_cdc.archive.actors import Actor, merged
from waly_cdc.archive.segments import ACTOR, TRANSACTIONS


def transactions_table(
    committed: Sequence[pa.RecordBatch], sources: Sequence[Sequence[Actor]], era: int
) -> pa.Table:
    """Decoded transactions (at least one) and what is known of each one's actor, in the schema of
    transactions files."""
    table = pa.Table.from_batches(committed).combine_chunks()
    columns = {name: table.column(name) for name in table.column_names}
    actors = [merged(each) for each in sources]
    for field in ACTOR:
        values = [getattr(actor, field.name) for actor in actors]
        columns[f"actor_{field.name}"] = pa.array(values, field.type)
    listed = [[asdict(actor) for actor in each] for each in sources]
    columns["actor_sources"] = pa.array(listed, TRANSACTIONS.field("actor_sources").type)
    columns["_era"] = pa.array(np.full(len(table), era, np.int32))
    columns["day"] = table.column("committed_at").cast(pa.date32())
    return pa.table([columns[field.name] for field in TRANSACTIONS], schema=TRANSACTIONS)
