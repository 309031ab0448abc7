"""MetaRM: each step learns from the labelled pairs as seen from weights that tell shifted responses apart better.

theta' = theta + eta grad J(shifted responses); the gradient of the reward loss at theta' is applied to theta (Dou et
al. 2024, arXiv 2405.00438; Wang et al. 2024, arXiv 2401.06080, section 4). It is of first order: nothing is
differentiated through the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.models.features import LinearHead
from tiebreak.records import InputError, Progress, quiet
from tiebreak.train.frozen import FeatureRows, Shifted
from tiebreak.train.heads import Fitted, backward, fit_head
from tiebreak.train.objectives.seen import Outcome
from tiebreak.train.pace import Pace


def spread_apart(scores: Tensor, tree: Tensor) -> Tensor:
    """J = 2/k^2 sum_{i<j} sigmoid(|s_i - s_j|) over the k responses of a prompt, a mean over prompts.

    Args:
        scores: (S,).
        tree: the prompt of each, (S,); any numbers.
    """
    _, row, count = tree.unique(return_inverse=True, return_counts=True)
    first, second = torch.triu_indices(len(scores), len(scores), offset=1)
    same = row[first] == row[second]
    first, second = first[same], second[same]
    each = torch.sigmoid((scores[first] - scores[second]).abs()) * 2 / count[row[first]].square()
    return each.sum() / len(count)


def ahead(
    head: nn.Module, look: Callable[[], Outcome], number: int, *, gain: Callable[[int], Tensor], eta: float
) -> Outcome:
    """Put the gradient of the loss at theta + eta grad gain(theta) into the weights, which are theta again afterwards.

    Args:
        head: whose weights theta are.
        look: computes the loss at the weights as they are.
        number: of the step.
        gain: what the step before the step raises; it is told the number.
        eta: size of that step; at 0 the result is the plain gradient, bit for bit.

    Raises:
        InputError: a gradient of the gain that is not finite.
    """
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    slopes = torch.autograd.grad(gain(number), trained, allow_unused=True)
    if not all(bool(torch.isfinite(slope).all()) for slope in slopes if slope is not None):
        raise InputError(
            f"The shifted responses give no finite gradient at step {number + 1}; look for broken features."
        )
    before = [parameter.detach().clone() for parameter in trained]
    try:
        with torch.no_grad():
            for parameter, slope in zip(trained, slopes, strict=True):
                if slope is not None:
                    parameter.add_(slope, alpha=eta)
        return backward(head, look, number)
    finally:
        with torch.no_grad():
            for parameter, old in zip(trained, before, strict=True):
                parameter.copy_(old)


def fit_meta(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    shifted: Shifted,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    eta: float = 1.0,
    shifted_batch: int = 16,
) -> Fitted:
    """Train a linear head that takes each step from where it tells ``shifted`` responses apart better.

    Training ends where the gradient at theta' vanishes. So theta' is what plain training finds, and theta is that less
    eta grad J: where the labels do not say how shifted responses differ, their scores are drawn together. That helps
    where such differences are noise that the head fitted, and hurts where they are real.

    Args:
        rows: labelled rows.
        knobs: of the objective.
        pace: of the training.
        seed: orders rows and prompts.
        shifted: responses of the policy that the reward model will be used on, two or more to a prompt.
        held_out: rows that are never learned from.
        patience: epochs without a lower held-out loss.
        progress: called after each step.
        eta: size of the step before the step; 0 is plain training. No paper tells one for heads on features; 1 is ours.
        shifted_batch: prompts of shifted responses in a step.

    Raises:
        InputError: shifted responses of other features, or none that could be told apart.
    """
    if shifted.values.shape[1] != rows.width or len(shifted.tree) != len(shifted.values):
        raise InputError(
            f"The shifted responses have {shifted.values.shape[1]} features and the rows {rows.width}; compute both "
            "with the same backbone."
        )
    prompts, counts = shifted.tree.unique(return_counts=True)
    prompts = prompts[counts > 1]
    if not len(prompts) or shifted_batch < 1:
        raise InputError("MetaRM needs prompts with two shifted responses or more, and a shifted_batch of at least 1.")
    drawn = torch.Generator().manual_seed(seed)
    turns = torch.cat([prompts[torch.randperm(len(prompts), generator=drawn)] for _ in range(TURNS)])
    head = LinearHead(rows.width, seed=seed)
    head.calibrate(rows.own)

    def gain(number: int) -> Tensor:
        some = turns[torch.arange(number * shifted_batch, (number + 1) * shifted_batch) % len(turns)].unique()
        inside = torch.isin(shifted.tree, some)
        return spread_apart(head(shifted.values[inside]), shifted.tree[inside])

    given: dict[str, Any] = {"held_out": held_out, "patience": patience, "progress": progress}
    return fit_head(head, rows, knobs, pace, seed=seed, gradient=partial(ahead, gain=gain, eta=eta), **given)


TURNS = 64
"""Permutations of the prompts before they come round in the same order again."""
