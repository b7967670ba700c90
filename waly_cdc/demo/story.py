"""The story that the demonstration tells, with real commands on a real server."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg import conninfo, sql

from waly_cdc.demo.shop import MISTAKE, TABLES, Shop, fingerprints
from waly_cdc.errors import CouldNotVerify, UsageError, VerifyMismatch
from waly_cdc.lsn import Lsn

DATABASE = "waly_demo"
RESTORED = "waly_demo_restored"
TRADING_SECONDS = 3.0
PATIENCE = 30.0
"""Seconds to wait for the sidecar to archive what was committed."""


class Teller(Protocol):
    """Tells the story to whoever watches."""

    def chapter(self, title: str, text: str = "") -> None: ...

    def command(self, line: str) -> None: ...

    def says(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended: where the archive is, the guilty transaction, and rows per restored table."""

    archive: Path
    xid: int
    tables: tuple[tuple[str, int], ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "archive": str(self.archive),
            "xid": self.xid,
            "tables": [{"table": table, "rows": rows} for table, rows in self.tables],
            "equal": True,
            "seconds": round(self.seconds, 1),
        }


class Story:
    """One telling, on a server where `dsn` may create databases; the archive goes to `archive`."""

    def __init__(self, dsn: str, archive: Path, teller: Teller, *, quiet: bool) -> None:
        self._dsn = dsn
        self._archive = archive
        self._teller = teller
        self._quiet = quiet
        self._shop = Shop(conninfo.make_conninfo(dsn, dbname=DATABASE))
        self._environment = {
            **os.environ,
            "WALY_DSN": self._shop.dsn,
            "WALY_ARCHIVE": os.path.relpath(archive),
        }

    def tell(self) -> Ending:
        """Raises VerifyMismatch if anything restored is not what was there."""
        began = time.monotonic()
        tell = self._teller
        tell.chapter(
            "A shop", "customers, products, orders; a web shop, a warehouse, a support desk"
        )
        self._create_database(DATABASE)
        try:
            self._shop.create()
            xid, before = self._happen()
            tell.chapter("What happened to the prices?")
            self._waly("log", "products", "SKU-042", "-n", "4")
            self._waly("query", "mass-changes", "--param", "rows=50")
            self._waly("show", f"xid:{xid}", "-n", "3")
            self._waly("diff", "--from", f"xid:{xid}^", "--to", f"xid:{xid}", "--stat")
            tell.chapter("Back to the moment before it", "into a database of its own")
            rows = self._restore(xid, before)
            tell.chapter("And in the shop itself", "where nobody changed a product since")
            self._revert(xid)
            tell.chapter("Is the archive whole, and does it restore?")
            self._waly("verify", "--drill")
        finally:
            self._remove()
        return Ending(self._archive, xid, rows, time.monotonic() - began)

    def _happen(self) -> tuple[int, dict[str, tuple[int, str]]]:
        """Capture, trade, the mistake, more trade; the guilty xid, and the tables before it."""
        self._waly("init")
        with self._sidecar():
            self._teller.says(f"everybody works for {TRADING_SECONDS:.0f} seconds …")
            count = self._shop.trade(TRADING_SECONDS)
            before = fingerprints(self._shop.dsn)
            self._teller.says(
                f"{count:,} transactions; a digest of every table is taken, to compare with later"
            )
            rows = self._shop.make_mistake()
            self._teller.says(f"alice, in psql: {MISTAKE};  -- {rows} rows: she forgot the WHERE")
            self._shop.trade(TRADING_SECONDS / 3)
            self._teller.says("nobody noticed, and work went on")
            self._wait_until_archived()
            self._waly("status")
        return self._guilty(), before

    def _restore(self, xid: int, before: dict[str, tuple[int, str]]) -> tuple[tuple[str, int], ...]:
        self._create_database(RESTORED)
        target = conninfo.make_conninfo(self._dsn, dbname=RESTORED)
        self._waly("restore", "--to", f"xid:{xid}^", "--target", target)
        after = fingerprints(target)
        differing = [table for table in TABLES if before[table] != after[table]]
        if differing:
            raise VerifyMismatch(f"restored tables differ: {', '.join(differing)}")
        for table in TABLES:
            rows, digest = after[table]
            self._teller.says(f"{table}: {rows:,} rows, digest {digest[:12]}…, the same as before")
        return tuple((table, after[table][0]) for table in TABLES)

    def _revert(self, xid: int) -> None:
        with self._sidecar():
            self._waly("revert", f"xid:{xid}", "--apply", "--theirs")
            self._wait_until_archived()
        self._waly("log", "products", "SKU-042", "-n", "2")

    def _waly(self, *arguments: str) -> None:
        """Show a command, run it, show what it says. Raises CouldNotVerify when it fails."""
        if not self._quiet:
            self._teller.command("waly " + shlex.join(arguments))
        done = subprocess.run(
            [sys.executable, "-m", "waly_cdc", *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL if self._quiet else None,
            stderr=None,
            check=False,
        )
        if done.returncode != 0:
            raise CouldNotVerify(
                f"waly {arguments[0]} ended with exit code {done.returncode}",
                hint=f"the archive is in {self._archive}",
            )

    def _answer(self, *arguments: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "waly_cdc", *arguments, "--json", "--quiet"],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 3):
            raise CouldNotVerify(f"waly {arguments[0]} failed: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _guilty(self) -> int:
        found = self._answer("log", "products", "--actor", "alice", "-n", "1")
        if not found:
            raise CouldNotVerify("alice's transaction was not attributed to her")
        return int(found[0]["xid"])

    @contextmanager
    def _sidecar(self) -> Iterator[None]:
        arguments = ["run", "--seal-interval", "1s"]
        self._teller.command("waly " + shlex.join(arguments) + " &")
        process = subprocess.Popen(
            [sys.executable, "-m", "waly_cdc", *arguments, "--quiet"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
        if code != 0:
            raise CouldNotVerify(f"the sidecar ended with exit code {code}")

    def _wait_until_archived(self) -> None:
        target = Lsn.parse(self._shop.current_lsn())
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            (found,) = self._answer("status")
            if Lsn.parse(found["horizon"]["lsn"]) >= target:
                return
            time.sleep(0.2)
        raise CouldNotVerify(f"the sidecar has not archived everything in {PATIENCE:.0f} seconds")

    def _create_database(self, name: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            try:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            except psycopg.errors.DuplicateDatabase:
                raise UsageError(
                    f"there is a database {name} on that server already",
                    hint=f"the demonstration makes it, and removes it: drop database {name}",
                ) from None

    def _remove(self) -> None:
        """Take everything off the server again but the roles."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                " where database = %s and not active",
                (DATABASE,),
            )
            for name in (DATABASE, RESTORED):
                connection.execute(
                    sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
                )


def free_folder(wanted: Path) -> Path:
    """The folder, or the first of `wanted-2`, `wanted-3`, … that is not there yet."""
    number, path = 1, wanted
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path
