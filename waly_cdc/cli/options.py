"""Options that every command has, before or after the verb, and types of arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import click

from waly_cdc.cli.output import Output
from waly_cdc.config import Config

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class State:
    """What the global options said so far, wherever they stood."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    options: dict[str, str | None] = field(default_factory=dict)

    def add(self, options: dict[str, Any]) -> None:
        self.json = self.json or options.pop("as_json")
        self.quiet = self.quiet or options.pop("quiet")
        self.verbose = self.verbose or options.pop("verbose")
        self.options.update({name: text for name, text in options.items() if text is not None})

    def set(self, **options: str | None) -> None:
        """A command's own options that are settings too."""
        self.options.update({name: text for name, text in options.items() if text is not None})

    @property
    def output(self) -> Output:
        return Output(json=self.json, quiet=self.quiet, verbose=self.verbose)

    @functools.cached_property
    def config(self) -> Config:
        return Config.load(self.options)


_GLOBAL = (
    click.option("--dsn", metavar="DSN", help="The source database: any libpq conninfo or URL."),
    click.option("--archive", metavar="PATH", help="The archive's folder (default ./archive)."),
    click.option("--json", "as_json", is_flag=True, help="Machine-readable answers and errors."),
    click.option("--quiet", is_flag=True, help="No progress and no notes."),
    click.option("--verbose", is_flag=True, help="More detail; tracebacks of unexpected errors."),
)


def global_options(function: Callable[P, R]) -> Callable[..., R]:
    """Give a command the global options, and take them out of its arguments again."""

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> R:
        state = click.get_current_context().find_object(State)
        assert state is not None
        names = ("dsn", "archive", "as_json", "quiet", "verbose")
        state.add({name: options.pop(name) for name in names})
        return function(*args, **options)

    for option in reversed(_GLOBAL):
        wrapper = option(wrapper)
    return wrapper


pass_state = click.make_pass_decorator(State)
