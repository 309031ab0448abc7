"""A policy small enough to enumerate: expectations over its answers are sums, so gradients are compared exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiebreak.train.objectives.switches import Outcome
from tiebreak.train.policy_gradient.advantages import Rewarded
from tiebreak.train.policy_gradient.switches import Acted, Bounds, Totals, policy_gradient

Double = torch.float64
WORDS = 3
ONE_STEP = tuple((first,) for first in range(WORDS))
"""Every answer of one token."""
ANSWERS = ((0,), *product(range(1, WORDS), range(WORDS)))
"""Every answer where 0 as first token ends it at once and any other is followed by one more: lengths 1 and 2."""
REWARDS = torch.tensor([[0.3, -1.0, 2.0, 0.5, 0.1, -0.7, 1.4], [1.1, 0.4, -0.2, -1.5, 0.9, 2.2, 0.0]], dtype=Double)
"""(P, 7): a reward for each answer to two prompts."""
LOSS = ("ratio", "clip", "aggregation", "kl", "kl_in", "beta", "entropy", "value", "value_clip")


class Drawn(NamedTuple):
    prompt: int
    answer: tuple[int, ...]


def table(seed: int = 0, prompts: int = 2) -> Tensor:
    """Logits (P, 1 + WORDS, WORDS): of the first token, and of the second one after each first token."""
    numbers = torch.randn(prompts, 1 + WORDS, WORDS, dtype=Double, generator=torch.Generator().manual_seed(seed))
    return numbers.requires_grad_(True)


def prefixes(drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token of ``drawn``: its prompt, its row of the table and itself, (M,) each."""
    found = [
        (one.prompt, 0 if place == 0 else 1 + one.answer[place - 1], token)
        for one in drawn
        for place, token in enumerate(one.answer)
    ]
    prompt, row, token = torch.tensor(found, dtype=torch.long).reshape(-1, 3).T
    return prompt, row, token


def token_logps(theta: Tensor, drawn: Sequence[Drawn]) -> Tensor:
    prompt, row, token = prefixes(drawn)
    return theta.log_softmax(-1)[prompt, row, token]


def token_distance(theta: Tensor, reference: Tensor, drawn: Sequence[Drawn]) -> Tensor:
    """KL(pi || ref) over the whole vocabulary at each token, (M,)."""
    prompt, row, _ = prefixes(drawn)
    own, other = theta.log_softmax(-1)[prompt, row], reference.log_softmax(-1)[prompt, row]
    return (own.exp() * (own - other)).sum(-1)


def answer_logps(theta: Tensor, prompt: int = 0, answers: Sequence[tuple[int, ...]] = ANSWERS) -> Tensor:
    return torch.stack([token_logps(theta, [Drawn(prompt, answer)]).sum() for answer in answers])


def value_of(theta: Tensor, rewards: Tensor, prompt: int = 0) -> Tensor:
    """E[r], for ``rewards`` (7,)."""
    return (answer_logps(theta, prompt).exp() * rewards).sum()


def divergence(theta: Tensor, other: Tensor, prompt: int = 0, answers: Sequence[tuple[int, ...]] = ANSWERS) -> Tensor:
    """KL between whole answers of two tables."""
    own = answer_logps(theta, prompt, answers)
    return (own.exp() * (own - answer_logps(other, prompt, answers))).sum()


def slope(value: Tensor, theta: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, theta, allow_unused=True, materialize_grads=True)
    return found


def expected(
    theta: Tensor,
    prompts: Sequence[int],
    loss: Callable[[list[Drawn]], Tensor],
    *,
    answers: Sequence[tuple[int, ...]] = ANSWERS,
    by: Tensor | None = None,
) -> Tensor:
    """The expected gradient of ``loss`` when ``by``, or the policy, answers every one of ``prompts``."""
    drawing = (theta if by is None else by).detach()
    total = torch.zeros((), dtype=Double)
    for picked in product(answers, repeat=len(prompts)):
        drawn = [Drawn(prompt, answer) for prompt, answer in zip(prompts, picked, strict=True)]
        total = total + token_logps(drawing, drawn).sum().exp() * loss(drawn)
    return slope(total, theta)


def rewarded(drawn: Sequence[Drawn], rewards: Tensor | None = None, **more: Any) -> Rewarded:
    """What an advantage sees; the rewards are those of REWARDS unless given."""
    lengths = torch.tensor([len(one.answer) for one in drawn])
    fields: dict[str, Any] = {
        "rewards": rewards_of(drawn) if rewards is None else rewards,
        "scored": torch.ones(len(drawn), dtype=torch.bool),
        "penalties": torch.zeros(int(lengths.sum()), dtype=Double),
        "group": torch.tensor([one.prompt for one in drawn]),
        "branch": torch.arange(len(drawn)).repeat_interleave(lengths),
        "lengths": lengths,
    }
    return Rewarded(**{**fields, **more})


def rewards_of(drawn: Sequence[Drawn]) -> Tensor:
    return torch.stack([REWARDS[one.prompt, ANSWERS.index(one.answer)] for one in drawn])


def acted(theta: Tensor, drawn: Sequence[Drawn], advantages: Tensor, **more: Any) -> Acted:
    """What a loss sees: on-policy, nothing masked, divided by this batch, unless told otherwise."""
    logps = token_logps(theta, drawn)
    lengths = torch.tensor([len(one.answer) for one in drawn])
    fields: dict[str, Any] = {
        "logps": logps,
        "old": logps.detach(),
        "advantages": advantages,
        "branch": torch.arange(len(drawn)).repeat_interleave(lengths),
        "lengths": lengths,
        "kept": torch.ones_like(logps),
        "whole": Totals(len(drawn), len(logps), len(logps)),
    }
    return Acted(**{**fields, **more})


def learn(seen: Acted, knobs: Mapping[str, Any], *, constant: float = 1.0) -> Outcome:
    """The loss of a row's ``knobs``."""
    bounds = Bounds(*(knobs[name] for name in Bounds._fields))
    return policy_gradient(seen, **{name: knobs[name] for name in LOSS}, bounds=bounds, constant=constant)
