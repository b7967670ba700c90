from waly_cdc.findings import FAIL, PASS, WARN, Finding, worst


def test_worst_is_the_gravest() -> None:
    findings = [Finding("a", PASS, "s", "m"), Finding("b", WARN, "s", "m")]
    assert worst(findings) == "warn"
    assert worst([*findings, Finding("c", FAIL, "s", "m")]) == "fail"
    assert worst([]) == "pass"


def test_json_has_the_fields_of_the_command_line_contract() -> None:
    finding = Finding("wal_level", FAIL, "server", "too low", "ALTER SYSTEM …")
    assert finding.to_json() == {
        "id": "wal_level",
        "severity": "fail",
        "subject": "server",
        "message": "too low",
        "fix_sql": "ALTER SYSTEM …",
    }
