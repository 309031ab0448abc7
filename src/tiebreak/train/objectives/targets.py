"""Targets: with which probability the chosen side should win, (P,).

Labels that may be wrong are met in three ways that stay apart: ``smoothed`` asks for less certainty, ``unbiased``
undoes the flips on average, and the link ``flip_channel`` models them; ``noise_aware`` smooths what it doubts only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tiebreak.records import InputError
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen

RATE = 0.5
"""How far the threshold of ``noise_aware`` moves after a batch, in mean distances of a margin from it."""
MEMORY = 0.9
"""How much of that mean distance stays from one batch to the next."""


def hard(seen: Seen) -> Tensor:
    """The chosen side is right, whatever the probability."""
    assert seen.p is not None
    return torch.ones_like(seen.p)


def soft(seen: Seen) -> Tensor:
    """The chosen side is right with the probability the judgments give."""
    assert seen.p is not None
    return seen.p


def smoothed(seen: Seen, *, smoothing: float = 0.1) -> Tensor:
    """1 - smoothing, for a hard label that is wrong that often (conservative DPO, Mitchell 2023).

    The probability of the judgments is not read, as ``hard`` does not read it; where it is known, ``soft`` says more.

    Raises:
        InputError: smoothing is not from 0 up to one half.
    """
    return (1 - _below_half("smoothing", smoothing)) * hard(seen)


def unbiased(seen: Seen, *, flip_rate: float = 0.1) -> Tensor:
    """(1 - eps)/(1 - 2 eps), above 1: the mean over labels flipped with rate eps is the loss of the right label.

    Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409, section 3.1). The probability of the judgments is not read: eps
    is what is known of the labels. The loss has no lower bound: as a margin grows it falls by eps/(1 - 2 eps) a unit,
    so margins of pairs that the data never contradict grow as long as training lasts; watch ``rewards/margins``.

    Raises:
        InputError: eps is not from 0 up to one half, where flipped labels say nothing.
    """
    eps = _below_half("flip_rate", flip_rate)
    return (1 - eps) / (1 - 2 * eps) * hard(seen)


def gap(seen: Seen, *, gap_scale: float = 1.0) -> Tensor:
    """sigmoid(eta gap): the probability that the gap of two scores stands for (Sun et al. 2025, arXiv 2502.00203).

    In double precision, because in single a gap of 17 is certainty already.
    """
    assert seen.margin is not None
    return torch.sigmoid(gap_scale * seen.margin.double())


def noise_aware(
    seen: Seen, *, smoothing: float = 0.1, doubted: float = 0.1, extrapolate: float = 1.5, trusting: float = 0.2
) -> Tensor:
    """1 - smoothing for pairs that a bolder policy doubts, 1 for the others (SPA, Kim et al. 2024, arXiv 2406.04412).

    The bolder policy is the current one carried on past the reference, softmax(m l + (1 - m) l_ref) with m =
    ``extrapolate`` (eq. 12). A pair is doubted where its margin under it lies below a threshold that follows the lowest
    share ``doubted`` of all margins: after each batch it moves by what was doubted too little or too much, so that in
    the long run that share is doubted, whatever the size of a batch. That rule and its :data:`RATE` are ours, as is the
    default of m, which the paper changes from round to round.

    Nothing is doubted in the first batch, nor while less than ``trusting`` of the training is over, as the loop says in
    ``past["progress"]``; a loop that does not say so is taken to be past it.

    Raises:
        InputError: smoothing is not from 0 up to one half, or doubted not between 0 and 1.
    """
    q = hard(seen)
    less = _below_half("smoothing", smoothing)
    if not 0 < doubted < 1:
        raise InputError(f"doubted is {doubted}; expected a share of the pairs between 0 and 1.")
    if "doubt_below" not in seen.past or float(seen.past.get("progress", 1.0)) < trusting:
        return q
    return torch.where(extrapolated_margin(seen) < seen.past["doubt_below"].to(q), 1 - less, q)


def next_threshold(
    seen: Seen, *, smoothing: float, doubted: float, extrapolate: float, trusting: float
) -> dict[str, Tensor]:
    """Return the threshold for the next batch, and the mean distance of margins from it, by which it moves.

    The first is a quantile of the batch. Then it rises where fewer than ``doubted`` lay below it, and falls where more.
    """
    margins = extrapolated_margin(seen)
    if "doubt_below" not in seen.past:
        threshold = margins.quantile(doubted)
        return {"doubt_below": threshold, "doubt_distance": (margins - threshold).abs().mean()}
    threshold, distance = seen.past["doubt_below"].to(margins), seen.past["doubt_distance"].to(margins)
    distance = MEMORY * distance + (1 - MEMORY) * (margins - threshold).abs().mean()
    below = (margins < threshold).to(margins).mean()
    return {"doubt_below": threshold + RATE * distance * (doubted - below), "doubt_distance": distance}


def extrapolated_margin(seen: Seen) -> Tensor:
    """Return by how much the extrapolated policy, against the reference, favours the chosen side, (P,)."""
    assert seen.reference is not None
    rho = (seen.readings["extrapolated"] - seen.reference).detach()
    return rho[seen.chosen] - rho[seen.rejected]


def _below_half(name: str, share: float) -> float:
    if not 0 <= share < 0.5:
        raise InputError(f"{name} is {share}; expected a share of wrong labels, 0 or more and below 0.5.")
    return share


TARGETS: Mapping[str, Part] = {
    "hard": Part(hard),
    "soft": Part(soft),
    "smoothed": Part(smoothed),
    "unbiased": Part(unbiased),
    "gap": Part(gap, needs=("margin",)),
    "noise_aware": Part(noise_aware, reads=("extrapolated", "reference"), keeps=next_threshold),
}

BELIEVES = ("hard", "smoothed", "unbiased", "noise_aware")
"""Targets that take the chosen side for the better one whatever p is, so that a pair without a winner is none."""
