"""Policy-gradient losses as switches: ratio x clip x aggregation x KL, over the advantages of ``advantages``.

Each switch is a table of pure functions over the flat tokens of a forest. A method is a row of ``presets``; a new one
is one function in one switch, or none, and a row. The loss of a part of a minibatch is its share of the whole, so the
gradient does not depend on how the minibatch was split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiebreak.records import InputError
from tiebreak.registry import nearest
from tiebreak.train.objectives.switches import Outcome
from tiebreak.train.policy_gradient.advantages import ADVANTAGES, COMPARES_DRAWS, LEARNS_VALUES
from tiebreak.train.policy_gradient.flat import means, sums
from tiebreak.train.policy_gradient.kl import ESTIMATORS, FULL, check_kl


class Totals(NamedTuple):
    """What a loss is divided by, whichever part of a minibatch is computed at once; masked completions do not count.

    ``sequences`` and ``tokens`` of the minibatch; ``share`` of the whole batch's tokens, over its minibatches.
    """

    sequences: float
    tokens: float
    share: float


@dataclass(frozen=True)
class Acted:
    """All a policy-gradient loss sees of M tokens of B completions.

    ``logps`` (M,) are the policy's now, ``old`` (M,) those of the policy that the batch's updates began from.
    ``advantages`` (M,); ``branch`` (M,) the completion of each token; ``lengths`` (B,) in tokens. ``kept`` (M,) is 1
    for tokens to learn from and 0 for those of masked completions. ``reference`` (M,), ``distance`` (M,) the KL over
    the whole vocabulary, ``entropy`` (M,), a value net's ``values``, ``old_values`` and ``returns`` (M,) where asked
    for. ``trust`` (M,) weighs tokens that another policy drew.
    """

    logps: Tensor
    old: Tensor
    advantages: Tensor
    branch: Tensor
    lengths: Tensor
    kept: Tensor
    whole: Totals
    reference: Tensor | None = None
    distance: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    trust: Tensor | None = None


def token(seen: Acted) -> Tensor:
    """Log pi(y_t) - log pi_old(y_t), each token's own (Schulman et al. 2017)."""
    return seen.logps - seen.old


def sequence_mean(seen: Acted) -> Tensor:
    """The mean log-ratio of the completion, so that its ratio is a geometric mean (GSPO, Zheng et al. 2025, eq. 7)."""
    return means(seen.logps - seen.old, seen.branch, seen.lengths)[seen.branch]


def sequence_sum(seen: Acted) -> Tensor:
    """The log-ratio of the whole completion (RLOO, Ahmadian et al. 2024)."""
    return sums(seen.logps - seen.old, seen.branch, len(seen.lengths))[seen.branch]


def reference_sum(seen: Acted) -> Tensor:
    """Log pi(y) - log ref(y) of the whole completion, for losses that regress on it (A*-PO)."""
    assert seen.reference is not None
    return sums(seen.logps - seen.reference, seen.branch, len(seen.lengths))[seen.branch]


class Bounds(NamedTuple):
    """Where a ratio is cut: 1 - ``low`` to 1 + ``high``, and ``most``, the third bound of those clips that have one."""

    low: float = 0.2
    high: float = 0.2
    most: float = 3.0
    scale: float = 1.0


Clip = Callable[[Tensor, Acted, Bounds], Tensor]
FARTHEST = 20.0
"""Log-ratio in nats beyond which a ratio grows no more."""


def _ratio(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio), kept finite: an infinite ratio is NaN times an advantage of 0, and in the gradient of a clip."""
    return log_ratio.clamp(max=FARTHEST).exp()


def unclipped(log_ratio: Tensor, seen: Acted, bounds: Bounds) -> Tensor:
    """Ratio x advantage, (M,)."""
    return _ratio(log_ratio) * seen.advantages


def clipped(log_ratio: Tensor, seen: Acted, bounds: Bounds) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A) (PPO, Schulman et al. 2017, eq. 7; clip-higher: DAPO, eq. 10)."""
    ratio = _ratio(log_ratio)
    cut = ratio.clamp(1 - bounds.low, 1 + bounds.high)
    return torch.minimum(ratio * seen.advantages, cut * seen.advantages)


def dual(log_ratio: Tensor, seen: Acted, bounds: Bounds) -> Tensor:
    """PPO's clip, and for a negative advantage no less than ``most`` x A (Ye et al. 2020, eq. 5)."""
    inner = clipped(log_ratio, seen, bounds)
    return torch.where(seen.advantages < 0, torch.maximum(inner, bounds.most * seen.advantages), inner)


def two_sided(log_ratio: Tensor, seen: Acted, bounds: Bounds) -> Tensor:
    """PPO's clip with r itself cut at ``most``, which bounds negative advantages too (INTELLECT-2, 2025, 3.4)."""
    ratio = _ratio(log_ratio)
    cut = ratio.clamp(1 - bounds.low, 1 + bounds.high)
    return torch.minimum(ratio.clamp(max=bounds.most) * seen.advantages, cut * seen.advantages)


def cispo(log_ratio: Tensor, seen: Acted, bounds: Bounds) -> Tensor:
    """min(r, most) as a weight without gradient x A log pi (MiniMax-M1, 2025, eq. 4); ``most`` is the cap itself."""
    return _ratio(log_ratio).clamp(max=bounds.most).detach() * seen.advantages * seen.logps


def square(log_ratio: Tensor, seen: Acted, bounds: Bounds) -> Tensor:
    """-(scale x log-ratio - A)^2: regression on the advantage (A*-PO, Brantley et al. 2025, eq. 6)."""
    return -(bounds.scale * log_ratio - seen.advantages).square()


RATIOS: Mapping[str, Callable[[Acted], Tensor]] = {
    "token": token,
    "sequence_mean": sequence_mean,
    "sequence_sum": sequence_sum,
    "reference_sum": reference_sum,
}
CLIPS: Mapping[str, Clip] = {
    "none": unclipped,
    "clip": clipped,
    "dual": dual,
    "two_sided": two_sided,
    "cispo": cispo,
    "square": square,
}


def _per_sequence(values: Tensor, seen: Acted) -> Tensor:
    return sums(values * seen.kept, seen.branch, len(seen.lengths))


def by_sequence(values: Tensor, seen: Acted, constant: float) -> Tensor:
    """Mean over completions of the mean over their tokens (GRPO)."""
    return (_per_sequence(values, seen) / seen.lengths.clamp_min(1)).sum() / seen.whole.sequences


def by_sequence_sum(values: Tensor, seen: Acted, constant: float) -> Tensor:
    """Mean over completions of the sum over their tokens: the plain policy gradient."""
    return _per_sequence(values, seen).sum() / seen.whole.sequences


def by_token(values: Tensor, seen: Acted, constant: float) -> Tensor:
    """Mean over the minibatch's tokens (PPO, BNPO)."""
    return (values * seen.kept).sum() / seen.whole.tokens


def by_batch_token(values: Tensor, seen: Acted, constant: float) -> Tensor:
    """Sum over tokens by what a minibatch holds on average, so a token counts the same in each (DAPO, eq. 12)."""
    return (values * seen.kept).sum() / seen.whole.share


def by_constant(values: Tensor, seen: Acted, constant: float) -> Tensor:
    """Sum over tokens by completions x a constant length, so no length is favoured (Dr. GRPO, Liu et al. 2025)."""
    return (values * seen.kept).sum() / (seen.whole.sequences * constant)


AGGREGATIONS: Mapping[str, Callable[[Tensor, Acted, float], Tensor]] = {
    "sequence_mean": by_sequence,
    "sequence_sum": by_sequence_sum,
    "token_mean": by_token,
    "batch_token_mean": by_batch_token,
    "constant": by_constant,
}
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "advantage": ADVANTAGES,
    "ratio": RATIOS,
    "clip": CLIPS,
    "aggregation": AGGREGATIONS,
}


LIMITS: Mapping[str, tuple[float, float]] = {
    "low": (0, 1),
    "high": (0, math.inf),
    "most": (1, math.inf),
    "gamma": (0, 1),
    "lam": (0, 1),
    "value": (0, math.inf),
    "value_clip": (0, math.inf),
    "kl_target": (0, math.inf),
    "dynamic": (0, math.inf),
    "optimal_draws": (1, math.inf),
}
"""The scalars that have bounds, both allowed."""
POSITIVE = ("epsilon", "kl_horizon", "optimal_beta", "scale", "trust")


def check(
    *,
    advantage: str,
    ratio: str,
    clip: str,
    aggregation: str,
    kl: str,
    kl_in: str,
    beta: float,
    draws: int,
    **scalars: Any,
) -> None:
    """Refuse switches that do not exist or do not go together, and scalars that make no sense.

    Raises:
        InputError: with the nearest name, or the reason.
    """
    for switch, name in (("advantage", advantage), ("ratio", ratio), ("clip", clip), ("aggregation", aggregation)):
        table = SWITCHES[switch]
        if name not in table:
            raise InputError(f"There is no {switch} {name!r}; there are {', '.join(table)}.{nearest(name, table)}")
    check_kl(kl, kl_in, beta)
    _check_draws(advantage, draws, scalars["dynamic"])
    if (ratio == "reference_sum") != (clip == "square"):
        raise InputError("ratio: reference_sum and clip: square go together, as in A*-PO; set both or neither.")
    if ratio == "reference_sum" and not kl:
        raise InputError("ratio: reference_sum compares with a reference; name an estimator, such as kl: k1.")
    if ratio in ("sequence_sum", "reference_sum") and aggregation != "sequence_mean":
        raise InputError(
            f"ratio: {ratio} gives each token the ratio of its whole completion, so aggregation: {aggregation} would "
            "count a completion once for every token; set aggregation: sequence_mean."
        )
    _check_scalars(scalars)
    if advantage in LEARNS_VALUES and not scalars["value"]:
        raise InputError(f"advantage: {advantage} learns a value net, and value is {scalars['value']}; set its weight.")
    if scalars["value"] and advantage not in LEARNS_VALUES:
        raise InputError(f"value is {scalars['value']}, and advantage: {advantage} learns no value net; set it to 0.")
    if scalars["kl_target"] and not beta:
        raise InputError(f"kl_target moves beta by shares of it, and beta is {beta}; set where it starts.")


def _check_draws(advantage: str, draws: int, dynamic: int) -> None:
    if advantage in COMPARES_DRAWS and draws < 2:
        raise InputError(
            f"advantage: {advantage} compares the completions of one prompt, and rollout.n is {draws}; set it to 2 or "
            "more."
        )
    if dynamic and draws < 2:
        raise InputError(f"dynamic keeps prompts whose completions differ in score, and rollout.n is {draws}.")


def _check_scalars(scalars: Mapping[str, float]) -> None:
    for name, (least, most) in LIMITS.items():
        if not least <= scalars[name] <= most:
            wanted = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise InputError(f"{name} is {scalars[name]}; expected {wanted}.")
    for name in POSITIVE:
        if not scalars[name] > 0:
            raise InputError(f"{name} is {scalars[name]}; expected more than 0.")


def policy_gradient(
    seen: Acted,
    *,
    ratio: str,
    clip: str,
    aggregation: str,
    bounds: Bounds = Bounds(),  # noqa: B008
    constant: float = 1.0,
    kl: str = "",
    kl_in: str = "",
    beta: float = 0.0,
    entropy: float = 0.0,
    value: float = 0.0,
    value_clip: float = 0.2,
) -> Outcome:
    """Return the loss of part of a minibatch, and numbers whose sum over the parts is the minibatch's.

    Loss = -aggregate(clip(ratio, A)) + beta aggregate(KL) + value x value loss - entropy x aggregate(H).

    Args:
        seen: the part.
        ratio: a name of RATIOS.
        clip: a name of CLIPS.
        aggregation: a name of AGGREGATIONS.
        bounds: of the clip.
        constant: the length ``aggregation: constant`` divides by.
        kl: the estimator of the distance to the reference.
        kl_in: where it is paid; only ``loss`` counts here.
        beta: its weight.
        entropy: weight of an entropy bonus.
        value: weight of the value loss.
        value_clip: how far a value may move in one batch before its loss stops falling; 0 does not bound it.
    """
    gather = AGGREGATIONS[aggregation]
    log_ratio = RATIOS[ratio](seen)
    gain = CLIPS[clip](log_ratio, seen, bounds)
    if seen.trust is not None:
        gain = gain * seen.trust
    policy = -gather(gain, seen, constant)
    loss, metrics = policy, {"loss/policy": policy.detach()}
    if kl and kl_in == "loss" and beta:
        paid = seen.distance if kl == FULL else _estimate(seen, kl)
        assert paid is not None
        loss = loss + beta * gather(paid, seen, constant)
    if entropy:
        assert seen.entropy is not None
        loss = loss - entropy * gather(seen.entropy, seen, constant)
    if seen.values is not None:
        missed = value_loss(seen, value_clip)
        loss = loss + value * missed
        metrics["loss/value"] = missed.detach()
    with torch.no_grad():
        metrics |= _moves(seen, log_ratio, bounds)
    return Outcome(loss, metrics)


def value_loss(seen: Acted, clip: float) -> Tensor:
    """1/2 mean max((V - R)^2, (clip(V, V_old +- clip) - R)^2) over tokens, as in the 2017 PPO code."""
    assert seen.values is not None
    assert seen.old_values is not None
    assert seen.returns is not None
    errors = (seen.values - seen.returns).square()
    if clip:
        near = seen.old_values + (seen.values - seen.old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (near - seen.returns).square())
    return 0.5 * (errors * seen.kept).sum() / seen.whole.tokens


def _estimate(seen: Acted, kl: str) -> Tensor:
    assert seen.reference is not None
    return ESTIMATORS[kl](seen.logps - seen.reference)


def _moves(seen: Acted, log_ratio: Tensor, bounds: Bounds) -> dict[str, Tensor]:
    """How far the policy moved (mean ratio, half the mean squared log-ratio, share of tokens cut), and its entropy."""
    ratio, own = _ratio(log_ratio), seen.logps - seen.old
    low = (ratio < 1 - bounds.low) & (seen.advantages < 0)
    high = (ratio > 1 + bounds.high) & (seen.advantages > 0)

    def mean(values: Tensor) -> Tensor:
        return (values * seen.kept).sum() / seen.whole.tokens

    spread = {} if seen.entropy is None else {"objective/entropy": mean(seen.entropy)}
    return spread | {
        "policy/ratio": mean(ratio),
        "policy/approx_kl": mean(own.square() / 2),
        "policy/clip_fraction": mean((low | high).float()),
    }
