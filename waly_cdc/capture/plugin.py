"""What capture does differently for each of the server's output plugins: the stream's options, the
decoder, and how a table is found that a message tells of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from waly_cdc.archive.contents import Contents
from waly_cdc.archive.manifest import Source
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.named_shapes import NamedShapes
from waly_cdc.capture.names import TableNames, present
from waly_cdc.capture.shapes import Shapes
from waly_cdc.decode.decoder import Decoder
from waly_cdc.decode.pgoutput import ColumnarDecoder
from waly_cdc.decode.wal2json import Wal2jsonDecoder
from waly_cdc.plugins import WAL2JSON
from waly_cdc.source import wal2json
from waly_cdc.source.stream import pgoutput_options


@dataclass(frozen=True, slots=True)
class Plugin:
    """`make_decoder` gives a decoder that begins where the archive's last entry ended. `names` is
    for the table watch, where the plugin needs it."""

    make_decoder: Callable[[], Decoder]
    names: TableNames | None


def of(
    source: Source,
    contents: Contents,
    shapes: Shapes,
    catalog: Callable[[], CatalogWatch | None],
    on_event: Callable[[str], None] = lambda _: None,
) -> Plugin:
    """What the archive's plugin needs. `catalog` gives the catalog that may be asked, None where
    there is none of this history."""
    if source.plugin != WAL2JSON:
        return Plugin(lambda: ColumnarDecoder(shapes.resolve, contents.era, shapes.newest()), None)
    names = TableNames(present(contents.relations, contents.drops))
    named = NamedShapes(
        shapes,
        names,
        find=lambda schema, name: c.named_table(schema, name) if (c := catalog()) else None,
        look_up=lambda oid: c.table(oid) if (c := catalog()) else None,
        typmod_of=lambda oid, name: c.typmod_of(oid, name) if (c := catalog()) else -1,
        on_stranger=lambda name: on_event(f"changes of {name} are left out: it is not captured"),
        every_table=source.every_table,
    )
    return Plugin(lambda: Wal2jsonDecoder(named.resolve, contents.era), names)


def stream_options(
    source: Source, connection: psycopg.Connection
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The options to stream with, and what the server's plugin loses. Raises SourceError."""
    if source.plugin != WAL2JSON:
        return pgoutput_options(source.publications), ()
    offer = wal2json.look(connection, source.slot)
    return offer.options, offer.losses
