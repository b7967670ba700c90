"""Rule 1, acknowledge: the one place from which an LSN goes to the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from waly_cdc import durable, failpoints
from waly_cdc.lsn import Lsn


def acknowledge(tell: Callable[[Lsn], None], safe: Lsn, journal: Path) -> None:
    """Let the server forget its log up to `safe`.

    `safe` may be acknowledged because every transaction that commits before it lies in the journal,
    and the journal has been synced since (durability `journal`), or because the manifest names it
    (durability `archive`). The callers are the keeper and, where commits wait for us, the witness.
    """
    with durable.storage_errors(journal):
        failpoints.reach("acknowledge")
    tell(safe)
