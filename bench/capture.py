"""How fast is capture? Compared with `pg_recvlogical`, PostgreSQL's own reader of the same stream.

Each round inserts the same 1,000,000 rows of 10 columns, then lets each of the two consume them
from a slot of its own, in turns; both slots begin at the same place in the log. `pg_recvlogical`
writes them to /dev/null over the unix socket (its faster transport), waly makes sealed Parquet of
them over TCP. Both are timed as whole processes, and once more with nothing to read: what they take
for that, to start and to end, is taken off for the rates. Prints the ratio of the rates (1.0 is as
fast as the server can send), and that of the whole processes.

    python bench/capture.py [--rows N] [--rounds N] [--batch N] [--dsn DSN]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from waly_cdc.embedded import EmbeddedServer

TABLE = """
create table measured (
    id bigint primary key, account int, amount numeric(12,2), created_at timestamptz, done boolean,
    ratio double precision, day date, code text, title text, body text)
"""
INSERT = """
insert into measured
select n, n %% 5000, (n %% 100000) / 100.0, now() + n * interval '1 second', n %% 3 = 0, n / 7.0,
       date '2026-01-01' + (n %% 365)::int, md5(n::text), 'title of row ' || n,
       repeat(md5((n + 1)::text), 2)
from generate_series(%s::bigint, %s::bigint) n
"""


def fill(dsn: str, first: int, rows: int, batch: int) -> str:
    """Insert the rows in transactions of `batch`; the server's position afterwards."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for start in range(first, first + rows, batch):
            connection.execute(INSERT, (start, min(start + batch, first + rows) - 1))
        row = connection.execute("select pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        connection.execute("checkpoint")
        # What the server left to the kernel must not be written while the readers are timed.
        os.sync()
        return str(row[0])


def copy_slot(dsn: str) -> None:
    """Make the slot `compared` a copy of waly's: from where a slot is decoded depends on when its
    reader last acknowledged something."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where slot_name = 'compared'"
        )
        connection.execute("select pg_copy_logical_replication_slot('waly_postgres', 'compared')")


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of wall and of CPU that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1_000, help="rows per transaction")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="waly-bench-"))
    waly = [sys.executable, "-m", "waly_cdc", "--archive", str(work / "archive")]
    rates, wholes = [], []
    try:
        with EmbeddedServer.start(settings={"max_wal_size": "8GB"}) as server:
            dsn = server.dsn()
            os.environ["WALY_DSN"] = dsn
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(TABLE)
            subprocess.run([*waly, "--quiet", "init"], check=True)
            recvlogical = [
                str(server.bindir / "pg_recvlogical"),
                *("-d", server.socket_dsn(), "--slot=compared"),
            ]
            publications = "waly_postgres_all,waly_postgres_keyed"

            def reader(end: str) -> list[str]:
                return [
                    *recvlogical,
                    *("--start", "-f", "/dev/null", "--no-loop", f"--endpos={end}"),
                    *("-o", "proto_version=1", "-o", f"publication_names={publications}"),
                ]

            def writer(_: str) -> list[str]:
                return [*waly, "--quiet", "run", "--once"]

            for number in range(arguments.rounds):
                copy_slot(dsn)
                turns = [("pg_recvlogical", reader), ("waly", writer)]
                turns = turns if number % 2 else turns[::-1]
                position = fill(dsn, number * arguments.rows, 0, arguments.batch)
                empty = {name: timed(command(position)) for name, command in turns}
                copy_slot(dsn)
                position = fill(dsn, number * arguments.rows, arguments.rows, arguments.batch)
                whole = {name: timed(command(position)) for name, command in turns}
                net = {name: whole[name][0] - empty[name][0] for name in whole}
                rates.append(net["pg_recvlogical"] / net["waly"])
                wholes.append(whole["pg_recvlogical"][0] / whole["waly"][0])
                for name in ("pg_recvlogical", "waly"):
                    print(
                        f"{name:15} {whole[name][0]:6.2f} s, {empty[name][0]:.2f} s of it empty"
                        f"  {arguments.rows / net[name]:10,.0f} rows/s  {whole[name][1]:5.2f} s CPU"
                    )
                print(f"ratio           {rates[-1]:6.2f}, whole {wholes[-1]:.2f}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"median ratio of the rates, waly to pg_recvlogical: {statistics.median(rates):.2f}")
    print(f"median ratio of whole processes: {statistics.median(wholes):.2f}")


if __name__ == "__main__":
    main()
