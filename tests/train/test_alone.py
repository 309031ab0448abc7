"""Links of rows that stand alone: their formulas, their zero points, and what noise and missing marks do to them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.alone_made import NAN, alone, rated, rho_of, weights_of
from tests.train.seen_made import Double, loss_of, numbers, part_of, slopes, slopes_by_difference
from tiebreak.records import InputError
from tiebreak.train.objectives.alone import ALONE
from tiebreak.train.objectives.seen import Alone, Seen
from tiebreak.train.objectives.switches import objective

KNOBS: dict[str, dict[str, Any]] = {
    "kto": {"desirable_weight": 1.2, "undesirable_weight": 0.7},
    "apo_zero_alone": {"desirable_weight": 0.8, "undesirable_weight": 1.5},
    "bco": {"delta_of": "classes", "delta_memory": 0.9},
    "noise_channel": {"missed": 0.3, "false_alarm": 0.1},
    "likelihood": {"likelihood_floor": -0.3},
    "cross_entropy": {},
}
LABELLED = list(KNOBS)


def knobs_of(link: str, **more: Any) -> dict[str, Any]:
    return {"score": "log_ratio", "link": link, "beta": 0.1, **KNOBS.get(link, {}), **more}


def losses(link: str, seen: Seen, beta: float = 0.1, **scalars: Any) -> list[float]:
    """The loss of each row, by the link alone."""
    values = beta * numbers(rho_of(seen))
    return ALONE[link](Alone(values, beta, seen), knobs={**KNOBS.get(link, {}), **scalars}).tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cost(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x))


def mean(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def z0_of(seen: Seen, beta: float) -> float:
    strangers = seen.beside["mismatched"]
    return max(0.0, beta * mean(rho_of(seen, strangers), seen.weight[strangers].tolist()))


def delta_of(seen: Seen, beta: float) -> float:
    rows = list(zip(rho_of(seen), seen.label.tolist(), weights_of(seen), strict=True))
    good = sum(w * q * beta * r for r, q, w in rows) / sum(w * q for _, q, w in rows)
    bad = sum(w * (1 - q) * beta * r for r, q, w in rows) / sum(w * (1 - q) for _, q, w in rows)
    return (good + bad) / 2


def by_hand(link: str, seen: Seen, beta: float, knobs: dict[str, Any]) -> list[float]:
    """The published formulas, a row at a time."""
    v = [beta * rho for rho in rho_of(seen)]
    z0, delta = z0_of(seen, beta), delta_of(seen, beta)
    g10, g01 = knobs.get("missed", 0.0), knobs.get("false_alarm", 0.0)
    sides = {
        "kto": lambda x: (
            knobs["desirable_weight"] * (1 - sigmoid(x - z0)),
            knobs["undesirable_weight"] * (1 - sigmoid(z0 - x)),
        ),
        "apo_zero_alone": lambda x: (
            knobs["desirable_weight"] * (1 - sigmoid(x)),
            knobs["undesirable_weight"] * sigmoid(x),
        ),
        "bco": lambda x: (cost(x - delta), cost(delta - x)),
        "noise_channel": lambda x: (
            -math.log((1 - g10) * sigmoid(x) + g01 * sigmoid(-x)),
            -math.log(1 - (1 - g10) * sigmoid(x) - g01 * sigmoid(-x)),
        ),
        "likelihood": lambda x: (-x, max(x, knobs["likelihood_floor"])),
        "cross_entropy": lambda x: (cost(x), cost(-x)),
    }[link]
    return [q * sides(x)[0] + (1 - q) * sides(x)[1] for x, q in zip(v, seen.label.tolist(), strict=True)]


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("link", LABELLED)
def test_the_loss_is_the_formula_and_the_batch_its_weighted_mean(link: str, seed: int) -> None:
    seen = alone(seed=seed)
    expected = by_hand(link, seen, 0.4, KNOBS[link])
    assert losses(link, seen, 0.4) == pytest.approx(expected, abs=1e-12)
    assert loss_of(seen, **knobs_of(link, beta=0.4)) == pytest.approx(mean(expected, weights_of(seen)), abs=1e-12)


@pytest.mark.parametrize("link", ["apo_zero_alone", "noise_channel", "likelihood", "cross_entropy"])
def test_the_gradient_is_that_of_differences(link: str) -> None:
    seen = alone()
    found, measured = slopes(seen, **knobs_of(link)), slopes_by_difference(seen, **knobs_of(link))
    for name, slope in found.items():
        torch.testing.assert_close(slope, measured[name], atol=1e-8, rtol=1e-6)


def test_two_links_look_at_the_batch_and_the_others_at_a_row() -> None:
    assert {name for name, part in ALONE.items() if part.couples} == {"kto", "bco"}
    assert {name for name, part in ALONE.items() if "label" in part.needs} == set(LABELLED)
    assert ALONE["squared"].needs == ("ratings",)
    assert ALONE["kto"].needs == ("label", "mismatched")


@pytest.mark.parametrize("link", ["apo_zero_alone", "noise_channel", "likelihood", "cross_entropy"])
def test_parts_of_a_batch_add_up_to_it(link: str) -> None:
    seen = alone()
    parts = [part_of(seen, [0, 3]), part_of(seen, [1, 2, 4])]
    knobs = knobs_of(link)
    assert sum(loss_of(part, **knobs) for part in parts) == pytest.approx(loss_of(seen, **knobs), abs=1e-12)
    whole = slopes(seen, **knobs)["logps"]
    torch.testing.assert_close(sum(slopes_in(seen, part, knobs) for part in parts), whole, atol=1e-12, rtol=0)


def slopes_in(seen: Seen, part: Seen, knobs: dict[str, Any]) -> torch.Tensor:
    (found,) = torch.autograd.grad(objective(part, **knobs).loss, seen.logps)
    return found


@pytest.mark.parametrize("link", LABELLED)
def test_the_order_of_the_rows_does_not_matter(link: str) -> None:
    seen = alone()
    turned = replace(part_of(seen, [4, 2, 0, 3, 1]), whole=None)
    assert loss_of(turned, **knobs_of(link)) == pytest.approx(loss_of(seen, **knobs_of(link)), abs=1e-12)


@pytest.mark.parametrize("link", LABELLED)
def test_a_weight_of_two_is_the_row_twice(link: str) -> None:
    weighted = alone([1.0, 0.0], rho=[3.0, -2.0], drift=[2.0, 5.0], weight=[2.0, 1.0])
    twice = alone([1.0, 1.0, 0.0], rho=[3.0, 3.0, -2.0], drift=[2.0, 2.0, 5.0], weight=[1.0, 1.0, 1.0])
    assert loss_of(weighted, **knobs_of(link)) == pytest.approx(loss_of(twice, **knobs_of(link)), abs=1e-12)


@pytest.mark.parametrize("link", ["kto", "apo_zero_alone", "noise_channel", "likelihood", "cross_entropy"])
def test_a_soft_label_is_both_sides_by_its_share(link: str) -> None:
    rho, drift = [4.0, -3.0], [1.0, 2.0]
    good, bad, soft = (losses(link, alone([q, q], rho=rho, drift=drift)) for q in (1.0, 0.0, 0.3))
    assert soft == pytest.approx([0.3 * a + 0.7 * b for a, b in zip(good, bad, strict=True)], abs=1e-12)


@pytest.mark.parametrize("link", ["apo_zero_alone", "kto", "bco", "noise_channel", "cross_entropy"])
def test_good_and_bad_mirror_each_other(link: str) -> None:
    knobs = {
        "noise_channel": {"missed": 0.2, "false_alarm": 0.1},
        "bco": KNOBS["bco"],
        "cross_entropy": {},
    }.get(link, {"desirable_weight": 1.3, "undesirable_weight": 0.6})
    turned = dict(zip(knobs, reversed(knobs.values()), strict=True)) if link != "bco" else knobs
    here = losses(link, alone([1.0, 0.0, 0.4], rho=[2.0, -1.0, 7.0]), **knobs)
    there = losses(link, alone([0.0, 1.0, 0.6], rho=[-2.0, 1.0, -7.0]), **turned)
    assert here == pytest.approx(there, abs=1e-12)


@pytest.mark.parametrize("rho", [-200.0, 200.0])
@pytest.mark.parametrize("link", LABELLED)
def test_far_out_everything_is_finite(link: str, rho: float) -> None:
    values = torch.tensor([rho, -rho, rho, 0.0], requires_grad=True)
    seen = Seen(
        lengths=torch.tensor([3, 4, 3, 4]),
        weight=torch.ones(4),
        logps=values,
        reference=torch.zeros(4),
        alone=torch.tensor([0, 2]),
        label=torch.tensor([1.0, 0.0]),
        tree=torch.tensor([0, 0, 1, 1]),
        beside={"mismatched": torch.tensor([1, 3])},
    )
    loss = objective(seen, **knobs_of(link, beta=1.0)).loss
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())


@pytest.mark.parametrize("link", LABELLED)
@pytest.mark.parametrize("side", [1.0, 0.0])
def test_a_batch_of_one_side_works(link: str, side: float) -> None:
    found = losses(link, alone([side] * 3, rho=[1.0, -2.0, 0.5], drift=[1.0, 0.0, 2.0]))
    assert all(math.isfinite(loss) for loss in found)


@pytest.mark.parametrize("link", ["kto", "apo_zero_alone", "bco", "cross_entropy", "noise_channel"])
def test_scores_are_read_by_themselves_so_the_reference_of_a_prompt_matters(link: str) -> None:
    seen = alone()
    moved = replace(seen, reference=seen.reference + torch.tensor([5.0, 5.0] + [0.0] * 8, dtype=Double))
    assert abs(loss_of(moved, **knobs_of(link)) - loss_of(seen, **knobs_of(link))) > 1e-3


def test_kto_is_half_its_weight_at_the_reference() -> None:
    seen = alone([1.0, 0.0], rho=[0.0, 0.0])
    assert losses("kto", seen, desirable_weight=1.3, undesirable_weight=0.8) == pytest.approx([0.65, 0.4])


def test_the_zero_point_of_kto_is_of_other_prompts_and_takes_no_gradient() -> None:
    seen = alone([1.0, 0.0, 1.0], rho=[1.0, 2.0, -1.0], drift=[3.0, 6.0, 9.0], weight=[1.0, 1.0, 1.0])
    expected = [1 - sigmoid(0.1 - 0.6), 1 - sigmoid(0.6 - 0.2), 1 - sigmoid(-0.1 - 0.6)]
    assert losses("kto", seen, desirable_weight=1.0, undesirable_weight=1.0) == pytest.approx(expected, abs=1e-12)
    slope = slopes(seen, **knobs_of("kto"))["logps"]
    assert slope[1::2].tolist() == [0.0, 0.0, 0.0]
    assert bool((slope[::2] != 0).all())


def test_the_zero_point_of_kto_is_never_below_0_and_is_then_apo_zero() -> None:
    rows = {"label": [1.0, 0.0, 0.6], "rho": [1.0, 2.0, -1.0]}
    low, none = alone(**rows, drift=[-3.0, -6.0, 1.0]), alone(**rows, drift=[0.0] * 3)
    weights = KNOBS["kto"]
    assert losses("kto", low) == losses("kto", none) == losses("apo_zero_alone", none, **weights)
    assert losses("kto", alone(**rows, drift=[3.0, 6.0, 1.0])) != losses("kto", none)


@pytest.mark.parametrize("link", ["kto", "apo_zero_alone"])
def test_very_good_and_very_bad_rows_teach_nothing_more(link: str) -> None:
    seen = alone([1.0, 1.0, 0.0, 0.0], rho=[500.0, -500.0, 500.0, -500.0])
    assert float(slopes(seen, **knobs_of(link))["logps"].abs().max()) < 1e-20


def test_bco_pulls_by_how_far_the_label_is_from_the_probability() -> None:
    seen = alone(weight=[1.0] * 5)
    delta, rows = delta_of(seen, 0.1), zip(rho_of(seen), seen.label.tolist(), strict=True)
    expected = [0.1 * (sigmoid(0.1 * rho - delta) - q) / 5 for rho, q in rows]
    assert slopes(seen, **knobs_of("bco"))["logps"][::2].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_two_deltas_differ_where_the_sides_are_not_balanced() -> None:
    seen = alone([1.0, 0.0, 0.0, 0.0], rho=[30.0, 10.0, 0.0, -10.0], weight=[1.0] * 4)
    assert losses("bco", seen, delta_of="classes") == pytest.approx([cost(1.5), cost(0.5), cost(1.5), cost(2.5)])
    assert losses("bco", seen, delta_of="all")[0] == pytest.approx(cost(3.0 - 0.75))
    even = alone([1.0, 0.0], rho=[30.0, 10.0], weight=[1.0] * 2)
    assert losses("bco", even, delta_of="classes") == pytest.approx(losses("bco", even, delta_of="all"), abs=1e-12)
    with pytest.raises(InputError, match="delta_of is 'each'; it is classes"):
        losses("bco", even, delta_of="each")


@pytest.mark.parametrize("of", ["classes", "all"])
def test_delta_goes_on_from_the_batches_before(of: str) -> None:
    first = alone([1.0, 0.0, 1.0], rho=[5.0, -4.0, 1.0], weight=[1.0, 2.0, 0.5])
    then = alone([0.0, 0.0], rho=[2.0, -7.0], weight=[1.0, 1.5])
    both = alone([1.0, 0.0, 1.0, 0.0, 0.0], rho=[5.0, -4.0, 1.0, 2.0, -7.0], weight=[1.0, 2.0, 0.5, 1.0, 1.5])
    knobs = knobs_of("bco", delta_of=of, delta_memory=1.0)
    kept = objective(first, **knobs).kept
    after = losses("bco", replace(then, past=kept), delta_of=of, delta_memory=1.0)
    assert after == pytest.approx(losses("bco", both, delta_of=of, delta_memory=1.0)[3:], abs=1e-12)
    forgot = losses("bco", replace(then, past=kept), delta_of=of, delta_memory=0.0)
    assert forgot == pytest.approx(losses("bco", then, delta_of=of), abs=1e-12)
    assert not any(value.requires_grad for value in kept.values())


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20))
def test_bco_bounds_dpo_whatever_delta(good: float, bad: float, delta: float) -> None:
    past = {"bco": torch.tensor([[delta, delta], [1e12, 1e12]], dtype=Double)}
    seen = alone([1.0, 0.0], rho=[good, bad], past=past)
    assert sum(losses("bco", seen, beta=1.0, delta_memory=1.0)) >= cost(good - bad) - 1e-9


@given(st.floats(-15, 15), st.floats(0, 1))
def test_a_channel_without_noise_is_logistic_regression(v: float, q: float) -> None:
    seen = alone([q], rho=[v])
    clean = losses("noise_channel", seen, beta=1.0, missed=0.0, false_alarm=0.0)
    assert clean == losses("cross_entropy", seen, beta=1.0)
    assert clean == pytest.approx([q * cost(v) + (1 - q) * cost(-v)], abs=1e-12)


@pytest.mark.parametrize("v", [-3.0, 0.0, 0.4, 5.0])
def test_an_unvoted_row_pulls_as_far_as_it_was_not_missed(v: float) -> None:
    """The slope is (1 - g) p times P(truly undesirable | no vote) = (1 - p) / (1 - (1 - g) p)."""
    seen, g, p = alone([0.0], rho=[v], weight=[1.0]), 0.3, sigmoid(v)
    slope = slopes(seen, **knobs_of("noise_channel", beta=1.0, missed=g, false_alarm=0.0))["logps"][0]
    undesirable = (1 - p) / (1 - (1 - g) * p)
    assert 0 <= undesirable <= 1
    assert float(slope) == pytest.approx((1 - g) * p * undesirable, abs=1e-12)
    assert losses("noise_channel", alone([1.0], rho=[v]), beta=1.0, missed=g, false_alarm=0.0) == pytest.approx(
        [cost(v) - math.log(1 - g)], abs=1e-12
    )


@pytest.mark.parametrize(("missed", "false_alarm"), [(0.3, 0.0), (0.15, 0.2)])
def test_the_rates_that_made_the_labels_are_the_likeliest(missed: float, false_alarm: float) -> None:
    """With labels at their expected value the loss is the expected one, which only the planted rates bring to least."""
    rho = [0.25 * step for step in range(-16, 17)]
    labels = [(1 - missed) * sigmoid(v) + false_alarm * sigmoid(-v) for v in rho]
    seen = alone(labels, rho=rho, weight=[1.0] * len(rho))
    tried = {
        (round(0.05 * a, 2), round(0.05 * b, 2)): sum(
            losses("noise_channel", seen, beta=1.0, missed=0.05 * a, false_alarm=0.05 * b)
        )
        for a in range(10)
        for b in range(10)
    }
    assert min(tried, key=tried.__getitem__) == (missed, false_alarm)
    slope = slopes(seen, **knobs_of("noise_channel", beta=1.0, missed=missed, false_alarm=false_alarm))["logps"]
    assert float(slope.abs().max()) < 1e-12


@pytest.mark.parametrize(("missed", "false_alarm"), [(-0.1, 0.0), (0.0, -0.1), (0.5, 0.5), (1.0, 0.0)])
def test_rates_that_leave_nothing_to_learn_are_refused(missed: float, false_alarm: float) -> None:
    with pytest.raises(InputError, match="rates of 0 or more that add up to less than 1"):
        losses("noise_channel", alone(), missed=missed, false_alarm=false_alarm)


def test_good_examples_rise_and_bad_ones_fall_no_further_than_the_floor() -> None:
    knobs = {"score": "mean_log_prob", "link": "likelihood", "likelihood_floor": -3.0}
    seen = alone([1.0, 0.0, 0.0], rho=[-8.0, -8.0, -40.0], lengths=torch.full((6,), 4), weight=[1.0] * 3)
    assert loss_of(seen, **knobs) == pytest.approx((2.0 - 2.0 - 3.0) / 3)
    slope = slopes(seen, **knobs)["logps"]
    assert slope.tolist() == pytest.approx([-1 / 12, 0.0, 1 / 12, 0.0, 0.0, 0.0])


def test_a_good_example_is_its_negative_log_likelihood() -> None:
    seen = alone([1.0] * 3, lengths=torch.full((6,), 5))
    tuned = replace(seen, tree=None, alone=None, **{n: getattr(seen, n)[::2] for n in ("lengths", "weight", "logps")})
    assert loss_of(seen, score="mean_log_prob", link="likelihood") == pytest.approx(loss_of(tuned, nll=1.0), abs=1e-12)


def test_squares_are_averaged_over_the_marks_there_are() -> None:
    seen = rated([[4.0, NAN, 1.0], [NAN, NAN, 2.0], [NAN, NAN, NAN]])
    assert seen.scores is not None
    made = seen.scores.detach()
    expected = [((made[0, 0] - 4) ** 2 + (made[0, 2] - 1) ** 2) / 2, (made[1, 2] - 2) ** 2, 0.0]
    knobs = {"score": "head", "link": "squared"}
    assert loss_of(seen, **knobs) == pytest.approx(float(sum(expected)) / 3, abs=1e-12)
    slope = slopes(seen, **knobs)["scores"]
    assert bool(slope.isfinite().all())
    assert (slope == 0).tolist() == [[False, True, False], [True, True, False], [True, True, True]]
    measured = slopes_by_difference(seen, **knobs)["scores"]
    torch.testing.assert_close(slope, measured, atol=1e-8, rtol=1e-6)


def test_a_weight_of_its_marks_gives_the_mean_over_all_marks_of_the_batch() -> None:
    ratings = [[4.0, NAN, 1.0], [NAN, NAN, 2.0], [0.0, 3.0, 3.0]]
    seen = rated(ratings, weight=numbers([2.0, 1.0, 3.0]))
    assert seen.scores is not None
    assert seen.ratings is not None
    there = ~seen.ratings.isnan()
    squares = (seen.scores.detach() - seen.ratings)[there].square()
    assert loss_of(seen, score="head", link="squared") == pytest.approx(float(squares.mean()), abs=1e-12)


def test_one_attribute_may_be_a_column_or_none() -> None:
    column = rated([[2.0], [NAN], [1.0]])
    assert column.scores is not None
    flat = replace(column, scores=column.scores.detach().flatten().requires_grad_(True))
    knobs = {"score": "head", "link": "squared"}
    assert loss_of(flat, **knobs) == loss_of(column, **knobs)


@given(st.floats(0.02, 0.98))
def test_a_soft_label_is_learned_to_its_log_odds(p: float) -> None:
    seen = alone([p], rho=[math.log(p / (1 - p))])
    assert abs(float(slopes(seen, **knobs_of("cross_entropy", beta=1.0))["logps"][0])) < 1e-12


def test_cross_entropy_is_that_of_two_classes() -> None:
    two = torch.randn(6, 2, dtype=Double, generator=torch.Generator().manual_seed(0))
    label = torch.linspace(0, 1, 6, dtype=Double)
    expected = torch.nn.functional.cross_entropy(two, torch.stack([label, 1 - label], 1), reduction="none")
    seen = replace(alone(label.tolist()), alone=torch.arange(6))
    found = ALONE["cross_entropy"](Alone(two[:, 0] - two[:, 1], 1.0, seen), knobs={})
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
