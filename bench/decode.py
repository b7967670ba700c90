"""How fast are the decoders? The same rows through each plugin, decoded to Arrow in one thread.

Needs a server that has wal2json (Debian's `postgresql-17-wal2json` or `postgresql-15-wal2json`).
Prints rows a second and bytes a row, the best of three.

    python bench/decode.py [--rows N]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.capture import TABLE, fill
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture import plugin
from waly_cdc.capture.catalog_watch import CatalogWatch
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.capture.shapes import Shapes
from waly_cdc.decode.chunk import Chunk
from waly_cdc.embedded import EmbeddedServer
from waly_cdc.lsn import Lsn
from waly_cdc.plugins import PGOUTPUT, WAL2JSON
from waly_cdc.source.stream import ReplicationStream

ROUNDS = 3


def received(stream: ReplicationStream, end: Lsn) -> list[Chunk]:
    """Everything up to a position, in chunks as the sidecar has them."""
    chunks = []
    while True:
        got = stream.receive()
        if len(got.chunk):
            chunks.append(got.chunk)
        elif got.server_end >= end:
            return chunks
        else:
            stream.send_status()


def seconds(decode: Callable[[], None]) -> float:
    started = time.perf_counter()
    decode()
    return time.perf_counter() - started


def measure(dsn: str, folder: Path, name: str, rows: int) -> None:
    archive = folder / name
    settings = CaptureSettings(dsn, archive, slot=f"bench_{name}", sample_interval=0)
    initialise(settings, plugin=name)
    end = Lsn.parse(fill(dsn, 1, rows, 10_000))
    contents = load(LocalStore(archive))
    assert contents.source is not None
    with CatalogWatch(dsn) as catalog:
        shapes = Shapes(contents.relations, catalog.table)
        chosen = plugin.of(contents.source, contents, shapes, lambda: catalog, print)
        options, _ = plugin.stream_options(contents.source, catalog.connection)
        stream = ReplicationStream(dsn, contents.source.slot, contents.horizon, options)
        chunks = received(stream, end)
        stream.close()

        def decode() -> None:
            decoder = chosen.make_decoder()
            for chunk in chunks:
                decoder.decode(chunk)

        best = min(seconds(decode) for _ in range(ROUNDS))
    size = sum(len(chunk.data) for chunk in chunks)
    print(
        f"{name}: {rows / best:,.0f} rows/s, {1e6 * best / rows:.2f} µs a row,"
        f" {size / rows:.0f} bytes a row"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    rows = parser.parse_args().rows
    libraries = sorted(Path("/usr/lib/postgresql").glob("*/lib/wal2json.so"))
    if not libraries:
        sys.exit("no server with wal2json here")
    with EmbeddedServer.start(bindir=libraries[-1].parents[1] / "bin") as server:
        for name in (PGOUTPUT, WAL2JSON):
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("drop table if exists measured")
                connection.execute(TABLE.encode())
            measure(server.dsn(), server.directory / "archives", name, rows)


if __name__ == "__main__":
    main()
