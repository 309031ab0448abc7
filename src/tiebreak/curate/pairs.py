"""Judgments to pairs: what several looks at the same two responses say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from tiebreak.curate.table import Rows, Step, at_first
from tiebreak.curate.voices import By, heard, ids_of
from tiebreak.judge.verdict import soft_label as verdict_soft_label
from tiebreak.records import InputError, Judgment, Pair

UNREADABLE = "no readable verdict"
NO_PAIR = "not a pair of responses"
UNHEARD = "not judged by those named"
"""Why an item gives no pair."""

Average = Literal["probability", "logit"]


def soft_label(
    rows: Rows, *, average: Average = "probability", clamp: Sequence[float] | None = None, by: By = None
) -> Step:
    """One pair per item with p = P(chosen is better); the likelier side is chosen.

    Judgments are averaged within an order, then the orders weigh the same, then it is decided: deciding first would
    lose what each judgment was sure of. ``average`` is ``probability`` or ``logit``, which cancels a slot bias that is
    additive in logits. ``clamp`` = [lo, hi] bounds p as Constitutional AI does (0.4, 0.6). ``by`` names whose judgments
    count, such as ``human:*``. An item without a readable judgment is dropped and counted; a tie stays as p = 1/2 with
    the sides in id order, which favours neither.

    Raises:
        InputError: an average, a clamp or a judge it does not know, or logits of judgments without probabilities.
    """
    if average not in ("probability", "logit"):
        raise InputError(f"soft_label averages {average!r}; expected probability or logit.")
    bounds = _bounds(clamp)
    items = heard(at_first(rows, "soft_label"), by, "soft_label")
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for judgments in items.values():
        sides = _sides(judgments)
        if isinstance(sides, str):
            dropped[sides] += 1
            continue
        label = verdict_soft_label(judgments, sides[0], sides[1], how=average, clamp=bounds)
        if label is None:
            dropped[UNREADABLE] += 1
            continue
        pairs.append(_pair(judgments, sides, round(label.p, 12), label.conflict))
    return Step(pairs, dropped)


def plurality(rows: Rows, *, by: By = None) -> Step:
    """One pair per item from the most frequent vote among first, second and tie; equal counts are a tie.

    It counts votes and throws away how sure they were: two of 0.55 beat one of 0.99 on the other side. ``by`` names
    whose votes count, such as ``human:*``.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for judgments in heard(at_first(rows, "plurality"), by, "plurality").values():
        sides = _sides(judgments)
        if isinstance(sides, str):
            dropped[sides] += 1
            continue
        votes = Counter(
            "" if judgment.winner is None else judgment.slots[judgment.winner]
            for judgment in judgments
            if judgment.verdict in ("slot", "tie")
        )
        if not votes:
            dropped[UNREADABLE] += 1
            continue
        most = max(votes.values())
        winners = [vote for vote, count in votes.items() if count == most]
        p = 0.5 if len(winners) > 1 or winners == [""] else float(winners[0] == sides[0])
        pairs.append(_pair(judgments, sides, p, all(votes[side] for side in sides)))
    return Step(pairs, dropped)


def _sides(judgments: Sequence[Judgment]) -> list[str] | str:
    """Return the two answers that were judged, in the order of their ids, or why there are not two."""
    if not judgments:
        return UNHEARD
    sides = sorted(set(judgments[0].slots))
    return sides if len(sides) == len(judgments[0].slots) == 2 else NO_PAIR


def _pair(judgments: Sequence[Judgment], sides: Sequence[str], p: float, conflict: bool) -> Pair:
    """Return the pair with what speaks for it: only judgments that favour a side or neither count.

    The margin is the mean strength towards the chosen side: a vote for the other one counts against it.
    """
    chosen, rejected = sides if p >= 0.5 else reversed(sides)
    telling = [judgment for judgment in judgments if judgment.p_better(chosen) is not None]
    strengths = [
        0.0 if j.winner is None else j.strength if j.slots[j.winner] == chosen else -j.strength
        for j in telling
        if j.strength is not None
    ]
    return Pair(
        prompt_id=judgments[0].prompt_id,
        chosen_id=chosen,
        rejected_id=rejected,
        p=max(p, 1.0 - p),
        margin=sum(strengths) / len(strengths) if strengths else None,
        n=len(telling),
        conflict=conflict,
        judgment_ids=ids_of(telling),
    )


def _bounds(clamp: Sequence[float] | None) -> tuple[float, float] | None:
    if clamp is None:
        return None
    if isinstance(clamp, Sequence) and not isinstance(clamp, str) and len(clamp) == 2:
        low, high = clamp
        if all(isinstance(bound, int | float) for bound in clamp) and 0 <= low <= 0.5 and abs(low + high - 1) < 1e-9:
            return float(low), float(high)
    raise InputError(f"soft_label has clamp {clamp!r}; expected [low, 1 - low], for instance [0.4, 0.6].")
