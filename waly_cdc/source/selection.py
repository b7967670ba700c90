"""Which tables a user means: patterns as pg_dump's `--table` takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from waly_cdc.errors import UsageError

_TOKEN = re.compile(r'"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^"])')


class Selection:
    """Tables that match any of `patterns` (all, without patterns) and none of `exclude`.

    A pattern is `name` or `schema.name`; `*` stands for any text and `?` for one character. As in
    SQL, what is not in double quotes folds to lower case, and what is stands for itself. A pattern
    without a schema looks in all of them.
    """

    def __init__(self, patterns: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Raises UsageError for a malformed pattern."""
        self._wanted = {pattern: _compile(pattern) for pattern in patterns}
        self._excluded = [_compile(pattern) for pattern in exclude]

    def includes(self, schema: str, name: str) -> bool:
        wanted = not self._wanted or any(
            _matches(pattern, schema, name) for pattern in self._wanted.values()
        )
        return wanted and not any(_matches(pattern, schema, name) for pattern in self._excluded)

    def unmatched(self, names: Sequence[tuple[str, str]]) -> list[str]:
        """The patterns that no table, given as schema and name, matches: typing errors, likely."""
        return [
            text
            for text, pattern in self._wanted.items()
            if not any(_matches(pattern, schema, name) for schema, name in names)
        ]


_Pattern = tuple[re.Pattern[str], ...]


def _compile(text: str) -> _Pattern:
    parts = [""]
    at = 0
    for token in _TOKEN.finditer(text):
        if token.start() != at:
            break
        at = token.end()
        if token["quoted"] is not None:
            parts[-1] += re.escape(token["quoted"].replace('""', '"'))
        elif token["plain"] == ".":
            parts.append("")
        else:
            plain = token["plain"].lower()
            parts[-1] += {"*": ".*", "?": "."}.get(plain, re.escape(plain))
    if at != len(text) or len(parts) > 2 or not all(parts):
        raise UsageError(
            f"not a table pattern: {text!r}",
            hint='write name or schema.name, with * and ? as wildcards and "Quotes" as in SQL',
        )
    return tuple(re.compile(part, re.DOTALL) for part in parts)


def _matches(pattern: _Pattern, schema: str, name: str) -> bool:
    if len(pattern) == 2 and not pattern[0].fullmatch(schema):
        return False
    return pattern[-1].fullmatch(name) is not None
