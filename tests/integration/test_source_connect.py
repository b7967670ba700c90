from __future__ import annotations

import psycopg
import pytest
from psycopg import conninfo as libpq
from psycopg import sql

from waly_cdc.errors import SourceError, SourceLost
from waly_cdc.source.connect import RENDERING_SETTINGS, connect, source_errors


@pytest.mark.parametrize("replication", [False, True])
def test_settings_are_pinned_whatever_role_and_connection_string_say(
    database: str, replication: bool
) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        for setting in ("DateStyle = German", "TimeZone = 'Asia/Tokyo'", "bytea_output = escape"):
            name = sql.Identifier(libpq.conninfo_to_dict(database)["dbname"] or "")
            admin.execute(
                sql.SQL("ALTER DATABASE {} SET " + setting).format(name)  # type: ignore[arg-type]
            )
    dsn = libpq.make_conninfo(database, options="-c IntervalStyle=iso_8601 -c work_mem=7MB")
    with connect(dsn, replication=replication) as connection:
        for name, value in RENDERING_SETTINGS.items():
            row = connection.execute(f"SHOW {name}").fetchone()  # type: ignore[arg-type]
            assert row == (value,), name
        assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_the_application_name_of_the_connection_string_survives(database: str) -> None:
    with connect(database) as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("waly",)
    with connect(libpq.make_conninfo(database, application_name="mine")) as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("mine",)


def test_replication_in_the_connection_string_is_not_for_plain_queries(database: str) -> None:
    with connect(libpq.make_conninfo(database, replication="database")) as connection:
        assert connection.execute("SELECT %s::int", (1,)).fetchone() == (1,)


def test_an_unknown_database_is_named(database: str) -> None:
    with pytest.raises(SourceError, match="no_such_database") as caught:
        connect(libpq.make_conninfo(database, dbname="no_such_database"))
    assert "database" in (caught.value.hint or "")


def test_a_role_without_replication_is_told_so(database: str) -> None:
    with connect(database) as admin:
        admin.execute("DROP ROLE IF EXISTS waly_plain")
        admin.execute("CREATE ROLE waly_plain LOGIN")
        try:
            with pytest.raises(SourceError) as caught:
                connect(libpq.make_conninfo(database, user="waly_plain"), replication=True)
        finally:
            admin.execute("DROP ROLE waly_plain")
    assert "REPLICATION" in (caught.value.hint or "")


def test_a_broken_connection_is_lost(database: str) -> None:
    with connect(database) as killer, connect(database) as victim:
        killer.execute("SELECT pg_terminate_backend(%s)", (victim.info.backend_pid,))
        for _ in range(2):
            with pytest.raises(SourceLost), source_errors():
                victim.execute("SELECT 1")
