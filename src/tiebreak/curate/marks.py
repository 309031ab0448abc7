"""The ratings of answers: read off judgments, averaged, and made into one number an answer.

What was not rated, or does not apply, is None and stays out of every mean: it is never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum

from tiebreak.curate.knobs import Lacking, is_number
from tiebreak.records import InputError, Judgment
from tiebreak.registry import nearest

EXACT = 12
"""Digits behind the point that a mean keeps, so that equal means are equal whatever their terms are."""

TELLING = ("slot", "tie")
"""Verdicts whose ratings may order answers: both-bad prefers nothing, and the others were not readable."""

WAYS = ("mean", "fine_grained")
"""Ways to one number from all ratings."""

Rated = Mapping[str, Mapping[str, float | None]]
"""By answer and aspect, a rating."""

Of = str | Mapping[str, float]
"""One number from several aspects: ``mean``, ``fine_grained``, the name of an aspect, or a weight for each of some."""


def ratings_of(judgment: Judgment) -> dict[str, dict[str, float | None]]:
    """Return by answer what it was rated, by aspect.

    Raises:
        InputError: a rating that is not one number or None for each answer.
    """
    found: dict[str, dict[str, float | None]] = {slot: {} for slot in judgment.slots}
    for aspect, said in judgment.ratings.items():
        values = said if isinstance(said, list | tuple) else [said]
        if len(values) != len(judgment.slots) or not all(value is None or is_number(value) for value in values):
            raise InputError(
                f"The judgment {judgment.id} has the ratings {aspect} = {said!r}; expected a number or null for each "
                f"of its {len(judgment.slots)} answers."
            )
        for slot, value in zip(judgment.slots, values, strict=True):
            found[slot][aspect] = None if value is None else float(value)
    return found


def rated(judgments: Iterable[Judgment]) -> dict[str, dict[str, float | None]]:
    """Return by answer and aspect the mean over the judgments that rated it, None where none did."""
    said: dict[str, dict[str, list[float]]] = {}
    for judgment in judgments:
        for answer, marks in ratings_of(judgment).items():
            of_one = said.setdefault(answer, {})
            for aspect, value in marks.items():
                of_one.setdefault(aspect, []).extend([] if value is None else [value])
    return {
        answer: {aspect: mean(values) if values else None for aspect, values in sorted(marks.items())}
        for answer, marks in sorted(said.items())
    }


def aspects_of(judgments: Iterable[Judgment]) -> list[str]:
    """Return the aspects that any judgment rates, by name."""
    return sorted({str(aspect) for judgment in judgments for aspect in judgment.ratings})


def check_of(of: object, judgments: Sequence[Judgment], step: str, knob: str, *, also: Sequence[str] = ()) -> None:
    """Refuse a way to one number that these judgments cannot go; ``also`` are words that the step takes besides.

    Raises:
        InputError: no ratings at all, an aspect that nothing rates, or a weight that is no number.
    """
    if not isinstance(of, str | Mapping):
        raise InputError(f"{step} has {knob} = {of!r}; expected a word, or weights such as {{helpfulness: 1.0}}.")
    if isinstance(of, Mapping) and not (of and all(map(is_number, of.values())) and any(of.values())):
        raise InputError(f"{step} has {knob} = {dict(of)!r}; expected a number for each aspect, not all of them 0.")
    known = aspects_of(judgments)
    if not known:
        near = nearest(of, [*also, *WAYS]) if isinstance(of, str) and of not in WAYS else ""
        raise Lacking(
            f"{step} has {knob} = {of!r}, which reads ratings, and no judgment has any; judge with aspects or score "
            f"first.{near}"
        )
    named = list(of) if isinstance(of, Mapping) else [of]
    ways = [] if isinstance(of, Mapping) else [*also, *WAYS]
    for name in named:
        if name not in (*ways, *known):
            words = [*ways, *known]
            raise Lacking(
                f"{step} has {knob} = {of!r}; expected {', '.join(words)}, or weights such as {{{known[0]}: 1.0}}."
                f"{nearest(str(name), words)}"
            )


def overall(rated: Rated, of: Of) -> dict[str, float] | None:
    """Return one number for each answer of ``rated``, None where the ratings do not give one for all of them.

    ``mean`` is over the aspects that all of them are rated on, so that no answer gains by what does not apply to it,
    and ``fine_grained`` over those that each is rated on (Cui et al. 2023, arXiv 2310.01377). Weights make a weighted
    sum over the aspects that all are rated on (HelpSteer2, Wang et al. 2024, arXiv 2406.08673); they may be negative.
    """
    known = {answer: {a: value for a, value in marks.items() if value is not None} for answer, marks in rated.items()}
    if not known:
        return None
    if of == "fine_grained":
        return {answer: mean(marks.values()) for answer, marks in known.items()} if all(known.values()) else None
    shared = set.intersection(*(set(marks) for marks in known.values()))
    if isinstance(of, Mapping):
        weights = {aspect: weight for aspect, weight in of.items() if aspect in shared}
        if not any(weights.values()):
            return None
        return {
            answer: round(fsum(weight * marks[aspect] for aspect, weight in weights.items()), EXACT)
            for answer, marks in known.items()
        }
    wanted = shared if of == "mean" else shared & {of}
    if not wanted:
        return None
    return {answer: mean([marks[aspect] for aspect in wanted]) for answer, marks in known.items()}


def mean(values: Iterable[float]) -> float:
    """Return the mean of one value or more, which does not depend on their order."""
    listed = list(values)
    return round(fsum(listed) / len(listed), EXACT)
