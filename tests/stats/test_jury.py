import itertools
import math
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.stats.jury import against_truth, against_votes, condorcet, effective_size, majority


def planted(n, accuracy, voices, seed=0):
    """Votes (n, m) and the truth: judges of one voice are copies, different voices err independently."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n).astype(float)
    wrong = {voice: rng.random(n) for voice in sorted(set(voices))}
    judges = zip(accuracy, voices, strict=True)
    return np.column_stack([np.where(wrong[v] < 1 - p, 1 - truth, truth) for p, v in judges]), truth


def linked(n, m, q, share, seed=0):
    """Errors of m judges, each taken from a common draw with probability ``share``: they correlate by share squared."""
    rng = np.random.default_rng(seed)
    common = rng.random(n) < q
    own = rng.random((n, m)) < q
    wrong = np.where(rng.random((n, m)) < share, common[:, None], own)
    return 1.0 - wrong, np.ones(n)


def holds(estimate, value):
    return estimate.low <= value <= estimate.high


def test_the_size_of_a_jury_is_the_design_effect_turned_over():
    assert [effective_size(5, rho) for rho in (0.0, 0.25, 1.0)] == [5.0, 2.5, 1.0]
    assert effective_size(1, math.nan) == 1
    assert effective_size(3, -0.5) == math.inf
    assert math.isnan(effective_size(3, math.nan))
    with pytest.raises(ValueError, match="expected 1 or more"):
        effective_size(0, 0.5)


@pytest.mark.parametrize("m", [2, 3, 5, 9])
def test_independent_judges_count_as_many_as_they_are(m):
    jury = against_truth(*planted(20_000, [0.8] * m, range(m)))
    assert holds(jury.rho, 0.0)
    assert holds(jury.size, m)
    assert jury.errors == pytest.approx(0.2, abs=3.29 * 0.4 / math.sqrt(20_000))


@pytest.mark.parametrize("m", [2, 3, 7])
def test_identical_judges_count_as_exactly_one_with_or_without_a_truth(m):
    votes, truth = planted(997, [0.8] * m, [0] * m)
    for jury in (against_truth(votes, truth), against_votes(votes)):
        assert jury.size == (1.0, 1.0, 1.0, 997)
        assert jury.rho == (1.0, 1.0, 1.0, 997)
        assert [added.value for added in jury.added] == [0.0] * m
    if m > 3:
        assert against_votes(votes, against="latent").size.value == 1.0


@pytest.mark.parametrize(("m", "share"), [(2, 0.5), (4, 0.8), (6, 0.3)])
def test_a_planted_correlation_is_recovered(m, share):
    jury = against_truth(*linked(60_000, m, 0.3, share, seed=2))
    assert holds(jury.rho, share**2)
    assert holds(jury.size, effective_size(m, share**2))
    assert jury.pairs[0, 1] == pytest.approx(share**2, abs=0.02)


def test_a_mixture_of_copies_has_the_mean_of_its_pairs():
    """Three copies and two others: three pairs of ten correlate by 1, the rest by 0."""
    votes, truth = planted(40_000, [0.8] * 5, [0, 0, 0, 1, 2])
    jury = against_truth(votes, truth)
    assert holds(jury.rho, 0.3)
    assert holds(jury.size, 5 / (1 + 4 * 0.3))
    assert jury.pairs[0, 1] == jury.pairs[1, 2] == 1.0
    values = [added.value for added in jury.added]
    assert values[0] == values[1] == values[2] < 0 < min(values[3:])
    rest = against_truth(votes[:, [0, 1, 2, 4]], truth)
    assert values[3] == pytest.approx(jury.size.value - rest.size.value)


def test_the_correlation_is_that_of_the_errors():
    votes, truth = planted(300, [0.6, 0.7, 0.9], range(3))
    votes[::7, 1] = 0.5
    jury = against_truth(votes, truth)
    expected = np.corrcoef(np.abs(votes - truth[:, None]), rowvar=False)
    np.testing.assert_allclose(jury.pairs, expected)
    assert jury.rho.value == pytest.approx((expected.sum() - 3) / 6)


def test_missing_votes_leave_out_the_items_that_two_judges_do_not_share():
    votes, truth = planted(500, [0.7, 0.8, 0.9], range(3))
    votes[:100, 0], votes[400:, 1] = math.nan, math.nan
    jury = against_truth(votes, truth)
    both = np.abs(votes - truth[:, None])[100:400]
    assert jury.pairs[0, 1] == pytest.approx(np.corrcoef(both[:, 0], both[:, 1])[0, 1])
    assert jury.size.n == 500


def test_where_the_truth_is_open_an_item_says_nothing():
    votes, truth = planted(400, [0.7, 0.8], range(2))
    open_ = truth.copy()
    open_[:50], open_[50:100] = math.nan, 0.5
    left = against_truth(votes, open_)
    assert left.rho.value == against_truth(votes[100:], truth[100:]).rho.value
    assert left.size.n == 300


@pytest.mark.parametrize("against", ["majority", "latent"])
def test_with_the_right_error_rates_votes_alone_say_what_the_truth_says(against):
    """Many judges: the majority is nearly always right, so both stand-ins come close to the truth."""
    votes, truth = planted(4_000, [0.8] * 15, range(15), seed=1)
    known, found = against_truth(votes, truth), against_votes(votes, against=against)
    np.testing.assert_allclose(found.errors, known.errors, atol=0.01)
    assert found.rho.value == pytest.approx(known.rho.value, abs=0.01)


def test_each_stand_in_for_the_truth_errs_to_its_own_side():
    votes, _ = planted(20_000, [0.8] * 5, range(5))
    assert against_votes(votes).size.high < 5
    assert holds(against_votes(votes, against="latent").size, 5)
    families, truth = planted(20_000, [0.8] * 9, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert holds(against_truth(families, truth).size, 3)
    assert against_votes(families, against="latent").size.low > 3


def test_an_error_all_make_together_is_seen_by_a_truth_alone():
    votes, truth = planted(20_000, [0.9] * 5, range(5))
    trap = np.random.default_rng(9).random(20_000) < 0.2
    votes[trap] = 1 - truth[trap, None]
    assert against_truth(votes, truth).size.high < 1.7
    assert against_votes(votes, against="latent").size.low > 4.5


def test_items_that_are_hard_for_everybody_make_independent_judges_err_together():
    """Half of the items are never missed, the others with 0.4: rho is var(p) / (mean p (1 - mean p))."""
    rng = np.random.default_rng(5)
    hard = rng.random((60_000, 1)) < 0.5
    votes = 1.0 - (hard & (rng.random((60_000, 4)) < 0.4))
    assert holds(against_truth(votes, np.ones(60_000)).rho, 0.04 / (0.2 * 0.8))


def test_undefined_cases_are_answered_and_told():
    votes, truth = planted(200, [0.8] * 3, range(3))
    alone = against_truth(votes[:, :1], truth)
    assert (alone.size, math.isnan(alone.rho.value)) == ((1.0, 1.0, 1.0, 200), True)
    assert math.isnan(against_votes(votes[:, :1]).errors[0])
    nobody = against_truth(np.tile(truth[:, None], 3), truth)
    assert math.isnan(nobody.size.value)
    assert (nobody.constant, nobody.unpaired, "none of them is seen to err" in nobody.why) == ((0, 1, 2), 3, True)
    two = against_votes(votes[:, :2])
    assert (math.isnan(two.size.value), "which one errs" in two.why) == (True, True)
    assert "three judges" in against_votes(votes, against="latent").why
    apart = np.full((4, 2), math.nan)
    apart[:2, 0] = apart[2:, 1] = 1
    assert against_truth(apart, np.ones(4)).why == "no item has two votes"


def test_a_judge_that_never_errs_shares_no_error_with_the_others():
    votes, truth = planted(2_000, [0.8, 0.8, 1.0], [0, 0, 1])
    jury = against_truth(votes, truth)
    assert (jury.constant, jury.unpaired) == ((2,), 0)
    assert jury.pairs[0].tolist() == [1.0, 1.0, 0.0]
    assert jury.size.value == pytest.approx(3 / (1 + 2 / 3))


def test_two_judges_that_share_too_little_have_no_correlation():
    votes, truth = planted(100, [0.7] * 3, range(3))
    votes[20:, 2] = math.nan
    jury = against_truth(votes, truth, least=30)
    assert (jury.unpaired, math.isnan(jury.pairs[0, 2])) == (2, True)
    assert jury.rho.value == jury.pairs[0, 1]


def test_the_interval_resamples_whole_clusters():
    votes, truth = planted(300, [0.75] * 3, range(3))
    once = against_truth(votes, truth)
    copied = [np.repeat(x, 4, axis=0) for x in (votes, truth, np.arange(300))]
    clustered, loose = against_truth(*copied), against_truth(*copied[:2])
    assert clustered.rho.value == pytest.approx(once.rho.value)
    width = [jury.rho.high - jury.rho.low for jury in (once, clustered, loose)]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] == pytest.approx(width[0] / 2, rel=0.15)
    one = against_truth(votes, truth, np.zeros(300))
    assert math.isnan(one.size.low)
    assert one.size.value == once.size.value


def test_intervals_hold_what_they_promise():
    inside = sum(holds(against_truth(*linked(400, 4, 0.3, 0.6, seed=s), draws=300).rho, 0.36) for s in range(200))
    assert inside / 200 > 0.95 - 3.29 * math.sqrt(0.95 * 0.05 / 200)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_the_majority_is_right_as_often_as_all_cases_say(accuracies):
    m, total = len(accuracies), 0.0
    for right in itertools.product((0, 1), repeat=m):
        chance = math.prod(p if r else 1 - p for p, r in zip(accuracies, right, strict=True))
        total += chance * (1.0 if 2 * sum(right) > m else 0.5 if 2 * sum(right) == m else 0.0)
    assert condorcet(accuracies) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(("m", "p"), [(1, 0.6), (3, 0.6), (5, 0.7), (9, 0.45)])
def test_equal_judges_follow_condorcet(m, p):
    formula = sum(comb(m, k) * p**k * (1 - p) ** (m - k) for k in range(m // 2 + 1, m + 1))
    assert condorcet([p] * m) == pytest.approx(formula)
    assert condorcet([p] * (m + 1)) == pytest.approx(formula)  # an even one more adds nothing


def test_the_counted_majority_is_right_as_often_as_the_formula_says():
    votes, truth = planted(100_000, [0.6, 0.7, 0.8, 0.65, 0.75], range(5))
    right = (majority(votes) == truth).mean()
    expected = condorcet([0.6, 0.7, 0.8, 0.65, 0.75])
    assert abs(right - expected) < 3.29 * math.sqrt(expected * (1 - expected) / 100_000)


def test_a_majority_weighs_votes_and_ties_where_they_balance():
    votes = np.array([[1, 0, 1], [1, 0, math.nan], [0.5, 0.5, math.nan], [math.nan] * 3, [0, 0.5, 0]])
    np.testing.assert_array_equal(majority(votes), [1, 0.5, 0.5, math.nan, 0])
    np.testing.assert_array_equal(majority(votes, [1, 3, 1])[:2], [0, 0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: against_truth([[1, 0]], [1, 0]), "truth has shape"),
        (lambda: against_votes([1, 0]), "expected \\(items, judges\\)"),
        (lambda: against_votes([[0.7, 1]]), "votes must be"),
        (lambda: condorcet([]), "accuracies"),
        (lambda: condorcet([1.2]), "accuracies"),
    ],
)
def test_a_wrong_shape_or_value_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
