"""Bradley-Terry: closed forms, planted strengths, invariances, and ratings that have no end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tiebreak.stats.intervals import clustered_mean
from tiebreak.stats.ratings import bradley_terry, components


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def test_two_sides_have_the_log_odds_of_their_win_rate_and_its_interval():
    y = np.array([1, 1, 1, 0, 0.5, 1, 0, 1.0])
    prompts = [0, 0, 1, 1, 2, 2, 3, 3]
    found = bradley_terry([0] * 8, [1] * 8, y, prompts)
    share = clustered_mean(y, prompts)
    gap = found.gap(0, 1)
    slope = share.value * (1 - share.value)
    assert gap.value == pytest.approx(math.log(share.value / (1 - share.value)), abs=1e-12)
    assert gap.high - gap.value == pytest.approx((share.high - share.value) / slope, rel=1e-12)
    assert gap.n == 8
    assert found.rating(0).value == pytest.approx(gap.value / 2, abs=1e-12)
    assert found.rating(0).high - found.rating(0).value == pytest.approx((gap.high - gap.value) / 2, rel=1e-12)


def test_strengths_that_made_the_scores_come_back():
    theta = np.array([1.2, 0.3, -0.4, -1.1])
    pairs = [(i, j) for i in range(4) for j in range(i)]
    first, second = zip(*pairs, strict=True)
    found = bradley_terry(first, second, [sigmoid(theta[i] - theta[j]) for i, j in pairs])
    assert found.theta == pytest.approx(theta, abs=1e-9)
    assert found.covariance == pytest.approx(0, abs=1e-15)  # nothing is left to explain
    assert found.rows.tolist() == [3, 3, 3, 3]


def test_a_chain_is_rated_through_its_links():
    found = bradley_terry([0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2], [1, 1, 0, 1, 1, 0])
    assert found.gap(0, 2).value == pytest.approx(2 * math.log(2), abs=1e-12)
    assert found.gap(0, 2).n == 6


def test_far_apart_sides_converge():
    wins = 100_000
    found = bradley_terry([0] * (wins + 1), [1] * (wins + 1), [1] * wins + [0])
    assert found.gap(0, 1).value == pytest.approx(math.log(wins), abs=1e-8)


def test_swapping_the_slots_or_the_rows_changes_nothing():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    second = np.where(first == second, (second + 1) % 3, second)
    y, prompts = rng.choice([0, 0.5, 1], 200), rng.integers(0, 40, 200)
    at = rng.permutation(200)
    one, two = bradley_terry(first, second, y, prompts), bradley_terry(second[at], first[at], 1 - y[at], prompts[at])
    assert one.theta == pytest.approx(two.theta, abs=1e-12)
    assert one.covariance == pytest.approx(two.covariance, abs=1e-14)


def test_the_same_rows_twice_in_their_clusters_say_nothing_more():
    first, second, y = [0, 1, 2, 0, 1, 2, 0], [1, 2, 0, 2, 0, 1, 1], [1, 1, 1, 0.5, 1, 0, 0]
    prompts = list(range(7))
    once, twice = bradley_terry(first, second, y, prompts), bradley_terry(first * 2, second * 2, y * 2, prompts * 2)
    assert twice.theta == pytest.approx(once.theta, abs=1e-12)
    assert twice.covariance == pytest.approx(once.covariance, abs=1e-12)
    alone = bradley_terry(first * 2, second * 2, y * 2)
    assert alone.gap(0, 1).high < once.gap(0, 1).high


def test_the_interval_covers_the_planted_gap_as_often_as_it_says():
    rng = np.random.default_rng(1)
    theta = np.array([0.5, 0.0, -0.5])
    first, second = np.tile([0, 1, 2], 60), np.tile([1, 2, 0], 60)
    prompts = np.repeat(np.arange(60), 3)
    p = 1 / (1 + np.exp(theta[second] - theta[first]))
    covered = 0
    for _ in range(300):
        gap = bradley_terry(first, second, rng.random(180) < p, prompts).gap(0, 2)
        covered += gap.low <= 1.0 <= gap.high
    assert 0.91 <= covered / 300 <= 0.98


def test_one_cluster_has_no_interval():
    found = bradley_terry([0, 0], [1, 1], [1, 0], [7, 7])
    assert found.gap(0, 1).value == pytest.approx(0, abs=1e-12)
    assert math.isnan(found.gap(0, 1).low)


def test_sides_that_never_lost_or_never_met_are_told_apart():
    assert components([0, 1, 2], [1, 2, 0], [1, 1, 1], 3).tolist() == [0, 0, 0]
    assert components([0, 1, 1], [1, 2, 2], [1, 1, 0], 3).tolist() == [0, 1, 1]
    assert components([0, 1], [1, 0], [0.5, 1], 3).tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match="no end"):
        bradley_terry([0, 0], [1, 1], [1, 1])


@pytest.mark.parametrize(
    ("first", "second", "score", "says"),
    [
        ([], [], [], "at least 1"),
        ([0], [1, 1], [1], "one length"),
        ([0], [0], [1], "no side meets itself"),
        ([0, 5], [1, 1], [1, 0], "codes from 0 to 1"),
        ([0], [1], [1.5], "between 0 and 1"),
    ],
)
def test_arrays_that_do_not_fit(first, second, score, says):
    with pytest.raises(ValueError, match=says):
        bradley_terry(first, second, score, k=2)
