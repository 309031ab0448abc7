"""MetaRM: the step before the step, by its formula, at its ends, and on planted shifted responses."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn

from tiebreak.models.features import FeedForward
from tiebreak.records import InputError
from tiebreak.train.frozen import FeatureRows, Shifted, pairs_on
from tiebreak.train.heads import fit_head, fit_linear, measure
from tiebreak.train.meta import ahead, fit_meta, spread_apart
from tiebreak.train.objectives.by_feature import PLAIN
from tiebreak.train.objectives.seen import Outcome
from tiebreak.train.pace import Pace


class Point(nn.Module):
    """Weights and nothing else, to step on functions of them."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_the_gain_is_the_formula() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    expected = 0.0
    for rows in ([0, 2, 3], [1, 4]):
        pairs = [1 / (1 + math.exp(-abs(float(scores[i] - scores[j])))) for i, j in combinations(rows, 2)]
        expected += 2 / len(rows) ** 2 * sum(pairs) / 2
    assert float(spread_apart(scores, torch.tensor([7, 3, 7, 7, 3]))) == pytest.approx(expected, abs=1e-12)


def test_the_gain_of_equal_scores_has_no_slope_and_a_shift_changes_nothing() -> None:
    scores, tree = torch.zeros(4, requires_grad=True), torch.tensor([0, 0, 1, 1])
    gain = spread_apart(scores, tree)
    assert float(gain.detach()) == pytest.approx(2 / 4 * 0.5)
    assert torch.autograd.grad(gain, scores)[0].tolist() == [0.0] * 4
    apart = torch.tensor([1.0, 2.0, -1.0, 5.0])
    assert torch.allclose(spread_apart(apart + 3.0, tree), spread_apart(apart, tree))


A = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
S = torch.diag(torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64))
GOAL = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def bowl(theta: torch.Tensor) -> torch.Tensor:
    return 0.5 * (theta - GOAL) @ A @ (theta - GOAL)


def raised(theta: torch.Tensor) -> torch.Tensor:
    return 0.5 * theta @ S @ theta


def gradient(eta: float, values: list[float]) -> torch.Tensor:
    head = Point(values)
    ahead(head, lambda: Outcome(bowl(head.theta), {}), 0, gain=lambda _number: raised(head.theta), eta=eta)
    assert head.theta.tolist() == values
    assert head.theta.grad is not None
    return head.theta.grad


def test_the_gradient_on_a_quadratic_is_that_at_the_raised_point() -> None:
    """By differences of the loss around theta + eta grad J, and by its closed form A (theta + eta S theta - goal)."""
    values, step = [0.3, 0.7, -1.1], 1e-5
    theta = torch.tensor(values, dtype=torch.float64)
    for eta in (0.0, 0.1, 2.0):
        moved = theta + eta * S @ theta
        axes = torch.eye(3, dtype=torch.float64) * step
        by_difference = torch.stack([(bowl(moved + axis) - bowl(moved - axis)) / (2 * step) for axis in axes])
        assert torch.allclose(gradient(eta, values), by_difference, atol=1e-8)
        assert torch.allclose(gradient(eta, values), A @ (moved - GOAL), atol=1e-12)


def test_training_ends_where_the_raised_point_is_the_plain_optimum() -> None:
    head, eta = Point([0.0, 0.0, 0.0]), 0.4
    for number in range(2000):
        head.theta.grad = None
        ahead(head, lambda: Outcome(bowl(head.theta), {}), number, gain=lambda _number: raised(head.theta), eta=eta)
        with torch.no_grad():
            head.theta -= 0.1 * head.theta.grad
    assert torch.allclose(head.theta, torch.linalg.solve(torch.eye(3, dtype=torch.float64) + eta * S, GOAL), atol=1e-9)


def world(seed: int) -> tuple[FeatureRows, FeatureRows, Shifted]:
    """Few labelled pairs; shifted responses that differ most in eight features which are worth nothing."""
    draw, width, idle = torch.Generator().manual_seed(seed), 24, 8
    weight = torch.zeros(width)
    weight[idle:] = torch.nn.functional.normalize(torch.randn(width - idle, generator=draw), dim=0) * 3

    def responses(count: int, spread: float) -> torch.Tensor:
        found = torch.randn(count, width, generator=draw)
        found[:, :idle] *= spread
        return found

    def pairs(values: torch.Tensor, sure: torch.Tensor) -> FeatureRows:
        one, two = torch.arange(len(values)).view(2, -1)
        gap = (values @ weight)[one] - (values @ weight)[two]
        first = torch.sigmoid(gap) > sure
        return pairs_on(values, torch.where(first, one, two), torch.where(first, two, one))

    learned = pairs(responses(300, 1.0), torch.rand(150, generator=draw))
    tested = pairs(responses(4000, 5.0), torch.full((2000,), 0.5))
    return learned, tested, Shifted(responses(256, 5.0), torch.arange(64).repeat_interleave(4))


SLOW = Pace(epochs=20, batch=32, learning_rate=2e-2, decay="constant")


def test_without_eta_it_is_the_plain_training_bit_for_bit() -> None:
    rows, _, shifted = world(0)
    plain = fit_linear(rows, PLAIN, Pace(epochs=3, batch=32), seed=1)
    bare = fit_meta(rows, PLAIN, Pace(epochs=3, batch=32), seed=1, shifted=shifted, eta=0.0)
    other = fit_meta(rows, PLAIN, Pace(epochs=3, batch=32), seed=1, shifted=shifted, eta=1.0)
    assert torch.equal(bare.head.layer.weight, plain.head.layer.weight)
    assert not torch.equal(other.head.layer.weight, plain.head.layer.weight)
    assert bare.last == plain.last


def test_it_is_more_often_right_on_planted_shifted_responses() -> None:
    gained = []
    for seed in range(3):
        rows, tested, shifted = world(seed)
        right: list[float] = []
        for eta in (0.0, 3.0):
            head = fit_meta(rows, PLAIN, SLOW, seed=seed, shifted=shifted, eta=eta).head
            right.append(measure(head, tested, PLAIN)["rewards/accuracies"])
        gained.append(right[1] - right[0])
    assert min(gained) > 0.0
    assert sum(gained) / 3 > 0.05


def test_a_step_that_fails_leaves_the_weights_where_they_were() -> None:
    head = Point([1.0, 2.0, 3.0])

    def fails() -> Outcome:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        ahead(head, fails, 0, gain=lambda _number: raised(head.theta), eta=1.0)
    assert head.theta.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(InputError, match="no finite gradient at step 5"):
        ahead(head, fails, 4, gain=lambda _number: raised(head.theta) * math.inf, eta=0.0)
    assert head.theta.tolist() == [1.0, 2.0, 3.0]


def test_any_head_can_step_ahead() -> None:
    rows, _, shifted = world(0)
    step: dict[str, Any] = {"eta": 1.0}
    head = FeedForward(24, hidden=(8,), seed=0)
    head.calibrate(rows.own)
    gain = lambda _number: spread_apart(head(shifted.values), shifted.tree)  # noqa: E731
    found = fit_head(head, rows, PLAIN, Pace(epochs=2, batch=32), seed=0, gradient=partial(ahead, gain=gain, **step))
    assert math.isfinite(found.last["loss"])


def test_what_cannot_be_told_apart_is_refused() -> None:
    rows, _, shifted = world(0)
    for wrong, message in (
        (Shifted(shifted.values[:, :3], shifted.tree), "3 features and the rows 24"),
        (Shifted(shifted.values, torch.arange(256)), "two shifted responses or more"),
    ):
        with pytest.raises(InputError, match=message):
            fit_meta(rows, PLAIN, SLOW, seed=0, shifted=wrong)
