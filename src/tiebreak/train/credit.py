"""From rollouts and their scores to a batch to learn from: penalties, masks, advantages. No net is asked here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiebreak.train.actor import Batch, Looked, lengths_of
from tiebreak.train.collect import Judged, Shape
from tiebreak.train.policy_gradient.advantages import ADVANTAGES, Rewarded, Settings, whiten
from tiebreak.train.policy_gradient.flat import sums
from tiebreak.train.policy_gradient.kl import ESTIMATORS


def credit(
    judged: Sequence[Judged],
    looked: Looked,
    *,
    knobs: Mapping[str, Any],
    beta: float,
    shape: Shape,
    own: bool,
    exact: bool,
    device: torch.device,
) -> tuple[Batch, dict[str, float]]:
    """Return the batch to learn from and the numbers that describe it.

    Args:
        judged: the rollouts with their scores.
        looked: what the nets say of their tokens.
        knobs: of the method.
        beta: the weight of the distance as it is now.
        shape: what scores are worth, see :func:`tiebreak.train.policy_gradient.shape.shaped`.
        own: whether the policy itself drew the completions; tokens of another one are weighed by what they deserve.
        exact: whether the log-probs kept from sampling are the trainer's to rounding, so they need no second look.
        device: where the batch is learned from.
    """
    sampled = torch.cat([one.rolled.sampled for one in judged])
    old = sampled if looked.old is None else looked.old.cpu()
    reference = None if looked.reference is None else looked.reference.cpu()
    distance = torch.zeros(len(old)) if reference is None else old - reference
    paid = knobs["kl_in"] == "reward" and bool(knobs["kl"])
    penalties = -beta * ESTIMATORS[knobs["kl"]](distance) if paid else torch.zeros(len(old))
    answers = _answers(judged)
    seen = _rewarded(judged, answers, penalties, looked.values, shape)
    found = ADVANTAGES[knobs["advantage"]](seen, Settings(knobs["gamma"], knobs["lam"], knobs["epsilon"]))
    learned = seen.scored & (answers.ended if knobs["truncated"] == "mask" else torch.ones_like(answers.ended))
    kept = learned[seen.branch]
    advantages = whiten(found.advantages, kept) if knobs["whiten"] else found.advantages
    flat: dict[str, Tensor] = {"advantages": advantages, "kept": kept.float()}
    if looked.old is not None or exact:
        flat["old"] = old
    if reference is not None:
        flat["reference"] = reference
    if seen.values is not None and found.returns is not None:
        flat |= {"old_values": seen.values, "returns": found.returns}
    if not own:
        flat["trust"] = (old - sampled).exp().clamp(max=knobs["trust"])
    numbers = _numbers(seen, answers, found.returns, kept)
    if reference is not None:
        numbers["objective/kl"] = _mean(sums(distance, seen.branch, len(seen.lengths)))
    if looked.old is not None:
        numbers["sampling/gap"] = float((old - sampled).square().mean().sqrt())
    if not own:
        numbers["sampling/weight"] = _mean(flat["trust"])
        numbers["sampling/capped"] = _mean((flat["trust"] >= knobs["trust"]).float())
    numbers["groups/mixed"] = sum(one.mixed for one in judged) / max(1, len(judged))
    trees = [one.rolled.tree for one in judged]
    return Batch(trees, {name: values.to(device) for name, values in flat.items()}), numbers


class _Answers(NamedTuple):
    """The B completions: raw scores (NaN: none), whether each ended by itself, and all its tokens."""

    scores: Tensor
    ended: Tensor
    lengths: Tensor


def _answers(judged: Sequence[Judged]) -> _Answers:
    return _Answers(
        torch.tensor([math.nan if score is None else score for one in judged for score in one.scores]),
        torch.tensor([finish == "stop" for one in judged for finish in one.rolled.finishes]),
        torch.tensor([len(branch) for one in judged for branch in one.rolled.tree.branches]),
    )


def _rewarded(
    judged: Sequence[Judged],
    answers: _Answers,
    penalties: Tensor,
    values: Tensor | None,
    shape: Shape,
) -> Rewarded:
    """Return what an advantage sees: rewards with what missing ends and great length cost, on learned tokens."""
    scored = ~answers.scores.isnan()
    rewards = shape(torch.where(scored, answers.scores, 0.0), answers.ended, answers.lengths)
    learned = torch.tensor([size for one in judged for size in lengths_of(one.rolled.tree)])
    return Rewarded(
        rewards=torch.where(scored, rewards, 0.0),
        scored=scored,
        penalties=penalties,
        group=torch.tensor([i for i, one in enumerate(judged) for _ in one.scores]),
        branch=torch.repeat_interleave(torch.arange(len(learned)), learned),
        lengths=learned,
        values=None if values is None else values.cpu(),
        baseline=torch.tensor([0.0 if one.baseline is None else one.baseline for one in judged]),
    )


def _numbers(seen: Rewarded, answers: _Answers, returns: Tensor | None, kept: Tensor) -> dict[str, float]:
    """The batch in the field's words: scores as given, rewards with penalties, the distance of whole completions."""
    known = answers.scores[seen.scored]
    totals = seen.totals[seen.scored]
    numbers = {
        "objective/scores": _mean(known),
        "objective/scores_std": float(known.std()) if len(known) > 1 else 0.0,
        "objective/rlhf_reward": _mean(totals),
        "completions/mean_length": _mean(answers.lengths.float()),
        "completions/eos_share": _mean(answers.ended.float()),
        "completions/unscored": _mean((~seen.scored).float()),
    }
    if seen.values is not None and returns is not None and kept.any():
        spread, missed = returns[kept].var(unbiased=False), (returns - seen.values)[kept].var(unbiased=False)
        numbers["value/explained_variance"] = float(1 - missed / spread) if spread > 0 else 0.0
    return numbers


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0
