"""Preference losses as switches: score map x link x target, plus auxiliary terms.

Each switch is a table of pure functions over the same small structure. A method is a row of ``presets`` that names its
switches; a new method is one function here, or none, and one row there. A user's own function stands in for any of them
as ``my_module:my_function``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.records import InputError
from tiebreak.registry import load_object, nearest


@dataclass(frozen=True)
class Seen:
    """All an objective sees of a batch of B branches and P pairs.

    ``logps`` and ``reference`` (B,) are summed log-probabilities of completions, EOS included; ``scores`` (B,) a reward
    head's; ``lengths`` (B,) tokens; ``chosen`` and ``rejected`` (P,) index branches; ``p`` (P,) is P(chosen is better);
    ``weight`` (B,) is a row's weight, for a pair that of its chosen branch.

    ``whole`` is what to divide by: a batch may be computed in parts, and each part's loss is its share of the whole, so
    that the parts' gradients add up to the gradient of the batch whichever way it was split.
    """

    lengths: Tensor
    weight: Tensor
    logps: Tensor | None = None
    reference: Tensor | None = None
    scores: Tensor | None = None
    chosen: Tensor | None = None
    rejected: Tensor | None = None
    p: Tensor | None = None
    whole: Whole | None = None


class Whole(NamedTuple):
    """The batch that a part belongs to: its rows' weight, and the weighted learned tokens of their first branches."""

    weight: float
    tokens: float


class Outcome(NamedTuple):
    """The loss to differentiate and the numbers to log (scalar tensors), named as TRL names them."""

    loss: Tensor
    metrics: dict[str, Tensor]


def log_ratio(seen: Seen) -> Tensor:
    """rho(y) = log pi(y|x) - log pi_ref(y|x), the implicit reward over beta (Rafailov et al. 2023, eq. 5)."""
    assert seen.logps is not None
    assert seen.reference is not None
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


def choose(switch: str, table: Mapping[str, Callable[..., Tensor]], name: str) -> Callable[..., Tensor]:
    """Return what ``switch`` is set to, a name of its table or a user's ``module:function``.

    Raises:
        InputError: neither, with the nearest name.
    """
    if name in table:
        return table[name]
    if ":" in name:
        own: Callable[..., Tensor] = load_object(name, what=switch)
        return own
    raise InputError(
        f"There is no {switch} {name!r}; there are {', '.join(table)}, or your own as module:function."
        f"{nearest(name, table)}"
    )


def check(*, score: str, link: str, target: str, nll: float, **_: object) -> None:
    """Refuse switches that do not exist or leave nothing to learn.

    Raises:
        InputError: an unknown switch, no term at all, or a likelihood term beside a reward head, which has no words.
    """
    if score:
        choose("score map", SCORES, score)
    if score or link:
        choose("link", LINKS, link)
    choose("target", TARGETS, target)
    if not score and not nll:
        raise InputError("The objective has neither a score map nor an nll weight, so there is nothing to learn.")
    if score == "head" and nll:
        raise InputError("A reward head has no log-probabilities, so nll has to be 0 where score is head.")


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
    metrics: dict[str, Tensor] = {}
    if score:
        assert seen.chosen is not None
        assert seen.rejected is not None
        assert seen.p is not None
        values = beta * choose("score map", SCORES, score)(seen)
        chosen, rejected = values[seen.chosen], values[seen.rejected]
        weight = seen.weight[seen.chosen]
        losses = choose("link", LINKS, link)(chosen - rejected, choose("target", TARGETS, target)(seen.p))
        loss = loss + (weight * losses).sum() / (weight.sum() if seen.whole is None else seen.whole.weight)
        metrics |= _pair_metrics(chosen.detach(), rejected.detach())
        if seen.logps is not None:
            metrics["logps/chosen"] = seen.logps.detach()[seen.chosen].mean()
            metrics["logps/rejected"] = seen.logps.detach()[seen.rejected].mean()
    if nll:
        assert seen.logps is not None
        first = torch.arange(len(seen.logps), device=seen.logps.device) if seen.chosen is None else seen.chosen
        tokens = (seen.weight * seen.lengths)[first].sum() if seen.whole is None else seen.whole.tokens
        token_loss = -(seen.weight * seen.logps)[first].sum() / tokens
        loss = loss + nll * token_loss
        metrics["nll"] = token_loss.detach()
    return Outcome(loss, metrics)


def _pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    gap = chosen - rejected
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": gap.mean(),
        "rewards/accuracies": ((gap > 0).to(gap.dtype) + (gap == 0).to(gap.dtype) / 2).mean(),
    }
