from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import conninfo as libpq

from waly_cdc.errors import SourceError
from waly_cdc.source import catalog, publication
from waly_cdc.source.connect import connect


@pytest.fixture
def owner(database: str) -> Iterator[psycopg.Connection]:
    with connect(database) as connection:
        connection.execute(
            "CREATE TABLE public.keyed (a int PRIMARY KEY, b int);"
            "CREATE TABLE public.keyless (a int, b int);"
            "CREATE TABLE public.nothing (a int PRIMARY KEY, b int);"
            "ALTER TABLE public.nothing REPLICA IDENTITY NOTHING;"
            "CREATE TABLE public.generated (a int, b int,"
            " c int GENERATED ALWAYS AS (a * 2) STORED);"
            "ALTER TABLE public.generated REPLICA IDENTITY FULL;"
        )
        yield connection


TABLES = ("keyed", "keyless", "nothing", "generated")


def _application_runs(connection: psycopg.Connection) -> None:
    for table in TABLES:
        connection.execute(f"INSERT INTO public.{table} VALUES (1, 1), (2, 2)".encode())
        connection.execute(f"UPDATE public.{table} SET b = b + 1".encode())
        connection.execute(f"DELETE FROM public.{table} WHERE a = 1".encode())
        connection.execute(f"TRUNCATE public.{table}".encode())


def test_the_application_never_fails(owner: psycopg.Connection) -> None:
    statements = publication.ensure(owner, "w", catalog.tables(owner), every_table=True)
    assert len(statements) == 2
    _application_runs(owner)
    owner.execute("CREATE TABLE public.later (a int, b int)")
    owner.execute("INSERT INTO public.later VALUES (1, 1)")
    owner.execute("UPDATE public.later SET b = 2")


def test_one_publication_of_everything_would_make_it_fail(owner: psycopg.Connection) -> None:
    owner.execute("CREATE PUBLICATION naive FOR ALL TABLES")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        _application_runs(owner)


def test_what_is_there_is_used_as_it_is(owner: psycopg.Connection) -> None:
    tables = catalog.tables(owner)
    assert publication.existing(owner, "w") == set()
    publication.ensure(owner, "w", tables, every_table=True)
    assert publication.ensure(owner, "w", tables, every_table=True) == []
    everything, keyed = publication.look(owner, "w")
    assert everything is not None
    assert keyed is not None
    assert everything.every_table
    assert ("public", "keyed") in keyed.tables
    assert ("public", "keyless") not in keyed.tables
    owner.execute("DROP PUBLICATION w_keyed")
    assert len(publication.ensure(owner, "w", tables, every_table=True)) == 1
    publication.drop(owner, "w")
    assert publication.existing(owner, "w") == set()
    publication.drop(owner, "w")


def test_a_publication_that_does_not_fit_is_refused_and_mended(owner: psycopg.Connection) -> None:
    owner.execute("CREATE PUBLICATION w_all FOR ALL TABLES WITH (publish = 'insert')")
    with pytest.raises(SourceError, match="publishes insert instead of insert, truncate"):
        publication.ensure(owner, "w", [], every_table=True)
    everything, _ = publication.look(owner, "w")
    assert everything is not None
    publication.apply(owner, [publication.repair(everything)])
    assert len(publication.ensure(owner, "w", [], every_table=True)) == 1


def test_changes_bring_publications_up_to_date(owner: psycopg.Connection) -> None:
    publication.ensure(owner, "w", catalog.tables(owner), every_table=False)
    owner.execute("CREATE TABLE public.later (a int PRIMARY KEY)")
    owner.execute("ALTER TABLE public.keyed DROP CONSTRAINT keyed_pkey")
    statements = publication.changes(publication.look(owner, "w"), catalog.tables(owner))
    assert len(statements) == 3
    publication.apply(owner, statements)
    assert publication.changes(publication.look(owner, "w"), catalog.tables(owner)) == []
    _application_runs(owner)


def test_an_owner_who_is_no_superuser_lists_the_tables(
    database: str, owner: psycopg.Connection
) -> None:
    owner.execute("DROP ROLE IF EXISTS waly_owner")
    owner.execute("CREATE ROLE waly_owner LOGIN")
    try:
        owner.execute("CREATE SCHEMA mine AUTHORIZATION waly_owner")
        name = publication.sql.Identifier(owner.info.dbname)
        owner.execute(publication.sql.SQL("GRANT CREATE ON DATABASE {} TO waly_owner").format(name))
        with connect(libpq.make_conninfo(database, user="waly_owner")) as connection:
            connection.execute('CREATE TABLE mine."Odd %s.name" (a int PRIMARY KEY)')
            tables = catalog.tables(connection)
            mine = [table for table in tables if table.owned]
            assert [table.name for table in mine] == ["Odd %s.name"]
            publication.ensure(connection, "w", mine, every_table=False)
            with pytest.raises(SourceError, match="must be owner"):
                publication.ensure(connection, "other", tables, every_table=False)
            assert publication.existing(connection, "other") == set()
        everything, keyed = publication.look(owner, "w")
        assert everything is not None
        assert keyed is not None
        assert everything.tables == keyed.tables == {("mine", "Odd %s.name")}
    finally:
        owner.execute("DROP OWNED BY waly_owner CASCADE; DROP ROLE waly_owner")
