"""Where each link is least, on one pair and on a policy whose every answer is known; and links that sort the batch."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.seen_made import Double, loss_of, numbers, pairs, slopes
from tiebreak.train.objectives.by_link import ROWS
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective

ROW = {row.name: row.knobs or {} for row in ROWS}
DPO: dict[str, Any] = {"score": "log_ratio", "link": "logistic", "beta": 0.1}


def logit(q: float) -> float:
    return math.log(q / (1 - q))


@pytest.mark.parametrize(
    ("name", "knobs", "gap"),
    [
        ("cdpo", {}, logit(0.9) / 0.1),
        ("cdpo", {"smoothing": 0.25}, logit(0.75) / 0.1),
        ("osp", {}, logit(0.7) / 0.1),
        ("exo", {}, logit(1 - 1e-3) / 0.1),
        ("exo", {"smoothing": 0.2}, logit(0.8) / 0.1),
        ("ipo_sum", {}, 5.0),
        ("ipo_sum", {"target": "soft"}, (0.7 - 0.5) / 0.1),
        ("ipo_mean", {"tau": 0.5}, 4.0),
        ("rpo_backward", {"gap_scale": 2.0}, 2.0 * 1.3 / 0.2),
        ("rpo_forward", {"gap_scale": 2.0}, 2.0 * 1.3 / 0.2),
        ("rpo_square", {"gap_scale": 2.0}, 2.0 * 1.3 / 0.2),
        ("osp", {"link": "flip_channel", "channel_flips": 0.2}, logit((0.7 - 0.2) / 0.6) / 0.1),
    ],
)
def test_the_best_gap_of_a_pair(name: str, knobs: dict[str, float], gap: float) -> None:
    """Both answers have 4 tokens, so a gap of 4 is 1 a token; the judgments say 0.7 and the scores are 1.3 apart."""

    def at(z: float) -> Seen:
        return pairs([z], [0.0], p=[0.7], margin=[1.3], lengths=[4, 4])

    found = slopes(at(gap), **{**ROW[name], **knobs})
    assert found["logps"].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    here = loss_of(at(gap), **{**ROW[name], **knobs})
    assert all(loss_of(at(gap + move), **{**ROW[name], **knobs}) > here for move in (-0.3, 0.3))
    if name in ("exo", "rpo_backward", "rpo_forward", "rpo_square"):
        assert here == pytest.approx(0.0, abs=1e-12)


def test_the_best_chosen_side_of_nca_is_log_2_and_the_rejected_one_has_none() -> None:
    found = slopes(pairs([math.log(2) / 0.01, 0.0], [-3.0, -1e6]), **ROW["nca"])["logps"]
    assert float(found[0]) == pytest.approx(0.0, abs=1e-12)
    assert float(found[1]) > 0
    assert float(found[3]) == 0.0


def test_sppo_holds_each_side_at_its_win_probability() -> None:
    for p, rho in ((0.5, 0.0), (1.0, 500.0), (0.8, 300.0)):
        seen = pairs([rho], [-rho], p=[p])
        assert loss_of(seen, **ROW["sppo"]) == pytest.approx(0.0, abs=1e-6)
    seen = pairs([1.0], [2.0], p=[0.6])
    assert loss_of(seen, **{**ROW["sppo"], "target": "hard"}) == pytest.approx(499.0**2 + 502.0**2)


def test_both_kls_are_one_parabola_near_their_optimum() -> None:
    """KL(s || q) and KL(q || s) agree to second order: q (1-q) delta^2 / 2, with a difference of third order."""
    for delta in (1e-2, 1e-3):
        seen = pairs([(logit(0.7) + delta) / 0.1], [0.0], p=[0.7])
        ways = [loss_of(seen, **{**DPO, "target": "soft", "link": link}) for link in ("reverse_kl", "forward_kl")]
        assert ways == pytest.approx([0.21 * delta**2 / 2] * 2, rel=delta)
        assert abs(ways[0] - ways[1]) < 0.1 * delta**3


def test_the_two_ipos_differ_by_the_length() -> None:
    """With answers of one length the mean with tau is the sum with tau/length, its loss smaller by length^2."""
    seen = pairs(3, lengths=[6] * 6)
    by_sum = loss_of(seen, **{**ROW["ipo_sum"], "tau": 0.5 / 6})
    assert loss_of(seen, **{**ROW["ipo_mean"], "tau": 0.5}) == pytest.approx(by_sum / 36)
    assert loss_of(seen, **{**ROW["ipo_sum"], "tau": 0.5}) != pytest.approx(by_sum)


REWARDS = numbers([0.4, -1.0, 2.1, 0.0])
ORDERS = list(permutations(range(4), 2))


def everyone(theta: Tensor, reference: Tensor, *, p: Tensor, margin: Tensor) -> Seen:
    """Each ordered pair of the answers to one prompt as a row, under a softmax policy."""
    index = torch.tensor(ORDERS).flatten()
    rows = torch.arange(len(ORDERS))
    return Seen(
        lengths=torch.full((len(index),), 3),
        weight=torch.ones(len(index), dtype=Double),
        logps=theta.log_softmax(0)[index],
        reference=reference[index],
        chosen=2 * rows,
        rejected=2 * rows + 1,
        p=p,
        margin=margin,
        tree=rows.repeat_interleave(2),
    )


@pytest.mark.parametrize("name", ["osp", "rpo_backward", "rpo_forward", "rpo_square"])
def test_the_slope_vanishes_at_the_known_optimum_of_a_policy(name: str) -> None:
    """pi_ref exp(r / beta) / Z, where labels are Bradley-Terry's or gaps are known."""
    reference = numbers([0.1, 0.2, 0.3, 0.4]).log()
    knobs = {**ROW[name], "beta": 0.5}
    gaps = torch.stack([REWARDS[i] - REWARDS[j] for i, j in ORDERS])
    optimum = (reference + REWARDS / 0.5).requires_grad_(True)
    elsewhere = reference.clone().requires_grad_(True)
    for theta, least in ((optimum, True), (elsewhere, False)):
        loss = objective(everyone(theta, reference, p=torch.sigmoid(gaps), margin=gaps), **knobs).loss
        (slope,) = torch.autograd.grad(loss, theta)
        assert bool(slope.abs().max() < 1e-12) is least


def test_robust_dpo_has_no_floor() -> None:
    """Its slope far out is -eps/(1 - 2 eps) a unit of margin, where DPO's is 0."""
    for eps in (0.1, 0.2, 0.4):
        seen = pairs([1e4], [0.0])
        (up, down) = slopes(seen, **{**ROW["robust_dpo"], "flip_rate": eps})["logps"].tolist()
        assert up == pytest.approx(-0.1 * eps / (1 - 2 * eps), rel=1e-12)
        assert down == -up
    assert loss_of(pairs([1e9], [0.0]), **ROW["robust_dpo"]) < -1e6
    assert slopes(pairs([1e4], [0.0]), **DPO)["logps"].tolist() == [0.0, 0.0]


AOT = ("aot", "aot_unpaired")


def sorted_loss(name: str, seen: Seen) -> float:
    """The loss as its paper writes it, rows of equal weight, hard labels."""
    assert seen.logps is not None
    assert seen.reference is not None
    own, other = seen.logps[0::2] - seen.logps[1::2], seen.reference[0::2] - seen.reference[1::2]
    if name == "aot_unpaired":
        rho = seen.logps - seen.reference
        own, other = rho[0::2], rho[1::2]
    gaps = [a - b for a, b in zip(sorted(own.tolist()), sorted(other.tolist()), strict=True)]
    return sum(math.log1p(math.exp(-0.1 * gap)) for gap in gaps) / len(gaps)


@pytest.mark.parametrize("name", AOT)
def test_sorted_links_are_their_formula(name: str) -> None:
    for seed in range(5):
        seen = pairs(7, seed=seed, weight=torch.ones(14))
        assert loss_of(seen, **ROW[name]) == pytest.approx(sorted_loss(name, seen), rel=1e-12)
        assert loss_of(seen, **ROW[name]) != pytest.approx(loss_of(seen, **DPO))


@pytest.mark.parametrize("name", AOT)
def test_sorting_one_pair_is_dpo(name: str) -> None:
    seen = pairs(1)
    assert loss_of(seen, **ROW[name]) == pytest.approx(loss_of(seen, **DPO), rel=1e-12)
    assert slopes(seen, **ROW[name])["logps"].tolist() == pytest.approx(slopes(seen, **DPO)["logps"].tolist())


def test_sorted_links_do_not_see_which_row_a_side_is_from() -> None:
    seen = pairs(5, weight=torch.ones(10))
    turned = torch.tensor([3, 0, 4, 1, 2])
    rejected = replace(seen, rejected=seen.rejected[turned])  # type: ignore[index]
    assert loss_of(rejected, **ROW["aot_unpaired"]) == pytest.approx(loss_of(seen, **ROW["aot_unpaired"]), rel=1e-12)
    assert loss_of(rejected, **DPO) != pytest.approx(loss_of(seen, **DPO))
    both = seen.reference.reshape(5, 2)[turned].flatten()  # type: ignore[union-attr]
    moved = replace(seen, reference=both)
    assert loss_of(moved, **ROW["aot"]) == pytest.approx(loss_of(seen, **ROW["aot"]), rel=1e-12)
    assert loss_of(moved, **DPO) != pytest.approx(loss_of(seen, **DPO))


@pytest.mark.parametrize("name", AOT)
def test_in_a_sorted_line_a_row_of_weight_two_stands_twice(name: str) -> None:
    seen = pairs(4, weight=[2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 3.0, 3.0])
    index = torch.tensor([0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 6, 7])
    twice = pairs(7, weight=torch.ones(14))
    twice = replace(twice, logps=seen.logps[index], reference=seen.reference[index])  # type: ignore[index]
    assert loss_of(seen, **ROW[name]) == pytest.approx(sorted_loss(name, twice), rel=1e-12)
    (slope,) = torch.autograd.grad(objective(twice, **ROW[name]).loss, [seen.logps])  # type: ignore[list-item]
    assert slopes(seen, **ROW[name])["logps"].tolist() == pytest.approx(slope.tolist(), abs=1e-12)


@pytest.mark.parametrize("name", AOT)
def test_sorted_links_take_smoothed_labels(name: str) -> None:
    """(1-eps) S(z) + eps S(-z), which is S(z) + eps z."""
    seen = pairs(6, weight=torch.ones(12))
    rho = seen.logps - seen.reference  # type: ignore[operator]
    mean = float((rho[0::2] - rho[1::2]).mean().detach())
    smooth = loss_of(seen, **{**ROW[name], "target": "smoothed", "smoothing": 0.2})
    assert smooth == pytest.approx(loss_of(seen, **ROW[name]) + 0.2 * 0.1 * mean, rel=1e-12)
