"""Links of pairs: from how two sides compare, and which should win, to a loss, shapes (P,).

A link that is made for hard labels takes any q as the average over which side is right, q L(chosen wins) + (1 - q)
L(rejected wins), so that every target goes with it and an unbiased target stays unbiased. Those that look at each side
by itself (``nca``, ``sppo``, ``apo_zero``, ``apo_down``, ``bco_pair``) do not survive a constant added to the reference
of a prompt: the reference has to be the true one, with the end-of-sequence token counted on both models. They, and
``aot_unpaired``, do not see an offset either, for that belongs to a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.records import InputError
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Compared


def logistic(pair: Compared) -> Tensor:
    """-[q log sigmoid(z) + (1-q) log sigmoid(-z)]; q = 1 is the hard label, minimised at z = logit q."""
    return _cross_entropy(pair.z, pair.q)


def square(pair: Compared, *, tau: float = 0.1) -> Tensor:
    """(z - 1/(2 tau))^2, identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17).

    With a probability, q (z - t)^2 + (1-q) (z + t)^2 for t = 1/(2 tau), least at z = (q - 1/2)/tau. ``beta`` scales z
    before it is compared with the target, so it stays 1 where tau alone is to set the target.

    Raises:
        InputError: tau is not above 0.
    """
    if not tau > 0:
        raise InputError(f"tau is {tau}; expected a number above 0, the square link aims at 1/(2 tau).")
    aim = 1 / (2 * tau)
    return _mixed(pair.q, (pair.z - aim) ** 2, (pair.z + aim) ** 2)


def hinge(pair: Compared, *, hinge_margin: float = 1.0) -> Tensor:
    """max(0, margin - z): hinge-norm of RSO (Liu et al. 2023, arXiv 2309.06657), SLiC-HF's where z has no reference."""
    return _mixed(pair.q, (hinge_margin - pair.z).clamp_min(0), (hinge_margin + pair.z).clamp_min(0))


def reverse_kl(pair: Compared) -> Tensor:
    """KL(s || q) between two answers, s = sigmoid(z): the policy's distribution comes first; 0 at z = logit q.

    EXO for pairs (Ji et al. 2024, arXiv 2402.00856, eq. 16), and what NeMo calls ``rpo_fwd_kl``.

    Raises:
        InputError: a q of 0 or 1, to which the distance is infinite.
    """
    inner = _inside(pair.q, "reverse_kl")
    share, own, other = torch.sigmoid(pair.z), logsigmoid(pair.z), logsigmoid(-pair.z)
    return share * (own - inner.log()) + (1 - share) * (other - torch.log1p(-inner))


def forward_kl(pair: Compared) -> Tensor:
    """KL(q || s), the logistic link less the entropy of the target, so that its least value is 0, at z = logit q.

    Raises:
        InputError: a q that is no probability.
    """
    if bool(((pair.q < 0) | (pair.q > 1)).any()):
        raise InputError("forward_kl takes targets between 0 and 1; target: unbiased gives others, use link: logistic.")
    entropy = torch.special.entr(pair.q) + torch.special.entr(1 - pair.q)
    return _cross_entropy(pair.z, pair.q) - entropy


def square_logit(pair: Compared) -> Tensor:
    """(z - logit q)^2, which is (beta D - eta gap)^2 of reward-aware RPO where the target is ``gap``.

    The logit is read off q, which ``gap`` gives in double precision: eta gap may go up to 36, beyond that q is 1.

    Raises:
        InputError: a q of 0 or 1, whose logit is infinite.
    """
    return (pair.z - torch.logit(_inside(pair.q, "square_logit"))) ** 2


def nca(pair: Compared) -> Tensor:
    """S(r_w) + S(-r_w)/2 + S(-r_l)/2 with S(r) = -log sigmoid(r) (Chen et al. 2024, arXiv 2402.05369).

    The chosen side is best at r_w = log 2; the rejected one is pushed down without limit. With a probability each side
    is raised by its own: q S(r_w) + (1-q) S(r_l) + S(-r_w)/2 + S(-r_l)/2.
    """
    noise = logsigmoid(-pair.chosen) + logsigmoid(-pair.rejected)
    return _mixed(pair.q, -logsigmoid(pair.chosen), -logsigmoid(pair.rejected)) - 0.5 * noise


def sppo(pair: Compared) -> Tensor:
    """(rho_w - (q - 1/2)/beta)^2 + (rho_l - (1/2 - q)/beta)^2 (Wu et al. 2024, arXiv 2405.00675, eq. 4.7).

    The paper's q is P(answer beats the policy), of each answer by itself; a pair has one number, P(chosen beats
    rejected). q = 1 is TRL's ``sppo_hard``. The sum over both sides is TRL's; others take half of it.
    """
    aim = pair.q - 0.5
    return ((pair.chosen - aim) ** 2 + (pair.rejected + aim) ** 2) / pair.beta**2


def apo_zero(pair: Compared) -> Tensor:
    """1 - sigmoid(r_w) + sigmoid(r_l), one up and the other down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    For chosen answers that are better than what the policy says by itself.
    """
    chosen, rejected = torch.sigmoid(pair.chosen), torch.sigmoid(pair.rejected)
    return _mixed(pair.q, 1 - chosen + rejected, 1 - rejected + chosen)


def apo_down(pair: Compared) -> Tensor:
    """sigmoid(r_w) + 1 - sigmoid(z): both down, the rejected one further (arXiv 2408.06266, eq. 8).

    For chosen answers that are worse than what the policy says by itself.
    """
    right = torch.sigmoid(pair.chosen) + torch.sigmoid(-pair.z)
    return _mixed(pair.q, right, torch.sigmoid(pair.rejected) + torch.sigmoid(pair.z))


def bco_pair(pair: Compared) -> Tensor:
    """S(r_w) + S(-r_l): each side a binary label of its own (Jung et al. 2024, arXiv 2404.04656); above DPO's loss."""
    right = logsigmoid(pair.chosen) + logsigmoid(-pair.rejected)
    return -_mixed(pair.q, right, logsigmoid(pair.rejected) + logsigmoid(-pair.chosen))


def aot(pair: Compared) -> Tensor:
    """Logistic of sorted gaps: the policy's i-th smallest less the reference's i-th smallest, times beta.

    Alignment via optimal transport, paired (Melnyk et al. 2024, arXiv 2406.05882). The score has to be ``log_ratio``.
    See :func:`matched` for weights and targets. A batch computed on several devices is sorted on each by itself.
    """
    seen = pair.seen
    assert seen.reference is not None
    there = pair.beta * (seen.reference[seen.chosen] - seen.reference[seen.rejected])
    return matched(pair.z + there, there, pair)


def aot_unpaired(pair: Compared) -> Tensor:
    """Logistic of the i-th smallest reward of chosen answers less that of rejected ones (arXiv 2406.05882).

    Which answer was paired with which does not count. See :func:`matched` for weights and targets.
    """
    return matched(pair.chosen, pair.rejected, pair)


def matched(own: Tensor, other: Tensor, pair: Compared) -> Tensor:
    """Return the logistic loss of ``own`` against what stands at the same rank of ``other``, (P,).

    A pair's row weight, shared among the row's pairs, is how often it stands in both sorted lines, so a row of weight
    two is the row twice; what a weight switch adds only scales the losses. A loss is handed to the pair whose ``own``
    it is, and that pair's q is its target.
    """
    seen = pair.seen
    mass = seen.weight[seen.chosen] if seen.share is None else seen.weight[seen.chosen] * seen.share
    order, ranked = own.argsort(), other.argsort()
    ends, marks = mass[order].cumsum(0), mass[ranked].cumsum(0)
    cuts = torch.cat((ends, marks)).sort().values
    sizes = cuts.diff(prepend=cuts.new_zeros(1))
    middles, last = cuts - sizes / 2, len(own) - 1
    mine = order[torch.searchsorted(ends, middles).clamp_max(last)]
    theirs = ranked[torch.searchsorted(marks, middles).clamp_max(last)]
    losses = sizes * _cross_entropy(own[mine] - other[theirs], pair.q[mine])
    return own.new_zeros(len(own)).index_add(0, mine, losses.to(own.dtype)) / mass


def discopop(pair: Compared, *, sharpness: float = 0.05) -> Tensor:
    """(1-m) S(z) + m exp(-z) with m = sigmoid(z / sharpness) (Lu et al. 2024, arXiv 2406.08414, eq. 5).

    It rises with z from about -0.12 to 0.07, where the pull is the wrong way round. The temperature is part of the
    method: published code without it (1) is another loss.

    Raises:
        InputError: sharpness is not above 0.
    """
    if not sharpness > 0:
        raise InputError(f"sharpness is {sharpness}; expected a temperature above 0, the paper's is 0.05.")
    return _mixed(pair.q, _blend(pair.z, sharpness), _blend(-pair.z, sharpness))


def flip_channel(pair: Compared, *, channel_flips: float | None = None) -> Tensor:
    """Cross-entropy of the label as it was seen: P(chosen is marked) = (1-g) sigmoid(z) + g sigmoid(-z).

    Forward correction (Patrini et al. 2017, arXiv 1609.03683): bounded, where an unbiased target is not, and least at
    the true z all the same. ``channel_flips`` is g, the share of labels that are wrong; 0 is the logistic link.

    Raises:
        InputError: g is not from 0 up to one half.
    """
    if channel_flips is None or not 0 <= channel_flips < 0.5:
        raise InputError(f"channel_flips is {channel_flips}; expected a share of wrong labels from 0 to below 0.5.")
    keep, flip = math.log1p(-channel_flips), math.log(channel_flips) if channel_flips else -math.inf
    up, down = logsigmoid(pair.z), logsigmoid(-pair.z)
    return -_mixed(pair.q, torch.logaddexp(up + keep, down + flip), torch.logaddexp(down + keep, up + flip))


LINKS: Mapping[str, Part] = {
    "logistic": Part(logistic),
    "square": Part(square),
    "hinge": Part(hinge),
    "reverse_kl": Part(reverse_kl),
    "forward_kl": Part(forward_kl),
    "square_logit": Part(square_logit),
    "nca": Part(nca, sides=True),
    "sppo": Part(sppo, sides=True),
    "apo_zero": Part(apo_zero, sides=True),
    "apo_down": Part(apo_down),
    "bco_pair": Part(bco_pair, sides=True),
    "aot": Part(aot, reads=("reference",), couples=True, scores=("log_ratio",)),
    "aot_unpaired": Part(aot_unpaired, couples=True, sides=True),
    "discopop": Part(discopop),
    "flip_channel": Part(flip_channel),
}


def _cross_entropy(z: Tensor, q: Tensor) -> Tensor:
    return -(q * logsigmoid(z) + (1 - q) * logsigmoid(-z))


def _mixed(q: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """Return the average over which side is right."""
    return q * right + (1 - q) * wrong


def _blend(z: Tensor, sharpness: float) -> Tensor:
    """Return (1-m) S(z) + m exp(-z), the product taken in logs: far below 0 m is 0 and exp(-z) infinite."""
    return -torch.sigmoid(-z / sharpness) * logsigmoid(z) + torch.exp(logsigmoid(z / sharpness) - z)


def _inside(q: Tensor, link: str) -> Tensor:
    """Return ``q``, of which each lies between 0 and 1 and is neither."""
    if bool(((q <= 0) | (q >= 1)).any()):
        raise InputError(
            f"{link} needs every target above 0 and below 1, and one of this batch is not: use target: smoothed with "
            "smoothing above 0, soft labels that are never certain, or gap with a smaller gap_scale."
        )
    return q
