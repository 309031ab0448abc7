"""How a run looks: a live line on a terminal, tidy log lines elsewhere. Both go to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
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
        f"{value:,} {name}" if isinstance(value, int) else f"{name} {value:g}"
        for name, value in manifest["counts"].items()
    ]
    parts += [f"dropped {count:,} ({reason})" for reason, count in manifest["dropped"].items() if count]
    return ", ".join(parts)


class Log:
    """Lines for a file or a pipe."""

    def __init__(self) -> None:
        self._spoke = 0.0
        self._began = 0.0

    def begin(self, stage: str) -> Callback:
        """Say that a stage begins; progress follows at most every quarter of a minute."""
        self._say(f"{stage} ...")
        self._spoke = self._began = time.monotonic()

        def progress(done: int, total: int, shown: Mapping[str, float]) -> None:
            now = time.monotonic()
            if now - self._spoke >= QUIET_SECONDS and done:
                self._spoke = now
                rate = done / (now - self._began)
                left = (total - done) / rate
                self._say(f"{stage} {done:,}/{total:,}  {rate:.1f}/s  {left:.0f} s left  {shown_numbers(shown)}")

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
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[numbers]}"),
            console=self._console,
            transient=True,
        )
        task = bar.add_task(stage, total=1, numbers="", rate="")
        bar.start()
        self._bar = bar
        began = time.monotonic()

        def progress(done: int, total: int, shown: Mapping[str, float]) -> None:
            rate = f"{done / max(time.monotonic() - began, 1e-9):,.1f}/s"
            bar.update(task, completed=done, total=total, numbers=shown_numbers(shown), rate=rate)

        return progress

    def end(self, stage: str, manifest: Mapping[str, Any], skipped: bool) -> None:
        """Take the bar away and write the stage's line."""
        self.close()
        mark = "[dim]unchanged[/]" if skipped else f"[green]{manifest['seconds']:6.1f} s[/]"
        self._console.print(f"  {mark:>9}  [bold]{stage}[/]  [dim]{counted(manifest)}[/]")

    def close(self) -> None:
        """Stop a bar that is still drawn."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def display() -> Log | Live:
    """Return the live display on a terminal, the log elsewhere."""
    return Live() if sys.stderr.isatty() else Log()
