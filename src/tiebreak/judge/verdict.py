"""From what a judge wrote to a verdict, and from several verdicts on one pair to one soft label.

Nothing here guesses: a reply without a verdict is ``invalid``, never a side. Which answers there are says a scale.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

from tiebreak.judge.scales import BINARY, Mark, Scale
from tiebreak.records import InputError, Judgment, Verdict

SPACES = "\u0120\u2581\u010a"
"""What tokenizers write for a space or a line break in front of a word; some servers pass it on."""

EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1 before a logit is taken: far beyond what a judge can mean."""

NO_VERDICT = "no verdict in the reply"
NO_JSON = "the reply is not the JSON that was asked for"
NO_MASS = "no verdict among the returned tokens"
OPEN = "a verdict that was not returned could still win"

_AS_SPACE = str.maketrans(dict.fromkeys(SPACES, " "))
_OPENS = r"[\s*_\"'`(\[]*"
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", re.DOTALL)

Token = tuple[str, Mapping[str, float]]
"""One generated token: its text and the log-probabilities of the tokens that could have stood there."""

Side = int | None


class Reading(NamedTuple):
    """What a reply says.

    ``probability`` is P(first slot), a tie counted half, and None where only text was given. ``mass`` is the
    probability of the verdict tokens before they are renormalised; ``bounded`` says that one of them was outside the
    returned tokens and stands at the most it can have. ``tie`` is the share of the tie. ``strength`` is None where the
    scale has none. ``shares`` are those of the scale's marks; ``why`` says what is wrong with an ``invalid`` one.
    """

    verdict: Verdict
    winner: int | None = None
    probability: float | None = None
    mass: float | None = None
    bounded: bool = False
    tie: float | None = None
    strength: float | None = None
    shares: tuple[float, ...] = ()
    why: str = ""


class SoftLabel(NamedTuple):
    """P(a is better) with what it rests on: ``n`` judgments in ``orders`` orders.

    ``conflict`` says that some favour a and some favour b; ``ties`` counts those at 1/2, ``excluded`` the skipped,
    unreadable, both-bad and revised ones, which say nothing.
    """

    p: float
    n: int
    orders: int
    conflict: bool
    ties: int
    excluded: int


def read_reply(
    text: str, tokens: Sequence[Token] | None = None, *, scale: Scale = BINARY, last: bool = False
) -> Reading:
    """Read the verdict of a reply: from token probabilities where there are any, else from the text.

    The first lone verdict in the text counts ("2, rather than 1" is 2), but "12", "10", "1.5" and "2nd" are none. Where
    the tokens of the scale do not name the slots it has to begin the reply ("4", "**4**: ..."), for "2 is better" may
    mean either. With ``last`` it has to stand alone on the last line, behind a rationale. A text without a verdict is
    ``invalid`` whatever the probabilities were.
    """
    where = find_verdict(text, scale=scale, last=last)
    if where is None:
        return Reading("invalid", why=NO_VERDICT)
    return _at(text, tokens, where, scale)


def read_json(text: str, tokens: Sequence[Token] | None = None, *, scale: Scale = BINARY) -> tuple[Reading, str]:
    """Read the verdict and the rationale of a reply that is JSON with a key ``verdict``; anything else is no verdict.

    A fence around the JSON is taken off, as models put one where the server does not hold them to the schema.
    """
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
        said = found["verdict"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Reading("invalid", why=NO_JSON), ""
    why = found.get("rationale")
    rationale = why.strip() if isinstance(why, str) else ""
    token = str(said) if isinstance(said, str | int) and not isinstance(said, bool) else ""
    if token.strip() not in scale.tokens:
        return Reading("invalid", why=NO_VERDICT), rationale
    places = list(re.finditer(rf'"verdict"\s*:\s*"?\s*({re.escape(token.strip())})', text))
    if not places:  # written with escapes
        return _decided(token.strip(), scale), rationale
    return _at(text, tokens, places[-1].start(1), scale), rationale


def find_verdict(text: str, *, scale: Scale = BINARY, last: bool = False) -> int | None:
    """Return where the verdict stands in ``text``, None where there is none."""
    plain = text.translate(_AS_SPACE)
    if last:
        lines = plain.rstrip()
        start = lines.rfind("\n") + 1
        found = _alone(scale.tokens, scale.names).fullmatch(lines, start)
    else:
        found = _lone(scale.tokens).search(plain) if scale.names else _begins(scale.tokens).match(plain)
    return found.start(1) if found else None


@cache
def _lone(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A lone digit: not part of a number, a word ("2nd"), a decimal or a fraction."""
    return re.compile(rf"(?<![0-9A-Za-z])(?<![0-9][.,/])([{''.join(tokens)}])(?![0-9A-Za-z])(?![.,/][0-9])")


@cache
def _begins(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A digit at the beginning that is all, or has a mark of punctuation or a new line behind it; no range."""
    called = r"(?:(?:the\s+)?(?:verdict|answer|grade|level)(?:\s+is)?[\s*_]*[:=]?" + _OPENS + ")?"
    return re.compile(
        rf"{_OPENS}{called}([{''.join(tokens)}])(?!\s*(?:[-\u2013/]|to|or)\s*[0-9])(?![.,][0-9])"
        r"(?=[ \t*_\"'`)\]]*(?:$|[.,:;\n=\u2013-]))",
        re.IGNORECASE,
    )


@cache
def _alone(tokens: tuple[str, ...], names: bool) -> re.Pattern[str]:
    """A line with nothing on it but the digit, a word for what it is in front and marks around it."""
    words = "verdict|answer|grade|level" + (
        r"|(?:(?:preferred|more\s+harmful)\s+)?(?:summary|response)" if names else ""
    )
    called = rf"(?:(?:the\s+)?(?:{words})(?:\s+is)?[\s*_]*[:=#]?{_OPENS})?"
    return re.compile(rf"{_OPENS}{called}([{''.join(tokens)}])[\s*_\"'`)\].]*", re.IGNORECASE)


def read_token(top: Mapping[str, float], *, scale: Scale = BINARY) -> Reading:
    """Decide from the log-probabilities at the verdict's position, renormalised over the verdict tokens.

    Variants with spaces around the digit are added up. A digit outside the returned tokens cannot have more than the
    mass they leave, ``1 - sum(top)``. A side that is behind and lacks a digit is given that, at its weakest: the label
    errs towards 1/2. If the missing digit could change who is ahead, or no verdict token was returned, the reading is
    ``invalid``.
    """
    seen: dict[str, float] = {}
    for token, logprob in top.items():
        label = _label(token)
        seen[label] = seen.get(label, 0.0) + math.exp(logprob)
    left = max(0.0, 1.0 - sum(seen.values()))
    chances = [seen.get(token, 0.0) for token in scale.tokens]
    mass = min(1.0, sum(chances))
    missing = [mark for mark in scale.marks if mark.token not in seen]
    bounded = bool(missing)
    if mass <= 0.0:
        return Reading("invalid", mass=mass, bounded=bounded, why=NO_MASS)
    ahead = _ahead(chances, scale)
    for side in {mark.side for mark in missing}:
        weakest = min((m for m in missing if m.side == side), key=lambda m: m.strength or 0.0)
        more = [chance + left * (mark is weakest) for mark, chance in zip(scale.marks, chances, strict=True)]
        if _ahead(more, scale) != ahead:
            return Reading("invalid", mass=mass, bounded=bounded, why=OPEN)
    for mark in _given(missing, ahead):
        chances[scale.marks.index(mark)] = left
    return _decide(chances, scale)._replace(mass=mass, bounded=bounded)


def _given(missing: Sequence[Mark], ahead: Side) -> list[Mark]:
    """Return which missing marks stand at the most they can have: the weakest of each side that is behind."""
    behind = {mark.side: [m for m in missing if m.side == mark.side] for mark in missing if mark.side != ahead}
    return [min(marks, key=lambda m: m.strength or 0.0) for marks in behind.values()]


def _sides(chances: Sequence[float], scale: Scale) -> tuple[float, float, float]:
    """Return what the first slot, the second and neither of them have."""
    first, second, neither = (
        sum(chance for mark, chance in zip(scale.marks, chances, strict=True) if mark.side == side)
        for side in (0, 1, None)
    )
    return first, second, neither


def _ahead(chances: Sequence[float], scale: Scale) -> Side:
    """Return the slot that has most, None where both have the same or neither has more."""
    first, second, neither = _sides(chances, scale)
    return None if first == second or neither >= max(first, second) else int(second > first)


def _decide(chances: Sequence[float], scale: Scale) -> Reading:
    """Return the verdict of the chances of the marks, which need not add up to 1."""
    first, _, neither = _sides(chances, scale)
    total = sum(chances)
    shares = tuple(chance / total for chance in chances)
    strengths = [mark.strength for mark in scale.marks]
    known = [s * share for s, share in zip(strengths, shares, strict=True) if s is not None]
    ahead = _ahead(chances, scale)
    return Reading(
        "tie" if ahead is None else "slot",
        ahead,
        min(1.0, (first + neither / 2) / total),
        tie=neither / total if scale.even else None,
        strength=min(1.0, sum(known)) if known else None,
        shares=shares,
    )


def _decided(token: str, scale: Scale) -> Reading:
    """Return the verdict of a text: the one mark it names, and no probability."""
    return _decide([float(token == other) for other in scale.tokens], scale)._replace(probability=None, tie=None)


def mean_reading(readings: Sequence[Reading], scale: Scale) -> Reading:
    """Return what several readings of one question say together: the mean of their shares decides.

    A text without probabilities counts as sure of its verdict. Unreadable ones are left out; where all are, so is the
    mean, for the first one's reason.
    """
    readable = [reading for reading in readings if reading.shares]
    masses = [reading.mass for reading in readings if reading.mass is not None]
    mass = sum(masses) / len(masses) if masses else None
    bounded = any(reading.bounded for reading in readings)
    if not readable:
        return Reading("invalid", mass=mass, bounded=bounded, why=readings[0].why)
    shares = [sum(column) / len(readable) for column in zip(*(r.shares for r in readable), strict=True)]
    return _decide(shares, scale)._replace(mass=mass, bounded=bounded)


def soft_label(
    judgments: Sequence[Judgment],
    a: str,
    b: str,
    *,
    how: Literal["probability", "logit"] = "probability",
    clamp: tuple[float, float] | None = None,
) -> SoftLabel | None:
    """Return P(response ``a`` is better than ``b``) from the judgments of the pair, None where none says anything.

    Attempts are averaged within an order, then the orders weigh the same. ``probability`` averages probabilities,
    which shrinks a slot-biased judge towards 1/2; ``logit`` averages log-odds, (l1 - l2) / 2 for two orders, which
    cancels a bias that is additive in log-odds and needs a probability on every decided verdict. ``clamp`` cuts the
    result to an interval around 1/2 afterwards. Two orders that contradict each other stay at 1/2: a tie is no side.
    """
    _check(judgments, {a, b}, how, clamp)
    revised = {judgment.revises for judgment in judgments}
    orders: dict[bool | None, list[float]] = {}
    for judgment in judgments:
        p = None if judgment.id in revised else judgment.p_better(a)
        if p is None:
            continue
        orders.setdefault(judgment.slots[0] == a if judgment.order_known else None, []).append(p)
    values = [p for group in orders.values() for p in group]
    if not values:
        return None
    there = _logit if how == "logit" else float
    mean = sum(sum(map(there, group)) / len(group) for group in orders.values()) / len(orders)
    p = 1 / (1 + math.exp(-mean)) if how == "logit" else mean
    if clamp is not None:
        p = min(max(p, clamp[0]), clamp[1])
    return SoftLabel(
        p=p,
        n=len(values),
        orders=len(orders),
        conflict=min(values) < 0.5 < max(values),
        ties=sum(value == 0.5 for value in values),
        excluded=len(judgments) - len(values),
    )


def _check(judgments: Sequence[Judgment], pair: set[str], how: str, clamp: tuple[float, float] | None) -> None:
    if how not in ("probability", "logit"):
        raise InputError(f"soft_label: how is {how!r}; expected 'probability' or 'logit'.")
    if clamp is not None and not (0 <= clamp[0] <= 0.5 and abs(clamp[0] + clamp[1] - 1) < 1e-9):
        raise InputError(f"soft_label: clamp is {clamp}; expected (low, 1 - low), for instance (0.4, 0.6).")
    for judgment in judgments:
        if set(judgment.slots) != pair:
            raise InputError(f"soft_label: judgment {judgment.id} is about other responses; pass those of one pair.")
        if how == "logit" and judgment.verdict == "slot" and judgment.probability is None:
            raise InputError(
                f"soft_label: judgment {judgment.id} has no probability, so there is no logit to average; "
                "use how='probability'."
            )


def _logit(p: float) -> float:
    p = min(max(p, EDGE), 1 - EDGE)
    return math.log(p / (1 - p))


def _at(text: str, tokens: Sequence[Token] | None, where: int, scale: Scale) -> Reading:
    """Read the verdict that stands at ``where``, by its token's probabilities where the tokens hold it alone."""
    token = _token_at(text, tokens, where) if tokens else None
    return _decided(text[where], scale) if token is None else read_token(token[1], scale=scale)


def _token_at(text: str, tokens: Sequence[Token], where: int) -> Token | None:
    """Return the token that is the verdict at ``where``, None where it is fused with other text.

    The tokens may hold more than the text at either end. Where they do not hold it, the first lone verdict token is
    taken.
    """
    digit = text[where]
    start = 0
    offset = _flat("".join(said for said, _ in tokens)).rfind(_flat(text))
    if offset >= 0:
        for token in tokens:
            if start <= where + offset < start + len(token[0]):
                return token if _label(token[0]) == digit else None
            start += len(token[0])
    return next((token for token in tokens if _label(token[0]) == digit), None)


def _flat(text: str) -> str:
    """Return the text with a space for each line break and for what tokenizers write for one; the length stays."""
    return text.translate(_AS_SPACE).replace("\n", " ")


def _label(token: str) -> str:
    return token.translate(_AS_SPACE).strip()
