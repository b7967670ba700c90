"""The setting `synchronous_standby_names`: our connection's name in it, and out of it again.

While our name is in it, every commit of the cluster waits until we acknowledge it. Its grammar:
PostgreSQL documentation, section 20.6.2. What is there already, for standbys, keeps its meaning:
`FIRST n (a, b)` becomes `FIRST n+1 (ours, a, b)`, which waits for us and for what it waited for
before. With `ANY` there is no such value, and it is refused.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

import psycopg

from waly_cdc.errors import SourceError
from waly_cdc.source.connect import source_errors

SETTING = "synchronous_standby_names"
PREFIX = "waly-witness-"
_NAME_BYTES = 63
_TAKES_EFFECT_SECONDS = 5.0

_WHOLE = re.compile(r"(?:(?:(first|any)\s+)?(\d+)\s*\((.*)\)|(.*))", re.IGNORECASE | re.DOTALL)
_NAME = re.compile(r'\s*("(?:[^"]|"")*"|[^\s,"]+)\s*(?:,|$)')

RELOAD = "SELECT pg_reload_conf()"


@dataclass(frozen=True, slots=True)
class Standbys:
    """A value of the setting: how many of the `names` (as written there) a commit waits for."""

    names: tuple[str, ...]
    number: int = 1
    any: bool = False

    @classmethod
    def parse(cls, setting: str) -> Standbys:
        """Raises SourceError for a text that is no value of the setting."""
        match = _WHOLE.fullmatch(setting.strip())
        assert match is not None
        listed = match[3] if match[2] else match[4]
        names, at = [], 0
        while at < len(listed):
            name = _NAME.match(listed, at)
            if name is None:
                raise SourceError(f"{SETTING} cannot be read: {setting}")
            names.append(name[1])
            at = name.end()
        return cls(tuple(names), int(match[2] or 1), (match[1] or "").lower() == "any")

    def has(self, name: str) -> bool:
        return any(_plain(each) == name.lower() for each in self.names)

    def joined_by(self, name: str) -> Standbys:
        """The value by which commits wait for `name` too. Raises SourceError."""
        if self.has(name):
            return self
        others = [each for each in self.names if _plain(each).startswith(PREFIX)]
        if others:
            raise SourceError(
                f"{others[0]} is in {SETTING} already: the sidecar of another database",
                hint="one database of a cluster can have a witness at a time",
            )
        if self.any:
            raise SourceError(
                f"{SETTING} is {self}, and no value of it waits for us and for these",
                hint="FIRST n (…) instead of ANY n (…) would do; or run without --witness",
            )
        number = self.number + 1 if self.names else 1
        return Standbys((_quote(name), *self.names), number)

    def without(self, name: str) -> Standbys:
        """The value as it was before `name` joined."""
        if not self.has(name):
            return self
        left = tuple(each for each in self.names if _plain(each) != name.lower())
        return replace(self, names=left, number=max(self.number - 1, 1))

    def __str__(self) -> str:
        if not self.names:
            return ""
        listed = ", ".join(self.names)
        if self.number == 1 and not self.any:
            return listed
        return f"{'ANY' if self.any else 'FIRST'} {self.number} ({listed})"

    def statement(self) -> str:
        """The statement that gives the setting this value, at the next reload."""
        if not self.names:
            return f"ALTER SYSTEM RESET {SETTING}"
        literal = "'" + str(self).replace("'", "''") + "'"
        return f"ALTER SYSTEM SET {SETTING} = {literal}"


def connection_name(slot: str) -> str:
    """The name of the connection that reads a slot and answers commits."""
    return (PREFIX + slot)[:_NAME_BYTES]


def now(connection: psycopg.Connection) -> Standbys:
    """The setting as this connection sees it. Raises SourceError."""
    with source_errors():
        row = connection.execute(f"SHOW {SETTING}".encode()).fetchone()
    assert row is not None
    return Standbys.parse(row[0])


def missing_rights(connection: psycopg.Connection) -> list[str]:
    """The statements that give this role the rights to change the setting and to see the sessions
    of others; none if it has them. Raises SourceError."""
    alter = (
        f"has_parameter_privilege('{SETTING}', 'ALTER SYSTEM')"
        if connection.info.server_version >= 150000
        else "rolsuper"
    )
    with source_errors():
        row = connection.execute(
            f"SELECT {alter}, has_function_privilege('pg_reload_conf()', 'EXECUTE'),"
            " pg_has_role('pg_read_all_stats', 'USAGE'), quote_ident(rolname)"
            " FROM pg_roles WHERE rolname = current_user".encode()
        ).fetchone()
    assert row is not None
    may_alter, may_reload, may_see, role = row
    statements = []
    if not may_alter and connection.info.server_version >= 150000:
        statements.append(f"GRANT ALTER SYSTEM ON PARAMETER {SETTING} TO {role}")
    elif not may_alter:
        statements.append(f"ALTER ROLE {role} SUPERUSER")
    if not may_reload:
        statements.append(f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO {role}")
    if not may_see:
        statements.append(f"GRANT pg_read_all_stats TO {role}")
    return statements


def apply(connection: psycopg.Connection, value: Standbys) -> None:
    """Give the setting a value, and wait until it holds. Raises SourceError.

    A commit does not wait for the change: no transaction is written.
    """
    with source_errors():
        connection.execute(value.statement().encode())
        connection.execute(RELOAD.encode())
    deadline = time.monotonic() + _TAKES_EFFECT_SECONDS
    while str(now(connection)) != str(value):
        if time.monotonic() > deadline:
            raise SourceError(
                f"{SETTING} does not become {str(value)!r}",
                hint="is it set on the server's command line? See pg_settings.source",
            )
        time.sleep(0.02)


def take_out(connection: psycopg.Connection, name: str) -> bool:
    """Take a name out of the setting; whether it was in it. Raises SourceError."""
    value = now(connection)
    if not value.has(name):
        return False
    apply(connection, value.without(name))
    return True


def _plain(name: str) -> str:
    """A name as it is compared: the server folds all of them to lower case."""
    if name.startswith('"'):
        name = name[1:-1].replace('""', '"')
    return name.lower()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
