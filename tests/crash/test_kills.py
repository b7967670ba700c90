"""The sidecar killed at random moments under load: nothing is lost, and nothing is there twice.

Sizes come from the environment, so that `make test` runs a sample and `make crash` the real thing:
WALY_KILLS, WALY_CRASH_SCALE (pgbench), WALY_CRASH_SECONDS, WALY_CRASH_SEED.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import duckdb
import psycopg
from psycopg import conninfo

from tests.comparing import digests
from tests.conftest import TestServer
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.embedded import find_program
from waly_cdc.lsn import Lsn

KILLS = int(os.environ.get("WALY_KILLS", "3"))
SCALE = int(os.environ.get("WALY_CRASH_SCALE", "1"))
SECONDS = int(os.environ.get("WALY_CRASH_SECONDS", "6"))
SEED = int(os.environ.get("WALY_CRASH_SEED", str(random.randrange(1 << 32))))
TABLES = ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history")


def test_killed_at_random_moments_it_loses_nothing_and_repeats_nothing(
    server: TestServer, work_dir: Path
) -> None:
    print(f"WALY_CRASH_SEED={SEED} kills={KILLS} scale={SCALE} seconds={SECONDS}")
    dice = random.Random(SEED)
    database = server.create_database()
    restored = server.create_database()
    dsn = server.dsn(database)
    archive = work_dir / "archive"
    try:
        _pgbench(dsn, "--initialize", "--quiet", f"--scale={SCALE}", "--foreign-keys")
        _waly("init", dsn, archive)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "select pg_create_logical_replication_slot(%s, 'test_decoding')", (database,)
            )
        load_generator = subprocess.Popen(
            _pgbench_command(dsn, "--client=4", f"--time={SECONDS}", "--no-vacuum"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        moments = sorted(dice.uniform(0.3, SECONDS) for _ in range(KILLS))
        middle = _capture_with_kills(dsn, archive, moments, work_dir)
        assert load_generator.wait(SECONDS + 60) == 0
        _waly("run", dsn, archive, "--once")
        assert _positions_repeated(archive) == 0
        assert _events_by_transaction(archive) == _events_of_the_server(dsn, database)
        _waly("restore", dsn, archive, "--to", "latest", "--target", server.dsn(restored))
        assert digests(server.dsn(restored), TABLES) == digests(dsn, TABLES)
        for lsn, expected in middle:
            again = server.create_database()
            _waly("restore", dsn, archive, "--to", lsn, "--target", server.dsn(again))
            assert digests(server.dsn(again), TABLES) == expected, f"at {lsn}"
            server.drop_database(again)
            again = server.create_database()
            target = ("--target", server.dsn(again))
            _waly("restore", dsn, archive, "--to", lsn, f"--table={TABLES[0]}", *target)
            found = digests(server.dsn(again), TABLES[:1])
            assert found == {TABLES[0]: expected[TABLES[0]]}, f"at {lsn}"
            server.drop_database(again)
        single = server.create_database()
        only = [f"--table={table}" for table in TABLES[2:]]
        target = server.dsn(single)
        _waly("restore", dsn, archive, "--to", "latest", *only, "--target", target)
        assert digests(server.dsn(single), TABLES[2:]) == digests(dsn, TABLES[2:])
        server.drop_database(single)
        _waly("verify", dsn, archive)
    finally:
        server.drop_database(database)
        server.drop_database(restored)


def _capture_with_kills(
    dsn: str, archive: Path, moments: list[float], work_dir: Path
) -> list[tuple[str, dict[str, tuple[int, str]]]]:
    """Run sidecars, each killed at its moment; states that the server itself had meanwhile."""
    began = time.monotonic()
    middle = []
    for number, moment in enumerate(moments):
        with (work_dir / f"run-{number}.log").open("w") as log:
            sidecar = subprocess.Popen(
                _command("run", archive, "--seal-interval", "0.4s", "--seal-size", "200kB"),
                env={**os.environ, "WALY_DSN": dsn},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        while time.monotonic() - began < moment:
            # A sidecar that ends by itself has failed.
            assert sidecar.poll() is None, (work_dir / f"run-{number}.log").read_text()
            time.sleep(0.01)
        if number == len(moments) // 2:
            middle.append(_state_at_a_slot(dsn))
        sidecar.send_signal(signal.SIGKILL)
        sidecar.wait()
    return middle


def _state_at_a_slot(dsn: str) -> tuple[str, dict[str, tuple[int, str]]]:
    """The consistent point of a new slot, and the tables as its exported snapshot sees them."""
    with psycopg.connect(dsn, replication="database", autocommit=True) as replication:
        row = replication.execute(
            "CREATE_REPLICATION_SLOT waly_probe TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')"
        ).fetchone()
        assert row is not None
        return str(Lsn.parse(row[1])), digests(dsn, TABLES, snapshot=row[2])


def _positions_repeated(archive: Path) -> int:
    """Events beyond the distinct positions, over all relations."""
    repeated = 0
    store = LocalStore(archive)
    contents = load(store)
    for oid in contents.relations:
        files = [str(store.path(f.path)) for f in contents.event_files(oid) if f.kind == "events"]
        if files:
            (count, distinct) = duckdb.execute(
                "select count(*), count(distinct (_lsn, _seq)) from read_parquet($1)", [files]
            ).fetchall()[0]
            repeated += count - distinct
    return repeated


def _events_by_transaction(archive: Path) -> Counter[int]:
    store = LocalStore(archive)
    contents = load(store)
    counts: Counter[int] = Counter()
    for oid in contents.relations:
        files = [str(store.path(f.path)) for f in contents.event_files(oid) if f.kind == "events"]
        if files:
            counts.update(
                dict(
                    duckdb.execute(
                        "select _xid, count(*) from read_parquet($1) group by _xid", [files]
                    ).fetchall()
                )
            )
    return counts


def _events_of_the_server(dsn: str, slot: str) -> Counter[int]:
    """Changes by xid, as the server's own test_decoding tells them."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "select xid::text::bigint, count(*) from pg_logical_slot_get_changes(%s, null, null)"
            " where data like 'table %%' group by 1",
            (slot,),
        ).fetchall()
    return Counter(dict(rows))


def _pgbench(dsn: str, *arguments: str) -> None:
    subprocess.run(_pgbench_command(dsn, *arguments), check=True, capture_output=True)


def _pgbench_command(dsn: str, *arguments: str) -> list[str]:
    program = find_program("pgbench")
    assert program is not None
    given = conninfo.conninfo_to_dict(dsn)
    return [
        str(program),
        f"--host={given['host']}",
        f"--port={given['port']}",
        f"--username={given['user']}",
        *arguments,
        str(given["dbname"]),
    ]


def _command(verb: str, archive: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "waly_cdc", "--archive", str(archive), verb, *arguments]


def _waly(verb: str, dsn: str, archive: Path, *arguments: str) -> None:
    done = subprocess.run(
        _command(verb, archive, *arguments),
        env={**os.environ, "WALY_DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"waly {verb}: {done.stderr}"
