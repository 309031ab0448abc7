"""What a prompt file for rating aspects declares: aspects, their scales and levels, and how an overall comes of them.

A file is checked whole when it is read, so that a slip in it is a sentence at the start and not a rating lost later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tiebreak.judge.rubric import places
from tiebreak.records import InputError
from tiebreak.registry import nearest

PLACES = ("prompt", "first", "second", "aspects")
SECTIONS = ("scheme", "question", "reference", "overall", "veto")
WIDEST = 100
"""A scale ends here at most; a model does not tell more levels apart."""

_HEADING = re.compile(r"^\[([a-z0-9_ ]+)\][ \t]*\r?\n", re.MULTILINE)
_SCALE = re.compile(r"([0-9]+)\s*-\s*([0-9]+)(\s+or\s+n/a)?")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LEVEL = re.compile(r"^([0-9]+):[ \t]*(.+)$")


class Aspect(NamedTuple):
    """One thing that is rated on its own: from ``low`` to ``high``, or not at all where it may be ``optional``."""

    name: str
    low: int
    high: int
    optional: bool
    meaning: str
    levels: Mapping[int, str]

    @property
    def scale(self) -> str:
        """The scale in words, as the judge reads it."""
        return f"{self.low} to {self.high}" + ", or n/a" * self.optional

    @property
    def shown(self) -> str:
        """What the judge is told about the aspect."""
        return "\n".join(
            [f"{self.name} ({self.scale}): {self.meaning}", *(f"{n}: {t}" for n, t in self.levels.items())]
        )


class Scheme(NamedTuple):
    """What a prompt file says.

    ``weights`` and ``vetoes`` go by aspect: an answer rated below its veto's bound loses whatever the rest says.
    ``reference`` is shown behind the question to a prompt that has a known good answer.
    """

    aspects: tuple[Aspect, ...]
    question: str
    reference: str
    rule: str
    weights: Mapping[str, float]
    vetoes: Mapping[str, float]


def parse_scheme(text: str, *, where: str) -> Scheme:
    """Read a prompt file; ``where`` names it in messages.

    Raises:
        InputError: a section, line, place, scale or level that is missing, unknown or does not fit, in one sentence.
    """
    sections = _sections(text, where)
    scales = dict(_pairs(sections["scheme"], "scheme", where))
    if not scales:
        raise InputError(f"The rubric {where} has no aspects; write them into [scheme], one a line like honesty: 1-5.")
    told = {name.removeprefix("aspect "): body for name, body in sections.items() if name.startswith("aspect ")}
    for name in told:
        _known(name, scales, "aspect " + name, where)
    aspects = tuple(_aspect(name, scale, told.get(name, ""), where) for name, scale in scales.items())
    _check_places(sections["question"], sections["reference"], where)
    overall = dict(_pairs(sections["overall"], "overall", where))
    rule = overall.pop("rule", "")
    if not rule:
        raise InputError(f"The rubric {where} names no rule; write a line like rule: mean into [overall].")
    weights = {name: _number(name, value, scales, "overall", where) for name, value in overall.items()}
    vetoes = {
        name: _number(name, value, scales, "veto", where) for name, value in _pairs(sections["veto"], "veto", where)
    }
    for aspect in aspects:
        _check_veto(aspect, vetoes, where)
    return Scheme(aspects, sections["question"], sections["reference"], rule, weights, vetoes)


def _sections(text: str, where: str) -> dict[str, str]:
    before, *parts = _HEADING.split(text)
    if before.strip():
        raise InputError(
            f"The rubric {where} begins with text of no section; begin it with a line [scheme] or [question]."
        )
    sections: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name not in SECTIONS and not name.startswith("aspect "):
            raise InputError(
                f"The rubric {where} has a section [{name}]; expected {', '.join(f'[{s}]' for s in SECTIONS)} or "
                f"[aspect NAME].{nearest(name, SECTIONS)}"
            )
        if name in sections:
            raise InputError(f"The rubric {where} has the section [{name}] twice; keep one.")
        sections[name] = body.strip()
    return dict.fromkeys(SECTIONS, "") | sections


def _pairs(body: str, section: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield the lines ``name: value`` of a section."""
    seen: set[str] = set()
    for line in filter(None, map(str.strip, body.splitlines())):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not (colon and value and _NAME.fullmatch(name)):
            raise InputError(
                f"The rubric {where} has the line {line!r} in [{section}]; expected name: value, the name in small "
                "letters, digits and _."
            )
        if name in seen:
            raise InputError(f"The rubric {where} has {name!r} twice in [{section}]; keep one.")
        seen.add(name)
        yield name, value


def _aspect(name: str, scale: str, body: str, where: str) -> Aspect:
    found = _SCALE.fullmatch(scale)
    low, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if found is None or not low < high <= WIDEST or name == "rule":
        raise InputError(
            f"The rubric {where} rates {name} on {scale!r}; expected low-high in whole numbers up to {WIDEST}, like "
            "1-5, with 'or n/a' behind it where the aspect may not apply."
        )
    meaning: list[str] = []
    levels: dict[int, str] = {}
    for line in filter(None, map(str.strip, body.splitlines())):
        level = _LEVEL.match(line)
        if level is None and levels:
            raise InputError(
                f"The rubric {where} has the line {line!r} among the levels of [aspect {name}]; expected {low}: text."
            )
        if level is None:
            meaning.append(line)
        elif not low <= int(level[1]) <= high or int(level[1]) in levels:
            raise InputError(
                f"The rubric {where} has the level {level[1]} in [aspect {name}] twice or off its scale {scale}; tell "
                f"each level from {low} to {high} once."
            )
        else:
            levels[int(level[1])] = level[2]
    if not meaning or not {low, high} <= set(levels):
        raise InputError(
            f"The rubric {where} does not tell what {name} is; write [aspect {name}] with a sentence and a line for "
            f"each level, at least {low}: and {high}:."
        )
    return Aspect(name, low, high, bool(found[3]), " ".join(meaning), dict(sorted(levels.items())))


def _check_places(question: str, reference: str, where: str) -> None:
    found = places(question)
    if unknown := [place for place in found if place not in PLACES]:
        raise InputError(
            f"The rubric {where} has a place {{{{{unknown[0]}}}}} in [question]; expected "
            f"{', '.join(f'{{{{{place}}}}}' for place in PLACES)}.{nearest(unknown[0], PLACES)}"
        )
    if missing := [place for place in PLACES if place not in found]:
        raise InputError(f"The rubric {where} never shows {{{{{missing[0]}}}}}; put it into [question].")
    if reference and set(places(reference)) != {"reference"}:
        raise InputError(f"The rubric {where} needs the place {{{{reference}}}} in [reference], and no other.")


def _known(name: str, scales: Mapping[str, str], section: str, where: str) -> None:
    if name not in scales:
        raise InputError(
            f"The rubric {where} has {name!r} in [{section}], but [scheme] has {', '.join(scales)}."
            f"{nearest(name, scales)}"
        )


def _number(name: str, value: str, scales: Mapping[str, str], section: str, where: str) -> float:
    _known(name, scales, section, where)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"The rubric {where} has {value!r} for {name} in [{section}]; expected a number.")
    return number


def _check_veto(aspect: Aspect, vetoes: Mapping[str, float], where: str) -> None:
    bound = vetoes.get(aspect.name)
    if bound is None:
        return
    if aspect.optional:
        raise InputError(f"The rubric {where} lets {aspect.name} veto and be n/a; take one of the two away.")
    if not aspect.low < bound <= aspect.high:
        raise InputError(
            f"The rubric {where} has the veto {aspect.name}: {bound:g}, which a rating from {aspect.scale} "
            f"{'always' if bound > aspect.high else 'never'} fails; expected a bound above {aspect.low} and at most "
            f"{aspect.high}."
        )
