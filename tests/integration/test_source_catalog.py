from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from waly_cdc.decode import messages
from waly_cdc.errors import UsageError
from waly_cdc.relations import StreamRelation
from waly_cdc.source import catalog, publication, slot
from waly_cdc.source.catalog import Table
from waly_cdc.source.connect import connect
from waly_cdc.source.timeline import timelines

SCHEMA = """
CREATE SCHEMA s;
CREATE TYPE s.mood AS ENUM ('sad', 'happy');
CREATE DOMAIN s.positive AS numeric(10, 2) CHECK (VALUE > 0);
CREATE TABLE s.keyed (c text, b int, a int, gone int, d varchar(7), PRIMARY KEY (a, b));
ALTER TABLE s.keyed DROP COLUMN gone;
CREATE TABLE s.keyless (a int, m s.mood, p s.positive, l s.mood[]);
CREATE TABLE s.full_keyed (a int PRIMARY KEY, b text);
ALTER TABLE s.full_keyed REPLICA IDENTITY FULL;
CREATE TABLE s.full_keyless (a int, b text);
ALTER TABLE s.full_keyless REPLICA IDENTITY FULL;
CREATE TABLE s.nothing (a int PRIMARY KEY, b text);
ALTER TABLE s.nothing REPLICA IDENTITY NOTHING;
CREATE TABLE s.indexed (a int PRIMARY KEY, b int NOT NULL, c int NOT NULL, d text);
CREATE UNIQUE INDEX by_cb ON s.indexed (c, b) INCLUDE (d);
ALTER TABLE s.indexed REPLICA IDENTITY USING INDEX by_cb;
CREATE TABLE s.index_gone (a int, b int NOT NULL);
CREATE UNIQUE INDEX gone_soon ON s.index_gone (b);
ALTER TABLE s.index_gone REPLICA IDENTITY USING INDEX gone_soon;
DROP INDEX s.gone_soon;
CREATE TABLE s.deferrable (a int PRIMARY KEY DEFERRABLE, b text);
CREATE TABLE s.generated (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED, c text);
CREATE TABLE s.full_generated (a int, b int GENERATED ALWAYS AS (a * 2) STORED);
ALTER TABLE s.full_generated REPLICA IDENTITY FULL;
CREATE TABLE s.generated_key (a int, b int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY);
CREATE TABLE s."Odd ""name"".%s ü" ("Ü %s" int PRIMARY KEY, "select" text);
CREATE TABLE s.parent (a int PRIMARY KEY, b text) PARTITION BY RANGE (a);
CREATE TABLE s.leaf PARTITION OF s.parent FOR VALUES FROM (0) TO (10);
CREATE TABLE s.heir () INHERITS (s.keyless);
CREATE TABLE s.no_columns ();
CREATE UNLOGGED TABLE s.unlogged (a int);
CREATE TEMP TABLE temporary (a int);
CREATE VIEW s.seen AS SELECT 1 AS a;
"""


def columns(table: Table) -> list[str]:
    return [column.name for column in table.columns]


@pytest.fixture
def tables(database: str) -> dict[str, Table]:
    with connect(database) as connection:
        connection.execute(SCHEMA)
        return {table.name: table for table in catalog.tables(connection)}


def test_ordinary_tables_and_leaf_partitions(database: str, tables: dict[str, Table]) -> None:
    assert "leaf" in tables
    assert not {"parent", "unlogged", "temporary", "seen", "pg_class"} & tables.keys()
    with connect(database) as connection:
        everything = catalog.tables(connection, unlogged=True)
    assert {t.name for t in everything} - tables.keys() == {"unlogged"}
    assert [(t.schema, t.name) for t in everything] == sorted(
        (t.schema, t.name) for t in everything
    )


def test_columns_keys_and_identities(tables: dict[str, Table]) -> None:
    assert columns(tables["keyed"]) == ["c", "b", "a", "d"]
    assert [c.attnum for c in tables["keyed"].columns] == [1, 2, 3, 5]
    assert [c.type_name for c in tables["keyed"].columns][3] == "character varying(7)"
    assert [c.type_name for c in tables["keyless"].columns][1:] == [
        "s.mood",
        "s.positive",
        "s.mood[]",
    ]
    keys = {name: table.key for name, table in tables.items() if table.key}
    assert keys == {
        "keyed": ("a", "b"),
        "full_keyed": ("a",),
        "nothing": ("a",),
        "indexed": ("c", "b"),
        "generated": ("a",),
        'Odd "name".%s ü': ("Ü %s",),
        "leaf": ("a",),
    }
    assert columns(tables["generated"]) == ["a", "c"]
    assert tables["generated"].generated == {2: "b"}


def test_which_tables_can_be_followed(database: str, tables: dict[str, Table]) -> None:
    with connect(database) as connection:
        refuses_generated = connection.info.server_version >= catalog.GENERATED_REFUSED
    followed = {name for name, table in tables.items() if table.followed}
    assert followed == {
        "keyed",
        "full_keyed",
        "full_keyless",
        "indexed",
        "generated",
        'Odd "name".%s ü',
        "leaf",
        *([] if refuses_generated else ["full_generated"]),
    }


def test_tables_are_what_the_stream_says(database: str, tables: dict[str, Table]) -> None:
    with connect(database) as connection, connect(database, replication=True) as replication:
        publication.ensure(connection, "w", list(tables.values()), every_table=True)
        slot.create(replication, "w_catalog_test", temporary=True)
        for table in tables.values():
            connection.execute(_one_row(table))
        sent = _relations(replication, "w_catalog_test", publication.names("w"))
    assert sent == {table.oid: table.to_stream() for table in tables.values()}


def _one_row(table: Table) -> sql.Composed:
    name = sql.Identifier(table.schema, table.name)
    wanted = [column.name for column in table.columns if column.type_name == "integer"]
    if not wanted:
        return sql.SQL("INSERT INTO {} DEFAULT VALUES").format(name)
    return sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        name,
        sql.SQL(", ").join(map(sql.Identifier, wanted)),
        sql.SQL(", ").join([sql.SQL("1")] * len(wanted)),
    )


def _relations(
    connection: psycopg.Connection, name: str, publications: tuple[str, str]
) -> dict[int, StreamRelation]:
    rows = connection.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL,"
        " 'proto_version', '1', 'publication_names', %s)",
        (name, ",".join(f'"{publication}"' for publication in publications)),
    )
    found = [messages.relation(data) for (data,) in rows if data[:1] == b"R"]
    return {relation.oid: relation for relation in found}


def test_patterns_choose_tables(database: str, tables: dict[str, Table]) -> None:
    assert tables
    with connect(database) as connection:
        chosen = catalog.tables(connection, ["s.*keyed"], ["full_*"])
        assert [table.name for table in chosen] == ["keyed"]
        with pytest.raises(UsageError, match="no table matches keyd"):
            catalog.tables(connection, ["keyed", "keyd"])


def test_one_table(database: str, tables: dict[str, Table]) -> None:
    with connect(database) as connection:
        assert catalog.table(connection, tables["keyed"].oid) == tables["keyed"]
        connection.execute("DROP TABLE s.keyed")
        assert catalog.table(connection, tables["keyed"].oid) is None


def test_the_catalog_is_read_past_an_exclusive_lock(
    database: str, tables: dict[str, Table]
) -> None:
    with connect(database) as holder, connect(database) as connection:
        connection.execute("SET statement_timeout = '5s'")
        with holder.transaction():
            holder.execute("LOCK TABLE s.keyed IN ACCESS EXCLUSIVE MODE")
            assert catalog.table(connection, tables["keyed"].oid) == tables["keyed"]
            assert len(catalog.tables(connection)) == len(tables)


def test_facts(database: str) -> None:
    with connect(database) as connection, connect(database, replication=True) as replication:
        facts = catalog.server_facts(connection)
        identity = replication.execute("IDENTIFY_SYSTEM").fetchone()
        assert identity is not None
        assert facts.system_identifier == identity[0]
        assert timelines(database).current == identity[1]
        assert facts.database == identity[3]
        assert facts.server_version == connection.info.server_version
        assert facts.is_superuser
        assert facts.can_replicate
        assert facts.wal_level == "logical"
        later = catalog.server_facts(connection)
        assert later.now > facts.now
        assert later.current_lsn >= facts.current_lsn


def test_facts_need_no_privilege(database: str) -> None:
    with connect(database) as connection:
        connection.execute("DROP ROLE IF EXISTS waly_nobody")
        connection.execute("CREATE ROLE waly_nobody")
        expected = catalog.server_facts(connection)
        try:
            connection.execute("SET ROLE waly_nobody")
            facts = catalog.server_facts(connection)
        finally:
            connection.execute("RESET ROLE")
            connection.execute("DROP ROLE waly_nobody")
    assert facts.system_identifier == expected.system_identifier
    assert (facts.role, facts.is_superuser, facts.can_replicate) == ("waly_nobody", False, False)


def test_sequences_are_exact(database: str) -> None:
    with connect(database) as connection:
        connection.execute(
            "CREATE SCHEMA s; CREATE SEQUENCE s.fresh START 5; CREATE SEQUENCE s.used;"
            ' CREATE SEQUENCE s.turned_back; CREATE SEQUENCE s."O\'dd %s" INCREMENT -1;'
            " CREATE TEMP SEQUENCE temporary"
        )
        connection.execute("SELECT nextval('s.used'), nextval('s.used')")
        connection.execute("SELECT setval('s.turned_back', 42, false)")
        assert catalog.sequences(connection) == [
            ("s", "O'dd %s", -1, False),
            ("s", "fresh", 5, False),
            ("s", "turned_back", 42, False),
            ("s", "used", 2, True),
        ]


def test_many_sequences(database: str) -> None:
    with connect(database) as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..450 LOOP"
            " EXECUTE 'CREATE SEQUENCE public.s' || i; END LOOP; END $$"
        )
        assert len(catalog.sequences(connection)) == 450
