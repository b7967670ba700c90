"""Preflight: the statements that mend what it found, as a script for psql.

What blocks capture stands in it plain, so that the script can be run as it is. What is a matter of
choice stands in comments: somebody who wants it takes the dashes away. Either has its reason above.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from waly_cdc.findings import FAIL, WARN, Finding

_REASONS = 10
"""Reasons that are shown of a statement that mends many findings."""


def script(findings: Sequence[Finding]) -> str:
    """The script. Run by a superuser in the same database, it leaves nothing that blocks capture
    but what no statement can mend, which it names."""
    needed = [finding for finding in findings if finding.severity == FAIL]
    mended = {finding.fix_sql for finding in needed}
    optional = [
        finding
        for finding in findings
        if finding.severity == WARN and finding.fix_sql and finding.fix_sql not in mended
    ]
    if not needed and not optional:
        return "-- nothing to mend\n"
    opening = "-- for a superuser, in this database: psql -v ON_ERROR_STOP=1 -f FILE\n"
    if not needed:
        opening = "-- nothing blocks capture: all of this is optional\n"
    return "\n".join([opening, *_blocks(needed), *_blocks(optional)])


def _blocks(findings: Iterable[Finding]) -> Iterator[str]:
    """A block for each kind of finding: its name, then each statement below its reasons."""
    kinds: dict[str, dict[str | None, list[Finding]]] = {}
    for finding in findings:
        kinds.setdefault(finding.id, {}).setdefault(finding.fix_sql, []).append(finding)
    for kind, statements in kinds.items():
        lines = [f"-- {kind}"]
        for statement, reasons in statements.items():
            lines += _reasons(reasons)
            if statement is None:
                lines.append("-- no statement mends this")
            elif reasons[0].severity == FAIL:
                lines.append(statement)
            else:
                lines.append(_comment(statement))
        yield "\n".join(lines) + "\n"


def _reasons(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings[:_REASONS]:
        optional = "" if finding.severity == FAIL else "optional: "
        yield _comment(f"{optional}{finding.subject}: {finding.message}")
    if len(findings) > _REASONS:
        yield f"-- and {len(findings) - _REASONS} more"


def _comment(text: str) -> str:
    # A name may hold line ends: what follows one must not leave the comment.
    return "\n".join(f"-- {line}" for line in text.splitlines())
