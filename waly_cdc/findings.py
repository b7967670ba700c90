"""Findings: what check and verify report, one fact each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["pass", "warn", "fail"]

PASS: Severity = "pass"  # noqa: S105 - no password
WARN: Severity = "warn"
FAIL: Severity = "fail"

_ORDER: tuple[Severity, ...] = (PASS, WARN, FAIL)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: how bad, about what, why, and the statement that mends it, if one does.

    `id` names the kind of fact and never changes; scripts rely on it.
    """

    id: str
    severity: Severity
    subject: str
    message: str
    fix_sql: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "severity": self.severity,
            "subject": self.subject,
            "message": self.message,
            "fix_sql": self.fix_sql,
        }


def worst(findings: Iterable[Finding]) -> Severity:
    """The gravest severity among the findings; `pass` for none at all."""
    return max((finding.severity for finding in findings), key=_ORDER.index, default=PASS)
