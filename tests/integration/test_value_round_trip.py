"""Every value of every built-in type comes back as the very text that PostgreSQL printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.integration import types_document
from waly_cdc.archive.contents import load
from waly_cdc.archive.store import LocalStore
from waly_cdc.capture import sidecar
from waly_cdc.capture.initialise import initialise
from waly_cdc.capture.settings import CaptureSettings
from waly_cdc.decode.copytext import read_rows
from waly_cdc.history.jsonb import pg_text
from waly_cdc.history.session import session
from waly_cdc.history.state import state_query
from waly_cdc.history.texts import column_text
from waly_cdc.source import catalog
from waly_cdc.source.connect import connect
from waly_cdc.source.copy import copy_table

AWKWARD_TEXT = [
    "",
    " ",
    "NULL",
    "\\N",
    "\\",
    "tab\tnew\nline\r\b\f\v",
    "é 日本語 😀",
    "'\"",
    "x" * 9000,
]
NUMERICS = [
    "0",
    "-0.00",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e-20",
    "9" * 6000,
    "0." + "0" * 300 + "1",
    "-1" + "0" * 131_071 + "." + "1" * 16_383,
]
DATES = ["2026-11-23", "0001-01-01", "9999-12-31", "infinity", "-infinity", "0044-03-15 BC"]
DATES += ["4714-11-24 BC", "10000-01-01", "5874897-12-31", "1582-10-10", "1969-12-31"]
TIMESTAMPS = ["2026-11-23 14:02:11", "2026-11-23 14:02:11.1", "1969-12-31 23:59:59.999999"]
TIMESTAMPS += ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999", "10000-01-01 00:00:00"]
TIMESTAMPS += ["infinity", "-infinity", "0044-03-15 12:00:00 BC", "4714-11-24 00:00:00 BC"]
TIMESTAMPS += ["294276-12-31 23:59:59.999999", "1900-01-01 00:00:00.00001"]
FLOATS = ["0", "-0", "1.5", "0.1", "1e-4", "1e-5", "NaN", "Infinity", "-Infinity"]
OIDS = ["0", "1", "2147483648", "4294967295"]

BUILT_IN: dict[str, list[str]] = {
    "aclitem": ["=r/pg_monitor", "pg_monitor=arwdDxt/pg_monitor"],
    "bit": ["0", "1"],
    "bool": ["t", "f"],
    "box": ["(1,2),(3,4)", "(-1e300,0),(NaN,1e-300)"],
    "bpchar": ["", "  padded  ", "é"],
    "bytea": ["", "\\x00", "\\xdeadbeef00ff", "abc\\\\def"],
    "char": ["", "x", "\\377", "\\001"],
    "cid": ["0", "4294967295"],
    "cidr": ["10.0.0.0/8", "2001:db8::/32", "::ffff:1.2.3.4/128"],
    "circle": ["<(1,2),3>", "<(0,0),0>"],
    "date": DATES,
    "datemultirange": ["{[2026-01-01,2026-01-02)}"],
    "daterange": ["[-infinity,infinity]", "[2026-01-01,2026-01-02]"],
    "float4": [*FLOATS, "1e-45", "3.4028235e38", "1e6", "999999", "16777216", "1.1754944e-38"],
    "float8": [*FLOATS, "5e-324", "1e15", "1e14", "1e22", "9007199254740993", "-1e308"],
    "inet": ["127.0.0.1", "10.1.2.3/8", "::1", "fe80::1/64"],
    "int2": ["0", "-32768", "32767"],
    "int2vector": ["", "1 -2 3"],
    "int4": ["0", "-2147483648", "2147483647"],
    "int4multirange": ["{}", "{[1,2),[5,)}"],
    "int4range": ["[1,5)", "empty", "(,)", "[1,)"],
    "int8": ["0", "-9223372036854775808", "9223372036854775807"],
    "int8multirange": ["{[1,2)}"],
    "int8range": ["[-9223372036854775808,0)"],
    "interval": ["0", "1 year -2 mons +3 days -04:05:06.789", "-1 days", "178000000 years"],
    "json": ["{}", '{"a" : 1e400,  "a":"\\u0000"}', "null", '"é"', " [1 ,2] "],
    "jsonb": ["{}", '{"b": 1.50, "a": [null, true]}', "null", '"\\"\\\\"', "1" + "0" * 5000],
    "jsonpath": ["$", '$."a"[*] ? (@ > 1)'],
    "line": ["{1,2,3}", "{0,-1,0}"],
    "lseg": ["[(0,0),(1,1)]"],
    "macaddr": ["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"],
    "macaddr8": ["08:00:2b:ff:fe:01:02:03"],
    "money": ["0", "-92233720368547758.08", "1234567.89"],
    "name": ["", 'quo"te', "é" * 31],
    "numeric": NUMERICS,
    "nummultirange": ["{[1.50,2)}"],
    "numrange": ["[-1e100,NaN)", "(,Infinity]"],
    "oid": OIDS,
    "oidvector": ["", "1 4294967295"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1),(2,0))"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["10:20:10,14,15"],
    "point": ["(0,-0)", "(NaN,Infinity)", "(1e-300,0.1)"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "refcursor": ["", "cursor"],
    "regclass": ["pg_class", "public.other", "-", "4294967295"],
    "regcollation": ['"C"', "-"],
    "regconfig": ["simple", "english"],
    "regdictionary": ["simple"],
    "regnamespace": ["public", "pg_catalog", "-"],
    "regoper": ["pg_catalog.||/", "0"],
    "regoperator": ["+(int4,int4)", "0"],
    "regproc": ["now", "-"],
    "regprocedure": ["lower(text)", "public.own(public.mood)", "-"],
    "regrole": ["pg_monitor", "-"],
    "regtype": ["int4", "public.mood", "numeric[]", "-"],
    "text": AWKWARD_TEXT,
    "tid": ["(0,0)", "(4294967295,65535)"],
    "time": ["00:00:00", "24:00:00", "23:59:59.999999", "12:00:00.1"],
    "timestamp": TIMESTAMPS,
    "timestamptz": [
        text if "infinity" in text else text.removesuffix(" BC") + "+00" + " BC" * ("BC" in text)
        for text in TIMESTAMPS
    ],
    "timetz": ["00:00:00+00", "24:00:00-15:59", "23:59:59.999999+15:59:59"],
    "tsmultirange": ["{[2026-01-01,2026-01-02)}"],
    "tsquery": ["'a' & !'b':*", "'it''s'"],
    "tsrange": ['["0044-03-15 00:00:00 BC",infinity)'],
    "tstzmultirange": ["{[2026-01-01,2026-01-02)}"],
    "tstzrange": ['["2026-11-23 00:00:00+02",)'],
    "tsvector": ["", "'a':1A,2B 'it''s'"],
    "txid_snapshot": ["10:20:10,14,15"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "varbit": ["", "0101", "1" * 99],
    "varchar": AWKWARD_TEXT,
    "xid": OIDS,
    "xid8": ["0", "18446744073709551615"],
    "xml": ["<a>é</a>", "text & more".replace("&", "&amp;"), "<?xml version='1.0'?><a/>"],
}
"""Literals for each type of pg_catalog that is neither an array nor refuses all input."""

REFUSE_INPUT = {
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
}
"""Types of the system's own columns, for which nobody can write a value."""

OTHERS: dict[str, list[str]] = {
    "numeric(5,2)": ["0", "-0.01", "999.99", "NaN"],
    "numeric(38,0)": ["9" * 38, "-" + "9" * 38, "0"],
    "numeric(38,37)": ["9." + "9" * 37, "-0." + "0" * 36 + "1", "0"],
    "numeric(39,1)": ["9" * 38 + ".9", "0"],
    "numeric(1000,500)": ["1e499", "1e-500"],
    "bit(3)": ["101"],
    "bpchar(5)": ["", "ab", "é"],
    "timestamp(0)": ["2026-11-23 14:02:11.6", "infinity"],
    "timestamptz(3)": ["2026-11-23 14:02:11.1236+05:30"],
    "interval day to second(1)": ["3 days 04:05:06.78"],
    "public.mood": ["sad", 'it\'s; "ok"'],
    "public.positive": ["1", "2147483647"],
    "public.pair": ["(1,)", '(,"a ""b"", \\\\")', "(,)"],
    "public.mood[]": ["{sad}", "{}"],
    "public.pair[]": ['{"(1,\\"a,b\\")",NULL}'],
    "public.spans": ["[a,b)", "empty"],
    "int4[]": ["{}", "{1,NULL,-2}", "[0:1]={1,2}", "{{1,2},{3,4}}"],
    "text[]": ['{"",NULL,"NULL","a,b","\\"","\\\\",é}', "{}"],
    "float8[]": ["{NaN,-0,Infinity,1e300}"],
    "public.odd": ["1", "2147483647"],
    "public.moods": ["{sad,NULL}", "{}"],
    "public.both": ['(1,"{""(1,\\\\""a,b\\\\"")"",NULL}","[1,5)",sad)', "(,,,)"],
    "public.nested": ['("(1,,empty,)",t)', "(,)"],
    "public.a_pair": ["(7,seven)", "(1,)"],
    'public."Odd ""type"".ü"': ["a"],
    "public.both[]": ['{"(2,,,)"}'],
    "public.spans_of": ["{[a,b),[c,d)}", "{}"],
}

EXTENSIONS: dict[str, dict[str, list[str]]] = {
    "citext": {"public.citext": ["", "Case", "cASE", "É"], "public.citext[]": ["{Case,NULL}"]},
    "hstore": {
        "public.hstore": ["", 'a=>1, b=>NULL, "c d"=>"\\"\\\\"', '""=>""'],
        "public.hstore[]": ['{"\\"a\\"=>\\"1\\""}'],
    },
    "ltree": {
        "public.ltree": ["", "Top.Science", "a.b.c"],
        "public.lquery": ["*.a@*.!b", "a.*{1,2}"],
        "public.ltxtquery": ["a & !b"],
        "public.ltree[]": ["{a.b,NULL}"],
    },
    "cube": {"public.cube": ["(1,2),(3,4)", "()"]},
    "isn": {"public.isbn": ["978-0-11-000533-1"], "public.issn": ["1436-4522"]},
    "seg": {"public.seg": ["1.50", "1.0 .. 2.00", "~5"]},
    "intarray": {"public.query_int": ["1&(2|!3)"]},
}
"""Literals for types of extensions, by extension."""

DEFINITIONS = """
CREATE TYPE public.mood AS ENUM ('sad', 'it''s; "ok"');
CREATE DOMAIN public.positive AS int CHECK (VALUE > 0);
CREATE TYPE public.pair AS (a int, "B b" text);
CREATE TYPE public.spans AS RANGE (subtype = text, multirange_type_name = public.spans_of);
CREATE DOMAIN public.odd AS public.positive CHECK (VALUE % 2 = 1);
CREATE DOMAIN public.moods AS public.mood[];
CREATE TYPE public.both AS (a public.positive, b public.pair[], c int4range, d public.mood);
CREATE TYPE public.nested AS (a public.both, b bool);
CREATE DOMAIN public.a_pair AS public.pair CHECK ((VALUE).a > 0);
CREATE TYPE public."Odd ""type"".ü" AS ENUM ('a');
CREATE FUNCTION public.own(public.mood) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW public.other AS SELECT 1;
"""

OWN = {
    "public.mood": "an enum",
    "public.positive": "a domain",
    "public.odd": "a domain over a domain",
    "public.moods": "a domain over an array",
    "public.a_pair": "a domain over a composite",
    "public.pair": "a composite",
    "public.both": "a composite with a domain, an array of composites, a range and an enum",
    "public.nested": "a composite in a composite",
    "public.spans": "a range",
    "public.spans_of": "a multirange",
    'public."Odd ""type"".ü"': "an enum with an odd name",
}
"""What the types of `DEFINITIONS` are."""

Texts = tuple[str | None, ...]
"""A row, as texts."""

COLUMNS = 25
"""Columns of a table, besides its id."""


class EveryTable:
    """A table `public.<name>` with a column of each type, and rows that hold all the literals."""

    def __init__(
        self,
        connection: psycopg.Connection,
        values: dict[str, list[str]],
        *,
        name: str = "every",
        identity: str = "key",
    ) -> None:
        self._connection = connection
        self.values = values
        self.name = f"public.{name}"
        key = " PRIMARY KEY" if identity == "key" else ""
        columns = "".join(f", c{number} {type_}" for number, type_ in enumerate(values))
        connection.execute(f"CREATE TABLE {self.name} (id int{key}{columns})")
        if identity == "full":
            connection.execute(f"ALTER TABLE {self.name} REPLICA IDENTITY FULL")

    def insert(self, first: int) -> int:
        """Rows from id `first` on, so that every literal is in one. Returns the next id."""
        count = max(map(len, self.values.values())) + 1
        for number in range(count):
            row = [
                sql.Literal(literals[number] if number < len(literals) else None)
                for literals in self.values.values()
            ]
            self._connection.execute(
                sql.SQL("INSERT INTO {} VALUES ({})").format(
                    sql.SQL(self.name), sql.SQL(", ").join([sql.Literal(first + number), *row])
                )
            )
        return first + count

    def printed(self) -> list[Texts]:
        """The rows as PostgreSQL prints them: every value's text, by its output function."""
        result = self._connection.pgconn.exec_(f"SELECT * FROM {self.name} ORDER BY id".encode())
        return [
            tuple(
                None if (value := result.get_value(row, column)) is None else value.decode()
                for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]

    def archived(self, archive: Path) -> list[Texts]:
        """The rows at the archive's horizon."""
        store = LocalStore(archive)
        contents = load(store)
        relation = contents.find_relation(self.name)
        state = state_query(contents, store, relation, contents.horizon)
        texts = ", ".join(column_text(column) for column in relation.columns)
        with session() as connection:
            rows = connection.execute(f"SELECT {texts} FROM ({state}) ORDER BY id").fetchall()
        return [
            tuple(pg_text(column, text) for column, text in zip(relation.columns, row, strict=True))
            for row in rows
        ]

    def assert_same(self, found: list[Texts]) -> None:
        """The rows found are those that PostgreSQL prints."""
        expected = self.printed()
        assert len(found) == len(expected)
        differing = [
            (name, was, now)
            for before, after in zip(expected, found, strict=True)
            for name, was, now in zip(["id", *self.values], before, after, strict=True)
            if was != now
        ]
        assert differing == []


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with connect(database) as connection:
        connection.execute(DEFINITIONS)
        for extension in _extensions(connection):
            connection.execute(f"CREATE EXTENSION {extension} SCHEMA public")
        yield connection


def _extensions(connection: psycopg.Connection) -> list[str]:
    """Those of our extensions that the server has."""
    rows = connection.execute("SELECT name FROM pg_available_extensions").fetchall()
    return sorted(EXTENSIONS.keys() & {name for (name,) in rows})


def _types(connection: psycopg.Connection) -> dict[str, list[str]]:
    """Literals by type: those above, and an array of each built-in type that has one."""
    found = connection.execute(
        "SELECT t.typname::text, t.typarray <> 0 FROM pg_type t"
        " WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'r', 'm')"
        " AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid) ORDER BY 1"
    ).fetchall()
    values = dict(OTHERS)
    for extension in _extensions(connection):
        values |= EXTENSIONS[extension]
    for name, has_array in found:
        if name in REFUSE_INPUT:
            continue
        quoted = f'"{name}"'
        values[quoted] = BUILT_IN[name]
        if has_array:
            literals = sql.SQL(", ").join([*map(sql.Literal, BUILT_IN[name]), sql.SQL("NULL")])
            array = sql.SQL("SELECT ARRAY[{}]::{}::text").format(literals, sql.SQL(quoted + "[]"))
            row = connection.execute(array).fetchone()
            assert row is not None
            values[quoted + "[]"] = [row[0], "{}"]
    if connection.info.server_version >= 150000:
        values |= {"numeric(3,5)": ["0.00999"], "numeric(3,-2)": ["12300", "NaN"]}
    if connection.info.server_version >= 170000:
        values['"interval"'] = [*values['"interval"'], "infinity", "-infinity"]
    return values


def _kind(type_name: str) -> tuple[str, str | None]:
    """The section of `docs/types.md` that a type stands in, and what it is called there if not by
    its name."""
    if type_name in OWN:
        return types_document.OWN, OWN[type_name]
    for extension, values in EXTENSIONS.items():
        if type_name in values:
            return types_document.EXTENSIONS, f"{type_name.removeprefix('public.')} ({extension})"
    built_in = type_name.startswith('"')
    return (types_document.BUILT_IN if built_in else types_document.LIMITED), None


def _keep(
    database: str, connection: psycopg.Connection, archive: Path, type_name: str, literal: str
) -> tuple[str | None, str | None]:
    """One value's text: as archived, and as PostgreSQL prints it."""
    table = EveryTable(connection, {type_name: [literal]})
    table.insert(1)
    initialise(CaptureSettings(dsn=database, archive=archive, sample_interval=0))
    return table.archived(archive)[0][1], table.printed()[0][1]


def _tables(connection: psycopg.Connection, identity: str) -> list[EveryTable]:
    values = list(_types(connection).items())
    return [
        EveryTable(
            connection,
            dict(values[first : first + COLUMNS]),
            name=f"every_{first}",
            identity=identity,
        )
        for first in range(0, len(values), COLUMNS)
    ]


def test_every_built_in_type_has_values(connection: psycopg.Connection) -> None:
    assert set(BUILT_IN) >= {
        name.strip('"') for name in _types(connection) if name.startswith('"') and "[" not in name
    }


@pytest.mark.parametrize("identity", ["key", "full"])
def test_the_state_is_the_text_that_postgresql_prints(
    database: str, connection: psycopg.Connection, work_dir: Path, identity: str
) -> None:
    tables = _tables(connection, identity)
    copied = [table.insert(0) for table in tables]
    settings = CaptureSettings(dsn=database, archive=work_dir / "archive", sample_interval=0)
    initialise(settings)
    for table in tables:
        table.assert_same(table.archived(settings.archive))

    for table, first in zip(tables, copied, strict=True):
        following = table.insert(first)
        connection.execute(f"UPDATE {table.name} SET c0 = NULL WHERE id < {first // 2}")
        connection.execute(f"UPDATE {table.name} SET id = -id WHERE id > {following // 2}")
        connection.execute(f"DELETE FROM {table.name} WHERE id IN (1, {1 - following})")
    sidecar.run(settings, once=True)
    for table in tables:
        table.assert_same(table.archived(settings.archive))

    store = LocalStore(settings.archive)
    columns = {table.name: list(table.values) for table in tables}
    lines = types_document.describe(load(store), store, columns, _kind)
    types_document.check(lines, whole=connection.info.server_version // 10_000 == 17)


@pytest.mark.parametrize("identity", ["key", "full"])
def test_a_value_that_was_not_sent_is_its_earlier_text(
    database: str, connection: psycopg.Connection, work_dir: Path, identity: str
) -> None:
    texts = [f"é{number}" * 2000 for number in range(9)]
    values = {
        "text": texts,
        "bytea": ["\\x" + text.encode().hex() for text in texts],
        "numeric": ["9" * 9000 + f".{number:05}" for number in range(9)],
        "jsonb": [f'{{"a": "{text}"}}' for text in texts],
        "public.pair": [f"(1,{text})" for text in texts],
        "int[]": ["{" + ",".join(map(str, range(900 + number))) + "}" for number in range(9)],
        "numeric(30,5)": ["1.5"] * 9,
    }
    table = EveryTable(connection, values, identity=identity)
    for number in range(6):
        connection.execute(f"ALTER TABLE {table.name} ALTER c{number} SET STORAGE EXTERNAL")
    copied = table.insert(0)
    settings = CaptureSettings(dsn=database, archive=work_dir / "archive", sample_interval=0)
    initialise(settings)
    following = table.insert(copied)
    connection.execute(f"UPDATE {table.name} SET c6 = 2.5")
    connection.execute(f"UPDATE {table.name} SET id = -id WHERE id < {following - 3}")
    connection.execute(f"UPDATE {table.name} SET c0 = NULL, c6 = NULL WHERE id % 3 = 0")
    sidecar.run(settings, once=True)
    table.assert_same(table.archived(settings.archive))


def test_a_value_that_was_not_sent_in_a_wide_table(
    database: str, connection: psycopg.Connection, work_dir: Path
) -> None:
    table = EveryTable(connection, {f"varchar({number})": ["x"] for number in range(9, 109)})
    connection.execute(f"ALTER TABLE {table.name} ADD big text")
    connection.execute(f"ALTER TABLE {table.name} ALTER big SET STORAGE EXTERNAL")
    table.insert(0)
    connection.execute(f"UPDATE {table.name} SET big = repeat('x', 9000)")
    settings = CaptureSettings(dsn=database, archive=work_dir / "archive", sample_interval=0)
    initialise(settings)
    connection.execute(f"UPDATE {table.name} SET c0 = 'y'")
    sidecar.run(settings, once=True)
    assert table.archived(settings.archive) == table.printed()


def test_copy_gives_the_text_that_postgresql_prints(connection: psycopg.Connection) -> None:
    for every in _tables(connection, "key"):
        every.insert(0)
        (table,) = catalog.tables(connection, [every.name])
        rows = [
            row
            for block in copy_table(connection, table)
            for row in zip(
                *(column.to_pylist() for column in read_rows(block, len(table.columns))[1]),
                strict=True,
            )
        ]
        every.assert_same(sorted(rows, key=lambda row: int(row[0])))


@pytest.mark.parametrize("literal", ["0.5", "-0.5", "0"])
def test_a_numeric_of_digits_after_the_point_only_keeps_its_zero(
    database: str, connection: psycopg.Connection, work_dir: Path, literal: str
) -> None:
    archive = work_dir / "archive"
    archived, printed = _keep(database, connection, archive, "numeric(3,3)", literal)
    assert archived == printed


@pytest.mark.parametrize("power", [81, 91, 807])
def test_a_power_of_two_stays_the_same_number(
    database: str, connection: psycopg.Connection, work_dir: Path, power: int
) -> None:
    archive = work_dir / "archive"
    archived, _ = _keep(database, connection, archive, "float8", repr(2.0**power))
    assert archived is not None
    assert float(archived) == 2.0**power


@pytest.mark.parametrize("literal", ["1e23", "3.0925352787701443e18"])
def test_digits_halfway_between_two_numbers_are_not_enough(
    database: str, connection: psycopg.Connection, work_dir: Path, literal: str
) -> None:
    archive = work_dir / "archive"
    archived, printed = _keep(database, connection, archive, "float8", literal)
    assert archived == printed
