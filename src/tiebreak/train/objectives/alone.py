"""Links of rows that stand alone: one completion and whether it is desirable, or what it is rated; shapes (U,).

A label is P(the completion is desirable); between 0 and 1 a row counts as good by that much and as bad by the rest.
Most of these losses read a score by itself and not against another of the same prompt, so what moves the reference's
log-probs of a prompt moves them too: the reference has to be the model that training starts from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.records import InputError
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Alone

BCO = "bco"
"""What :func:`bco` keeps in ``Seen.past``: (2, 2), the mean reward and the weight of the good and of the bad side."""


def kto(rows: Alone, *, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """Good: w_d (1 - sigmoid(v - z0)); bad: w_u (1 - sigmoid(z0 - v)); v = beta rho (Ethayarajh et al. 2024, eq. 7).

    z0 = max(0, mean of beta rho over the mismatched branches), other prompts' completions behind these prompts, which
    estimates beta KL(pi || reference). It is a number of the whole batch, takes no gradient, and is of log-ratios
    whatever the score map. A row's weight counts in the mean, so a weight of two is the row twice. A batch of one row
    has no mismatch, which is for the maker of batches to refuse. The paper wants desirable_weight x the good rows over
    undesirable_weight x the bad ones between 1 and 4/3.
    """
    seen = rows.seen
    assert seen.logps is not None
    assert seen.reference is not None
    strangers = seen.beside["mismatched"]
    drift = rows.beta * (seen.logps - seen.reference).detach()[strangers]
    share = seen.weight[strangers]
    z0 = ((share * drift).sum() / share.sum()).clamp_min(0)
    return _valued(rows, z0, desirable_weight, undesirable_weight)


def apo_zero_alone(rows: Alone, *, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """Good: w_d (1 - sigmoid(v)); bad: w_u sigmoid(v) (D'Oosterlinck et al. 2024, eq. 7, without its pairs).

    It is :func:`kto` with z0 = 0: good completions become likelier than under the reference, bad ones less likely. The
    paper writes -sigmoid(v) for the good side, which differs by a constant.
    """
    return _valued(rows, 0.0, desirable_weight, undesirable_weight)


def _valued(rows: Alone, zero: Tensor | float, good: float, bad: float) -> Tensor:
    """Return the two value functions around ``zero``; 1 - sigmoid(x) as sigmoid(-x), which keeps its small digits."""
    label = _labels(rows)
    gain = rows.values - zero
    return label * good * torch.sigmoid(-gain) + (1 - label) * bad * torch.sigmoid(gain)


def bco(rows: Alone, *, delta_of: str = "classes", delta_memory: float = 1.0) -> Tensor:
    """Good: -log sigmoid(v - delta); bad: -log sigmoid(delta - v); v = beta rho (Jung et al. 2024).

    delta is a running mean of rewards, without gradient, this batch included. With ``delta_of: classes`` it is halfway
    between the mean of the good and the mean of the bad rows, as the paper defines it, and where only one side has been
    seen the mean of that; with ``all`` it is the mean of all rows, as TRL has it. The two agree where the sides are
    balanced. ``delta_memory`` is what a batch leaves of the weight of those before it: 1 averages over the whole run,
    as the authors' code does, 0 looks at the batch alone.

    Where good and bad rows have different prompts the paper weights a bad row by p/(1-p), p a classifier's probability
    that the prompt is one of the good rows'. That is the row's own weight, which its maker clamps; it counts in delta
    too.

    Raises:
        InputError: a ``delta_of`` that is neither.
    """
    delta = _delta(_running(rows, delta_memory), delta_of)
    label = _labels(rows)
    gain = rows.values - delta
    return -(label * logsigmoid(gain) + (1 - label) * logsigmoid(-gain))


def bco_kept(rows: Alone, *, delta_of: str = "classes", delta_memory: float = 1.0) -> dict[str, Tensor]:
    """Return what the next batch's delta goes on from; both kinds of delta are read off it."""
    _delta(running := _running(rows, delta_memory), delta_of)
    return {BCO: running}


def _running(rows: Alone, memory: float) -> Tensor:
    """Return the mean reward and the weight of the good and of the bad side so far, (2, 2)."""
    values, label = rows.values.detach(), _labels(rows)
    counted = rows.seen.weight[rows.seen.alone] * torch.stack([label, 1 - label])
    weight, total = counted.sum(1), (counted * values).sum(1)
    if BCO in rows.seen.past:
        mean, before = rows.seen.past[BCO].to(values)
        weight, total = weight + memory * before, total + memory * before * mean
    return torch.stack([total / weight.clamp_min(torch.finfo(weight.dtype).tiny), weight])


def _delta(running: Tensor, of: str) -> Tensor:
    mean, weight = running
    if of not in ("classes", "all"):
        raise InputError(f"delta_of is {of!r}; it is classes, the midpoint of the two sides' means, or all.")
    share = (weight > 0).to(weight) if of == "classes" else weight
    return (share * mean).sum() / share.sum().clamp_min(torch.finfo(share.dtype).tiny)


def noise_channel(rows: Alone, *, missed: float, false_alarm: float = 0.0) -> Tensor:
    """Cross-entropy of labels seen through noise: P(1) = (1 - missed) p + false_alarm (1 - p), p = sigmoid(v).

    ``missed`` is P(label 0 | desirable), as of an answer that nobody voted for, and ``false_alarm`` P(label 1 |
    undesirable). With ``false_alarm`` 0 a good row costs -log p and a constant, a bad one -log(1 - (1 - missed) p) (Yu
    and Qin 2020), whose pull fades as p grows: a likely answer with label 0 was probably missed. Without noise it
    is logistic regression. The paper learns a rate per user and item; here the rates are given, and of several the one
    with the least loss on held-out rows is the likeliest.

    Raises:
        InputError: rates below 0, or that add up to 1 or more, where labels say nothing or the contrary.
    """
    if min(missed, false_alarm) < 0 or missed + false_alarm >= 1:
        raise InputError(
            f"missed is {missed} and false_alarm {false_alarm}; both are rates of 0 or more that add up to less than 1."
        )
    good, bad = logsigmoid(rows.values), logsigmoid(-rows.values)
    one = _mixed((1 - missed, good), (false_alarm, bad))
    zero = _mixed((missed, good), (1 - false_alarm, bad))
    label = _labels(rows)
    return -(label * one + (1 - label) * zero)


def _mixed(*parts: tuple[float, Tensor]) -> Tensor:
    """Return log sum_i a_i exp(x_i) for rates a_i, those of 0 left out so that no gradient meets log 0."""
    return reduce(torch.logaddexp, [math.log(rate) + x for rate, x in parts if rate > 0])


def likelihood(rows: Alone, *, likelihood_floor: float = -10.0) -> Tensor:
    """Good: -v, its likelihood rises; bad: max(v, floor), it falls until v is at the floor and is then left alone.

    With the mean log-prob per token as score these are the losses of Hewitt et al. 2024 (section 3, and their code),
    who have no floor: -log is unbounded, so one bad example pushed on for ever would take the model with it. The floor
    is ours, in nats per token where the score is; -10 is about what a uniform guess over 22,000 tokens would be. They
    bound the harm by stopping when the loss on general text has risen by a small share, and some of their runs add
    KL(reference || pi) on such text: neither is part of this function.
    """
    label = _labels(rows)
    return (1 - label) * rows.values.clamp_min(likelihood_floor) - label * rows.values


def squared(rows: Alone) -> Tensor:
    """Mean over the attributes a row is rated for of (v - rating)^2; columns of v are attributes, (U, k).

    A missing rating, NaN, is worth nothing and its column takes no gradient; a row without any costs 0. Wang et al.
    2024 (HelpSteer2) divide the sum over the batch by the number of its ratings, which is this loss with each row's
    weight the number of its ratings, and is the same where all rows have equally many.
    """
    ratings = rows.seen.ratings
    assert ratings is not None
    rated = ~ratings.isnan()
    values = rows.values.reshape(ratings.shape)
    missed = torch.where(rated, values - ratings.nan_to_num(), 0.0)
    return missed.square().sum(1) / rated.sum(1).clamp_min(1)


def cross_entropy(rows: Alone) -> Tensor:
    """-[p log sigmoid(v) + (1-p) log sigmoid(-v)] with a soft label p, least where sigmoid(v) = p.

    This is the two-class cross-entropy of an outcome or process reward model: v is the difference of the two logits, at
    the end of an answer or of a step, each step a row that stands alone (Lightman et al. 2023, arXiv 2305.20050; soft
    labels, a step's share of roll-outs that end well: Jiang et al. 2025, arXiv 2501.12051).
    """
    label = _labels(rows)
    return -(label * logsigmoid(rows.values) + (1 - label) * logsigmoid(-rows.values))


def _labels(rows: Alone) -> Tensor:
    assert rows.seen.label is not None
    return rows.seen.label.to(rows.values)


ALONE: Mapping[str, Part] = {
    "kto": Part(kto, reads=("reference",), needs=("label", "mismatched"), couples=True),
    "apo_zero_alone": Part(apo_zero_alone, needs=("label",)),
    "bco": Part(bco, needs=("label",), couples=True, keeps=bco_kept),
    "noise_channel": Part(noise_channel, needs=("label",)),
    "likelihood": Part(likelihood, needs=("label",)),
    "squared": Part(squared, needs=("ratings",)),
    "cross_entropy": Part(cross_entropy, needs=("label",)),
}
