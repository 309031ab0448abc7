"""Score maps: what a branch is worth, (B,). And how two branches' scores are compared, and what is added to that.

rho(y) = log pi(y|x) - log pi_ref(y|x) throughout, and |y| counts the learned tokens of a branch, EOS included. What
depends on which of the two sides a branch is on cannot be a score map, for a branch of a list is on both; such methods
give two numbers a branch, (B, 2), and a comparison of their own. beta multiplies scores before they are compared, so
whatever a paper writes inside ``beta * (...)`` belongs to a score map or a comparison, and what it writes beside it
is an offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.records import InputError
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen

LARGEST = 80.0
"""Exponents stop here: e^80, times any beta and summed over a batch, is a number in float32, and e^89 is not."""


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
    """What the reward head gives: one number, or k of them."""
    assert seen.scores is not None
    return seen.scores


def mean_log_ratio(seen: Seen) -> Tensor:
    """rho(y) / |y| (Lambert et al. 2024, arXiv 2411.15124); beta has to be larger by some mean |y|, about 5."""
    return log_ratio(seen) / _tokens(seen)


def mean_log_prob(seen: Seen) -> Tensor:
    """Log pi(y|x) / |y|, the reward over beta of SimPO (Meng et al. 2024, eq. 4)."""
    return log_prob(seen) / _tokens(seen)


def log_odds(seen: Seen) -> Tensor:
    """log(p / (1-p)) with p = exp(log pi(y|x) / |y|), the mean over tokens (Hong et al. 2024, ORPO, eq. 4).

    With the sum over tokens p would underflow and the odds would be p itself. A token mean of 0 has no finite odds; it
    is taken one rounding below 0, where it has no slope any more.
    """
    mean = mean_log_prob(seen)
    mean = mean.clamp_max(-torch.finfo(mean.dtype).eps)
    return mean - log1mexp(mean)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x < 0, exact as x -> 0, and to within a rounding of 1 where x is far below."""
    return torch.log(-torch.expm1(x))


def power(seen: Seen, *, power_alpha: float = 0.25) -> Tensor:
    """(1 - p^-a) / a with p = exp(log pi(y|x) / |y|) (Gupta et al. 2025, AlphaPO); a = 0 is log p."""
    return box_cox(mean_log_prob(seen), -power_alpha)


def forward_kl(seen: Seen) -> Tensor:
    """f'(pi/pi_ref) of KL(pi_ref || pi): 1 - exp(-rho) (Wang et al. 2023, f-DPO, table 1)."""
    return box_cox(log_ratio(seen), -1.0)


def jensen_shannon(seen: Seen) -> Tensor:
    """f'(pi/pi_ref) of the Jensen-Shannon divergence: log 2 + log sigmoid(rho) (Wang et al. 2023, f-DPO, table 1)."""
    return math.log(2) + logsigmoid(log_ratio(seen))


def alpha_divergence(seen: Seen, *, divergence_alpha: float = 0.5) -> Tensor:
    """f'(pi/pi_ref) of an alpha-divergence: (exp((a-1) rho) - 1) / (a-1); a = 1 is rho, a = 0 is ``forward_kl``.

    The sign is that of TRL. f-DPO (Wang et al. 2023, table 1) writes (1 - u^-a') / a', which is this with a' = 1 - a;
    at 0.5 the two are the same. As in the other divergences a constant is added so that the reference is worth 0; it
    cancels where two branches are compared.
    """
    return box_cox(log_ratio(seen), divergence_alpha - 1.0)


def box_cox(x: Tensor, rate: float) -> Tensor:
    """Return (e^{rate x} - 1) / rate, x itself at 0; beyond :data:`LARGEST` it is flat, so that it stays finite."""
    return torch.expm1((rate * x).clamp_max(LARGEST)) / rate if rate else x


def shared_length(seen: Seen, *, tail_weight: float = 0.5) -> Tensor:
    """Log-ratio of the first min |y| tokens of a row's branches, and ``tail_weight`` of the rest's (LD-DPO).

    Both policy and reference are counted so (Liu et al. 2024, arXiv 2409.06411); 1 is ``log_ratio``, 0 counts
    no token beyond the shortest branch.
    """
    public = seen.readings["public"] - seen.compared["public"]
    return public + tail_weight * (log_ratio(seen) - public)


def log_prob_and_reference(seen: Seen) -> Tensor:
    """Log pi(y|x) and log pi_ref(y|x) side by side, (B, 2), for the comparison ``optimistic``."""
    assert seen.logps is not None
    assert seen.reference is not None
    return torch.stack([seen.logps, seen.reference], 1)


def log_ratio_and_kl(seen: Seen) -> Tensor:
    """rho(y) and sum_t KL(pi_ref || pi) along y side by side, (B, 2), for ``sequence_kl`` and ``rejected_kl``.

    The reference comes first in the divergence (Zeng et al. 2024, TDPO); the other way round is another method.
    """
    return torch.stack([log_ratio(seen), seen.readings["token_kl"]], 1)


def _tokens(seen: Seen) -> Tensor:
    """Return |y|, at least 1: a branch beside may have no learned token, and 0/0 would spoil the whole gradient."""
    return seen.lengths.clamp_min(1)


SCORES: Mapping[str, Part] = {
    "log_ratio": Part(log_ratio, reads=("reference",)),
    "log_prob": Part(log_prob),
    "head": Part(head, reads=("scores",)),
    "mean_log_ratio": Part(mean_log_ratio, reads=("reference",)),
    "mean_log_prob": Part(mean_log_prob),
    "log_odds": Part(log_odds),
    "power": Part(power),
    "forward_kl": Part(forward_kl, reads=("reference",)),
    "jensen_shannon": Part(jensen_shannon, reads=("reference",)),
    "alpha_divergence": Part(alpha_divergence, reads=("reference",)),
    "shared_length": Part(shared_length, reads=("reference", "public")),
    "log_prob_and_reference": Part(log_prob_and_reference, reads=("reference",)),
    "log_ratio_and_kl": Part(log_ratio_and_kl, reads=("reference", "token_kl")),
}


def difference(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return how much more the chosen side is worth."""
    _refuse(chosen.ndim != 1, "difference", "one number", chosen, "skew for a head with several outputs")
    return chosen - rejected


def skew(chosen: Tensor, rejected: Tensor, *, skew_tau: float = 0.1) -> Tensor:
    """v_w^T R v_l / tau with R skew-symmetric in blocks of two: sum over blocks of v_w[0] v_l[1] - v_w[1] v_l[0].

    Zhang et al. 2024 (general preference model, arXiv 2410.02197). Exchanging the sides changes the sign and
    nothing else, whatever the embeddings, so P(i > j) + P(j > i) = 1 by construction; with second numbers of 1 it is
    Bradley-Terry on the first. Embeddings are not normalised here, since their length may carry strength.

    Args:
        chosen: beta x embedding, (P, 2k). Both sides are scaled, so beta counts twice: leave it 1 and set ``skew_tau``.
        rejected: the same of the other side.
        skew_tau: temperature; 0.1 for the preference model, 1 for Bradley-Terry.

    Raises:
        InputError: embeddings without an even number of columns.
    """
    odd = chosen.ndim != 2 or chosen.shape[-1] % 2 == 1
    _refuse(odd, "skew", "an even number of numbers", chosen, "difference for a head with one output")
    return (chosen[:, 0::2] * rejected[:, 1::2] - chosen[:, 1::2] * rejected[:, 0::2]).sum(1) / skew_tau


SLACK = 1e-3
"""How far beta x rho may fall before DPO-Positive takes it for a fall."""


def penalised(chosen: Tensor, rejected: Tensor, *, drop_penalty: float = 50.0) -> Tensor:
    """rho_w - lambda max(0, -rho_w) - rho_l: it costs to make the chosen side less likely than the reference does.

    Pal et al. 2024 (DPO-Positive, arXiv 2402.13228), with scores ``log_ratio``. The penalty begins :data:`SLACK` below
    0: at the start rho_w is 0 but for rounding, and a rounding below it would have all of the slope, lambda times the
    pull of DPO, so that the first step would depend on how a batch was computed.
    """
    return difference(chosen, rejected) - drop_penalty * torch.relu(-chosen - SLACK)


def optimistic(chosen: Tensor, rejected: Tensor) -> Tensor:
    """D_theta - max(0, D_ref): the reference counts where it is right about the pair and is taken as neutral elsewhere.

    Yuan et al. 2026 (arXiv 2602.11902), with scores ``log_prob_and_reference``; D is the log-probability of the
    chosen side less that of the rejected one.
    """
    _refuse(_columns(chosen) != 2, "optimistic", "two numbers", chosen, "score to log_prob_and_reference with it")
    gap = chosen - rejected
    return gap[:, 0] - torch.relu(gap[:, 1])


def sequence_kl(chosen: Tensor, rejected: Tensor) -> Tensor:
    """D - (KL_l - KL_w) with gradients through both (Zeng et al. 2024, TDPO1); scores ``log_ratio_and_kl``."""
    _refuse(_columns(chosen) != 2, "sequence_kl", "two numbers", chosen, "score to log_ratio_and_kl with it")
    return (chosen - rejected).sum(1)


def rejected_kl(chosen: Tensor, rejected: Tensor, *, token_kl_weight: float = 0.5) -> Tensor:
    """D - alpha (KL_l - sg[KL_w]): the chosen side's divergence is a level, not something to raise.

    Zeng et al. 2024 (TDPO2, arXiv 2404.11999), with scores ``log_ratio_and_kl``; 0 is DPO.
    """
    _refuse(_columns(chosen) != 2, "rejected_kl", "two numbers", chosen, "score to log_ratio_and_kl with it")
    apart = rejected[:, 1] - chosen[:, 1].detach()
    return chosen[:, 0] - rejected[:, 0] - token_kl_weight * apart


def _columns(values: Tensor) -> int:
    return values.shape[1] if values.ndim == 2 else 1


def _refuse(wrong: bool, name: str, expected: str, values: Tensor, cure: str) -> None:
    if wrong:
        raise InputError(
            f"The comparison {name} needs {expected} of each branch and the score map gives {_columns(values)}; "
            f"set compare to another, or {cure}."
        )


COMPARES: Mapping[str, Part] = {
    "difference": Part(difference),
    "skew": Part(skew),
    "penalised": Part(penalised),
    "optimistic": Part(optimistic),
    "sequence_kl": Part(sequence_kl),
    "rejected_kl": Part(rejected_kl),
}
"""How two branches compare, (P,), from beta x score of the chosen and of the rejected ones."""


def gamma(seen: Seen, *, gamma: float) -> Tensor:
    """-gamma: the chosen side has to win by a margin (Meng et al. 2024, SimPO, eq. 6).

    It is the margin itself, as in the paper and in TRL. SimPO's own configuration files say ``gamma_beta_ratio``
    instead: gamma = ratio x beta. It has no default, since what is much depends on beta.
    """
    assert seen.chosen is not None
    return seen.weight.new_full(seen.chosen.shape, -gamma)


def margin(seen: Seen, *, margin_scale: float = 1.0) -> Tensor:
    """-m x scale, the row's own margin: strong preferences have to be far apart (Touvron et al. 2023, Llama 2, eq. 2).

    The margin follows the pair: where sides were exchanged, its sign has to have been turned too.
    """
    assert seen.margin is not None
    return -margin_scale * seen.margin


def log_margin(seen: Seen, *, log_margin_scale: float = 1.0) -> Tensor:
    """-a log(gap of scores), which is a bonus where the gap is below 1 (Amini et al. 2024, ODPO).

    Raises:
        InputError: a gap that is not above 0.
    """
    assert seen.margin is not None
    if not bool((seen.margin > 0).all()):
        raise InputError(
            f"The offset log_margin takes the logarithm of each pair's margin, and one is {float(seen.margin.min()):g};"
            " drop pairs whose scores do not differ or contradict the preference, or set offset to margin."
        )
    return -log_margin_scale * seen.margin.log()


def length(seen: Seen, *, length_penalty: float = 0.01) -> Tensor:
    """+a (|y_w| - |y_l|): a longer chosen side is pushed less (Park et al. 2024, R-DPO).

    The sign is plus: with reward beta rho + a |y| the optimum is pi_ref exp((r - a |y|) / beta), which pays for length.
    """
    assert seen.chosen is not None
    assert seen.rejected is not None
    longer = seen.lengths[seen.chosen] - seen.lengths[seen.rejected]
    return length_penalty * longer.to(seen.weight.dtype)


OFFSETS: Mapping[str, Part] = {
    "gamma": Part(gamma),
    "margin": Part(margin, needs=("margin",)),
    "log_margin": Part(log_margin, needs=("margin",)),
    "length": Part(length),
}
"""What is added to how two branches compare, (P,). beta does not multiply it."""
