import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.stats.intervals import (
    as_dict,
    binomial_test,
    bootstrap,
    clustered_mean,
    mcnemar,
    paired_difference,
    rate,
    t_quantile,
    wilson,
    z_quantile,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_against_hand_values(k, n, low, high):
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.value == k / n
    assert found.n == n


def test_nothing_is_nan_with_n_0():
    for found in (wilson(0, 0), clustered_mean([]), rate([]), bootstrap(np.empty(0), None, np.mean)):
        assert math.isnan(found.value)
        assert found.n == 0
    assert as_dict(wilson(0, 0)) == {"value": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize("call", [lambda: wilson(3, 2), lambda: rate([2.0]), lambda: clustered_mean([math.nan])])
def test_impossible_input_is_refused(call):
    with pytest.raises(ValueError, match=r"expected|rate|nan"):
        call()


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (9, 2.26216), (30, 2.04227), (59, 2.00100), (120, 1.97993)]
)
def test_t_quantile_against_the_tables(df, t):
    assert t_quantile(0.95, df) == pytest.approx(t, abs=6e-6)


def test_t_quantile_tends_to_normal_without_a_jump_where_the_formula_changes():
    assert t_quantile(0.95, 10**7) == pytest.approx(z_quantile(0.95), abs=1e-6)
    steps = [t_quantile(0.99, df) - t_quantile(0.99, df + 1) for df in (58, 59, 60)]
    assert steps == sorted(steps, reverse=True)


def test_singleton_clusters_give_the_usual_t_interval():
    y = np.array([1.0, 2.0, 4.0, 7.0])
    half = t_quantile(0.95, 3) * y.std(ddof=1) / 2
    assert clustered_mean(y) == pytest.approx((3.5, 3.5 - half, 3.5 + half, 4))


def test_copies_of_a_row_add_nothing_when_they_share_its_cluster():
    y = np.array([0.0, 1.0, 1.0, 0.5, 0.0, 1.0])
    once, thrice = clustered_mean(y), clustered_mean(np.repeat(y, 3), np.repeat(np.arange(6), 3))
    assert thrice[:3] == pytest.approx(once[:3])
    assert thrice.n == 18


def test_weights_count_as_copies():
    y, w = np.array([0.0, 1.0, 0.5]), np.array([1.0, 2.0, 3.0])
    copies = clustered_mean(np.repeat(y, [1, 2, 3]), np.repeat(np.arange(3), [1, 2, 3]))
    assert clustered_mean(y, weights=w)[:3] == pytest.approx(copies[:3])


def test_one_cluster_has_no_interval_and_equal_values_none_of_width():
    alone = clustered_mean([1.0, 0.0], ["p", "p"])
    assert alone.value == 0.5
    assert math.isnan(alone.low)
    assert clustered_mean([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 3)


def test_unanimous_clusters_do_not_claim_certainty():
    found = rate([1.0] * 20, np.repeat(np.arange(5), 4))
    assert found.low == pytest.approx(wilson(5, 5).low)
    assert (found.value, found.high, found.n) == (1.0, 1.0, 20)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=30), st.integers(1, 5))
def test_a_rate_mirrors_and_stays_inside(values, width):
    clusters = np.arange(len(values)) // width
    here, there = rate(values, clusters), rate(1 - np.array(values), clusters)
    assert here.value + there.value == pytest.approx(1)
    if not math.isnan(here.low):
        assert 0 <= here.low <= here.value + 1e-12
        assert here.low + there.high == pytest.approx(1)


def test_clustered_interval_covers_where_the_naive_one_does_not():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    hits = naive = 0
    for _ in range(400):
        p = rng.beta(1, 1, size=40)
        y = (rng.random(200) < np.repeat(p, 5)).astype(float)
        found, bare = rate(y, clusters), wilson(y.sum(), 200)
        hits += found.low <= 0.5 <= found.high
        naive += bare.low <= 0.5 <= bare.high
    assert 0.92 <= hits / 400 <= 0.98
    assert naive / 400 < 0.9


def test_pairing_removes_what_the_rows_share():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=200)
    a, b = shared + 0.1, shared
    found = paired_difference(a, b)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


def test_binomial_test_is_exact():
    assert binomial_test(0, 5) == pytest.approx(2 / 32)
    assert binomial_test(8, 10) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert binomial_test(5, 10) == pytest.approx(1)
    assert binomial_test(0, 0) == 1.0
    assert binomial_test(3, 15, 0.1) == pytest.approx(
        sum(math.comb(15, i) * 0.1**i * 0.9 ** (15 - i) for i in range(3, 16))
    )
    assert 0.04 < binomial_test(500_980, 1_000_000) < 0.06


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(b, c):
    assert mcnemar(b, c) == pytest.approx(binomial_test(b, b + c))
    assert mcnemar(b, c, mid_p=True) <= mcnemar(b, c)


def test_bootstrap_of_a_mean_matches_the_clustered_interval():
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(80), 3)
    y = rng.normal(size=240) + np.repeat(rng.normal(size=80), 3)
    drawn, formula = bootstrap(y, clusters, lambda v: float(v.mean()), draws=3000), clustered_mean(y, clusters)
    assert drawn.value == formula.value
    assert drawn.low == pytest.approx(formula.low, abs=0.04)
    assert drawn.high == pytest.approx(formula.high, abs=0.04)
    assert drawn == bootstrap(y, clusters, lambda v: float(v.mean()), draws=3000)


def test_bootstrap_keeps_clusters_whole_and_rows_together():
    rows = np.array([[1, 10], [2, 20], [3, 30], [4, 40]])
    seen = set()

    def statistic(drawn):
        assert (drawn[:, 1] == 10 * drawn[:, 0]).all()
        seen.add(tuple(np.bincount(drawn[:, 0], minlength=5)[1:]))
        return float(drawn[:, 0].sum())

    bootstrap(rows, ["a", "a", "b", "b"], statistic, draws=50)
    assert seen == {(1, 1, 1, 1), (2, 2, 0, 0), (0, 0, 2, 2)}
    assert math.isnan(bootstrap(rows, ["a"] * 4, statistic).low)
