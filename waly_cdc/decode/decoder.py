"""What a plugin's decoder offers to whoever reads its stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from waly_cdc.decode.chunk import Chunk
from waly_cdc.decode.events import Decoded
from waly_cdc.lsn import Lsn
from waly_cdc.relations import RelationVersion


class Decoder(Protocol):
    """Decodes one stream, chunk after chunk. After a DecodeError it is of no further use."""

    @property
    def in_transaction(self) -> bool:
        """Whether the last chunk ended inside a transaction."""

    def committed(self, chunk: Chunk, before: Lsn | None = None) -> tuple[int, int]:
        """How many frames there are up to the last Commit, or the last one that begins before an
        LSN, and that transaction's end LSN; `(0, 0)` where there is none. Raises DecodeError."""

    def know(self, known: Iterable[RelationVersion]) -> None:
        """File what follows under these versions, until the stream describes other shapes."""

    def decode(self, chunk: Chunk) -> Decoded:
        """Decode a chunk. Raises DecodeError for anything that is not the plugin's."""
