"""Advantages: what each token is credited with, from the rewards of completions. Pure functions over flat tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tiebreak.train.policy_gradient.flat import discounted, shifted, sums


@dataclass(frozen=True)
class Rewarded:
    """What an advantage sees of a batch of T prompts, B completions and M learned tokens.

    ``rewards`` (B,) is each completion's, in its last token; ``scored`` (B,) says whose reward is known, the others
    take no part. ``penalties`` (M,) is paid at each token, such as -beta k1. ``group`` (B,) is the completion's prompt,
    ``branch`` (M,) the token's completion, ``lengths`` (B,) its tokens. ``values`` (M,) are a value net's before each
    token, ``baseline`` (T,) is known of each prompt beforehand: its greedy answer's reward, or its best value.
    """

    rewards: Tensor
    scored: Tensor
    penalties: Tensor
    group: Tensor
    branch: Tensor
    lengths: Tensor
    values: Tensor | None = None
    baseline: Tensor | None = None

    @property
    def totals(self) -> Tensor:
        """Each completion's reward with its penalties, (B,)."""
        return self.rewards + sums(self.penalties, self.branch, len(self.rewards))

    @property
    def dense(self) -> Tensor:
        """Each token's reward, (M,): the penalty, and at the last token the completion's reward too."""
        has = self.lengths > 0
        ends = self.lengths.cumsum(0)[has] - 1
        return self.penalties.index_add(0, ends, self.rewards[has])


class Credit(NamedTuple):
    """The advantage of each token (M,), and the returns a value net learns (M,) where there is one."""

    advantages: Tensor
    returns: Tensor | None = None


class Settings(NamedTuple):
    """The scalars advantages take: discount, trace and what keeps a division finite."""

    gamma: float = 1.0
    lam: float = 0.95
    epsilon: float = 1e-4


def gae(seen: Rewarded, how: Settings) -> Credit:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16); returns are advantage + value."""
    assert seen.values is not None
    errors = seen.dense + how.gamma * shifted(seen.values, seen.lengths) - seen.values
    advantages = discounted(errors, seen.lengths, how.gamma * how.lam)
    return Credit(advantages, advantages + seen.values)


def reinforce(seen: Rewarded, how: Settings) -> Credit:
    """Return minus a learned value (Williams 1992), the baseline the RLAIF paper trains with."""
    assert seen.values is not None
    returns = discounted(seen.dense, seen.lengths, how.gamma)
    return Credit(returns - seen.values, returns)


def whitened(seen: Rewarded, how: Settings) -> Credit:
    """Return from here on, for the batch to whiten (REINFORCE++, Hu 2025): no baseline of its own."""
    return Credit(discounted(seen.dense, seen.lengths, how.gamma))


def rloo(seen: Rewarded, how: Settings) -> Credit:
    """r_i - mean of the other r_j (Kool et al. 2019; Ahmadian et al. 2024), which is G/(G-1) (r_i - mean)."""
    above, count = _above_least(seen), _of_groups(seen, torch.ones_like(seen.rewards))
    return _spread(seen, above - (_of_groups(seen, above) - above) / (count - 1).clamp_min(1))


def group_mean(seen: Rewarded, how: Settings) -> Credit:
    """r_i - mean of its group, no division by the spread (Dr. GRPO, Liu et al. 2025)."""
    return _spread(seen, _centred(seen))


def group(seen: Rewarded, how: Settings) -> Credit:
    """(r_i - mean) / (std + epsilon) of its group (GRPO, Shao et al. 2024); std divides by G - 1, as TRL does."""
    centred, count = _centred(seen), _of_groups(seen, torch.ones_like(seen.rewards))
    spread = (_of_groups(seen, centred.square()) / (count - 1).clamp_min(1)).sqrt()
    return _spread(seen, centred / (spread + how.epsilon))


def known(seen: Rewarded, how: Settings) -> Credit:
    """R - what is known of the prompt: the greedy answer's reward (ReMax, Li et al. 2023), or V* (A*-PO)."""
    assert seen.baseline is not None
    return _spread(seen, seen.totals - seen.baseline[seen.group])


ADVANTAGES: Mapping[str, Callable[[Rewarded, Settings], Credit]] = {
    "gae": gae,
    "reinforce": reinforce,
    "whitened": whitened,
    "rloo": rloo,
    "group": group,
    "group_mean": group_mean,
    "greedy": known,
    "optimal": known,
}
"""``greedy`` and ``optimal`` differ in where the baseline comes from, which is the loop's to find."""

LEARNS_VALUES = frozenset({"gae", "reinforce"})
COMPARES_DRAWS = frozenset({"rloo", "group", "group_mean"})
"""Advantages that need two completions of a prompt at least."""


def optimal_value(rewards: Tensor, beta: float) -> Tensor:
    """V* = beta log mean exp(r / beta) over the last axis, the best policy's value at distance beta (A*-PO, eq. 4).

    One reward is its own value; a large beta gives the mean, a small one the largest.
    """
    most = rewards.amax(-1, keepdim=True)
    return most[..., 0] + beta * ((rewards - most) / beta).expm1().mean(-1).log1p()


def whiten(values: Tensor, kept: Tensor) -> Tensor:
    """Subtract the mean and divide by the (unbiased) standard deviation over the ``kept`` tokens; (M,) -> (M,)."""
    some = values[kept]
    if len(some) < 2:
        return values - some.mean() if len(some) else values
    return (values - some.mean()) * torch.rsqrt(some.var() + 1e-8)


def _of_groups(seen: Rewarded, values: Tensor) -> Tensor:
    """Sum ``values`` (B,) over the scored completions of each prompt and hand the sum back to each of them, (B,)."""
    known_values = torch.where(seen.scored, values, 0.0)
    groups = int(seen.group.max()) + 1 if len(seen.group) else 0
    return sums(known_values, seen.group, groups)[seen.group]


def _centred(seen: Rewarded) -> Tensor:
    above, count = _above_least(seen), _of_groups(seen, torch.ones_like(seen.rewards))
    return torch.where(seen.scored, above - _of_groups(seen, above) / count.clamp_min(1), 0.0)


def _above_least(seen: Rewarded) -> Tensor:
    """How far each total is above the least of its prompt, (B,): exactly 0 where all are equal, and where unscored.

    A mean of equal numbers is not always that number, and a division by the spread makes the rounding loud.
    """
    groups = int(seen.group.max()) + 1 if len(seen.group) else 0
    totals = torch.where(seen.scored, seen.totals, torch.inf)
    least = totals.new_full((groups,), torch.inf).scatter_reduce(0, seen.group, totals, "amin")
    return torch.where(seen.scored, totals - least[seen.group], 0.0)


def _spread(seen: Rewarded, values: Tensor) -> Credit:
    """Credit every token of a completion with the completion's value, and those without a score with nothing."""
    return Credit(torch.where(seen.scored, values, 0.0)[seen.branch])
