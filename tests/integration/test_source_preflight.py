from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo as libpq

from tests.running import require
from waly_cdc.errors import SourceError
from waly_cdc.findings import Finding, worst
from waly_cdc.source import catalog, publication, slot
from waly_cdc.source.connect import connect
from waly_cdc.source.preflight import check


def by_id(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


def about(findings: list[Finding], subject: str) -> list[Finding]:
    return [finding for finding in findings if finding.subject == subject]


def test_a_server_that_is_ready(database: str, work_dir: Path) -> None:
    with connect(database) as admin:
        admin.execute("CREATE TABLE public.t (a int PRIMARY KEY)")
        before = _objects(admin)
        findings = check(database, work_dir / "archive")
        assert _objects(admin) == before
    assert worst(findings) != "fail"
    found = by_id(findings)
    for passed in ("connection", "version", "encoding", "wal_level", "replication", "slot"):
        assert found[passed].severity == "pass", passed
    for passed in ("publication", "table_privilege", "replica_identity", "archive"):
        assert found[passed].severity == "pass", passed
    assert "pg_dump" in found
    assert not (work_dir / "archive").exists()


def _objects(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT oid, relname, relacl FROM pg_class UNION ALL SELECT oid, pubname, NULL"
        " FROM pg_publication ORDER BY 1"
    ).fetchall()


def test_tables_and_their_remedies(database: str) -> None:
    with connect(database) as admin:
        admin.execute(
            'CREATE TABLE public."Key less" (a int);'
            "CREATE TABLE public.nothing (a int PRIMARY KEY);"
            "ALTER TABLE public.nothing REPLICA IDENTITY NOTHING;"
            "CREATE TABLE public.indexed (a int NOT NULL UNIQUE);"
            "CREATE UNLOGGED TABLE public.quick (a int PRIMARY KEY);"
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
            "CREATE FOREIGN TABLE public.far (a int) SERVER s;"
            "SELECT lo_create(0)"
        )
        findings = check(database, None)
        assert worst(findings) == "warn"
        (keyless,) = about(findings, 'public."Key less"')
        assert keyless.fix_sql == 'ALTER TABLE public."Key less" REPLICA IDENTITY FULL;'
        (indexed,) = about(findings, "public.indexed")
        assert indexed.fix_sql is not None
        assert "USING INDEX indexed_a_key" in indexed.fix_sql
        assert [f.id for f in about(findings, "public.quick")] == ["unlogged"]
        assert [f.id for f in about(findings, "public.far")] == ["foreign_table"]
        assert "large_objects" in by_id(findings)
        for finding in findings:
            if finding.fix_sql and finding.subject.startswith("public."):
                admin.execute(finding.fix_sql.encode())
        mended = by_id(check(database, None))
    assert mended["replica_identity"].severity == "pass"
    assert "unlogged" not in mended


def test_a_role_with_least_privilege(database: str) -> None:
    role = "waly_least_%s"
    with connect(database) as admin:
        admin.execute('DROP ROLE IF EXISTS "waly_least_%s"')
        admin.execute('CREATE ROLE "waly_least_%s" LOGIN')
        try:
            admin.execute(
                'CREATE SCHEMA "S"; CREATE TABLE "S"."T\'%s" (a int PRIMARY KEY);'
                'CREATE SEQUENCE "S".q; CREATE TABLE "S".hidden (a int PRIMARY KEY);'
                'ALTER TABLE "S".hidden ENABLE ROW LEVEL SECURITY'
            )
            dsn = libpq.make_conninfo(database, user=role)
            findings = check(dsn, None, "w_least")
            failed = {finding.id for finding in findings if finding.severity == "fail"}
            assert failed == {"replication", "publication", "table_privilege", "row_security"}
            assert by_id(findings)["sequence_privilege"].severity == "warn"
            _mend(admin, findings)
            findings = check(dsn, None, "w_least")
            assert worst(findings) != "fail"
            assert by_id(findings)["sequence_privilege"].severity == "pass"
            with connect(dsn) as connection, connect(dsn, replication=True) as replication:
                tables = catalog.tables(connection)
                assert all(table.readable for table in tables)
                assert publication.ensure(connection, "w_least", tables, every_table=False) == []
                slot.create(replication, "w_least", temporary=True)
        finally:
            admin.execute('DROP OWNED BY "waly_least_%s"; DROP ROLE "waly_least_%s"')


def _mend(admin: psycopg.Connection, findings: list[Finding]) -> None:
    for finding in findings:
        if finding.fix_sql and "ALTER SYSTEM" not in finding.fix_sql:
            admin.execute(finding.fix_sql.encode())


def test_publications_that_hurt_or_lack(database: str) -> None:
    with connect(database) as admin:
        admin.execute(
            "CREATE TABLE public.keyed (a int PRIMARY KEY); CREATE TABLE public.late (a int);"
        )
        publication.ensure(admin, "w", catalog.tables(admin), every_table=False)
        admin.execute(
            "ALTER TABLE public.keyed DROP CONSTRAINT keyed_pkey;"
            "ALTER TABLE public.late ADD PRIMARY KEY (a); CREATE TABLE public.later (a int)"
        )
        findings = check(database, None, "w")
        assert [f.id for f in about(findings, "public.keyed")] == [
            "breaks_updates",
            "replica_identity",
        ]
        assert [f.id for f in about(findings, "public.late")] == ["not_published"]
        assert "not_published" in [f.id for f in about(findings, "public.later")]
        _mend(admin, findings)
        admin.execute("UPDATE public.keyed SET a = 1")
        ids = {finding.id for finding in check(database, None, "w")}
        _, keyed = publication.look(admin, "w")
    assert not ids & {"breaks_updates", "not_published"}
    assert keyed is not None
    assert {"keyed", "late", "later"} == {name for _, name in keyed.tables}


def test_row_filters_are_found(database: str) -> None:
    require(database, 150_000, "row filters")
    with connect(database) as admin:
        admin.execute(
            "CREATE TABLE public.t (a int PRIMARY KEY);"
            "CREATE PUBLICATION w_all FOR TABLE public.t WHERE (a > 1)"
            " WITH (publish = 'insert, truncate')"
        )
        (finding,) = about(check(database, None, "w"), "public.t")
        assert finding.id == "publication_filter"
        assert finding.severity == "fail"
        assert finding.fix_sql is not None
        admin.execute(finding.fix_sql.encode())
        assert about(check(database, None, "w"), "public.t") == []


def test_an_unlogged_table_is_published_once_it_is_logged(database: str) -> None:
    with connect(database) as admin:
        admin.execute("CREATE UNLOGGED TABLE public.quick (a int PRIMARY KEY)")
        publication.ensure(admin, "w", catalog.tables(admin), every_table=False)
        (finding,) = about(check(database, None, "w"), "public.quick")
        assert finding.fix_sql is not None
        admin.execute(finding.fix_sql.encode())
        assert about(check(database, None, "w"), "public.quick") == []


def test_every_line_reads_as_a_sentence(database: str, work_dir: Path) -> None:
    with connect(database) as admin:
        admin.execute("CREATE TABLE public.t (a int)")
        findings = check(database, work_dir)
    found = by_id(findings)
    assert found["max_slot_wal_keep_size"].message.startswith("max_slot_wal_keep_size is unlimited")
    assert found["wal_sender_timeout"].message == "wal_sender_timeout is 60000 ms"
    assert re.fullmatch(
        r"[\d.]+ [GT]iB are free; the database has [\d.]+ MiB", found["free_space"].message
    )
    for finding in findings:
        assert not re.match(r"(is|are|has|exists|does|may)\b", finding.message), finding


@pytest.fixture
def plain_role(database: str) -> Iterator[tuple[psycopg.Connection, str]]:
    """An administrator's connection, and a connection string of a role that has no rights yet."""
    with connect(database) as admin:
        admin.execute("DROP ROLE IF EXISTS waly_plain; CREATE ROLE waly_plain LOGIN REPLICATION")
        try:
            yield admin, libpq.make_conninfo(database, user="waly_plain")
        finally:
            admin.execute("DROP OWNED BY waly_plain; DROP ROLE waly_plain")


def test_a_role_that_sees_no_actors_is_told_so(plain_role: tuple[psycopg.Connection, str]) -> None:
    admin, dsn = plain_role
    finding = by_id(check(dsn, None))["actors"]
    assert finding.severity == "warn"
    assert finding.message == (
        "role waly_plain may not see who runs a transaction (pg_read_all_stats): actors will be"
        " unknown unless they name themselves"
    )
    assert finding.fix_sql == "GRANT pg_read_all_stats TO waly_plain;"
    admin.execute(finding.fix_sql.encode())
    assert by_id(check(dsn, None))["actors"].severity == "pass"


def test_a_right_to_all_tables_covers_those_made_later(
    plain_role: tuple[psycopg.Connection, str],
) -> None:
    admin, dsn = plain_role
    admin.execute("CREATE TABLE public.t (a int PRIMARY KEY)")
    finding = by_id(check(dsn, None))["table_privilege"]
    assert (finding.severity, finding.subject) == ("fail", "public.t")
    assert finding.message == (
        "role waly_plain may not read it: the baseline and pg_dump need that"
    )
    assert finding.fix_sql == "GRANT pg_read_all_data TO waly_plain;"
    admin.execute("GRANT SELECT ON public.t TO waly_plain")
    finding = by_id(check(dsn, None))["table_privilege"]
    assert finding.severity == "warn"
    assert "later ones" in finding.message
    admin.execute((finding.fix_sql or "").encode())
    admin.execute("CREATE TABLE public.later (a int PRIMARY KEY)")
    assert by_id(check(dsn, None))["table_privilege"].severity == "pass"


def test_a_role_that_inherits_nothing_gets_the_rights_themselves(
    plain_role: tuple[psycopg.Connection, str],
) -> None:
    admin, dsn = plain_role
    admin.execute(
        "CREATE TABLE public.t (a int PRIMARY KEY); ALTER ROLE waly_plain NOINHERIT;"
        "GRANT pg_read_all_data TO waly_plain"
    )
    findings = check(dsn, None)
    assert {"table_privilege", "actors"} <= {f.id for f in findings if f.severity != "pass"}
    _mend(admin, [f for f in findings if f.id in ("table_privilege", "actors")])
    found = by_id(check(dsn, None))
    assert (found["table_privilege"].severity, found["actors"].severity) == ("pass", "pass")


def test_a_slot_of_another_kind_is_refused(database: str) -> None:
    with connect(database) as admin, connect(database, replication=True) as replication:
        admin.execute("CREATE TABLE public.t (a int PRIMARY KEY)")
        slot.create(replication, "w_other", plugin="test_decoding", temporary=True)
        found = by_id(check(database, None, "w_other"))
    assert found["slot"].severity == "fail"
    assert "test_decoding" in found["slot"].message


def test_our_slot_is_described(database: str) -> None:
    with connect(database, replication=True) as replication:
        slot.create(replication, "w_mine", temporary=True)
        found = by_id(check(database, None, "w_mine"))
    assert found["slot"].severity == "pass"
    assert "open_transaction" not in found


def test_an_encoding_without_meaning(server: Any, work_dir: Path) -> None:
    with psycopg.connect(server.admin_dsn, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS waly_ascii")
        admin.execute(
            "CREATE DATABASE waly_ascii TEMPLATE template0 ENCODING 'SQL_ASCII'"
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        try:
            findings = check(server.dsn("waly_ascii"), work_dir)
        finally:
            admin.execute("DROP DATABASE waly_ascii WITH (FORCE)")
    assert by_id(findings)["encoding"].severity == "fail"


def test_an_archive_folder_that_cannot_be(database: str, work_dir: Path) -> None:
    (work_dir / "file").write_text("")
    assert by_id(check(database, work_dir / "file" / "archive"))["archive"].severity == "fail"


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(SourceError):
        check("host=127.0.0.1 port=1", None)
