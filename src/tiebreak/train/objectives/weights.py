"""Weights: how much a pair counts besides its row's own weight, (P,); no gradient flows through them.

A row's loss is still divided by the weight of the rows alone, so a weight below 1 makes a pair count less, and does not
make the others count more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tiebreak.records import InputError
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen


def constant(seen: Seen, *, pair_weight: float = 1.0) -> Tensor:
    """Every pair counts the same; below 1 it counts less beside the terms, as lambda does in ORPO."""
    assert seen.chosen is not None
    return seen.weight.new_full(seen.chosen.shape, pair_weight)


def policy(seen: Seen) -> Tensor:
    """w(y_w) w(y_l) up to 1, w(y) = exp(mean_t(log p_t - log sum_v p_v^2)): pairs the policy would write count more.

    Zhou et al. 2024 (WPO, arXiv 2406.11827, "sampled alignment"). The denominator is what a token drawn from
    the policy has on average, so text of the policy's own weighs about 1. As in the authors' code the product is cut
    at 1 and no gradient flows; TRL does not cut it.
    """
    assert seen.logps is not None
    assert seen.chosen is not None
    assert seen.rejected is not None
    mean = (seen.logps.detach() - seen.readings["collision"]) / seen.lengths.clamp_min(1)
    return (mean[seen.chosen] + mean[seen.rejected]).clamp_max(0.0).exp()


def strength(seen: Seen) -> Tensor:
    """|m|, the strength of the preference (Wang et al. 2024, HelpSteer2-Preference, arXiv 2410.01257)."""
    assert seen.margin is not None
    return seen.margin.abs()


RANKS = ("labels", "scores")
"""By what ``dcg`` ranks the branches of a row: their grades, or what they are worth to the model now."""


def dcg(seen: Seen, *, ranks: str = "labels") -> Tensor:
    """|2^psi_i - 2^psi_j| |1/log(1 + tau_i) - 1/log(1 + tau_j)|: what exchanging two branches would cost.

    Karthik et al. 2024 (RankDPO, arXiv 2410.18013) after LambdaRank. psi are the grades of a row scaled to
    [0, 1], so that 2^psi stays sane whatever scale they are on, and tau their ranks from 1. The weights of a row,
    each times its share, sum to 1, so that beta means what it means for a single pair; a row whose grades are all the
    same has no pair and no loss.

    Args:
        seen: rows with grades.
        ranks: ``labels`` ranks by the grades (RankDPO); ``scores`` by what the model gives now, without a gradient
            (LiPO-lambda, Liu et al. 2024, arXiv 2402.01878): a head's score, rho where there is a reference, else the
            log-probability. Equal ones share the mean of their ranks, and at equal scores the grades decide, so that
            the order of the branches within a row never matters.

    Raises:
        InputError: another ``ranks``, or scores to rank by that are several numbers each.
    """
    if ranks not in RANKS:
        raise InputError(f"The weight dcg has ranks {ranks!r}; expected {' or '.join(RANKS)}.")
    assert seen.grades is not None
    assert seen.tree is not None
    assert seen.chosen is not None
    assert seen.rejected is not None
    gain = 2.0 ** _scaled(seen.grades, seen.tree)
    discount = 1 / torch.log1p(_ranks(seen, by_scores=ranks == "scores"))
    i, j = seen.chosen, seen.rejected
    raw = (gain[i] - gain[j]).abs() * (discount[i] - discount[j]).abs()
    row = seen.tree[i]
    parts = raw if seen.share is None else raw * seen.share
    total = raw.new_zeros(len(seen.tree)).index_add(0, row, parts)
    return raw / total[row]


def _scaled(grades: Tensor, tree: Tensor) -> Tensor:
    """Return grades from 0, a row's lowest, to 1, its highest; NaN for branches beside and in rows of one grade."""
    known = ~grades.isnan()
    ends = [
        grades.new_zeros(len(grades)).scatter_reduce(0, tree[known], grades[known], how, include_self=False)[tree]
        for how in ("amin", "amax")
    ]
    return (grades - ends[0]) / (ends[1] - ends[0])


def _ranks(seen: Seen, *, by_scores: bool) -> Tensor:
    """Return each graded branch's rank in its row, from 1 for the best; equal ones share the mean of theirs."""
    assert seen.grades is not None
    assert seen.tree is not None
    beside = seen.grades.isnan()
    other = (seen.tree[:, None] == seen.tree) & ~beside[:, None] & ~beside
    above, level = _before(seen.grades)
    if by_scores:
        more, same = _before(_worth(seen))
        above, level = more | (same & above), same & level
    ahead = (above & other).sum(0) + ((level & other).sum(0) - 1) / 2
    return 1 + ahead.clamp_min(0).to(seen.weight.dtype)


def _before(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the row's value is above the column's, and where both are the same, (B, B)."""
    return values[:, None] > values, values[:, None] == values


def _worth(seen: Seen) -> Tensor:
    if seen.scores is not None:
        if seen.scores.ndim != 1:
            raise InputError(
                f"The weight dcg cannot rank by the {seen.scores.shape[1]} scores of a branch; set ranks to labels."
            )
        return seen.scores.detach()
    assert seen.logps is not None
    return (seen.logps if seen.reference is None else seen.logps - seen.reference).detach()


WEIGHTS: Mapping[str, Part] = {
    "constant": Part(constant),
    "policy": Part(policy, reads=("collision",)),
    "strength": Part(strength, needs=("margin",)),
    "dcg": Part(dcg, needs=("grades",)),
}
