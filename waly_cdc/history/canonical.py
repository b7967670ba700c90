"""The canonical text of a row, and its hash (FORMAT.md, section 6)."""

from __future__ import annotations

from collections.abc import Callable

from waly_cdc.history.session import literal
from waly_cdc.history.subject import Subject
from waly_cdc.relations import Column, RelationVersion


def hash_of(subject: Subject, value: Callable[[Column], str]) -> str:
    """An expression for the hash of a row whose relation version is `_relation`; `value` gives that
    of a column's printed text."""
    texts = [(v.version, _canonical(subject, v, value)) for v in subject.versions]
    if len(texts) == 1:
        return f"'sha256:' || sha256({texts[0][1]})"
    cases = " ".join(f"WHEN {number} THEN {text}" for number, text in texts)
    return f"'sha256:' || sha256(CASE _relation {cases} END)" if texts else "NULL"


def _canonical(subject: Subject, version: RelationVersion, value: Callable[[Column], str]) -> str:
    parts = []
    for column in version.columns:
        name = f"{len(column.name.encode())}:{column.name}"
        text = value(subject.column(column.stored))
        parts.append(f"{literal(name)} || coalesce(strlen({text}) || ':' || {text}, '-')")
    return " || ".join(parts) or "''"
