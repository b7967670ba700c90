from __future__ import annotations

from contextlib import closing

import psycopg

from tests.conftest import TestServer
from waly_cdc.decode.chunk import Chunk
from waly_cdc.source import transport
from waly_cdc.source.connect import connect

START = (
    "START_REPLICATION SLOT compared LOGICAL 0/0"
    " (proto_version '1', publication_names 'compared', messages 'true')"
)


def frames(stream: transport.Transport, marker: bytes) -> list[bytes]:
    """The plugin's messages up to one that holds the marker."""
    messages: list[bytes] = []
    while not any(marker in message for message in messages):
        chunk: Chunk = stream.receive()
        pieces = zip(chunk.starts.tolist(), chunk.lengths.tolist(), strict=True)
        whole = [chunk.data[start + 5 : start + length] for start, length in pieces]
        messages += [frame[25:] for frame in whole if frame[:1] == b"w"]
    return messages


def test_every_way_to_the_server_gives_the_same_messages(server: TestServer, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("create table t (id int primary key, body text)")
        session.execute("create publication compared for table t")
        session.execute("select pg_create_logical_replication_slot('compared', 'pgoutput')")
        session.execute(
            "insert into t select n, repeat('x', n % 300) from generate_series(1, 20000) n"
        )
        session.execute("insert into t values (0, repeat('wide', 3000000))")
        session.execute("select pg_logical_emit_message(true, 'test', 'the end')")
        name = session.info.dbname
    ways = [database]
    if server.embedded is not None:
        ways.append(server.embedded.socket_dsn(name))
    found = []
    for dsn in ways:
        with closing(connect(dsn, replication=True)) as connection:
            stream = transport.start(connection.pgconn, START)
            assert isinstance(stream, transport.SocketTransport)
            found.append(frames(stream, b"the end"))
            stream.close()
    with closing(connect(database, replication=True)) as connection:
        connection.pgconn.exec_(START.encode())
        found.append(frames(transport.LibpqTransport(connection.pgconn), b"the end"))
    assert all(messages == found[0] for messages in found)
    assert sum(message[:1] == b"I" for message in found[0]) == 20_001
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("select pg_drop_replication_slot('compared')")
