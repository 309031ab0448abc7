import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebreak.stats.intervals import clustered_mean, wilson
from tiebreak.stats.length import RIDGE, fit_length_glm, length_controlled_win_rate, length_term, prefers_longer


def planted(theta, phi, n=3000, seed=0, lean=40.0):
    """Votes that follow the GLM exactly, with side a longer by ``lean`` on average."""
    rng = np.random.default_rng(seed)
    b = rng.integers(50, 300, size=n).astype(float)
    a = b + np.round(rng.normal(lean, 60, size=n))
    p = 1 / (1 + np.exp(-(theta + phi * length_term(a, b))))
    return (rng.random(n) < p).astype(float), a, b


def test_a_planted_length_effect_is_removed():
    y, a, b = planted(theta=0.0, phi=2.0)
    found = length_controlled_win_rate(y, a, b)
    assert y.mean() > 0.65
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.06


def test_planted_quality_stays():
    y, a, b = planted(theta=0.8, phi=1.0)
    found = length_controlled_win_rate(y, a, b)
    assert found.low < 1 / (1 + math.exp(-0.8)) < found.high


def test_intervals_cover_the_planted_rate_under_clusters():
    hits = 0
    rng = np.random.default_rng(5)
    for _ in range(200):
        gap = rng.normal(10, 30, size=100)
        noise = np.repeat(rng.choice([-1.0, 1.0], size=25), 4)
        p = 1 / (1 + np.exp(-length_term(gap, np.zeros(100)))) + 0.2 * noise
        y = (rng.random(100) < p).astype(float)
        found = length_controlled_win_rate(y, gap, np.zeros(100), np.repeat(np.arange(25), 4))
        hits += found.low <= 0.5 <= found.high
    assert hits >= 180


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 400), st.integers(0, 400)),
        min_size=2,
        max_size=40,
    )
)
def test_swapping_the_sides_mirrors_the_rate(rows):
    y, a, b = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    here, there = length_controlled_win_rate(y, a, b), length_controlled_win_rate(1 - y, b, a)
    if math.isnan(here.value):
        assert math.isnan(there.value)
    else:
        assert here.value + there.value == pytest.approx(1, abs=1e-6)
        assert here.low + there.high == pytest.approx(1, abs=1e-6)
        assert 0 <= here.low <= here.value <= here.high <= 1


def test_identical_models_get_one_half():
    rng = np.random.default_rng(3)
    a, b = rng.integers(10, 90, size=(2, 50)).astype(float)
    assert length_controlled_win_rate(np.full(50, 0.5), a, b).value == 0.5
    y = rng.integers(0, 2, size=50).astype(float)
    both = length_controlled_win_rate(np.r_[y, 1 - y], np.r_[a, b], np.r_[b, a])
    assert both.value == pytest.approx(0.5, abs=1e-9)


def test_equal_lengths_give_the_plain_rate():
    y = np.array([1.0] * 70 + [0.0] * 30)
    assert length_controlled_win_rate(y, np.full(100, 8), np.full(100, 8)).value == pytest.approx(0.7, abs=1e-4)


def test_what_cannot_be_told_is_said():
    y = np.array([1.0, 0.0, 1.0])
    assert math.isnan(length_controlled_win_rate(y, y * 0 + 9, y * 0 + 4).value)
    assert length_controlled_win_rate([], [], []).n == 0
    unanimous = length_controlled_win_rate(np.ones(10), np.arange(10), np.zeros(10))
    assert unanimous.low == pytest.approx(wilson(10, 10).low)


def test_prefers_longer_counts_only_what_differs_enough():
    y = np.array([1.0, 0.0, 1.0, 0.5, 1.0])
    a = np.array([50.0, 10.0, 12.0, 90.0, 10.0])
    b = np.array([10.0, 50.0, 10.0, 10.0, 10.0])
    found = prefers_longer(y, a, b, tau=30)
    assert (found.value, found.n) == (pytest.approx(2.5 / 3), 3)
    assert prefers_longer(1 - y, b, a, tau=30) == found


def test_the_fit_solves_its_score_equations():
    y, a, b = planted(theta=0.4, phi=-1.0, n=300)
    x = length_term(a, b)
    fit = fit_length_glm(y, x, np.arange(300), 300)
    miss = y - 1 / (1 + np.exp(-(fit.theta + fit.phi * x)))
    assert [miss.sum(), miss @ x] == pytest.approx([RIDGE * fit.theta, RIDGE * fit.phi], abs=1e-7)


def test_at_equal_lengths_the_interval_is_the_delta_method_of_the_clustered_one():
    rng = np.random.default_rng(6)
    y, clusters = (rng.random(300) < 0.6).astype(float), np.repeat(np.arange(60), 5)
    plain, found = clustered_mean(y, clusters), length_controlled_win_rate(y, np.ones(300), np.ones(300), clusters)
    logits = [math.log(p / (1 - p)) for p in (found.low, found.high)]
    slope = plain.value * (1 - plain.value)
    assert logits[1] - logits[0] == pytest.approx((plain.high - plain.low) / slope, rel=1e-3)
