"""Several sessions at once on one database, driven by one thread from one seed.

A session that would wait for another's lock gives up: an error, as applications have them too.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.fuzz import alterations as alter
from tests.fuzz import statements as make
from tests.fuzz.values import OWN_TYPES
from waly_cdc.relations import quote_identifier as q

SESSIONS = 4
PHASE = 120
"""Steps in which shapes change, or do not."""

_BOUNDARIES = ("begin", "commit", "rollback", "prepare", "savepoint")
PREPARED_FOR = 60
"""Steps after which a prepared transaction is ended."""


@dataclass
class Session:
    """A connection, and how many statements its open transaction is yet to have."""

    number: int
    connection: psycopg.Connection
    left: int = 0
    savepoints: int = 0


@dataclass
class Workload:
    """What is done to a database; every statement is written to `log` with what came of it."""

    dsn: str
    seed: int
    log: Path
    alters: bool = True
    """Whether there are changes of shape at all."""
    refused: list[str] = field(default_factory=list)
    """Statements that failed because their table is published."""
    changes: int = 0
    """Statements that changed shapes and were carried out."""
    steps: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self._written = self.log.open("w", buffering=1)
        self._begun = time.monotonic()
        self._altering = True
        self._prepared: list[tuple[int, str]] = []
        self._schemas = list(alter.SCHEMAS)
        self._sessions = [Session(n, self._connect()) for n in range(SESSIONS)]

    def _connect(self) -> psycopg.Connection:
        connection = psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None)
        connection.execute("set lock_timeout = '60ms'")
        connection.execute("set search_path = ''")
        return connection

    def build(self, tables: int) -> None:
        """The schema that the workload begins with, and its first rows."""
        session = self._sessions[0]
        for schema in self._schemas:
            self._run(session, f"create schema if not exists {q(schema)}")
        for statement in OWN_TYPES.strip().split(";"):
            if statement:
                self._run(session, statement.strip())
        for _ in range(tables):
            for statement in alter.create(self.dice, self._tables(session), self._schemas):
                self._run(session, statement)
        for _ in range(tables * 6):
            self._change_rows(session)

    def step(self) -> None:
        """One thing that one session does."""
        self.steps += 1
        if self.steps % PHASE == 0:
            self._altering = self.dice.random() < 0.4
        while self._prepared and self._prepared[0][0] < self.steps:
            self._end_prepared(self._prepared.pop(0)[1])
        session = self.dice.choice(self._sessions)
        chance = self.dice.random()
        if session.left == 0:
            if chance < 0.45:
                session.left = self.dice.choice((1, 2, 4, 9))
                isolation = self.dice.choice(("", "", " isolation level repeatable read"))
                if not self._run(session, "begin" + isolation):
                    session.left = 0
            elif chance < 0.05 + 0.45 and self._altering and self.alters:
                self._maintain(session)
            else:
                self._do(session)
            return
        session.left -= 1
        if session.left == 0:
            self._end(session)
        elif chance < 0.12:
            session.savepoints += 1
            self._run(session, f"savepoint s{session.savepoints}")
        elif chance < 0.2 and session.savepoints:
            self._run(session, f"rollback to s{self.dice.randint(1, session.savepoints)}")
        else:
            self._do(session)

    def finish(self) -> None:
        """End what is open."""
        for session in self._sessions:
            if session.left:
                session.left = 0
                self._end(session, prepare=False)
        for _, name in self._prepared:
            self._end_prepared(name)
        self._prepared.clear()

    def close(self) -> None:
        for session in self._sessions:
            session.connection.close()
        self._written.close()

    # What is done

    def _do(self, session: Session) -> None:
        if self._altering and self.alters and self.dice.random() < 0.07:
            self._change_schema(session)
        else:
            self._change_rows(session)

    def _change_rows(self, session: Session) -> None:
        tables = [t for t in self._tables(session) if t.columns]
        if not tables:
            return
        table = self.dice.choice(tables)
        chance = self.dice.random()
        if chance < 0.42:
            self._run(session, make.insert(self.dice, table))
        elif chance < 0.75:
            self._run(session, make.update(self.dice, table))
        elif chance < 0.88:
            self._run(session, make.delete(self.dice, table))
        elif chance < 0.93:
            self._run(session, make.merge(self.dice, table))
        elif chance < 0.97:
            self._copy(session, table)
        else:
            self._run(session, make.truncate(self.dice, tables))

    def _copy(self, session: Session, table: make.Table) -> None:
        """COPY FROM of some rows that the table or a query gives."""
        columns = table.writable
        if not columns:
            return
        count = self.dice.choice((1, 5, 40))
        rows = [[column.value(self.dice) for column in columns] for _ in range(count)]
        text = "".join("\t".join(map(_copied, row)) + "\n" for row in rows)
        names = ", ".join(c.sql for c in columns)
        self._run(session, f"copy {table.sql} ({names}) from stdin", text)

    def _change_schema(self, session: Session) -> None:
        tables = self._tables(session)
        chance = self.dice.random()
        again = alter.create(self.dice, tables, self._schemas)
        if not tables or (chance < 0.12 and len(tables) < 14):
            wanted = again
        elif chance < 0.18:
            wanted = [f"drop table {self.dice.choice(tables).sql} cascade"]
        elif chance < 0.24:
            table = self.dice.choice(tables)
            wanted = [f"drop table {table.sql} cascade", *again]
            if self.dice.random() < 0.6:
                wanted[1:] = [
                    f"create table {table.sql} (a int primary key, b text)",
                    f"insert into {table.sql} values (1, 'again'), (2, 'again')",
                ]
        elif chance < 0.26:
            old, new = self.dice.choice(self._schemas[1:]), f"renamed {self.dice.randrange(5)}"
            if self._run(session, f"alter schema {q(old)} rename to {q(new)}"):
                # Rolled back, it has its old name again: then statements of it fail for a while.
                self._schemas[self._schemas.index(old)] = new
            return
        elif chance < 0.29:
            wanted = [alter.change_type(self.dice)]
        else:
            wanted = alter.change_shape(self.dice, self.dice.choice(tables), self._schemas)
        for statement in wanted:
            if not self._run(session, statement):
                break
            self.changes += 1

    def _maintain(self, session: Session) -> None:
        tables = self._tables(session)
        if tables:
            self._run(session, alter.maintain(self.dice, self.dice.choice(tables)))

    def _end(self, session: Session, *, prepare: bool = True) -> None:
        session.savepoints = 0
        chance = self.dice.random()
        if chance < 0.12:
            self._run(session, "rollback")
        elif chance < 0.18 and prepare and len(self._prepared) < 3:
            name = f"fuzz{self.seed} {self.steps}"
            if self._run(session, f"prepare transaction '{name}'"):
                self._prepared.append((self.steps + PREPARED_FOR, name))
        else:
            self._run(session, "commit")

    def _end_prepared(self, name: str) -> None:
        end = self.dice.choice(("commit", "commit", "rollback"))
        free = next((s for s in self._sessions if s.left == 0), None)
        session = free or Session(SESSIONS, self._connect())
        self._run(session, f"{end} prepared '{name}'")
        if free is None:
            session.connection.close()

    # Running it

    def _tables(self, session: Session) -> list[make.Table]:
        return make.tables_of(session.connection.execute(make.LOOK).fetchall())

    def _run(self, session: Session, statement: str, copied: str | None = None) -> bool:
        """Run a statement; False if it failed. In a transaction a failed one is undone alone, or
        ends the transaction."""
        inside = session.left > 0 and statement.split()[0] not in _BOUNDARIES
        undo = inside and self.dice.random() < 0.8
        connection = session.connection
        try:
            if undo:
                connection.execute("savepoint one")
            self._note(session, statement + ("" if copied is None else f"\n{copied}\\."))
            if copied is None:
                connection.execute(statement.encode())
            else:
                with connection.cursor().copy(statement.encode()) as copy:
                    copy.write(copied)
            if undo:
                connection.execute("release savepoint one")
        except psycopg.Error as error:
            self._note(session, f"-- {type(error).__name__}: {str(error).splitlines()[0]}")
            if "replica identity" in str(error) and not statement.startswith("alter"):
                self.refused.append(f"{statement}\n  {error}")
            if undo:
                connection.execute("rollback to savepoint one")
            elif session.left > 0:
                session.left = session.savepoints = 0
                connection.execute("rollback")
                self._note(session, "rollback")
            return False
        return True

    def _note(self, session: Session, text: str) -> None:
        self._written.write(f"{time.monotonic() - self._begun:8.3f} s{session.number}: {text}\n")


def _copied(literal: str) -> str:
    """A literal as COPY's text format has it."""
    if literal == "null":
        return "\\N"
    text = literal[1:-1].replace("''", "'").replace("\\", "\\\\")
    return text.replace("\t", "\\t").replace("\n", "\\n")
