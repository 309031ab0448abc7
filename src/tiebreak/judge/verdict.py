"""From what a judge wrote to a verdict, and from several verdicts on one pair to one soft label.

Nothing here guesses: a reply without a verdict is ``invalid``, never a side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from tiebreak.records import InputError, Judgment, Verdict

FIRST, SECOND, TIE = "1", "2", "0"
SPACES = "\u0120\u2581\u010a"
"""What tokenizers write for a space or a line break in front of a word; some servers pass it on."""

EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1 before a logit is taken: far beyond what a judge can mean."""

_AS_SPACE = str.maketrans(dict.fromkeys(SPACES, " "))
# A lone digit: not part of a number, a word ("2nd"), a decimal or a fraction.
_LONE = re.compile(r"(?<![0-9A-Za-z])(?<![0-9][.,/])([012])(?![0-9A-Za-z])(?![.,/][0-9])")


Token = tuple[str, Mapping[str, float]]
"""One generated token: its text and the log-probabilities of the tokens that could have stood there."""


class Reading(NamedTuple):
    """What a reply says.

    ``probability`` is P(first slot), a tie counted half, and None where only text was given. ``mass`` is the
    probability of the verdict tokens before they are renormalised; ``bounded`` says that one of them was outside the
    returned tokens and stands at the most it can have. ``tie`` is the share of the tie.
    """

    verdict: Verdict
    winner: int | None = None
    probability: float | None = None
    mass: float | None = None
    bounded: bool = False
    tie: float | None = None


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


def read_reply(text: str, tokens: Sequence[Token] | None = None, *, ties: bool = False) -> Reading:
    """Read the verdict of a reply: from token probabilities where there are any, else from the text.

    The first lone ``1`` or ``2`` in the text counts ("2, rather than 1" is 2), with ``ties`` also ``0``; "12", "10",
    "1.5" and "2nd" are none. A text without one is ``invalid`` whatever the probabilities were.
    """
    where = find_verdict(text, ties=ties)
    if where is None:
        return Reading("invalid")
    if tokens:
        token = _token_at(text, tokens, where)
        if token is not None:
            return read_token(token[1], ties=ties)
    return _decided(text[where])


def find_verdict(text: str, *, ties: bool = False) -> int | None:
    """Return where the first verdict stands in ``text``, None where there is none."""
    for found in _LONE.finditer(text.translate(_AS_SPACE)):
        if ties or found[1] != TIE:
            return found.start(1)
    return None


def read_token(top: Mapping[str, float], *, ties: bool = False) -> Reading:
    """Decide from the log-probabilities at the verdict's position, renormalised over the verdict tokens.

    Variants with spaces around the digit are added up. A digit outside the returned tokens cannot have more than the
    mass they leave, ``1 - sum(top)``, and is given that: the label errs towards 1/2. If the missing digit could then
    still win, or no verdict token was returned, the reading is ``invalid``.
    """
    labels = (FIRST, SECOND, TIE) if ties else (FIRST, SECOND)
    seen: dict[str, float] = {}
    for token, logprob in top.items():
        label = _label(token)
        seen[label] = seen.get(label, 0.0) + math.exp(logprob)
    left = max(0.0, 1.0 - sum(seen.values()))
    mass = min(1.0, sum(seen.get(label, 0.0) for label in labels))
    bounded = any(label not in seen for label in labels)
    best = max(seen.get(label, 0.0) for label in labels)
    if best <= 0.0 or (bounded and left >= best):
        return Reading("invalid", mass=mass, bounded=bounded)
    first, second = seen.get(FIRST, left), seen.get(SECOND, left)
    tie = seen.get(TIE, left) if ties else 0.0
    total = first + second + tie
    p = min(1.0, (first + tie / 2) / total)
    share = tie / total if ties else None
    if first == second or tie >= max(first, second):
        return Reading("tie", None, p, mass, bounded, share)
    return Reading("slot", int(second > first), p, mass, bounded, share)


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


def _decided(digit: str) -> Reading:
    return Reading("tie") if digit == TIE else Reading("slot", int(digit == SECOND))


def _token_at(text: str, tokens: Sequence[Token], where: int) -> Token | None:
    """Return the token that is the verdict at ``where``, None where it is fused with other text.

    Token texts need not add up to the reply (markers, stripped spaces); then the first lone verdict token is taken.
    """
    digit = text[where]
    start = 0
    if "".join(said for said, _ in tokens) == text:
        for token in tokens:
            if start <= where < start + len(token[0]):
                return token if _label(token[0]) == digit else None
            start += len(token[0])
    return next((token for token in tokens if _label(token[0]) == digit), None)


def _label(token: str) -> str:
    return token.translate(_AS_SPACE).strip()
