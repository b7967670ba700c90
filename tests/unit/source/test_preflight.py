import pytest

from waly_cdc.source.preflight import listed_names


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
