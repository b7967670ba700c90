"""What does it cost that commits wait for the sidecar? pgbench beside a witness and beside none.

Rounds of pgbench (its TPC-B-like transactions) on one server, in turns: with a sidecar as `waly
run` is, and with `waly run --witness`. Prints transactions per second of both, how long one takes
in the mean, and the ratio. The server syncs its log to disk at every commit, as any that
holds data does; `--no-fsync` shows the cost beside a server that does not.

    python bench/witness.py [--clients N] [--seconds N] [--rounds N] [--scale N] [--no-fsync]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from waly_cdc.embedded import EmbeddedServer

START_SECONDS = 30


@contextmanager
def sidecar(archive: Path, dsn: str, *, witness: bool) -> Iterator[None]:
    """A sidecar at work; with `witness` from when commits wait for it."""
    command = [sys.executable, "-m", "waly_cdc", "--archive", str(archive), "--quiet", "run"]
    process = subprocess.Popen(command + ["--witness"] * witness, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + START_SECONDS
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            row = connection.execute(
                "select bool_or(state = 'streaming'), bool_or(sync_state = 'sync')"
                " from pg_stat_replication"
            ).fetchone()
            if row is not None and row[1 if witness else 0]:
                break
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit("the sidecar did not start")
            time.sleep(0.1)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def pgbench(server: EmbeddedServer, clients: int, seconds: int) -> tuple[float, float]:
    """Transactions per second, and the mean latency in milliseconds."""
    done = subprocess.run(
        [
            *(server.bindir / "pgbench", "-n", "-c", str(clients), "-j", "2", "-T", str(seconds)),
            *("-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "postgres"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    latency = re.search(r"latency average = ([\d.]+)", done.stdout)
    assert rate is not None
    assert latency is not None
    return float(rate[1]), float(latency[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=20)
    parser.add_argument("--no-fsync", action="store_true")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="waly-bench-"))
    fsync = "off" if arguments.no_fsync else "on"
    rates: dict[bool, list[float]] = {False: [], True: []}
    try:
        with EmbeddedServer.start(settings={"fsync": fsync, "max_wal_size": "8GB"}) as server:
            dsn = os.environ["WALY_DSN"] = server.dsn()
            make = [server.bindir / "pgbench", "-i", "-q", "-s", str(arguments.scale)]
            target = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "postgres"]
            subprocess.run([*make, *target], check=True, capture_output=True)
            waly = [sys.executable, "-m", "waly_cdc", "--archive", str(work / "archive")]
            subprocess.run([*waly, "--quiet", "init"], check=True, stdout=subprocess.DEVNULL)
            for number in range(arguments.rounds):
                for witness in (False, True) if number % 2 else (True, False):
                    with sidecar(work / "archive", dsn, witness=witness):
                        rate, latency = pgbench(server, arguments.clients, arguments.seconds)
                    rates[witness].append(rate)
                    name = "witness" if witness else "asynchronous"
                    print(f"{name:13} {rate:8.0f} tps  {latency:6.2f} ms", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    ratio = statistics.median(rates[True]) / statistics.median(rates[False])
    print(f"ratio of the rates with a witness and without: {ratio:.2f}")


if __name__ == "__main__":
    main()
