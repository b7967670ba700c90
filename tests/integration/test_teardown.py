"""`waly slot drop`: what it takes away, and what only an owner can."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from waly_cdc.capture import teardown
from waly_cdc.cli.main import run
from waly_cdc.errors import SourceError, UsageError
from waly_cdc.source import publication, slot
from waly_cdc.source.connect import connect

ROLE = "waly_teardown"
NAME = "w_teardown"


@pytest.fixture
def admin(database: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection to a database with our slot and publications of the superuser's."""
    with connect(database) as connection, connect(database, replication=True) as replication:
        connection.execute(f"DROP ROLE IF EXISTS {ROLE}; CREATE ROLE {ROLE} LOGIN REPLICATION")
        publication.ensure(connection, NAME, [], every_table=True)
        slot.create(replication, NAME)
        try:
            yield connection
        finally:
            connection.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


def _dsn(database: str) -> str:
    return conninfo.make_conninfo(database, user=ROLE)


def test_publications_of_another_owner_are_left_with_the_statement_that_drops_them(
    database: str, admin: psycopg.Connection, work_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dsn", _dsn(database), "--archive", str(work_dir / "none"), "--slot", NAME]
    capsys.readouterr()
    assert run(["slot", "drop", "--yes", "--json", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "slot": NAME,
        "dropped": [f"slot {NAME}"],
        "left": [f"publication {NAME}_all", f"publication {NAME}_keyed"],
        "fix_sql": f'DROP PUBLICATION "{NAME}_all", "{NAME}_keyed";',
        "gap_from": None,
    }
    assert slot.info(admin, NAME) is None
    assert publication.existing(admin, NAME) == {f"{NAME}_all", f"{NAME}_keyed"}
    assert run(["slot", "drop", "--yes", *options]) == 0
    shown = capsys.readouterr().out
    assert "dropped" not in shown
    assert f"left publication {NAME}_all, publication {NAME}_keyed" in shown
    assert answer["fix_sql"] in shown
    admin.execute(answer["fix_sql"].encode())
    with pytest.raises(UsageError):
        teardown.remove(_dsn(database), NAME)


def test_what_the_role_owns_goes(database: str, admin: psycopg.Connection) -> None:
    admin.execute(f"ALTER PUBLICATION {NAME}_keyed OWNER TO {ROLE}")
    removed = teardown.remove(_dsn(database), NAME)
    assert removed.dropped == (f"slot {NAME}", f"publication {NAME}_keyed")
    assert removed.left == (f"publication {NAME}_all",)
    assert teardown.remove(database, NAME).left == ()
    assert publication.existing(admin, NAME) == set()


def test_a_role_that_may_not_drop_the_slot_drops_nothing(
    database: str, admin: psycopg.Connection
) -> None:
    admin.execute(f"ALTER ROLE {ROLE} NOREPLICATION")
    admin.execute(f"ALTER PUBLICATION {NAME}_keyed OWNER TO {ROLE}")
    with pytest.raises(SourceError):
        teardown.remove(_dsn(database), NAME)
    assert slot.info(admin, NAME) is not None
    assert len(publication.existing(admin, NAME)) == 2
