"""Judgments to pairs: what several looks at the same two responses say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tiebreak.curate.table import Rows, Step
from tiebreak.judge.verdict import soft_label as verdict_soft_label
from tiebreak.records import InputError, Judgment, Pair


def soft_label(rows: Rows, *, average: str = "probability", clamp: Sequence[float] | None = None) -> Step:
    """One pair per item with p = P(chosen is better), averaged over orders, then judgments; the likelier side is chosen.

    ``average`` is ``probability`` or ``logit``, which cancels a slot bias that is additive in logits. ``clamp`` = [lo,
    hi] bounds p as Constitutional AI does (0.4, 0.6). An item without a readable judgment is dropped and counted; a tie
    stays as p = 1/2 with the sides in id order, which favours neither.
    """
    if average not in ("probability", "logit"):
        raise InputError(f"soft_label averages {average!r}; expected probability or logit.")
    bounds = None if clamp is None else (float(clamp[0]), float(clamp[1]))
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for judgments in rows.items.values():
        first, second = sorted(judgments[0].slots)[:2]
        if len(set(judgments[0].slots)) != 2:
            dropped["not a pair of responses"] += 1
            continue
        label = verdict_soft_label(judgments, first, second, how=average, clamp=bounds)  # type: ignore[arg-type]
        if label is None:
            dropped["no readable verdict"] += 1
            continue
        pairs.append(_pair(judgments, first, second, round(label.p, 12), label.conflict, label.n))
    return Step(pairs, dropped)


def plurality(rows: Rows) -> Step:
    """One pair per item from the most frequent vote among first, second and tie; equal counts are a tie."""
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for judgments in rows.items.values():
        if len(set(judgments[0].slots)) != 2:
            dropped["not a pair of responses"] += 1
            continue
        first, second = sorted(judgments[0].slots)
        votes = Counter(
            "tie" if judgment.winner is None else judgment.slots[judgment.winner]
            for judgment in judgments
            if judgment.verdict in ("slot", "tie")
        )
        if not votes:
            dropped["no readable verdict"] += 1
            continue
        most = max(votes.values())
        winners = [vote for vote, count in votes.items() if count == most]
        p = 0.5 if len(winners) > 1 or winners == ["tie"] else float(winners[0] == first)
        pairs.append(_pair(judgments, first, second, p, len(votes) > 1, sum(votes.values())))
    return Step(pairs, dropped)


def _pair(judgments: Sequence[Judgment], first: str, second: str, p: float, conflict: bool, n: int) -> Pair:
    chosen, rejected = (first, second) if p >= 0.5 else (second, first)
    strengths = [judgment.strength for judgment in judgments if judgment.strength is not None]
    return Pair(
        prompt_id=judgments[0].prompt_id,
        chosen_id=chosen,
        rejected_id=rejected,
        p=max(p, 1.0 - p),
        margin=sum(strengths) / len(strengths) if strengths else None,
        n=n,
        conflict=conflict,
        judgment_ids=tuple(sorted(judgment.id for judgment in judgments)),
    )
