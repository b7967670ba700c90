"""Settings, and where each one came from: option > environment > `waly.toml` > default."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waly_cdc.errors import UsageError

FILE = "waly.toml"
FILE_VARIABLE = "WALY_CONFIG"

_PASSWORD_IN_URL = re.compile(r"(?<=://)([^:/?#@]*):[^/?#]*@")
_PASSWORD_WORD = re.compile(
    r"\b((?:ssl)?password\s*=\s*)('(?:\\.|[^'\\])*'|[^\s&]+)", re.IGNORECASE
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)i?b?", re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Seconds, from `60s`, `5m`, `250ms`, `1h`, `2d` or a bare number. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise UsageError(f"not a duration: {text!r}", hint="write for example 60s, 5m or 1h")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_size(text: str) -> int:
    """Bytes, from `64MB`, `1GiB`, `512k` or a bare number; units are powers of 1024.

    Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"not a size: {text!r}", hint="write for example 64MB or 1GB")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower()]


def _parse_count(text: str) -> int:
    if not text.strip().isascii() or not text.strip().isdigit():
        raise UsageError(f"not a number: {text!r}", hint="write for example 1000000")
    return int(text)


def _parse_durability(text: str) -> str:
    if text not in ("journal", "archive"):
        raise UsageError(f"not a durability: {text!r}", hint="it is journal or archive")
    return text


def _parse_switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UsageError(f"neither true nor false: {text!r}")
    return text.lower() == "true"


@dataclass(frozen=True, slots=True)
class Known:
    """A setting that there is: `parse` reads its text, `unset` says what holds without it."""

    parse: Callable[[str], Any]
    default: str | None
    unset: str = ""


SETTINGS: Mapping[str, Known] = {
    "dsn": Known(str, None, "libpq's PG* environment, service file and defaults"),
    "archive": Known(Path, "./archive"),
    "slot": Known(str, None, "named after the database"),
    "seal_interval": Known(parse_duration, "60s"),
    "seal_size": Known(parse_size, "64MB"),
    "durability": Known(_parse_durability, "journal"),
    "max_lag": Known(parse_duration, "60s"),
    "compact_interval": Known(parse_duration, "5m"),
    "baseline_events": Known(_parse_count, "1000000"),
    "baseline_age": Known(parse_duration, "30d"),
    "sample_interval": Known(parse_duration, "50ms"),
    "witness": Known(_parse_switch, "false"),
    "witness_patience": Known(parse_duration, "2s"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it was given: its text (None: unset) and `origin`, where it came from."""

    name: str
    text: str | None
    origin: str

    @property
    def value(self) -> Any:
        """Raises UsageError for a text that is no value of the setting."""
        if self.text is None:
            return None
        try:
            return SETTINGS[self.name].parse(self.text)
        except UsageError as error:
            raise UsageError(
                f"{self.name} from {self.origin}: {error.message}", hint=error.hint
            ) from None

    def masked(self) -> str | None:
        """The text without any password in it."""
        return None if self.text is None else mask(self.text)


def mask(text: str) -> str:
    """A connection string with its password replaced by stars."""
    return _PASSWORD_WORD.sub(r"\1****", _PASSWORD_IN_URL.sub(r"\1:****@", text))


class Config:
    """All settings, each with its origin."""

    def __init__(self, settings: Mapping[str, Setting], path: Path | None) -> None:
        self.settings = settings
        self.path = path

    @classmethod
    def load(
        cls, options: Mapping[str, str | None], environment: Mapping[str, str] = os.environ
    ) -> Config:
        """Raises UsageError for a file that cannot be read or that names unknown settings."""
        path, content = _read_file(environment)
        settings = {}
        for name, known in SETTINGS.items():
            variable = f"WALY_{name.upper()}"
            if (text := options.get(name)) is not None:
                settings[name] = Setting(name, text, "option")
            elif text := environment.get(variable):
                settings[name] = Setting(name, text, f"environment {variable}")
            elif name in content:
                settings[name] = Setting(name, str(content[name]), f"file {path}")
            else:
                settings[name] = Setting(name, known.default, "default")
        return cls(settings, path)

    def __getitem__(self, name: str) -> Any:
        """The value of a setting. Raises UsageError."""
        return self.settings[name].value


def _read_file(environment: Mapping[str, str]) -> tuple[Path | None, dict[str, Any]]:
    given = environment.get(FILE_VARIABLE)
    path = Path(given or FILE)
    if not given and not path.exists():
        return None, {}
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", hint=f"{FILE_VARIABLE} names this file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    unknown = sorted(set(content) - set(SETTINGS))
    if unknown:
        raise UsageError(
            f"{path} has unknown settings: {', '.join(unknown)}",
            hint=f"there are: {', '.join(SETTINGS)}",
        )
    return path, content
