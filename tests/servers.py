"""Copies of a test server: its standby, and the state that it is put back to."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from waly_cdc.embedded import EmbeddedServer


@contextmanager
def standby_of(
    primary: EmbeddedServer, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedServer]:
    """A running hot standby, fed through a slot `standby_1`, made by pg_basebackup."""
    directory = Path(tempfile.mkdtemp(prefix="waly-pg-"))
    as_root = os.geteuid() == 0
    if as_root:
        account = pwd.getpwnam("nobody")
        os.chown(directory, account.pw_uid, account.pw_gid)
    data = directory / "data"
    subprocess.run(
        [
            *(primary.bindir / "pg_basebackup", "-D", data, "-d", primary.dsn()),
            *("-R", "-C", "-S", "standby_1", "-X", "stream", "-c", "fast", "--no-sync"),
        ],
        check=True,
        capture_output=True,
        cwd=directory,
        user="nobody" if as_root else None,
        group=pwd.getpwnam("nobody").pw_gid if as_root else None,
        extra_groups=[] if as_root else None,
    )
    lines = [f"{name} = '{value}'" for name, value in (settings or {}).items()]
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write("\n".join([*lines, f"unix_socket_directories = '{directory}'", ""]))
    standby = EmbeddedServer(directory, primary.bindir, _free_port())
    try:
        standby.restart()
        yield standby
    finally:
        standby.remove()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def promote(standby: EmbeddedServer) -> None:
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        connection.execute("select pg_promote()")


@contextmanager
def set_aside(server: EmbeddedServer) -> Iterator[Path]:
    """A copy of a stopped server's files, as a snapshot of its disk is one. The server goes on."""
    copy = Path(tempfile.mkdtemp(prefix="waly-pg-copy-"))
    try:
        server.stop()
        subprocess.run(["cp", "-a", server.directory / "data", copy], check=True)
        server.restart()
        yield copy / "data"
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def put_back(server: EmbeddedServer, copy: Path) -> None:
    """Give a server the files that were set aside."""
    server.stop()
    shutil.rmtree(server.directory / "data")
    subprocess.run(["cp", "-a", copy, server.directory / "data"], check=True)
    server.restart()
