"""Preference losses as switches: score map x link x target, plus auxiliary terms.

Each switch is a table of pure functions over the same small structure. A method is a row of ``presets`` that names its
switches; a new method is one function here, or none, and one row there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.records import InputError
from tiebreak.registry import nearest


@dataclass(frozen=True)
class Seen:
    """All an objective sees of a batch of B branches and P pairs.

    ``logps`` and ``reference`` (B,) are summed log-probabilities of completions, EOS included; ``scores`` (B,) a reward
    head's; ``lengths`` (B,) tokens; ``chosen`` and ``rejected`` (P,) index branches; ``p`` (P,) is P(chosen is better);
    ``weight`` (B,) is a row's weight, for a pair that of its chosen branch.
    """

    lengths: Tensor
    weight: Tensor
    logps: Tensor | None = None
    reference: Tensor | None = None
    scores: Tensor | None = None
    chosen: Tensor | None = None
    rejected: Tensor | None = None
    p: Tensor | None = None


class Outcome(NamedTuple):
    """The loss to differentiate and the numbers to log, named as TRL names them."""

    loss: Tensor
    metrics: dict[str, float]


def log_ratio(seen: Seen) -> Tensor:
    """rho(y) = log pi(y|x) - log pi_ref(y|x), the implicit reward over beta (Rafailov et al. 2023, eq. 5)."""
    assert seen.logps is not None and seen.reference is not None
    return seen.logps - seen.reference


def log_prob(seen: Seen) -> Tensor:
    """Log pi(y|x), summed over the completion."""
    assert seen.logps is not None
    return seen.logps


def head(seen: Seen) -> Tensor:
    """The reward head's score."""
    assert seen.scores is not None
    return seen.scores


def logistic(z: Tensor, q: Tensor) -> Tensor:
    """-[q log sigmoid(z) + (1-q) log sigmoid(-z)], shapes (P,); q = 1 is the hard label, minimised at z = logit q."""
    return -(q * logsigmoid(z) + (1 - q) * logsigmoid(-z))


def hard(p: Tensor) -> Tensor:
    """The chosen side is right, whatever the probability."""
    return torch.ones_like(p)


def soft(p: Tensor) -> Tensor:
    """The chosen side is right with the probability the judgments give."""
    return p


SCORES: Mapping[str, Callable[[Seen], Tensor]] = {"log_ratio": log_ratio, "log_prob": log_prob, "head": head}
LINKS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"logistic": logistic}
TARGETS: Mapping[str, Callable[[Tensor], Tensor]] = {"hard": hard, "soft": soft}


def choose(switch: str, table: Mapping[str, object], name: str) -> None:
    """Refuse a value that ``switch`` does not have, with the nearest one."""
    if name not in table:
        raise InputError(f"There is no {switch} {name!r}; there are {', '.join(table)}.{nearest(name, table)}")


def objective(
    seen: Seen, *, score: str = "", link: str = "", target: str = "hard", beta: float = 1.0, nll: float = 0.0
) -> Outcome:
    """Return weighted pair loss + ``nll`` x mean token loss of the first branch of each row.

    Args:
        seen: the batch.
        score: the score map; empty leaves the pair loss out.
        link: turns beta x (score of chosen - score of rejected) and the target into a loss.
        target: what the probability of a pair becomes.
        beta: scale of the difference.
        nll: weight of the negative log-likelihood per token, normalised over the batch.
    """
    loss = seen.weight.new_zeros(())
    metrics: dict[str, float] = {}
    if score:
        assert seen.chosen is not None and seen.rejected is not None and seen.p is not None
        values = beta * SCORES[score](seen)
        chosen, rejected = values[seen.chosen], values[seen.rejected]
        weight = seen.weight[seen.chosen]
        losses = LINKS[link](chosen - rejected, TARGETS[target](seen.p))
        loss = loss + (weight * losses).sum() / weight.sum()
        metrics |= _pair_metrics(chosen.detach(), rejected.detach())
        if seen.logps is not None:
            metrics["logps/chosen"] = float(seen.logps.detach()[seen.chosen].mean())
            metrics["logps/rejected"] = float(seen.logps.detach()[seen.rejected].mean())
    if nll:
        assert seen.logps is not None
        first = torch.arange(len(seen.logps), device=seen.logps.device) if seen.chosen is None else seen.chosen
        tokens = (seen.weight * seen.lengths)[first].sum()
        token_loss = -(seen.weight * seen.logps)[first].sum() / tokens
        loss = loss + nll * token_loss
        metrics["nll"] = float(token_loss.detach())
    return Outcome(loss, metrics)


def _pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    gap = chosen - rejected
    return {
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.mean()),
        "rewards/margins": float(gap.mean()),
        "rewards/accuracies": float(((gap > 0).double() + (gap == 0).double() / 2).mean()),
    }
