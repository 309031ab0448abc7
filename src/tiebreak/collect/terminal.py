"""The terminal's face of collection: two answers, blind, and a key for each verdict.

Each answer is in the ledger before the next comparison is shown, so a kill loses the one on screen and no other.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from tiebreak.collect.keyboard import END, Keyboard
from tiebreak.collect.queue import SUREST, Queue, Said, Shown
from tiebreak.records import Judgment, Verdict

WIDE = 100
"""Columns of a terminal from which two answers stand side by side."""

VERDICTS: Mapping[str, tuple[Verdict, int | None, str]] = {
    "1": ("slot", 0, "answer 1 is better"),
    "2": ("slot", 1, "answer 2 is better"),
    "t": ("tie", None, "a tie"),
    "b": ("both_bad", None, "both are bad"),
    "s": ("skip", None, "skipped"),
}
"""Keys that answer a comparison: the verdict, the slot that won, and how it is said."""

KEYS = """\
1 first   2 second   t tie   b both bad   s skip
u undo    c confidence   n note   q save and quit"""


@dataclass
class _Draft:
    """What was said of the comparison on screen before its verdict; ``back`` counts steps back from the end."""

    confidence: int | None = None
    note: str = ""
    back: int = 0
    began: float = field(default_factory=time.monotonic)


def collect(
    queue: Queue,
    by: str,
    *,
    question: str,
    keyboard: Keyboard,
    console: Console,
    after: Callable[[Judgment], None] | None = None,
) -> int:
    """Ask ``by`` about every comparison that is open for them, until none is left or they quit; returns the answers.

    Args:
        queue: what to ask.
        by: who answers, see :func:`tiebreak.collect.queue.person`.
        question: what they are asked of each two answers.
        keyboard: where their keys come from.
        console: where they read.
        after: called with each judgment once it is in the ledger.
    """
    given, draft, spent = 0, _Draft(), 0.0
    shown = queue.next(by)
    while shown is not None:
        pace = spent / given if given else None
        _show(console, queue, by, shown, question, draft, pace, clear=keyboard.live)
        key = keyboard.key()
        if key in ("q", END):
            break
        if key in VERDICTS:
            verdict, winner, told = VERDICTS[key]
            took = time.monotonic() - draft.began
            judgment = queue.answer(by, shown, Said(verdict, winner, draft.confidence, draft.note, round(took, 2)))
            console.print(Text(f"  {told}", style="green"))
            given, spent, draft = given + 1, spent + took, _Draft()
            if after is not None:
                after(judgment)
            shown = queue.next(by)
        else:
            shown, draft = _otherwise(key, queue, by, shown, draft, keyboard, console)
    left = queue.progress(by).left
    said = f"{given} answered now" + (f", {left} left; the same command goes on." if left else ", none left for you.")
    console.print(Text(f"\n{said}"))
    return given


def _otherwise(
    key: str, queue: Queue, by: str, shown: Shown, draft: _Draft, keyboard: Keyboard, console: Console
) -> tuple[Shown, _Draft]:
    """Carry out a key that is no verdict; return the comparison to show and what is said of it so far."""
    if key == "u":
        before = queue.back(by, draft.back + 1)
        if before is None:
            console.print(Text("  There is no earlier answer of yours.", style="yellow"))
            return shown, draft
        return before, _again(before, draft.back + 1)
    if key == "c":
        console.print(Text(f"  How sure are you, from 1 (a guess) to {SUREST} (certain)? "), end="")
        sure = keyboard.key()
        console.print()
        if sure.isdecimal() and 1 <= int(sure) <= SUREST:
            draft.confidence = int(sure)
        else:
            console.print(Text(f"  {_clean(sure)!r} is not on the scale; confidence is as it was.", style="yellow"))
    elif key == "n":
        console.print(Text("  Note: "), end="")
        draft.note = keyboard.line().strip()
        console.print()
    elif key.isspace():
        return (queue.next(by) or shown, _Draft()) if draft.back else (shown, draft)
    else:
        console.print(Text(f"  {_clean(key)!r} is not a key here.", style="yellow"))
    return shown, draft


def _again(shown: Shown, back: int) -> _Draft:
    """Begin with what was said of an answered comparison, so that changing one thing does not lose the other."""
    earlier = shown.earlier
    assert earlier is not None
    return _Draft(confidence=earlier.fields.get("confidence"), note=earlier.rationale, back=back)


def _show(
    console: Console, queue: Queue, by: str, shown: Shown, question: str, draft: _Draft, pace: float | None, clear: bool
) -> None:
    done, left, _ = queue.progress(by)
    if clear:
        console.clear()
    minutes = "" if pace is None else f", about {_duration(pace * left)} left"
    place = f"{by.removeprefix('human:')}: {done} of {done + left} answered{minutes}"
    console.print(Rule(Text(place), align="left"))
    console.print(_bar(done, done + left, min(60, console.width)))
    console.print(Panel(Text(_clean(shown.prompt.plain)), title="prompt", title_align="left"))
    console.print(_answers(shown, console.width))
    console.print(Text(_clean(question), style="bold"))
    if shown.earlier is not None:
        before = f"  You said before: {_told(shown.earlier)}. A verdict takes its place, Enter keeps it."
        console.print(Text(before, style="yellow"))
    if draft.confidence is not None or draft.note:
        sure = "" if draft.confidence is None else f"confidence {draft.confidence} of {SUREST}  "
        console.print(Text(f"  {sure}{f'note: {_clean(draft.note)}' if draft.note else ''}", style="cyan"))
    console.print(Text(KEYS, style="dim"))


def _bar(done: int, total: int, width: int) -> Text:
    full = round(width * done / max(1, total))
    return Text("━" * full, style="green").append("━" * (width - full), style="dim")


def _answers(shown: Shown, width: int) -> RenderableType:
    wide = width >= WIDE
    panels = [
        Panel(
            Text(_clean(slot.text.strip("\n"))),
            title=str(number),
            title_align="left",
            width=width // 2 if wide else None,
        )
        for number, slot in enumerate(shown.slots, 1)
    ]
    return Columns(panels, padding=0) if wide else Group(*panels)


def _told(judgment: Judgment) -> str:
    said = {(verdict, winner): told for verdict, winner, told in VERDICTS.values()}
    return said[judgment.verdict, judgment.winner]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _clean(text: str) -> str:
    """Return a text whose control characters are shown and not obeyed: what a model wrote must not steer a terminal.

    Joiners stay, which emoji and some scripts are written with.
    """
    return "".join(c if _harmless(c) else f"\\x{ord(c):02x}" for c in text)


def _harmless(character: str) -> bool:
    return character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf")
