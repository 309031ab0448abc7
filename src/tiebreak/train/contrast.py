"""Contrast beside a reward loss: what a head makes of an answer shall stay when some of its features are dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout, normalize

from tiebreak.models.features import FeedForward
from tiebreak.records import InputError, Progress, quiet
from tiebreak.train.frozen import Batch, FeatureRows
from tiebreak.train.heads import Fitted, fit_head
from tiebreak.train.pace import Pace

OF = ("responses", "difference")
"""What is contrasted: h of both responses, or h(chosen) - h(rejected)."""


def info_nce(first: Tensor, second: Tensor, *, temperature: float = 0.05) -> Tensor:
    """-log of e^{cos(h_i, h'_i)/t} / sum_j e^{cos(h_i, h'_j)/t}, a mean over i (SimCSE, Gao et al. 2021, eq. 4).

    Args:
        first: one view of N items, (N, d).
        second: another view of the same items, (N, d); that of item i is its positive, all others are negatives.
        temperature: t.
    """
    near = normalize(first, dim=1) @ normalize(second, dim=1).T
    return cross_entropy(near / temperature, torch.arange(len(first), device=first.device))


def contrast(
    head: FeedForward, batch: Batch, *, of: str, weight: float, temperature: float, rate: float
) -> Mapping[str, Tensor]:
    """Return the weighted contrastive term of a batch, for ``fit_head`` to add to the reward loss.

    Two views of an answer are its features with a share ``rate`` of them dropped, each time others.
    """
    first, second = (head.hidden(_dropped(head, batch.values, rate)) for _ in range(2))
    if of == "difference":
        chosen, rejected = batch.seen.chosen, batch.seen.rejected
        if chosen is None or rejected is None:
            raise InputError("A difference is contrasted between the sides of pairs; set contrast to responses.")
        first, second = first[chosen] - first[rejected], second[chosen] - second[rejected]
    return {"contrast": weight * info_nce(first, second, temperature=temperature)}


def fit_contrastive(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    hidden: Sequence[int] = (64,),
    activation: str = "relu",
    contrast_of: str = "responses",
    contrast_weight: float = 0.1,
    contrast_temperature: float = 0.05,
    feature_dropout: float = 0.1,
) -> Fitted:
    """Train a small network with reward loss + ``contrast_weight`` x InfoNCE (Wang et al. 2024, arXiv 2401.06080).

    The paper's second view is a second pass with dropout through the whole model; below a frozen one it is dropout of
    features. The weight is not in what we could read of the paper and is ours.

    Args:
        rows: pairs, or other rows where ``contrast_of`` is ``responses``.
        knobs: of the objective.
        pace: its batch is where the negatives come from.
        seed: draws weights, order and dropout.
        held_out: rows that are never learned from.
        patience: epochs without a lower held-out loss, which the contrast does not enter.
        progress: called after each step.
        hidden: widths of the network; the last is what is contrasted.
        activation: of the network.
        contrast_of: a name of :data:`OF`.
        contrast_weight: of the term; 0 is the plain loss.
        contrast_temperature: of the term.
        feature_dropout: share of features dropped in a view.

    Raises:
        InputError: a knob out of range.
    """
    if contrast_of not in OF:
        raise InputError(f"contrast_of is {contrast_of!r}; expected {' or '.join(OF)}.")
    if not 0 < feature_dropout < 1 or contrast_temperature <= 0:
        raise InputError(
            f"feature_dropout is {feature_dropout} and contrast_temperature {contrast_temperature}; expected a share "
            "between 0 and 1, and a number above 0."
        )
    masked = bool(torch.isnan(rows.values).any())
    head = FeedForward(rows.width, hidden=hidden, activation=activation, masked=masked, seed=seed)
    head.calibrate(rows.own)
    settings: dict[str, Any] = {"of": contrast_of, "weight": contrast_weight, "temperature": contrast_temperature}
    beside = partial(contrast, **settings, rate=feature_dropout) if contrast_weight else None
    given: dict[str, Any] = {"held_out": held_out, "patience": patience, "progress": progress}
    return fit_head(head, rows, knobs, pace, seed=seed, beside=beside, **given)


def _dropped(head: FeedForward, values: Tensor, rate: float) -> Tensor:
    """Return features of which a share lies at their mean and the rest as much farther from it; NaN stays."""
    standard = head.standard
    return standard.mean + dropout((values - standard.mean) / standard.spread, rate) * standard.spread
