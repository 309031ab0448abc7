"""What a judge may answer: a small table of scales, each a row of marks.

A mark is one token, the side it takes and how strongly. Everything else, from the odds of tokens to a verdict, follows
from the row, so another scale is another row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tiebreak.records import InputError
from tiebreak.registry import nearest


class Mark(NamedTuple):
    """One answer: its ``token``, the slot it prefers (None: neither) and how strongly, None where none is said."""

    token: str
    side: int | None
    strength: float | None = None

    @property
    def first(self) -> float:
        """What the mark adds to P(first is better): 1, 0, or 1/2 for neither."""
        return 0.5 if self.side is None else float(self.side == 0)


class Scale(NamedTuple):
    """The answers that are offered.

    ``asks`` names the section of the prompt file that asks for them, ``adds`` one that is put behind it. Where the
    tokens do not ``name`` the slots, "2" may speak of response 2 or be the answer 2; then the answer has to stand
    alone.
    """

    name: str
    asks: str
    marks: tuple[Mark, ...]
    adds: str = ""
    names: bool = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the marks, in order."""
        return tuple(mark.token for mark in self.marks)

    @property
    def even(self) -> bool:
        """Whether one of the marks prefers neither."""
        return any(mark.side is None for mark in self.marks)

    def reversed(self) -> Scale:
        """The same answers where they name the worse response: each mark counts for the other side."""
        return self._replace(
            marks=tuple(m if m.side is None else m._replace(side=1 - m.side) for m in self.marks),
        )


BINARY = Scale("binary", "verdict", (Mark("1", 0), Mark("2", 1)))
TIES = Scale("ties", "verdict", (Mark("1", 0), Mark("2", 1), Mark("0", None)), adds="ties")
GRADED = Scale(
    "graded",
    "graded",
    (Mark("1", 0, 1.0), Mark("2", 0, 0.5), Mark("3", None, 0.0), Mark("4", 1, 0.5), Mark("5", 1, 1.0)),
    names=False,
)
"""Strength is the distance from the middle over its most: with the odds of the five it is their mean."""

SCALES: Mapping[str, Scale] = {scale.name: scale for scale in (BINARY, TIES, GRADED)}


def scale_of(name: str, ties: str) -> Scale:
    """Return the scale of the knobs ``scale`` and ``ties``; ``ties=allow`` is a short way to say ``scale=ties``.

    Raises:
        InputError: a name that is none, or two knobs that say different things.
    """
    if ties not in ("forbid", "allow"):
        raise InputError(f"judge: ties is {ties!r}; expected 'forbid' or 'allow'.")
    if name not in SCALES:
        raise InputError(f"judge: scale is {name!r}; expected {', '.join(SCALES)}.{nearest(name, SCALES)}")
    if ties == "allow" and name not in ("binary", "ties"):
        raise InputError(f"judge: scale={name} has an answer for neither of its own; leave ties out.")
    return TIES if ties == "allow" else SCALES[name]
