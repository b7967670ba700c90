import pytest

from waly_cdc.source.preflight import listed_names, permission


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("", []),
        ("pgoutput", ["pgoutput"]),
        ("pgoutput, test_decoding", ["pgoutput", "test_decoding"]),
        ('"pgoutput, wal2json"', ["pgoutput, wal2json"]),
        ('"pgoutput", wal2json', ["pgoutput", "wal2json"]),
    ],
)
def test_names_in_a_list_setting(setting: str, names: list[str]) -> None:
    assert listed_names(setting) == names


@pytest.mark.parametrize(
    ("setting", "listed"),
    [
        ("pgoutput", "'pgoutput', 'wal2json'"),
        ('"pgoutput, wal2json"', "'pgoutput', 'wal2json'"),
        ('"pgoutput", "it\'s"', "'pgoutput', 'it''s', 'wal2json'"),
        ("", "'wal2json'"),
    ],
)
def test_a_plugin_joins_the_list_with_quotes_of_its_own(setting: str, listed: str) -> None:
    assert permission(setting, "wal2json") == (
        f"ALTER SYSTEM SET output_plugin_libraries = {listed}; SELECT pg_reload_conf();"
    )
