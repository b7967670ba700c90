"""Random types, and random values of them as SQL literals."""

from __future__ import annotations

import random
from collections.abc import Callable

Literals = Callable[[random.Random], str]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _of(*texts: str) -> Literals:
    return lambda dice: quoted(dice.choice(texts))


def _integer(bits: int) -> Literals:
    limit = 2 ** (bits - 1)
    return lambda dice: quoted(
        str(dice.choice((dice.randrange(30), dice.randrange(-limit, limit))))
    )


def _text(dice: random.Random) -> str:
    kind = dice.random()
    if kind < 0.15:
        # Long, and not to be compressed: it lies out of line.
        return quoted("".join(dice.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=4000)))
    if kind < 0.2:
        return quoted("x" * dice.randrange(3000, 30000))
    return quoted(
        dice.choice(
            ("", " ", "null", "\\N", "\\.", "a\tb\nc\\d", "äöü", '"', "it's", "(,)", *"pqrstuvw日")
        )
    )


def _bytes(dice: random.Random) -> str:
    return quoted("\\x" + dice.randbytes(dice.choice((0, 1, 3, 5000))).hex())


LITERALS: dict[str, Literals] = {
    "smallint": _integer(16),
    "integer": _integer(32),
    "bigint": _integer(64),
    "oid": lambda dice: quoted(str(dice.randrange(2**32))),
    "numeric": _of("0", "1.50", "-3", "NaN", "Infinity", "1e400", "0.000000000000000000000000001"),
    "numeric(10,2)": _of("0", "1.50", "-3.1", "NaN", "12345678.99"),
    "numeric(38,5)": _of("0", "-0.00001", "123456789012345678901234567890123.12345"),
    "real": _of("0", "-0", "1.5", "NaN", "-Infinity", "3.4e38", "1e-45", "0.1", "1234567"),
    "double precision": _of("0", "-0", "0.1", "NaN", "Infinity", "1e-310", "1e15", "123456789.125"),
    "boolean": _of("t", "f"),
    "text": _text,
    "character varying(40)": _of("", "a", "Ä", "forty", "b "),
    "character(5)": _of("", "a", "abc", "Ä"),
    "bytea": _bytes,
    "date": _of("2026-11-23", "0044-03-15 BC", "infinity", "9999-12-31", "12000-01-01"),
    "time without time zone": _of("00:00", "23:59:59.999999", "24:00"),
    "time with time zone": _of("00:00+02", "12:30:00.5-11:30"),
    "timestamp without time zone": _of("2026-11-23 14:02:11.123456", "infinity", "0001-01-01 BC"),
    "timestamp with time zone": _of("2026-11-23 14:02:11.5+01", "-infinity", "294000-01-01+00"),
    "interval": _of("1 day", "-1 mon 3:04:05.6", "0", "178000000 years"),
    "uuid": lambda dice: quoted(f"{dice.getrandbits(128):032x}"),
    "json": _of("null", '{"a": [1.0, 1e400]}', '"é"', "{ }"),
    "jsonb": _of("null", '{"a": [1.00, 2], "b": null}', '"x"'),
    "money": _of("1.5", "-92233720368547758.08"),
    "inet": _of("10.0.0.1", "10.0.0.0/8", "::1"),
    "cidr": _of("10.0.0.0/8", "::/0"),
    "macaddr": _of("08:00:2b:01:02:03"),
    "bit(4)": _of("0101", "1111"),
    "bit varying(9)": _of("", "101"),
    "point": _of("(1,2)", "(0.1,-1e300)"),
    "int4range": _of("empty", "[1,5)", "(,)"),
    "int4multirange": _of("{}", "{[1,2),[5,9)}"),
    "tsvector": _of("a fat cat", ""),
    "integer[]": _of("{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={1,2}"),
    "text[]": _of("{}", '{"a,b",NULL,"NULL",""}'),
    "mood": _of("sad", "ok", "happy"),
    "posint": _of("1", "77"),
    "address": _of("(,)", '("a street",5)'),
    "mood[]": _of("{sad,ok}", "{}"),
}
"""By type as `format_type` names it under an empty search path, but for our own, in `public`."""

KEYS: dict[str, Literals] = {
    "integer": lambda dice: quoted(str(dice.randrange(25))),
    "bigint": lambda dice: quoted(
        str(dice.choice((dice.randrange(20), 2**62 + dice.randrange(5))))
    ),
    "text": lambda dice: quoted(dice.choice("abcdefghijklmnop") + dice.choice(("", " ", "Ä", "'"))),
    "uuid": lambda dice: quoted(f"{dice.randrange(20):032x}"),
    "numeric(10,2)": lambda dice: quoted(f"{dice.randrange(20)}.5"),
    "timestamp with time zone": _of(
        "2026-11-23 14:02:11+01", "infinity", "-infinity", "0044-03-15 BC"
    ),
    "double precision": _of("0", "1", "NaN", "Infinity", "0.1"),
    "numeric": _of("0", "1", "1.5", "NaN"),
    "date": _of("2026-11-23", "infinity", "0044-03-15 BC", "2026-01-01"),
    "character varying(40)": _of("", "a", "b", "c", "d"),
    "boolean": _of("t", "f"),
    "mood": LITERALS["mood"],
    "smallint": lambda dice: quoted(str(dice.randrange(12))),
}
"""Types that keys are made of, with few different values: keys are to meet again."""

OWN_TYPES = """
create type public.mood as enum ('sad', 'ok', 'happy');
create domain public.posint as integer check (value > 0);
create type public.address as (street text, number int);
"""


def plain(type_name: str) -> str:
    """A type as `LITERALS` has it, from what `format_type` says."""
    return type_name.removeprefix("public.")


def qualified(type_name: str) -> str:
    """A type as a statement names it."""
    own = type_name.partition("[")[0] in ("mood", "posint", "address")
    return "public." + type_name if own else type_name


def literal(type_name: str, dice: random.Random, *, key: bool, null: bool = True) -> str:
    """A value; NULL now and then, if it may be."""
    if null and dice.random() < 0.12:
        return "null"
    name = plain(type_name)
    literals = (KEYS.get(name) if key else None) or LITERALS.get(name)
    # A type that a change of type has made: what every type can be cast from.
    return literals(dice) if literals else "null" if null else quoted("1")
