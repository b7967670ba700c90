"""The queries that come with waly: the files of `queries/`.

A file begins with comments: a line that says what it tells, then `-- param NAME: what it is
[default: VALUE]` for each `$NAME` in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waly_cdc.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "queries", _PACKAGE.parent / "queries")
"""In an installed copy, and in a checkout."""

_PARAMETER = re.compile(r"-- param (\w+): (.*?)(?:\s*\[default: (.*)\])?\s*")
_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that a query takes; `default` None where it must be given."""

    name: str
    description: str
    default: str | None


@dataclass(frozen=True, slots=True)
class Query:
    """A query of the library."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    sql: str

    @property
    def usage(self) -> str:
        """The parameters in short."""
        shown = (
            f"{each.name}=…" if each.default is None else f"[{each.name}={each.default}]"
            for each in self.parameters
        )
        return " ".join(shown)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "parameters": [
                {"name": each.name, "description": each.description, "default": each.default}
                for each in self.parameters
            ],
        }


def queries() -> list[Query]:
    """All queries of the library, by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        return []
    return [_read(path.stem, path.read_text()) for path in sorted(folder.glob("*.sql"))]


def find(
    statement: str | None, file: Path | None, given: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """The SQL and parameters meant by a name or SQL, or by a file.

    Raises UsageError for a file that cannot be read, an unknown name or parameter, and for a
    parameter that is missing.
    """
    if file is not None:
        try:
            query = _read(file.stem, file.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from None
    else:
        assert statement is not None
        named = _NAME.fullmatch(statement.strip())
        query = _named(named[0]) if named else Query("", "", (), statement)
    values = {each.name: each.default for each in query.parameters if each.default is not None}
    values.update(given)
    known = {each.name for each in query.parameters}
    missing = sorted(known - set(values))
    unknown = sorted(set(given) - known) if query.name and query.parameters else []
    if missing or unknown:
        wrong = f"needs --param {missing[0]}=…" if missing else f"has no parameter {unknown[0]!r}"
        raise UsageError(f"query {query.name} {wrong}", hint=query.usage or None)
    return query.sql, values


def _named(name: str) -> Query:
    known = queries()
    for query in known:
        if query.name == name:
            return query
    raise UsageError(
        f"no query {name!r}", hint="there are: " + ", ".join(query.name for query in known)
    )


def _read(name: str, sql: str) -> Query:
    comments = []
    for line in sql.splitlines():
        if not line.startswith("--"):
            break
        comments.append(line)
    parameters = [match for line in comments if (match := _PARAMETER.fullmatch(line))]
    return Query(
        name=name,
        description=comments[0].removeprefix("--").strip() if comments else "",
        parameters=tuple(Parameter(match[1], match[2], match[3]) for match in parameters),
        sql=sql,
    )
