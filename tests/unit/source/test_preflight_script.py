from waly_cdc.findings import FAIL, PASS, WARN, Finding
from waly_cdc.source.preflight_script import script

GRANT = "GRANT pg_read_all_data TO waly;"


def _statements(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("--")]


def test_what_blocks_is_plain_and_what_is_a_choice_is_a_comment() -> None:
    text = script(
        [
            Finding("wal_level", FAIL, "server", "it is replica", "ALTER SYSTEM …;\n-- then"),
            Finding("version", PASS, "server", "PostgreSQL 17"),
            Finding("unlogged", WARN, "public.t", "it is unlogged", "ALTER TABLE public.t …;"),
        ]
    )
    assert text.endswith(
        "\n\n"
        "-- wal_level\n"
        "-- server: it is replica\n"
        "ALTER SYSTEM …;\n"
        "-- then\n"
        "\n"
        "-- unlogged\n"
        "-- optional: public.t: it is unlogged\n"
        "-- ALTER TABLE public.t …;\n"
    )
    assert _statements(text) == ["ALTER SYSTEM …;"]


def test_a_statement_stands_once_below_all_its_reasons() -> None:
    denied = [Finding("table_privilege", FAIL, f"t{n}", "no", GRANT) for n in range(30)]
    text = script([*denied, Finding("sequence_privilege", WARN, "s", "no", GRANT)])
    assert text.count(GRANT) == 1
    assert _statements(text) == [GRANT]
    assert "-- t0: no" in text
    assert "-- and 20 more" in text


def test_what_no_statement_mends_is_named() -> None:
    text = script([Finding("standby", FAIL, "server", "this is a standby")])
    assert _statements(text) == []
    assert "-- server: this is a standby\n-- no statement mends this" in text


def test_nothing_to_mend_is_said() -> None:
    assert script([Finding("slot", PASS, "s", "fine")]) == "-- nothing to mend\n"
    assert "nothing blocks" in script([Finding("unlogged", WARN, "t", "no", "ALTER …;")])


def test_a_name_with_line_ends_does_not_leave_its_comment() -> None:
    evil = 'public."a\nDROP TABLE b;\rDROP TABLE c; --"'
    for severity in (WARN, FAIL):
        fix = None if severity == FAIL else f"ALTER TABLE {evil} REPLICA IDENTITY FULL;"
        assert _statements(script([Finding("x", severity, evil, f"{evil} is", fix)])) == []
