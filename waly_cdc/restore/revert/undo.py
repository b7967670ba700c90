"""What has to become of each row of a table so that chosen transactions are undone.

Rows are followed as history follows them (`waly_cdc.history.chains`): of each chain that a chosen
transaction touched, the row before the first touch is *wanted*, and the row *now* is what the chain
has become at the horizon. A truncate touches all rows that were there.

A row is in conflict where anybody else touched its chain after the first touch, or any of the keys
that the touches found or left; or where what it was is not known. Rows that exchanged keys are in
conflict together.

In a table without a key rows of one content are the same: the wanted copies of each content are
made, and those that the touches left are taken away, as far as they are still there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb

from waly_cdc.history.chains import POSITION
from waly_cdc.history.images import after_name, before_name
from waly_cdc.history.log import touched_keys
from waly_cdc.history.narrow import Key, literal_keys
from waly_cdc.history.rows import history_clause
from waly_cdc.history.session import literal, rows
from waly_cdc.history.state import state_files
from waly_cdc.history.subject import Subject
from waly_cdc.lsn import Lsn


@dataclass(frozen=True, slots=True)
class Choice:
    """What is undone: `condition` holds for the `_lsn` of the transactions. With `key` (in the
    order of the newest keying's columns) only the row that has it now, or had it at `since`."""

    condition: str
    key: Key | None = None
    since: Lsn | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """A row that cannot be undone without undoing what others did. `xid` names the first who
    changed it later; `key` is by column name, or all of the row where there is no key."""

    table: str
    key: dict[str, str | None]
    reason: str
    xid: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"table": self.table, "key": self.key, "reason": self.reason, "xid": self.xid}


class Undo:
    """One table's part of a revert, computed when it is made, in tables of the session.

    The table `plan` has a row for each row that is changed: `_number`, `has_w`, `has_n`, `early`
    (it has to make room for others), `shape` (relation version of the wanted row), `now_shape`,
    `copies` (of a table without a key), and the texts `w0`, `w1`, … and `n0`, `n1`, … of the wanted
    row and the row now, in the order of `subject.columns`. Raises PointNotInArchive in a gap.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        subject: Subject,
        choice: Choice,
        resolution: str | None,
    ) -> None:
        self.subject = subject
        self._connection = connection
        self._choice = choice
        self._width = range(len(subject.columns))
        self.plan = f"plan_{subject.oid}"
        state_files(subject.contents, subject.relation, subject.bound)
        self._read()
        self._touches()
        self._units()
        self._groups()
        if self.by_content:
            self._plan_contents(resolution)
        else:
            self._plan_rows(resolution)

    @property
    def by_content(self) -> bool:
        return self.subject.keyings[-1].by_content

    @cached_property
    def key(self) -> list[int]:
        """The places of the key's columns in `subject.columns`."""
        keying = self.subject.keyings[-1]
        return [] if self.by_content else [self.subject.columns.index(c) for c in keying.columns]

    def counts(self) -> dict[str, int]:
        """Rows to insert, update and delete."""
        amount = "abs(copies)"
        found = rows(
            self._connection,
            f"SELECT CASE WHEN has_w AND has_n THEN 'update' WHEN has_w THEN 'insert' ELSE 'delete'"
            f" END AS op, CAST(sum({amount}) AS BIGINT) AS n FROM {self.plan} GROUP BY 1",
        )
        counted = {row["op"]: int(row["n"]) for row in found}
        return {op: counted.get(op, 0) for op in ("insert", "update", "delete")}

    def conflicts(self) -> Iterator[Conflict]:
        """All rows in conflict, in the order in which they were first touched."""
        named = self.key or list(self._width)
        side = [f"coalesce(CASE WHEN has_n THEN n{i} END, k{i}) AS k{i}" for i in named]
        found = rows(
            self._connection,
            f"SELECT reason, xid, {', '.join(side)} FROM conflicts ORDER BY first",
        )
        for row in found:
            key = {self.subject.columns[i].name: row[f"k{i}"] for i in named}
            yield Conflict(self.subject.relation.qualified_name, key, row["reason"], row["xid"])

    def _run(self, name: str, statement: str) -> None:
        self._connection.execute(f"CREATE OR REPLACE TABLE {name} AS\n{statement}")

    def _all(self, *prefixes: str, of: str = "") -> str:
        return ", ".join(f"{of}{prefix}{i}" for prefix in prefixes for i in self._width)

    def _read(self) -> None:
        """Tables `h`, the events with both rows, and `t`, the truncates."""
        subject, mine = self.subject, self._choice.condition
        truncates = [file for file in subject.files if file.ops.get("T")]
        self._run(
            "t",
            f"SELECT {POSITION} AS _n, _lsn, _xid, ({mine}) AS mine FROM (\n"
            f"{subject.events(truncates, ())}\n) WHERE _op = 'T'",
        )
        (cut,) = rows(self._connection, "SELECT count(*) AS n FROM t WHERE mine")
        touched = None
        if self._choice.key is not None:
            touched = literal_keys([self._choice.key], len(self._choice.key))
        elif not cut["n"]:
            touched = touched_keys(self._connection, subject, f"_op <> 'R' AND ({mine})")
        clause, _ = history_clause(self._connection, subject, None, touched)
        texts = [
            f"{before_name(c)} AS b{i}, {after_name(c)} AS a{i}"
            for i, c in enumerate(subject.columns)
        ]
        # What is not there any more after the next truncate has its place in `_end`.
        self._run(
            "h",
            f"SELECT h.*, t._n AS _end, t._lsn AS _end_lsn, t.mine AS _end_mine, t._xid AS _end_xid"
            " FROM (SELECT *, lead(_n) OVER w AS _next, lead(_lsn) OVER w AS _next_lsn FROM (\n"
            f"{clause}\nSELECT _n, _op, _lsn, _xid, _relation, _root, _pred,"
            f" {', '.join([*texts, '_unknown_before AS ub', '_unknown_after AS ua'])},"
            f" (_op <> 'R' AND ({mine})) AS mine FROM history\n)"
            " WINDOW w AS (PARTITION BY _root ORDER BY _n)) h ASOF LEFT JOIN t ON t._n > h._n",
        )
        self._run("live", f"SELECT * FROM h WHERE {self._alive(subject.bound)}")

    def _alive(self, bound: Lsn) -> str:
        """A condition on `h`: the event left a row that is there at a point."""
        baseline = self.subject.contents.baseline_for(self.subject.oid, bound)
        known = f"AND _lsn + 1 >= {baseline.lsn.value}" if baseline else ""
        return (
            f"_lsn < {bound.value} AND coalesce(_next_lsn >= {bound.value}, TRUE) AND _op <> 'D'"
            f" AND coalesce(_end_lsn >= {bound.value}, TRUE) {known}"
        )

    def _touches(self) -> None:
        """Table `m`: what the chosen transactions did to rows. Of one that truncated the table all
        that it did before counts for nothing: its rows were those before the transaction."""
        self._run("cuts", "SELECT _lsn, max(_n) AS _cut FROM t WHERE mine GROUP BY _lsn")
        self._run(
            "m",
            "SELECT h._n AS n, _root AS root, h._lsn AS lsn, _relation AS shape,"
            " _op IN ('U', 'D') AS has_b, _op IN ('I', 'U') AS has_a, ub,"
            f" {self._all('b', 'a', of='h.')} FROM h LEFT JOIN cuts USING (_lsn)"
            " WHERE mine AND coalesce(h._n > _cut, TRUE)",
        )
        nulls = ", ".join("NULL" for _ in self._width)
        for cut in rows(self._connection, "SELECT _lsn, _cut FROM cuts ORDER BY 1"):
            lsn = Lsn(cut["_lsn"])
            version = self.subject.contents.version_at(self.subject.oid, lsn)
            state_files(self.subject.contents, version or self.subject.relation, lsn)
            self._connection.execute(
                f"INSERT INTO m SELECT {cut['_cut']}, _root, {lsn.value}, _relation, TRUE, FALSE,"
                f" ua, {self._all('a')}, {nulls} FROM h WHERE {self._alive(lsn)}"
            )
        if self._choice.key is not None:
            self._only_row()

    def _only_row(self) -> None:
        """Of the touches only those of the row that was asked for."""
        key, since = self._choice.key or (), self._choice.since
        assert since is not None
        same = " AND ".join(
            f"a{i} = {literal(text or '')}" for i, text in zip(self.key, key, strict=True)
        )
        self._connection.execute(
            f"DELETE FROM m WHERE root NOT IN (SELECT _root FROM live WHERE {same})"
            f" AND root NOT IN (SELECT _root FROM h WHERE {self._alive(since)} AND {same})"
        )

    def _units(self) -> None:
        """Table `u`: each touched chain with its first touch, and who touched it after that."""
        self._run(
            "later",
            "SELECT f.root, h._n AS n, h._xid AS xid,"
            " CASE WHEN h._op = 'R' THEN 'its table changed without events' ELSE 'changed later'"
            " END AS reason FROM h JOIN (SELECT root, min(n) AS n FROM m GROUP BY root) f"
            " ON f.root = h._root WHERE h._n > f.n AND NOT h.mine AND (h._op <> 'R' OR"
            f" ({self._all('b', of='h.')}) IS DISTINCT FROM ({self._all('a', of='h.')}))\n"
            "UNION ALL SELECT root, max(_end), max(_end_xid), 'truncated later' FROM h JOIN m"
            " ON root = _root WHERE _next IS NULL AND _op <> 'D' AND NOT _end_mine AND _end > n"
            " GROUP BY root"
            "\nUNION ALL SELECT root, max(_n), NULL, 'its table changed without events' FROM h"
            " JOIN m ON root = _root WHERE _next IS NULL AND _op <> 'D' AND _end IS NULL"
            " AND _root NOT IN (SELECT _root FROM live) GROUP BY root",
        )
        if not self.by_content:
            self._key_touches()
        self._run(
            "u",
            "SELECT m.root, m.n AS first, m.shape, m.has_b AS has_w, "
            + ", ".join(f"m.b{i} AS w{i}, coalesce(m.b{i}, m.a{i}) AS k{i}" for i in self._width)
            + ", (m.ub IS NOT NULL OR live.ua IS NOT NULL) AS unknown,"
            " CASE WHEN unknown THEN 'what it was is not known' ELSE l.reason END AS reason, l.xid"
            " FROM m JOIN (SELECT root, min(n) AS n FROM m GROUP BY root) f"
            " ON f.root = m.root AND f.n = m.n LEFT JOIN live ON live._root = m.root"
            " LEFT JOIN (SELECT root, arg_min(reason, n) AS reason, arg_min(xid, n) AS xid"
            " FROM later GROUP BY root) l ON l.root = m.root",
        )

    def _key_touches(self) -> None:
        """Table `keys`: the keys that touches found or left. Others who did so with them later are
        added to `later`."""
        names = ", ".join(f"k{i}" for i in self.key)

        def side(prefix: str) -> str:
            return ", ".join(f"{prefix}{i} AS k{i}" for i in self.key)

        self._run(
            "keys",
            f"SELECT root, min(n) AS n, {names} FROM (SELECT root, n, {side('b')} FROM m"
            f" WHERE has_b UNION ALL SELECT root, n, {side('a')} FROM m WHERE has_a)"
            f" GROUP BY root, {names}",
        )
        self._connection.execute(
            f"INSERT INTO later SELECT k.root, o._n, o._xid, 'its key was used later' FROM keys k"
            f" JOIN (SELECT _root, _n, _xid, {side('b')} FROM h WHERE NOT mine AND _op IN"
            f" ('U', 'D') UNION ALL SELECT _root, _n, _xid, {side('a')} FROM h WHERE NOT mine"
            " AND (_op IN ('I', 'U') OR (_op = 'R' AND _pred IS NULL))) o"
            f" USING ({names}) WHERE o._root <> k.root AND o._n > k.n"
        )

    def _groups(self) -> None:
        """Rows that exchanged keys get one `label`; a table `conflicts`."""
        self._run("labels", "SELECT root, root AS label FROM u")
        names = ", ".join(f"k{i}" for i in self.key)
        while not self.by_content:
            self._run(
                "next_labels",
                "SELECT k.root, min(s.label) AS label FROM keys k JOIN (SELECT"
                f" {names}, min(label) AS label FROM keys JOIN labels USING (root) GROUP BY {names}"
                f") s USING ({names}) GROUP BY k.root",
            )
            (moved,) = rows(
                self._connection,
                "SELECT count(*) AS n FROM labels l JOIN next_labels x USING (root)"
                " WHERE l.label <> x.label",
            )
            if not moved["n"]:
                break
            self._run("labels", "SELECT * FROM next_labels")
        self._run(
            "conflicts",
            f"SELECT u.*, live._n IS NOT NULL AS has_n, {self._now()} FROM (SELECT u.* EXCLUDE"
            " (reason, unknown, xid), bool_or(unknown) OVER g AS unknown,"
            " CASE WHEN bool_or(reason IS NOT NULL) OVER g THEN coalesce(reason,"
            " 'it exchanged keys with a row in conflict') END AS reason, xid"
            " FROM u JOIN labels USING (root) WINDOW g AS (PARTITION BY label)) u"
            " LEFT JOIN live ON live._root = u.root WHERE reason IS NOT NULL",
        )

    def _now(self) -> str:
        return ", ".join(f"live.a{i} AS n{i}" for i in self._width)

    def _chosen(self, resolution: str | None) -> str:
        """A condition on `u`: the row is to be undone. What is not known cannot be."""
        out = "SELECT root FROM conflicts" + (" WHERE unknown" if resolution == "ours" else "")
        return f"u.root NOT IN ({out})"

    def _plan_rows(self, resolution: str | None) -> None:
        """The plan by key: a row that is wanted takes the place of one that has its key now."""
        key = self.key
        wanted = ", ".join(f"w{i}" for i in key)
        at_key = " AND ".join(f"o.a{i} = p.w{i}" for i in key)
        self._run(
            "p",
            f"SELECT u.root, u.first, u.shape, u.has_w AND row_number() OVER (PARTITION BY u.has_w,"
            f" {wanted} ORDER BY first) = 1 AS has_w, {self._all('w', of='u.')},"
            f" live._n IS NOT NULL AS has_n, live._relation AS now_shape, {self._now()}"
            f" FROM u LEFT JOIN live ON live._root = u.root WHERE {self._chosen(resolution)}",
        )
        self._run(
            "taken",
            "SELECT p.root, o._root AS other, o._relation AS now_shape, "
            + ", ".join(f"o.a{i} AS n{i}" for i in self._width)
            + f" FROM p JOIN live o ON {at_key} WHERE p.has_w AND NOT p.has_n AND o._root NOT IN"
            " (SELECT root FROM p WHERE has_w AND has_n)",
        )
        now = ", ".join(f"coalesce(p.n{i}, taken.n{i}) AS n{i}" for i in self._width)
        same_key = f"({', '.join(f'w{i}' for i in key)}) = ({', '.join(f'n{i}' for i in key)})"
        self._run(
            "q",
            f"SELECT p.root, p.has_w, {self._all('w', of='p.')}, p.shape,"
            " p.has_n OR taken.root IS NOT NULL AS has_n,"
            f" coalesce(p.now_shape, taken.now_shape) AS now_shape, {now}"
            " FROM p LEFT JOIN taken USING (root)"
            " WHERE (p.has_w OR p.has_n) AND (p.has_w OR p.root NOT IN (SELECT other FROM taken))",
        )
        differs = f"({self._all('w')}) IS DISTINCT FROM ({self._all('n')})"
        moved = f"has_w AND has_n AND NOT {same_key}"
        self._run(
            "moving",
            f"SELECT a.root AS comes, b.root AS leaves FROM q a JOIN q b ON"
            f" {' AND '.join(f'a.w{i} = b.n{i}' for i in key)} AND a.root <> b.root"
            " WHERE a.has_w AND b.has_n",
        )
        self._run(
            self.plan,
            "SELECT row_number() OVER (ORDER BY has_n, root) AS _number, * EXCLUDE (root),"
            f" 1 AS copies, coalesce(has_n AND ((({moved}) AND root IN (SELECT comes FROM moving))"
            " OR root IN (SELECT leaves FROM moving)), FALSE) AS early"
            f" FROM q WHERE NOT (has_w AND has_n) OR {differs}",
        )

    def _plan_contents(self, resolution: str | None) -> None:
        """The plan by content: how many copies of each row are to be made or taken away."""
        columns = self._all("c")
        chosen = f"root IN (SELECT root FROM u WHERE {self._chosen(resolution)})"
        named = {
            prefix: ", ".join(f"{prefix}{i} AS c{i}" for i in self._width) for prefix in ("b", "a")
        }
        self._run(
            "delta",
            f"SELECT {columns}, sum(d)::BIGINT AS d, min(shape) AS shape FROM (SELECT {named['b']},"
            f" 1 AS d, shape FROM m WHERE has_b AND {chosen} UNION ALL SELECT {named['a']}, -1,"
            f" shape FROM m WHERE has_a AND {chosen}) GROUP BY {columns} HAVING sum(d) <> 0",
        )
        both = ", ".join(f"c{i} AS w{i}, c{i} AS n{i}" for i in self._width)
        self._run(
            self.plan,
            f"SELECT row_number() OVER () AS _number, {both}, shape, shape AS now_shape,"
            " d > 0 AS has_w, d < 0 AS has_n, d AS copies, FALSE AS early FROM delta",
        )

    def texts(self, expressions: Sequence[str]) -> str:
        """A statement for lines of COPY's text format, one for each row of the plan."""
        escaped = [
            f"coalesce(replace(replace(replace(replace(CAST({each} AS VARCHAR), '\\', '\\\\'),"
            " chr(9), '\\t'), chr(10), '\\n'), chr(13), '\\r'), '\\N')"
            for each in expressions
        ]
        line = " || chr(9) || ".join(escaped)
        return f"SELECT {line} || chr(10) AS line FROM {self.plan} ORDER BY _number"

    def changes(self, column: int, shape: int) -> bool:
        """Whether any update to the wanted row of a shape sets another value of a column."""
        (found,) = rows(
            self._connection,
            f"SELECT count(*) AS n FROM {self.plan} WHERE has_w AND has_n AND shape = {shape}"
            f" AND w{column} IS DISTINCT FROM n{column}",
        )
        return bool(found["n"])

    def shapes(self, side: str) -> list[int]:
        """The relation versions of the wanted rows (`shape`) or the rows now (`now_shape`)."""
        having = "has_w" if side == "shape" else "has_n"
        found = rows(
            self._connection,
            f"SELECT DISTINCT {side} AS shape FROM {self.plan} WHERE {having} ORDER BY 1",
        )
        return [row["shape"] for row in found]
