import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.evaluate.reward import (
    agreement_with_truth,
    attribute_accuracies,
    calibration,
    length_baseline,
    pair_accuracy,
    temperature,
)
from tiebreak.stats.intervals import wilson


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


def test_accuracy_is_a_wilson_rate_when_nothing_is_tied():
    found = pair_accuracy([1.0] * 61 + [-1.0] * 39)
    assert found[:4] == wilson(61, 100)
    assert found.ties == 0


@pytest.mark.parametrize(
    ("ties", "value", "n"), [("half", 0.625, 4), ("right", 0.75, 4), ("wrong", 0.5, 4), ("exclude", 2 / 3, 3)]
)
def test_equal_scores_are_half_and_other_tools_are_reproduced(ties, value, n):
    found = pair_accuracy([2.0, 0.0, 1.0, -1.0], ties=ties)
    assert (found.value, found.n, found.ties) == (pytest.approx(value), n, 1)


def test_a_constant_model_gets_one_half_not_all_or_nothing():
    assert pair_accuracy(np.zeros(10)).value == 0.5
    assert math.isnan(pair_accuracy(np.zeros(10), ties="exclude").value)


def test_pairs_of_one_prompt_widen_the_interval():
    margins = np.repeat(np.where(np.arange(20) < 14, 1.0, -1.0), 5)
    alone, together = pair_accuracy(margins), pair_accuracy(margins, np.arange(100) // 5)
    assert alone.value == together.value
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_weights_move_the_mean():
    assert pair_accuracy([1.0, -1.0], weights=[3.0, 1.0]).value == 0.75


def test_a_missing_score_is_refused_not_counted():
    with pytest.raises(ValueError, match="could not be scored"):
        pair_accuracy([1.0, math.nan])


def test_each_attribute_is_measured_by_itself_and_the_score_by_its_weights():
    marks = np.array([[1.0, 2.0], [0.5, 3.0], [-1.0, -2.0], [2.0, 0.0]])
    found = attribute_accuracies(marks, ["good", "long"], ["a", "a", "b", "c"])
    assert list(found) == ["good", "long"]
    assert found["good"] == pair_accuracy(marks[:, 0], ["a", "a", "b", "c"])
    assert (found["good"].value, found["long"].value, found["long"].ties) == (0.75, 0.625, 1)
    assert pair_accuracy(marks @ [1.0, -0.5]).value == (0.5 + 0 + 0.5 + 1) / 4
    assert attribute_accuracies(marks, ["good", "long"], ties="exclude")["long"].n == 3


@pytest.mark.parametrize("names", [["good"], ["good", "good"], ["good", "long", "kind"]])
def test_marks_need_a_name_for_each_column(names):
    with pytest.raises(ValueError, match="a column for each"):
        attribute_accuracies(np.zeros((3, 2)), names)


def test_length_baseline_learns_its_direction_elsewhere():
    found = length_baseline([9, 9, 5, 2], [1, 1, 5, 8])
    assert (found.value, found.ties, found.direction) == (0.625, 1, "longer")
    turned = length_baseline([9, 9, 5, 2], [1, 1, 5, 8], train=([1, 1, 7], [5, 5, 2]))
    assert (turned.value, turned.direction) == (0.375, "shorter")


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.integers(1, 15))
def test_bins_cover_every_row_once_and_ignore_the_order(margins, bins):
    y = [float(m > 0.3) for m in margins]
    here, there = calibration(margins, y, bins=bins), calibration(margins[::-1], y[::-1], bins=bins)
    assert sum(b.n for b in here.bins) == here.n == len(margins)
    assert len(here.bins) <= bins
    assert here.ece == pytest.approx(there.ece)
    assert 0 <= here.ece <= 1


def test_a_calibrated_model_has_little_error_and_an_overconfident_one_much():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1.5, size=20_000)
    y = (rng.random(20_000) < sigmoid(margin)).astype(float)
    honest, loud = calibration(margin, y), calibration(3 * margin, y)
    assert honest.ece < 0.015 < 0.1 < loud.ece
    assert honest.temperature == pytest.approx(1, abs=0.05)
    assert loud.temperature == pytest.approx(3 * honest.temperature)
    assert honest.brier < loud.brier
    assert {b.n for b in honest.bins} == {2000}


def test_calibration_by_hand():
    found = calibration([math.log(3), -math.log(3)], [1.0, 1.0], bins=1)
    assert found.ece == pytest.approx(0.25)
    assert found.brier == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert found.nll == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert (found.bins[0].confidence, found.bins[0].rate.value) == (pytest.approx(0.75), 0.5)
    assert calibration([0.0], [1.0]).bins[0].rate.value == 0.5


def test_reading_pairs_from_the_other_side_changes_nothing():
    rng = np.random.default_rng(1)
    margin, y = rng.normal(size=200), rng.random(200)
    here, there = calibration(margin, y), calibration(-margin, 1 - y)
    assert here[:5] == pytest.approx(there[:5])


def test_temperature_has_ends():
    assert temperature([1.0, 2.0], [1.0, 1.0]) == 0.0
    assert temperature([1.0, 2.0], [0.0, 0.0]) == math.inf
    assert temperature([0.0], [1.0]) == math.inf
    assert calibration([], []).n == 0


def test_truth_counts_ties_half_and_leaves_out_what_has_no_answer():
    found = agreement_with_truth([0.9, 0.2, 0.5, 0.8, 0.7], [1.0, -3.0, 2.0, -1.0, 0.0])
    assert (found.value, found.n, found.ties, found.excluded) == (pytest.approx(2.5 / 4), 4, 1, 1)


def test_a_noisy_judge_of_planted_truth_is_measured_right():
    rng = np.random.default_rng(2)
    gap = rng.normal(size=3000)
    p = np.where(rng.random(3000) < 0.8, gap > 0, gap < 0).astype(float)
    found = agreement_with_truth(p, gap)
    assert found.low < 0.8 < found.high
