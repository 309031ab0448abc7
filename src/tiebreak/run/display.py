"""How a run looks: a live line on a terminal, tidy log lines elsewhere. Both go to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tiebreak.records import Progress as Callback

QUIET_SECONDS = 15.0
"""Between two progress lines of one stage in a log."""


def shown_numbers(shown: Mapping[str, float]) -> str:
    """Write the few numbers of a progress callback, short."""
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())


def counted(manifest: Mapping[str, Any]) -> str:
    """Write a manifest's counts and what was dropped in one line."""
    parts = [
        f"{value:,} {_named(name, value)}" if isinstance(value, int) else f"{name} {value:g}"
        for name, value in manifest["counts"].items()
    ]
    parts += [f"dropped {count:,} ({reason})" for reason, count in manifest["dropped"].items() if count]
    return ", ".join(parts)


def _named(name: str, value: int) -> str:
    """Write what was counted: one thing in the singular, and ``answers: ties kept`` as ties kept in answers."""
    where, _, what = name.rpartition(": ")
    first, *rest = what.split(" ")
    if value == 1 and first.endswith("s") and not first.endswith("ss"):
        first = first[:-1]
    return " ".join([first, *rest, *(["in", where] if where else [])])


class Rate:
    """How fast something goes, counted from where it was first seen: a resumed stage does not begin at zero."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def of(self, done: int) -> float:
        """Return things done per second so far, 0 before a second look."""
        now = time.monotonic()
        began, base = self._first = self._first or (now, done)
        return (done - base) / (now - began) if now > began else 0.0


def place(done: int, total: int) -> str:
    """Write how far something is; a total of 0 is not known."""
    return f"{done:,}/{total:,}" if total else f"{done:,}"


class Log:
    """Lines for a file or a pipe."""

    def begin(self, stage: str) -> Callback:
        """Say that a stage begins; progress follows at most every quarter of a minute."""
        self._say(f"{stage} ...")
        spoke, pace = time.monotonic(), Rate()

        def progress(done: int, total: int, shown: Mapping[str, float]) -> None:
            nonlocal spoke
            rate, now = pace.of(done), time.monotonic()
            if now - spoke >= QUIET_SECONDS and rate:
                spoke = now
                left = f"{(total - done) / rate:.0f} s left  " if total else ""
                self._say(f"{stage} {place(done, total)}  {rate:.1f}/s  {left}{shown_numbers(shown)}")

        return progress

    def end(self, stage: str, manifest: Mapping[str, Any], skipped: bool) -> None:
        """Say what a stage did."""
        took = "unchanged, skipped" if skipped else f"done in {manifest['seconds']:.1f} s"
        self._say(f"{stage} {took}: {counted(manifest)}")
        if not skipped:
            for note in manifest["notes"]:
                self._say(f"{stage} note: {note}")

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201


class Live:
    """A bar with rate, loss and time left on a terminal; finished stages stay above it as one line each."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    def begin(self, stage: str) -> Callback:
        """Start the stage's bar."""
        bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[place]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[numbers]}"),
            console=self._console,
            transient=True,
        )
        task = bar.add_task(stage, total=None, place="", numbers="", rate="")
        bar.start()
        self._bar = bar
        pace = Rate()

        def progress(done: int, total: int, shown: Mapping[str, float]) -> None:
            fields: dict[str, Any] = {
                "place": place(done, total),
                "rate": f"{pace.of(done):,.1f}/s",
                "numbers": shown_numbers(shown),
            }
            bar.update(task, completed=done, total=total or None, **fields)

        return progress

    def end(self, stage: str, manifest: Mapping[str, Any], skipped: bool) -> None:
        """Take the bar away and write the stage's line."""
        self.close()
        mark = "[dim]unchanged[/]" if skipped else f"[green]{manifest['seconds']:7.1f} s[/]"
        self._console.print(f"  {mark}  [bold]{stage}[/]  [dim]{escape(counted(manifest))}[/]")
        for note in manifest["notes"] if not skipped else ():
            self._console.print(f"             [dim]{escape(note)}[/]")

    def close(self) -> None:
        """Stop a bar that is still drawn."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def display() -> Log | Live:
    """Return the live display on a terminal, the log elsewhere."""
    return Live() if sys.stderr.isatty() else Log()
