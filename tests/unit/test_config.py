from __future__ import annotations

from pathlib import Path

import pytest

from waly_cdc.config import Config, mask, parse_duration, parse_size
from waly_cdc.errors import UsageError


def test_an_option_outdoes_the_environment_which_outdoes_the_file_which_outdoes_the_default(
    tmp_path: Path,
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('archive = "from-file"\nslot = "from_file"\nseal_interval = "5m"\n')
    config = Config.load(
        {"archive": "from-option"},
        {
            "WALY_CONFIG": str(file),
            "WALY_ARCHIVE": "from-environment",
            "WALY_SLOT": "from_environment",
        },
    )
    assert config["archive"] == Path("from-option")
    assert config["slot"] == "from_environment"
    assert config["seal_interval"] == 300.0
    assert config["seal_size"] == 64 << 20
    assert [config.settings[name].origin for name in ("archive", "slot", "seal_interval")] == [
        "option",
        "environment WALY_SLOT",
        f"file {file}",
    ]
    assert config.settings["seal_size"].origin == "default"


def test_an_unknown_setting_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "waly.toml"
    file.write_text('arcive = "x"\n')
    with pytest.raises(UsageError, match="unknown settings: arcive"):
        Config.load({}, {"WALY_CONFIG": str(file)})


@pytest.mark.parametrize("content", [b"= 1", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "waly.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="is not TOML"):
        Config.load({}, {"WALY_CONFIG": str(file)})


def test_a_file_that_is_named_must_be_there() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Config.load({}, {"WALY_CONFIG": "/nonexistent/waly.toml"})


def test_a_value_that_cannot_be_read_says_where_it_came_from() -> None:
    config = Config.load({}, {"WALY_SEAL_INTERVAL": "often"})
    with pytest.raises(UsageError, match="seal_interval from environment WALY_SEAL_INTERVAL"):
        config["seal_interval"]


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:****@host/db"),
        ("host=h password=secret user=me", "host=h password=**** user=me"),
        ("password = 'se cr\\'et' host=h", "password = **** host=h"),
        (
            "postgresql://host/db?password=secret&user=me",
            "postgresql://host/db?password=****&user=me",
        ),
        ("sslpassword=secret", "sslpassword=****"),
        ("host=h user=me", "host=h user=me"),
    ],
)
def test_a_shown_connection_string_has_no_password(dsn: str, shown: str) -> None:
    assert mask(dsn) == shown


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("5m", 300), ("250ms", 0.25), ("1.5h", 5400), ("7", 7)]
)
def test_durations_are_read_in_their_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MB", 64 << 20), ("1GiB", 1 << 30), ("512k", 512 << 10), ("7", 7), ("2 tb", 2 << 40)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 week", "soon"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)
