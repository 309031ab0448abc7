"""Auxiliary terms: what is added to a loss, a scalar that is this part's share of the mean over the whole batch.

All are means over rows by their weight, but for the mean over tokens that ``nll`` is by default.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.records import InputError
from tiebreak.registry import nearest
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen


def nll(seen: Seen, *, nll_over: str = "tokens") -> Tensor:
    """Negative log-likelihood of the first branch of each row.

    ``nll_over`` says what it is a mean over: ``tokens`` of all rows together, so that long answers count more (TRL);
    ``rows``, each divided by its own length first (iterative RPO, Pang et al. 2024, arXiv 2404.19733); ``sum``, rows
    of undivided log-probabilities (SLiC-HF as HALOs has it).

    Raises:
        InputError: another ``nll_over``.
    """
    assert seen.logps is not None
    first = first_of(seen)
    if _one_of("nll_over", nll_over, ("tokens", "rows", "sum")) == "tokens":
        tokens = (seen.weight * seen.lengths)[first].sum() if seen.whole is None else seen.whole.tokens
        return -(seen.weight * seen.logps)[first].sum() / tokens
    return -_mean(seen, _per_token(seen, first) if nll_over == "rows" else seen.logps[first], first)


def rationale(seen: Seen, *, rationale_link: str = "nll", rationale_scale: float = 0.1) -> Tensor:
    """How unlikely the rationale of each pair is, with no reference (Just et al. 2024, arXiv 2407.14477).

    ``nll``, the paper's, is the negative log-likelihood of a token, a mean over each rationale by itself;
    ``logsigmoid`` is the released code's S(scale x log-likelihood), whose slope is scale x sigmoid(-scale x lp) that of
    the whole rationale. Only the rationale's tokens count, and it never enters the comparison.

    Raises:
        InputError: another ``rationale_link``.
    """
    assert seen.logps is not None
    there = seen.beside["rationale"]
    if _one_of("rationale_link", rationale_link, ("nll", "logsigmoid")) == "nll":
        return -_mean(seen, _per_token(seen, there), there)
    return -_mean(seen, logsigmoid(rationale_scale * seen.logps[there]), there)


def optimism(seen: Seen) -> Tensor:
    """Mean of rho over drawn answers, which training pushes down: what the policy says by habit makes room.

    The weight is XPO's alpha (Xie et al. 2024, arXiv 2405.21046) and SELM's alpha x beta (Zhang et al. 2024, arXiv
    2405.19332): the two differ in what they are called, and XPO's lp from rho by a constant. The answers are drawn by
    the previous iterate, or the reference.
    """
    assert seen.logps is not None
    assert seen.reference is not None
    there = seen.beside["drawn"]
    return _mean(seen, (seen.logps - seen.reference)[there], there)


def online_kl(seen: Seen) -> Tensor:
    """KL(pi || pi_ref) estimated from drawn answers, with its gradient (HyPO, Song et al. 2024, arXiv 2406.01462).

    The value is the mean of rho. Its own gradient is zero on average, so the gradient is that of sg[rho - b] lp, whole
    answers multiplied and not token by token; b is the mean rho of the other drawn answers of the batch, which leaves
    the average as it is. A mean that has the answer itself in it would shrink it by 1 - 1/n.

    The average is right for answers that the policy itself drew, in this step. Answers drawn once before training pull
    towards the reference on the start's own answers only.
    """
    assert seen.logps is not None
    assert seen.reference is not None
    there = seen.beside["drawn"]
    weight, logps = seen.weight[there], seen.logps[there]
    rho = (logps - seen.reference[there]).detach()
    others = weight.sum() - weight
    baseline = ((weight * rho).sum() - weight * rho) / others if len(there) > 1 else 0.0
    surrogate = (rho - baseline) * logps
    return _mean(seen, rho + surrogate - surrogate.detach(), there)


def centring(seen: Seen) -> Tensor:
    """(s_w + s_l)^2, which holds the scores of a reward head around 0 (Eisenstein et al. 2023, arXiv 2312.09244)."""
    assert seen.scores is not None
    sums = (seen.scores[seen.chosen] + seen.scores[seen.rejected]) ** 2
    weight = seen.weight[seen.chosen] if seen.share is None else seen.weight[seen.chosen] * seen.share
    return (weight * sums.reshape(len(weight), -1).sum(1)).sum() / rows_weight(seen)


def first_of(seen: Seen) -> Tensor:
    """Return the first branch of each row, the one to imitate; without pairs or lists each branch is one."""
    if seen.tree is not None:
        fresh = torch.ones_like(seen.tree, dtype=torch.bool)
        fresh[1:] = seen.tree[1:] != seen.tree[:-1]
        return torch.nonzero(fresh).flatten()
    if seen.chosen is not None:
        return seen.chosen
    if seen.alone is not None:
        return seen.alone
    return torch.arange(len(seen.lengths), device=seen.lengths.device)


def rows_weight(seen: Seen) -> Tensor | float:
    """Return what a mean over the rows of the whole batch is divided by."""
    return seen.weight[first_of(seen)].sum() if seen.whole is None else seen.whole.weight


def _mean(seen: Seen, values: Tensor, branches: Tensor) -> Tensor:
    """Return this part's share of the mean over rows of ``values``, one of each of ``branches``."""
    return (seen.weight[branches] * values).sum() / rows_weight(seen)


def _per_token(seen: Seen, branches: Tensor) -> Tensor:
    """Return the mean log-probability of a token of each of ``branches``; one without tokens has 0."""
    assert seen.logps is not None
    return seen.logps[branches] / seen.lengths[branches].clamp_min(1)


def _one_of(name: str, value: str, names: tuple[str, ...]) -> str:
    if value not in names:
        raise InputError(f"{name} is {value!r}; expected {' or '.join(names)}.{nearest(str(value), names)}")
    return value


TERMS: Mapping[str, Part] = {
    "nll": Part(nll),
    "rationale": Part(rationale, needs=("rationale",)),
    "optimism": Part(optimism, reads=("reference",), needs=("drawn",)),
    "online_kl": Part(online_kl, reads=("reference",), needs=("drawn",), couples=True),
    "centring": Part(centring, reads=("scores",)),
}
