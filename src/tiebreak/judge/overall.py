"""From the ratings of two answers to one overall each, by a rule that is stated, and to a verdict.

A rule sees only what was read: an aspect lost on either side is not there, one that does not apply is None. Sums do not
depend on the order of the aspects.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from math import fsum
from typing import NamedTuple

from tiebreak.judge.scheme import Scheme
from tiebreak.records import InputError, Verdict
from tiebreak.registry import Row, Table

Ratings = Mapping[str, tuple[float | None, float | None]]
"""By aspect, the rating of the first answer and of the second; None where the aspect does not apply."""

EXACT = 12
"""Digits behind the point that an overall keeps, so that equal means are equal whatever their terms are."""


class Overall(NamedTuple):
    """The overall of each answer, and ``span``, the most that two overalls can differ by."""

    values: tuple[float, float]
    span: float


Rule = Callable[[Scheme, Ratings, float], Overall | None]
"""``rule(scheme, ratings, margin)``; None where these ratings decide nothing, an InputError where no ratings could."""

RULES = Table(
    "overall",
    "overall rule",
    [
        Row(
            name="mean",
            does="mean over the aspects that both answers are rated on",
            target="tiebreak.judge.overall:mean",
        ),
        Row(
            name="fine_grained",
            does="UltraFeedback's fine-grained score: each answer's mean over the aspects that apply to it",
            target="tiebreak.judge.overall:fine_grained",
            paper="https://arxiv.org/abs/2310.01377",
        ),
        Row(
            name="weighted_mean",
            does="weighted sum over the aspects that both are rated on, divided by the weights' absolute values",
            target="tiebreak.judge.overall:weighted_mean",
        ),
        Row(
            name="weighted_sum",
            does="weighted sum, as HelpSteer2 makes one reward of its five attributes",
            target="tiebreak.judge.overall:weighted_sum",
            paper="https://arxiv.org/abs/2406.08673",
        ),
        Row(
            name="lexicographic",
            does="the first aspect of the scheme on which the answers differ decides alone",
            target="tiebreak.judge.overall:lexicographic",
        ),
    ],
)


def source_of(name: str, rule: Rule) -> str:
    """Return the text of a rule of your own where Python can find it: with an edited rule the judge is another one."""
    try:
        return inspect.getsource(rule) if ":" in name else ""
    except (OSError, TypeError):
        return ""


class Decision(NamedTuple):
    """A verdict on two answers; ``why`` is said of an ``invalid`` one."""

    verdict: Verdict
    winner: int | None = None
    strength: float | None = None
    overall: tuple[float, float] | None = None
    vetoed: tuple[bool, bool] = (False, False)
    why: str = ""


def rule_of(name: str, scheme: Scheme, *, where: str) -> Rule:
    """Return the rule called ``name``, a row or your own ``module:function``, once it has taken the scheme's ratings.

    Raises:
        InputError: an unknown rule, or one that cannot make an overall of this scheme.
    """
    rule: Rule = RULES[name].load()
    try:
        rule(scheme, {aspect.name: (aspect.low, aspect.high) for aspect in scheme.aspects}, 0.0)
    except InputError as error:
        raise InputError(f"The rubric {where} does not fit the overall rule {name!r}: {error}") from error
    return rule


def decide(
    scheme: Scheme,
    rule: Rule,
    ratings: Ratings,
    *,
    lost: Collection[str] = (),
    margin: float = 0.0,
    most_missing: int = 1,
) -> Decision:
    """Say which answer is better.

    An answer below the bound of a veto loses with strength 1 whatever the rest says; two such answers are both bad.
    Else the higher overall wins, with strength |difference| / span, and less than ``margin`` or nothing is a tie.

    Args:
        scheme: the aspects and their vetoes.
        rule: makes the overall.
        ratings: of every aspect that was read for both answers.
        lost: aspects that were not; more than ``most_missing`` of them, or one that could veto, is ``invalid``.
        margin: in units of the overall.
        most_missing: aspects that may be lost.
    """
    if len(lost) > most_missing:
        return Decision("invalid", why=f"no rating of {', '.join(sorted(lost))}")
    if unknown := [name for name in scheme.vetoes if name in lost]:
        return Decision("invalid", why=f"no rating of {unknown[0]}, which can veto")
    vetoed = _vetoed(scheme, ratings, 0), _vetoed(scheme, ratings, 1)
    found = rule(scheme, ratings, margin)
    values = None if found is None else (round(found.values[0], EXACT), round(found.values[1], EXACT))
    if all(vetoed):
        return Decision("both_bad", overall=values, vetoed=vetoed)
    if any(vetoed):
        return Decision("slot", vetoed.index(False), 1.0, values, vetoed)
    if found is None or values is None:
        return Decision("invalid", why="the ratings that were read do not decide")
    gap = round(found.values[0] - found.values[1], EXACT)
    strength = min(1.0, abs(gap) / found.span)
    if not _differ(gap, margin):
        return Decision("tie", None, strength, values)
    return Decision("slot", int(gap < 0), strength, values)


def mean(scheme: Scheme, ratings: Ratings, margin: float) -> Overall | None:
    """Return the means over the aspects that both answers are rated on: neither gains by what does not apply to it."""
    span = _one_scale(scheme)
    both = _both(ratings)
    if not both:
        return None
    first, second = (fsum(pair[side] for pair in both.values()) / len(both) for side in (0, 1))
    return Overall((first, second), span)


def fine_grained(scheme: Scheme, ratings: Ratings, margin: float) -> Overall | None:
    """Return each answer's mean over the aspects that apply to it, UltraFeedback's ``fine-grained_score``."""
    span = _one_scale(scheme)
    rated = [[value for pair in ratings.values() if (value := pair[side]) is not None] for side in (0, 1)]
    if not all(rated):
        return None
    first, second = (fsum(values) / len(values) for values in rated)
    return Overall((first, second), span)


def weighted_sum(scheme: Scheme, ratings: Ratings, margin: float) -> Overall | None:
    """Return the sums of weight x rating over the aspects that both answers are rated on."""
    weights = _weights(scheme)
    both = _both(ratings)
    span = fsum(abs(weights[a.name]) * (a.high - a.low) for a in scheme.aspects if a.name in both)
    if not span:
        return None
    first, second = (fsum(weights[name] * pair[side] for name, pair in both.items()) for side in (0, 1))
    return Overall((first, second), span)


def weighted_mean(scheme: Scheme, ratings: Ratings, margin: float) -> Overall | None:
    """Return the weighted sums divided by the absolute weights of the aspects that entered them."""
    found = weighted_sum(scheme, ratings, margin)
    if found is None:
        return None
    total = fsum(abs(scheme.weights[name]) for name in _both(ratings))
    return Overall((found.values[0] / total, found.values[1] / total), found.span / total)


def lexicographic(scheme: Scheme, ratings: Ratings, margin: float) -> Overall | None:
    """Return the ratings on the first aspect that tells the answers apart, by ``margin`` if there is one.

    One that does not apply to an answer is passed over. Nothing is decided behind an aspect that was lost, for it might
    have decided.
    """
    last: Overall | None = None
    for aspect in scheme.aspects:
        if aspect.name not in ratings:
            return None
        first, second = ratings[aspect.name]
        if first is None or second is None:
            continue
        last = Overall((first, second), aspect.high - aspect.low)
        if _differ(round(first - second, EXACT), margin):
            return last
    return last


def _differ(gap: float, margin: float) -> bool:
    return gap != 0.0 and abs(gap) >= round(margin, EXACT)


def _vetoed(scheme: Scheme, ratings: Ratings, side: int) -> bool:
    rated = ((ratings[name][side], bound) for name, bound in scheme.vetoes.items())
    return any(rating is not None and rating < bound for rating, bound in rated)


def _both(ratings: Ratings) -> dict[str, tuple[float, float]]:
    return {
        name: (first, second) for name, (first, second) in ratings.items() if first is not None and second is not None
    }


def _one_scale(scheme: Scheme) -> float:
    """Return the width of the scale that all aspects share: on a wider one an aspect would count for more, unsaid."""
    scales = {(aspect.low, aspect.high) for aspect in scheme.aspects}
    if len(scales) > 1:
        raise InputError("its aspects have different scales; give them one, or take weighted_mean with weights.")
    low, high = scales.pop()
    return high - low


def _weights(scheme: Scheme) -> Mapping[str, float]:
    if missing := [aspect.name for aspect in scheme.aspects if aspect.name not in scheme.weights]:
        raise InputError(f"{missing[0]} has no weight; write a line like {missing[0]}: 1 into [overall].")
    if not any(scheme.weights.values()):
        raise InputError("all its weights are 0; give one aspect another.")
    return scheme.weights


def check_margin(margin: float) -> None:
    """Refuse a margin that is no size.

    Raises:
        InputError: below 0, or no number.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"judge: margin is {margin}; expected 0 or more, in units of the overall.")
