from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from waly_cdc.archive.store import LocalStore
from waly_cdc.findings import Finding, Severity
from waly_cdc.lsn import Lsn
from waly_cdc.verify.report import LAST, Checked, DrillResult, Report, recall, remember

TIME = datetime(2026, 11, 23, 14, 2, 11, tzinfo=UTC)


def report(*severities: Severity, drill: DrillResult | None = None) -> Report:
    findings = [Finding("id", severity, "subject", severity) for severity in severities]
    return Report.of(findings, Checked(1, 2, 3, 4), Lsn(256), TIME, drill)


@pytest.mark.parametrize(
    ("severities", "result", "code"),
    [
        ((), "passed", 0),
        (("pass", "warn"), "passed", 0),
        (("warn", "fail"), "mismatch", 4),
    ],
)
def test_the_result_follows_from_the_findings(
    severities: tuple[Severity, ...], result: str, code: int
) -> None:
    found = report(*severities)
    assert (found.result, found.exit_code) == (result, code)


def test_what_could_not_be_run_is_never_passed_and_hides_no_mismatch() -> None:
    missing = report("pass").without("drill", "no server")
    assert (missing.result, missing.exit_code) == ("could_not_verify", 5)
    assert missing.findings[-1].message == "could not be run: no server"
    assert report("fail").without("drill", "no server").exit_code == 4


def test_the_worse_of_integrity_and_drill_counts() -> None:
    result = DrillResult((("public.t", 3),), 1.23456, 2.0)
    both = report("warn").with_drill(report("fail", drill=result))
    assert (both.result, len(both.findings), both.drill) == ("mismatch", 2, result)
    assert report("fail").with_drill(report(drill=result)).result == "mismatch"
    assert report().with_drill(report(drill=result)).exit_code == 0


def test_json() -> None:
    result = DrillResult((("public.t", 3),), 1.23456, 2.0)
    assert report("fail", drill=result).to_json() == {
        "result": "mismatch",
        "findings": [
            {
                "id": "id",
                "severity": "fail",
                "subject": "subject",
                "message": "fail",
                "fix_sql": None,
            }
        ],
        "checked": {"files": 1, "bytes": 2, "rows": 3, "tables": 4},
        "at": {"era": 1, "lsn": "0/100", "time": "2026-11-23T14:02:11.000000Z"},
        "drill": {
            "tables": [{"table": "public.t", "rows": 3}],
            "restore_seconds": 1.235,
            "seconds": 2.0,
        },
    }
    assert "drill" not in report().to_json()


def test_the_last_result_is_remembered(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert recall(store) is None
    remember(store, report("pass", "fail"))
    note = recall(store)
    assert note is not None
    assert (note["result"], len(note["findings"])) == ("mismatch", 1)
    assert datetime.fromisoformat(note["verified_at"]) <= datetime.now(UTC)


@pytest.mark.parametrize("content", ["", "[1]", "{", json.dumps(None)])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / LAST).write_text(content)
    assert recall(LocalStore(tmp_path)) is None
