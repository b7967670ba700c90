"""Rows over time: a *chain* is the events of one row, from its baseline image or its insert on.

An event follows the newest earlier one that left a row with the key which it found. A change of the
key is a link like any other, so a row is followed through it. Where a table's key itself was
changed, the rows that were there then are found again by the values they have in its new columns.
A truncate ends all chains.

In a table without a key rows are told apart by their content: of rows that are the same, the one
that was there first is the first to change. A baseline begins their chains anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from waly_cdc.history.events import old_name
from waly_cdc.history.session import identifier, literal
from waly_cdc.history.subject import Keying, Subject
from waly_cdc.relations import Column

POSITION = "(_era::HUGEINT * 79228162514264337593543950336 + _lsn::HUGEINT * 4294967296 + _seq)"
"""An event's place in the order of all events: era, LSN (64 bits) and seq (32 bits) in one."""


def chains(subject: Subject, source: str) -> str:
    """A WITH RECURSIVE clause over `source`, typed events of the subject (see `Subject.events`).

    Its table `e` has the events at `_n` with values as printed texts; its table `chain` has for
    each event but truncates `_n`, `_pred` (the event before in its chain) and `_root` (the first).
    """
    texts = [f"{subject.own_text(c)} AS {identifier(c.stored)}" for c in subject.columns]
    texts += [f"{subject.old_text(c)} AS {old_name(c)}" for c in subject.columns]
    meta = "_era, _op, _lsn, _seq, _xid, _committed_us, _relation, _unchanged, _has_before"
    parts = [
        f"e AS NOT MATERIALIZED (\nSELECT {', '.join([f'{POSITION} AS _n', meta, *texts])}\n"
        f"FROM (\n{source}\n)\n)"
    ]
    if not subject.has("U", "D") and len(_baselines(subject)) <= 1:
        parts.append(
            "chain AS NOT MATERIALIZED (\nSELECT _n, CAST(NULL AS HUGEINT) AS _pred, _n AS _root"
            " FROM e WHERE _op <> 'T'\n)"
        )
    else:
        parts += _linked(subject)
    return "WITH RECURSIVE " + ",\n".join(parts)


def _baselines(subject: Subject) -> set[int]:
    return {file.last_lsn.value for file in subject.files if file.ops.get("R")}


def _linked(subject: Subject) -> list[str]:
    parts = []
    for number, keying in enumerate(subject.keyings):
        parts += _boundaries(subject, keying, number)
        parts.append(_touches(subject, keying, number))
        parts += _by_content(number, keying) if keying.by_content else _by_key(number, keying)
    placed = "\nUNION ALL\n".join(f"SELECT * FROM placed{n}" for n in range(len(subject.keyings)))
    parts.append(f"placed AS MATERIALIZED (\n{placed}\n)")
    rekeyed = any(file.rekeyed for file in subject.files)
    if not rekeyed and len(subject.keyings) == 1 and not subject.keyings[0].by_content:
        parts.append("chain AS NOT MATERIALIZED (SELECT _n, _pred, _segment AS _root FROM placed)")
        return parts
    # A segment is the part of a chain that has one key. Their parents are climbed by doubling: the
    # steps grow with the logarithm of how often a row's key has changed.
    parts += [
        "climb AS (\n"
        "SELECT p._segment, q._segment AS _up, 1 AS _level\n"
        "FROM placed p JOIN placed q ON q._n = p._pred WHERE p._n = p._segment\n"
        "UNION ALL\n"
        "SELECT a._segment, coalesce(b._up, a._up), a._level + 1\n"
        "FROM climb a LEFT JOIN climb b ON b._segment = a._up\n"
        "WHERE EXISTS (SELECT 1 FROM climb c JOIN climb d ON d._segment = c._up)\n)",
        "roots AS (\n"
        "SELECT _segment, arg_max(_up, _level) AS _root FROM climb GROUP BY _segment\n)",
        "chain AS MATERIALIZED (\n"
        "SELECT p._n, p._pred, coalesce(r._root, p._segment) AS _root\n"
        "FROM placed p LEFT JOIN roots r USING (_segment)\n)",
    ]
    return parts


def _boundaries(subject: Subject, keying: Keying, number: int) -> list[str]:
    """A table of the places at which all chains of a keying end, numbered; none without any."""
    places = []
    if subject.has("T"):
        places.append("SELECT _n FROM e WHERE _op = 'T'")
    if keying.by_content and len(_baselines(subject)) > 1:
        places.append("SELECT min(_n) - 1 AS _n FROM e WHERE _op = 'R' GROUP BY _era, _lsn")
    if not places:
        return []
    return [
        f"ends{number} AS MATERIALIZED (\nSELECT _n AS _at, row_number() OVER (ORDER BY _n) AS"
        f" _epoch FROM ({' UNION ALL '.join(places)})\n)"
    ]


def _touches(subject: Subject, keying: Keying, number: int) -> str:
    """Each event's touches of keys: whether it finds a row there (`_finds`) and leaves one
    (`_leaves`). A change of the key touches two, the old one as `_away`. Rows that are there when
    the keying begins are `_carried` into it."""
    own = [identifier(c.stored) for c in keying.columns]
    old = [old_name(c) for c in keying.columns]
    moved = _moved(keying)
    versions = f"_relation IN ({', '.join(map(str, keying.versions))})"
    bounded = bool(_boundaries(subject, keying, number))
    epoch = "coalesce(_epoch, 0)" if bounded else "0"
    ends = f" ASOF LEFT JOIN ends{number} ON _at < e._n" if bounded else ""

    def touch(keys: Sequence[str], finds: str, leaves: str, away: str, where: str) -> str:
        named = ", ".join(f"{key} AS _k{i}" for i, key in enumerate(keys))
        return (
            f"SELECT {', '.join(filter(None, ['_n', f'{epoch} AS _epoch', named]))},"
            f" {finds} AS _finds, {leaves} AS _leaves, {away} AS _away, FALSE AS _carried\n"
            f"FROM e{ends} WHERE {where}"
        )

    finds = "FALSE" if keying.by_content else "TRUE"
    parts = [
        touch(
            own,
            f"(_op = 'D' OR (_op = 'R' AND {finds}) OR (_op = 'U' AND NOT {moved}))",
            "_op <> 'D'",
            "FALSE",
            f"_op <> 'T' AND {versions}",
        ),
        touch(old, "TRUE", "FALSE", "TRUE", f"_op = 'U' AND {moved} AND {versions}"),
    ]
    if number:
        parts.append(_carried(subject, keying, epoch, ends, number))
    return f"touches{number} AS NOT MATERIALIZED (\n" + "\nUNION ALL\n".join(parts) + "\n)"


def _moved(keying: Keying) -> str:
    own = ", ".join(identifier(c.stored) for c in keying.columns)
    old = ", ".join(old_name(c) for c in keying.columns)
    return f"(_has_before AND ({own}) IS DISTINCT FROM ({old}))" if own else "FALSE"


def _carried(subject: Subject, keying: Keying, epoch: str, ends: str, number: int) -> str:
    keys = ", ".join(f"e.{identifier(c.stored)} AS _k{i}" for i, c in enumerate(keying.columns))
    unsent = " OR ".join(not_sent(subject, "e", column) for column in keying.columns) or "FALSE"
    return (
        f"SELECT {', '.join(filter(None, ['e._n', f'{epoch} AS _epoch', keys]))},"
        " FALSE, TRUE, FALSE, TRUE\n"
        f"FROM left{number - 1} l JOIN e USING (_n){ends} WHERE NOT ({unsent})"
    )


def not_sent(subject: Subject, event: str, column: Column) -> str:
    """Whether a value of an event is an unchanged one that was not sent."""
    names = ", ".join(literal(each.stored) for each in subject.variants(column))
    return f"coalesce(list_has_any({event}._unchanged, [{names}]), FALSE)"


def _partition(keying: Keying) -> str:
    return ", ".join(["_epoch", *(f"_k{i}" for i in range(len(keying.columns)))])


def _by_key(number: int, keying: Keying) -> list[str]:
    """Links of a keying with a key. Tables `placed` (`_n`, `_pred`, `_segment`) and `left` (the
    events that the rows at its end come from)."""
    window = f"(PARTITION BY {_partition(keying)} ORDER BY _n)"
    keys = _partition(keying)
    return [
        f"linked{number} AS MATERIALIZED (\n"
        f"SELECT _n, {keys}, _leaves, _away, _carried,\n"
        "       CASE WHEN _finds AND lag(_leaves) OVER w THEN lag(_n) OVER w END AS _pred,\n"
        "       coalesce(_finds AND lag(_leaves) OVER w AND NOT lag(_carried) OVER w, FALSE)"
        " AS _same,\n"
        "       lead(_n) OVER w IS NULL AS _last\n"
        f"FROM touches{number} WINDOW w AS {window}\n)",
        f"placed{number} AS NOT MATERIALIZED (\n"
        "SELECT h._n, coalesce(h._pred, a._pred) AS _pred, h._segment FROM (\n"
        "SELECT _n, _pred, _carried, _away,\n"
        "       max(CASE WHEN NOT _same THEN _n END) OVER w AS _segment\n"
        f"FROM linked{number} WINDOW w AS {window}\n"
        f") h LEFT JOIN linked{number} a ON a._n = h._n AND a._away\n"
        "WHERE NOT h._away AND NOT h._carried\n)",
        f"left{number} AS NOT MATERIALIZED (SELECT _n FROM linked{number} WHERE _leaves AND _last)",
    ]


def _by_content(number: int, keying: Keying) -> list[str]:
    """The same where rows are told apart by content: the nth to be changed is the nth there was."""
    keys = _partition(keying)
    same = " AND ".join(
        f"f.{key} IS NOT DISTINCT FROM l.{key}" for key in [*keys.split(", "), "_nth"]
    )
    nth = f"row_number() OVER (PARTITION BY {keys} ORDER BY _n) AS _nth"
    return [
        f"found{number} AS NOT MATERIALIZED (\n"
        f"SELECT _n, {keys}, {nth} FROM touches{number} WHERE _finds\n)",
        f"leaving{number} AS NOT MATERIALIZED (\n"
        f"SELECT _n, {keys}, {nth} FROM touches{number} WHERE _leaves\n)",
        f"linked{number} AS MATERIALIZED (\n"
        f"SELECT f._n, l._n AS _pred FROM found{number} f JOIN leaving{number} l\n"
        f"ON {same} AND l._n < f._n\n)",
        f"placed{number} AS NOT MATERIALIZED (\n"
        "SELECT t._n, l._pred, t._n AS _segment\n"
        f"FROM touches{number} t LEFT JOIN linked{number} l USING (_n)\n"
        "WHERE NOT t._away AND NOT t._carried\n)",
        f"left{number} AS NOT MATERIALIZED (\n"
        f"SELECT _n FROM leaving{number} WHERE _n NOT IN (SELECT _pred FROM linked{number})\n)",
    ]
