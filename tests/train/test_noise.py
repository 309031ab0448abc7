"""Planted truth under flipped labels: what recovers the policy that the labels were made from, and what does not.

The means over labels and flips are exact: each ordered pair of answers is a row whose weight is how often a judge
says so. One test draws its labels.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.seen_made import Double, numbers
from tiebreak.train.objectives.by_link import ROWS
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective

ROW = {row.name: row.knobs or {} for row in ROWS}
BETA = 0.5
DPO: dict[str, Any] = {"score": "log_ratio", "link": "logistic", "target": "hard", "beta": BETA}
REWARDS = numbers([0.9, -0.6, 0.3, 0.0, -1.1])
REFERENCE = numbers([0.1, 0.3, 0.2, 0.25, 0.15]).log()
PLANTED = (REFERENCE + REWARDS / BETA).log_softmax(0)
"""What rewards, labelled by Bradley-Terry, are the optimum of: pi_ref exp(r / beta) / Z."""
ORDERS = torch.tensor(list(permutations(range(len(REWARDS)), 2)))
TRUE = torch.sigmoid(REWARDS[ORDERS[:, 0]] - REWARDS[ORDERS[:, 1]])
"""How often the first of each ordered pair is rightly preferred."""
rates = pytest.mark.parametrize("eps", [0.2, 0.4])


def treated(name: str, eps: float) -> dict[str, Any]:
    """The knobs of a loss that was told the rate of flips."""
    own = {
        "dpo": DPO,
        "robust_dpo": {**ROW["robust_dpo"], "flip_rate": eps},
        "cdpo": {**ROW["cdpo"], "smoothing": eps},
        "flip_channel": {**DPO, "link": "flip_channel", "channel_flips": eps},
        "ipo": {**ROW["ipo_sum"], "tau": BETA},
        "unbiased_ipo": {**ROW["ipo_sum"], "tau": BETA, "target": "unbiased", "flip_rate": eps},
    }[name]
    return {**own, "beta": 1.0 if "ipo" in name else BETA}


def flipped(p: Tensor, eps: float) -> Tensor:
    return (1 - eps) * p + eps * (1 - p)


def judged(logps: Tensor, reference: Tensor, orders: Tensor, weight: Tensor) -> Seen:
    """Each ordered pair of answers as a row, chosen first, with its weight."""
    rows = torch.arange(len(orders))
    return Seen(
        lengths=torch.ones(2 * len(orders)),
        weight=weight.repeat_interleave(2),
        logps=logps[orders.flatten()],
        reference=reference[orders.flatten()],
        chosen=2 * rows,
        rejected=2 * rows + 1,
        p=torch.ones(len(orders), dtype=Double),
        tree=rows.repeat_interleave(2),
    )


def least(size: int, loss: Any) -> Tensor:
    """Where ``loss`` of a vector of ``size`` is least."""
    theta = torch.zeros(size, dtype=Double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(theta)
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()


@cache
def learned(name: str, eps: float, told: float) -> Tensor:
    """The log-probs of the softmax policy that fits labels flipped with rate ``eps``, told ``told``."""

    def loss(theta: Tensor) -> Tensor:
        logps = (REFERENCE + theta).log_softmax(0)
        seen = judged(logps, REFERENCE, ORDERS, flipped(TRUE, eps))
        return objective(seen, **treated(name, told)).loss

    return (REFERENCE + least(len(REWARDS), loss)).log_softmax(0)


def error(name: str, eps: float, told: float | None = None) -> float:
    """By how much the most mistaken log-probability is off."""
    return float((learned(name, eps, eps if told is None else told) - PLANTED).abs().max())


@pytest.mark.parametrize("name", ["dpo", "robust_dpo", "cdpo", "flip_channel"])
def test_without_flips_each_recovers_the_planted_policy(name: str) -> None:
    assert error(name, 0.0) < 1e-6


@rates
@pytest.mark.parametrize("name", ["robust_dpo", "flip_channel"])
def test_told_the_rate_of_flips_the_planted_policy_is_recovered(name: str, eps: float) -> None:
    assert error(name, eps) < 1e-6


@rates
def test_dpo_does_not_recover_it_and_conservative_dpo_is_further_off(eps: float) -> None:
    """Flips draw a policy to its reference, and smoothing draws it there a second time."""
    start = float((REFERENCE - PLANTED).abs().max())
    assert error("dpo", 0.0) < 1e-6 < 0.3 < error("dpo", eps) < error("cdpo", eps) < start


@rates
def test_a_rate_that_is_wrong_does_not_recover_it(eps: float) -> None:
    assert error("robust_dpo", eps, told=eps - 0.1) > 0.05
    assert error("flip_channel", eps, told=eps - 0.1) > 0.05


@rates
def test_flips_shrink_ipo_by_one_less_twice_their_rate_and_an_unbiased_target_does_not_shrink(eps: float) -> None:
    clean = learned("ipo", 0.0, 0.0) - REFERENCE
    noisy, mended = (learned(name, eps, eps) - REFERENCE for name in ("ipo", "unbiased_ipo"))

    def gaps(rho: Tensor) -> list[float]:
        found: list[float] = (rho[ORDERS[:, 0]] - rho[ORDERS[:, 1]]).tolist()
        return found

    assert gaps(noisy) == pytest.approx([(1 - 2 * eps) * gap for gap in gaps(clean)], abs=1e-7)
    assert gaps(mended) == pytest.approx(gaps(clean), abs=1e-7)


@pytest.mark.parametrize("eps", [0.0, 0.2, 0.4])
def test_means_over_flips_are_losses_of_the_right_labels(eps: float) -> None:
    """Of robust DPO it is DPO's, of DPO it is conservative DPO's, at any policy, to the last digits."""
    theta = torch.randn(len(REWARDS), dtype=Double, generator=torch.Generator().manual_seed(0)).requires_grad_(True)

    def at(name: str, weight: Tensor) -> tuple[float, list[float]]:
        logps = (REFERENCE + theta).log_softmax(0)
        loss = objective(judged(logps, REFERENCE, ORDERS, weight), **treated(name, eps)).loss
        return float(loss.detach()), torch.autograd.grad(loss, theta)[0].tolist()

    for noisy, clean in (("robust_dpo", "dpo"), ("dpo", "cdpo")):
        there, here = at(noisy, flipped(TRUE, eps)), at(clean, TRUE)
        assert there[0] == pytest.approx(here[0], rel=1e-13)
        assert there[1] == pytest.approx(here[1], rel=1e-11, abs=1e-14)


ANSWERS, FEATURES, LABELS = 40, 4, 20_000
WEIGHTS = numbers([1.2, -0.8, 0.5, 0.0])
"""The planted parameter of a log-linear policy, in units of 1/beta."""


@cache
def drawn_labels(eps: float) -> tuple[Tensor, Tensor]:
    """Features of the answers to one prompt, and pairs of them as a judge with flips labelled them."""
    source = torch.Generator().manual_seed(17)
    features = torch.randn(ANSWERS, FEATURES, dtype=Double, generator=source)
    pair = torch.randint(0, ANSWERS, (LABELS, 2), generator=source)
    rewards = features @ WEIGHTS
    right = torch.sigmoid(rewards[pair[:, 0]] - rewards[pair[:, 1]])
    first = torch.rand(LABELS, dtype=Double, generator=source) < right
    first ^= torch.rand(LABELS, dtype=Double, generator=source) < eps
    return features, torch.where(first[:, None], pair, pair.flip(1))


@cache
def sampled_error(name: str, eps: float) -> float:
    """How far the parameter that fits drawn labels is from the planted one."""
    features, pairs = drawn_labels(eps)
    even, ones = torch.zeros(ANSWERS, dtype=Double), torch.ones(LABELS, dtype=Double)

    def loss(theta: Tensor) -> Tensor:
        return objective(judged(features @ theta / BETA, even, pairs, ones), **treated(name, eps)).loss

    return float((least(FEATURES, loss) - WEIGHTS).norm())


def test_with_drawn_labels_both_are_right_without_flips() -> None:
    assert sampled_error("dpo", 0.0) < 0.1
    assert sampled_error("robust_dpo", 0.0) == pytest.approx(sampled_error("dpo", 0.0), abs=1e-6)


@rates
@pytest.mark.parametrize("name", ["robust_dpo", "flip_channel"])
def test_with_drawn_labels_the_parameter_comes_out_nearer(name: str, eps: float) -> None:
    assert sampled_error(name, eps) < 0.2 * sampled_error("dpo", eps)
    assert sampled_error("dpo", eps) > 0.5
