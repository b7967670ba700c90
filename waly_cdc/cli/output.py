"""Output: answers on stdout, everything else on stderr; JSON or text for people."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from waly_cdc.sizes import size_text

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 200
"""Columns of text that goes to a file or a pipe."""


class Output:
    """Where a command's results go. `json` decides between the two forms."""

    def __init__(self, *, json: bool, quiet: bool, verbose: bool) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self._console: Console | None = None

    def result(self, answer: Mapping[str, Any], render: Callable[[Console], None]) -> None:
        """The one object that a command answers with, or its form for people."""
        if self.json:
            self._print_json(answer)
        else:
            render(self.console)

    def lines(
        self,
        answers: Iterable[Mapping[str, Any]],
        render: Callable[[Console, Mapping[str, Any]], None],
    ) -> int:
        """A list as JSON Lines, or each in its form for people, as they come. How many."""
        count = 0
        for answer in answers:
            count += 1
            if self.json:
                self._print_json(answer)
            else:
                render(self.console, answer)
        return count

    def text(self, text: str) -> None:
        """Text that is the answer itself: SQL, a script."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def note(self, text: str) -> None:
        """Something worth knowing beside the answer, on stderr; not with `json`."""
        if not self.quiet and not self.json:
            sys.stderr.write(text + "\n")

    def error(self, message: str, hint: str | None, code: int) -> None:
        """An error and its remedy, on stderr."""
        if self.json:
            shown = {"type": "error", "code": code, "message": message, "hint": hint}
            print(json.dumps(shown, ensure_ascii=False), file=sys.stderr)
            return
        bold, red, plain = ("\x1b[1m", "\x1b[31m", "\x1b[0m") if _colours() else ("", "", "")
        print(f"{bold}{red}error:{plain} {message}", file=sys.stderr)
        if hint:
            print(f"{bold}hint:{plain} {hint}", file=sys.stderr)

    def traceback(self) -> None:
        if self.verbose:
            traceback.print_exc()

    @contextmanager
    def progress(self, label: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
        """Show how far long work is: the caller tells (done, total). A bar with the time left on a
        terminal, a line every ten seconds elsewhere, nothing with `--quiet`."""
        if self.quiet or self.json:
            yield lambda *_: None
        elif sys.stderr.isatty():
            with _bar(label, unit) as advance:
                yield advance
        else:
            yield _Lines(label, unit, self.note)

    @property
    def console(self) -> Console:
        """stdout for people."""
        if self._console is None:
            from rich.console import Console

            width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
            self._console = Console(highlight=False, width=width, soft_wrap=True)
        return self._console

    def _print_json(self, answer: Mapping[str, Any]) -> None:
        from waly_cdc.history.jsonb import dumps

        sys.stdout.write(dumps(answer) + "\n")


class _Lines:
    """Progress as plain lines."""

    def __init__(self, label: str, unit: str, note: Callable[[str], None]) -> None:
        self._label = label
        self._unit = unit
        self._note = note
        self._last = time.monotonic()

    def __call__(self, done: int, total: int | None = None) -> None:
        now = time.monotonic()
        if now - self._last >= 10:
            self._last = now
            share = f" of {amount(total, self._unit)}" if total else ""
            self._note(f"{self._label}: {amount(done, self._unit)}{share}")


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(label, total=None, shown="")

        def advance(done: int, total: int | None = None) -> None:
            progress.update(task, completed=done, total=total, shown=amount(done, unit))

        yield advance


def count(number: int, singular: str) -> str:
    """A number of things, as in `1 table` and `2 tables`."""
    return f"{number:,} {singular}" if number == 1 else f"{number:,} {singular}s"


def amount(number: int, unit: str) -> str:
    """A number for people: bytes in binary units, else with thousands separated."""
    return size_text(number) if unit == "bytes" else f"{number:,} {unit}"


def table(
    console: Console,
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    right: Sequence[int] = (),
) -> None:
    """A plain table; the columns numbered in `right` are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        justify = "right" if number in right else "left"
        shown.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        shown.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console.print(shown)


def _colours() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
