import csv
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.stats.agreement import (
    cohen_kappa,
    first_slot,
    fleiss_kappa,
    flip_rate,
    krippendorff_alpha,
    label_counts,
    order_rates,
    position,
)
from tiebreak.stats.intervals import bootstrap

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def shared(*path):
    found = DATA.joinpath(*path)
    if not found.exists():
        pytest.skip(f"the published data are not on this machine: {found}")
    return found


def test_an_always_first_judge_has_no_consistency_and_full_primacy():
    at = position(np.ones(50), np.ones(50))
    assert (at.consistent.value, at.primacy.value, at.bias.value, at.first.value) == (0, 1, 1, 1)
    assert at.p == pytest.approx(2.0**-49)


def test_a_content_judge_has_no_bias():
    quality = np.random.default_rng(0).integers(0, 2, size=200).astype(float)
    at = position(quality, 1 - quality)
    assert (at.consistent.value, at.bias.value, at.first.value, at.p) == (1, 0, 0.5, 1)


def test_ties_are_consistent_with_ties_only_in_the_strict_form():
    at = position([0.5, 0.5, 1.0, 1.0], [0.5, 1.0, 0.0, 1.0])
    assert (at.consistent.value, at.lenient.value) == (0.5, 0.75)


def test_unreadable_orders_are_left_out_and_counted():
    at = position([1.0, math.nan, 0.0], [0.0, 1.0, math.nan])
    assert (at.n, at.unreadable) == (1, 2)
    none = position([math.nan], [1.0])
    assert none.n == 0
    assert math.isnan(none.bias.value)


def test_a_planted_slot_bias_lies_in_its_interval_as_often_as_promised():
    rng = np.random.default_rng(4)
    hits = np.zeros(3)
    for _ in range(200):
        quality, drawn = rng.integers(0, 2, size=400), rng.random(400)
        one = np.where(drawn < 0.2, 1, np.where(drawn < 0.3, 0, quality)).astype(float)
        two = np.where(drawn < 0.2, 1, np.where(drawn < 0.3, 0, 1 - quality)).astype(float)
        at = position(one, two)
        truth = [(at.primacy, 0.2), (at.recency, 0.1), (at.bias, 0.1)]
        hits += [found.low <= planted <= found.high for found, planted in truth]
        assert at.first.value == pytest.approx(0.5 + at.bias.value / 2)
    assert (hits >= 180).all()


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 2), min_size=1, max_size=40))
def test_position_identities(rows):
    one, two = np.array(rows).T
    at, back = position(one, two), position(two, one)
    for here, there in zip(at[:6], back[:6], strict=True):
        assert here == pytest.approx(there, nan_ok=True)
    assert at.lenient.value == pytest.approx(1 - at.primacy.value - at.recency.value)
    assert at.bias.value == pytest.approx(at.primacy.value - at.recency.value)
    mirrored = position(1 - one, 1 - two)
    assert mirrored.primacy.value == at.recency.value
    assert mirrored.bias.value == pytest.approx(-at.bias.value)


def test_the_four_rates_of_the_rlaif_report():
    """Per row: an order with equal log-probabilities is unanswered, else the preferred slots are compared."""
    logp_original = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5], [0.2, 0.8], [0.6, 0.3]])
    logp_reversed = np.log([[0.2, 0.8], [0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.5, 0.5], [0.1, 0.4]])
    asked = [np.exp(logp[:, 0]) / np.exp(logp).sum(axis=1) for logp in (logp_original, logp_reversed)]
    assert order_rates(*asked) == pytest.approx((2 / 6, 1 / 6, 1 / 6, 2 / 6))
    assert sum(order_rates(*asked)) == pytest.approx(1)
    assert order_rates([math.nan, 0.9], [0.2, 0.2]) == (0.5, 0, 0, 0.5)
    assert all(math.isnan(value) for value in order_rates([], []))


def test_first_slot_tests_decided_presentations_only():
    found = first_slot([1.0] * 9 + [0.0] + [0.5] * 10 + [math.nan])
    assert found.rate.value == pytest.approx(14 / 20)
    assert found.p == pytest.approx(2 * 11 / 1024)


def test_flip_rate_undoes_its_formula():
    assert flip_rate(2 * 0.1 * 0.9) == pytest.approx(0.1)
    assert (flip_rate(0.0), flip_rate(0.7)) == (0.0, 0.5)


def test_cohen_kappa_is_its_closed_form():
    a, b = np.repeat([0, 0, 1, 1], [20, 5, 10, 15]), np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
    found = cohen_kappa(a, b)
    assert found.value == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert found.low < 0.4 < found.high
    assert cohen_kappa(a, a).value == 1
    rng = np.random.default_rng(0)
    chance = cohen_kappa(rng.integers(0, 3, 2000), rng.integers(0, 3, 2000))
    assert chance.low < 0 < chance.high


def test_weighted_kappa_forgives_near_misses():
    a, near, far = [0, 1, 2, 0, 1, 2], [1, 1, 2, 0, 1, 2], [2, 1, 2, 0, 1, 2]
    assert cohen_kappa(a, near, weights="quadratic").value > cohen_kappa(a, far, weights="quadratic").value
    assert cohen_kappa(a, near, weights="linear").value > cohen_kappa(a, near).value
    two = [0, 1, 1, 0], [0, 1, 0, 0]
    assert cohen_kappa(*two, weights="linear").value == pytest.approx(cohen_kappa(*two).value)


def test_constant_raters_are_undefined_never_1():
    assert math.isnan(cohen_kappa([1, 1, 1], [1, 1, 1]).value)
    assert math.isnan(krippendorff_alpha([0, 0, 1, 1], [1, 1, 1, 1]).value)
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]).value)


def test_alpha_against_krippendorffs_example():
    """Krippendorff 2011, 'Computing Krippendorff's alpha-reliability', section C: four observers, nominal, 0.743."""
    votes = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    said = [(unit, vote) for row in votes for unit, vote in enumerate(row) if vote is not None]
    found = krippendorff_alpha(*zip(*said, strict=True))
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.n == 11


def test_fleiss_against_the_textbook_table():
    """Fleiss 1971's form on the ten items of five labels by fourteen raters: 0.210."""
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert fleiss_kappa(counts).value == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(ValueError, match="same number of votes"):
        fleiss_kappa([[2, 0], [1, 0]])


def test_alpha_and_kappa_meet_for_two_raters_on_many_items():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 2, 5000)
    b = np.where(rng.random(5000) < 0.8, a, 1 - a)
    units = np.r_[np.arange(5000), np.arange(5000)]
    alpha = krippendorff_alpha(units, np.r_[a, b])
    assert alpha.value == pytest.approx(cohen_kappa(a, b).value, abs=1e-3)
    assert fleiss_kappa(label_counts(units, np.r_[a, b])).value == pytest.approx(alpha.value, abs=1e-3)
    assert alpha.low < 0.6 < alpha.high


def test_the_pattern_bootstrap_is_the_bootstrap_over_items():
    rng = np.random.default_rng(2)
    a = rng.integers(0, 3, 150)
    b = np.where(rng.random(150) < 0.7, a, rng.integers(0, 3, 150))
    slow = bootstrap(
        np.c_[a, b], None, lambda rows: cohen_kappa(rows[:, 0], rows[:, 1], draws=0).value, draws=1500, seed=1
    )
    fast = cohen_kappa(a, b, draws=4000)
    assert fast[:3] == pytest.approx(slow[:3], abs=0.02)


def test_pandalm_annotators_agree_as_published():
    rows = json.loads(shared("pandalm", "testset-v1.json").read_text())
    votes = [[row[f"annotator{k}"] for row in rows] for k in (1, 2, 3)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    found = sorted(round(cohen_kappa(votes[i], votes[j]).value, 3) for i, j in pairs)
    assert found == [0.852, 0.862, 0.879]


def test_llmbar_positional_agreement_is_as_published():
    """All 325 rows; the authors count a missing verdict as a third answer, which a tie's half score reproduces."""
    groups = defaultdict(list)
    with shared("llmbar", "judge_verdicts.csv").open() as file:
        for row in csv.DictReader(file):
            groups[row["subset"], row["judge"], row["strategy"]].append(row)
    score = {"1": 1.0, "2": 0.0, "": 0.5}
    with shared("llmbar", "judge_statistics.csv").open() as file:
        for published in csv.DictReader(file):
            rows = groups.pop((published["subset"], published["judge"], published["strategy"]))
            ab, ba = ([row[f"winner_order_{order}"] for row in rows] for order in ("ab", "ba"))
            at = position([score[v] for v in ab], [1 - score[v] for v in ba])
            same, n = published["published_positional_agreement"].split(" = ")[0].split(" / ")
            assert (round(at.consistent.value * at.n), at.n) == (int(same), int(n))
            if "" not in ab + ba:
                kappa = cohen_kappa(ab, ba, draws=0).value
                assert kappa == pytest.approx(float(published["published_kappa_agreement"]), abs=1e-9, nan_ok=True)
    assert not groups
