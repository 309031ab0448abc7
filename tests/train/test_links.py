"""Links of pairs: each its formula, its slope, its symmetry and its limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.seen_made import Double, numbers, pairs
from tiebreak.records import InputError
from tiebreak.train.objectives.links import LINKS
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Compared

BETA = 0.5
"""Not 1, so that a link that forgets it is found out."""
finite = st.floats(-20, 20)
share = st.floats(0.01, 0.99)


def compared(chosen: Sequence[float], rejected: Sequence[float], q: Sequence[float], **more: Any) -> Compared:
    """Sides worth these rewards, beta x score, under a reference of 0 and with rows of weight 1."""
    r_w, r_l = numbers(chosen).requires_grad_(True), numbers(rejected).requires_grad_(True)
    seen = pairs([r / BETA for r in chosen], [r / BETA for r in rejected], weight=torch.ones(2 * len(chosen)), **more)
    return Compared(r_w - r_l, r_w, r_l, numbers(q), BETA, seen)


def losses(name: str, pair: Compared, **knobs: Any) -> list[float]:
    made: list[float] = LINKS[name](pair, knobs={**KNOBS.get(name, {}), **knobs}).tolist()
    return made


def soft(z: float) -> float:
    """S(z) = -log sigmoid(z)."""
    return math.log1p(math.exp(-z)) if z > -30 else -z + math.log1p(math.exp(z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def entropy(q: float) -> float:
    return -q * math.log(q) - (1 - q) * math.log(1 - q)


def mixed(right: Callable[[float, float], float]) -> Callable[[float, float, float], float]:
    return lambda c, r, q: q * right(c, r) + (1 - q) * right(r, c)


def reverse(c: float, r: float, q: float) -> float:
    s = sigmoid(c - r)
    return s * math.log(s / q) + (1 - s) * math.log((1 - s) / (1 - q))


def blend(z: float, sharpness: float) -> float:
    m = sigmoid(z / sharpness)
    return (1 - m) * soft(z) + m * math.exp(-z)


KNOBS: dict[str, dict[str, float]] = {
    "square": {"tau": 0.2},
    "hinge": {"hinge_margin": 1.5},
    "discopop": {"sharpness": 0.3},
    "flip_channel": {"channel_flips": 0.2},
}
FORMULAS: dict[str, Callable[[float, float, float], float]] = {
    "logistic": mixed(lambda c, r: soft(c - r)),
    "square": mixed(lambda c, r: (c - r - 1 / 0.4) ** 2),
    "hinge": mixed(lambda c, r: max(0.0, 1.5 - c + r)),
    "reverse_kl": reverse,
    "forward_kl": lambda c, r, q: q * soft(c - r) + (1 - q) * soft(r - c) - entropy(q),
    "square_logit": lambda c, r, q: (c - r - math.log(q / (1 - q))) ** 2,
    "nca": mixed(lambda c, r: soft(c) + 0.5 * soft(-c) + 0.5 * soft(-r)),
    "sppo": lambda c, r, q: (c / BETA - (q - 0.5) / BETA) ** 2 + (r / BETA - (0.5 - q) / BETA) ** 2,
    "apo_zero": mixed(lambda c, r: 1 - sigmoid(c) + sigmoid(r)),
    "apo_down": mixed(lambda c, r: sigmoid(c) + 1 - sigmoid(c - r)),
    "bco_pair": mixed(lambda c, r: soft(c) + soft(-r)),
    "aot": mixed(lambda c, r: soft(c - r)),
    "aot_unpaired": mixed(lambda c, r: soft(c - r)),
    "discopop": mixed(lambda c, r: blend(c - r, 0.3)),
    "flip_channel": mixed(lambda c, r: -math.log(0.8 * sigmoid(c - r) + 0.2 * sigmoid(r - c))),
}
"""Each link of one pair, in plain arithmetic."""
LINEAR = [name for name in FORMULAS if name not in ("reverse_kl", "forward_kl", "square_logit", "sppo")]
"""Links that are the average over which side is right."""
every = pytest.mark.parametrize("name", list(FORMULAS))


def test_every_link_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(LINKS)


@every
@settings(max_examples=40, deadline=None)
@given(c=finite, r=finite, q=share)
def test_a_link_is_its_formula(name: str, c: float, r: float, q: float) -> None:
    assert losses(name, compared([c], [r], [q])) == [pytest.approx(FORMULAS[name](c, r, q), rel=1e-9, abs=1e-9)]


@pytest.mark.parametrize(
    ("name", "value", "up", "down"),
    [
        ("logistic", math.log(2), -0.5, 0.5),
        ("square", 2.5**2, -5.0, 5.0),
        ("hinge", 1.5, -1.0, 1.0),
        ("nca", 2 * math.log(2), -0.25, 0.25),
        ("sppo", 0.5 / BETA**2, -1 / BETA**2, 1 / BETA**2),
        ("apo_zero", 1.0, -0.25, 0.25),
        ("apo_down", 1.0, 0.0, 0.25),
        ("bco_pair", 2 * math.log(2), -0.5, 0.5),
        ("aot", math.log(2), -0.5, 0.5),
        ("aot_unpaired", math.log(2), -0.5, 0.5),
        ("discopop", (1 + math.log(2)) / 2, -0.75 + (1 - math.log(2)) / 1.2, 0.75 - (1 - math.log(2)) / 1.2),
        ("flip_channel", math.log(2), -0.3, 0.3),
    ],
)
def test_value_and_slopes_at_the_reference(name: str, value: float, up: float, down: float) -> None:
    """Where both sides are worth nothing, and the label is hard."""
    pair = compared([0.0], [0.0], [1.0])
    loss = LINKS[name](pair, knobs=KNOBS.get(name, {})).sum()
    slopes = torch.autograd.grad(loss, [pair.chosen, pair.rejected], allow_unused=True)
    assert float(loss.detach()) == pytest.approx(value, abs=1e-12)
    assert [float(slope) for slope in slopes] == pytest.approx([up, down], abs=1e-12)


@every
def test_the_slope_is_the_difference_quotient(name: str) -> None:
    sides, step = ([0.7, -1.3, 2.2], [0.1, 0.4, -0.8]), 1e-6
    q = [0.9, 0.6, 0.3]
    pair = compared(*sides, q)
    slopes = torch.autograd.grad(LINKS[name](pair, knobs=KNOBS.get(name, {})).sum(), [pair.chosen, pair.rejected])
    for side in (0, 1):
        for place in range(3):
            ends = []
            for move in (step, -step):
                moved = [list(values) for values in sides]
                moved[side][place] += move
                ends.append(sum(losses(name, compared(*moved, q))))
            assert float(slopes[side][place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


@every
@settings(max_examples=25, deadline=None)
@given(c=finite, r=finite, q=share)
def test_swapping_the_sides_and_the_target_changes_nothing(name: str, c: float, r: float, q: float) -> None:
    there = losses(name, compared([r], [c], [1 - q]))
    assert losses(name, compared([c], [r], [q])) == pytest.approx(there, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.2, 0.4, 0.49])
def test_over_flipped_labels_an_unbiased_target_is_the_clean_loss(name: str, eps: float) -> None:
    """E over flips of q f(z) + (1-q) f(-z) with q = (1-eps)/(1-2 eps) is f(z), for every link that mixes so."""
    q = (1 - eps) / (1 - 2 * eps)
    for c, r in ((0.3, -1.1), (-2.0, 0.4), (5.0, 1.0)):
        kept, flipped = losses(name, compared([c], [r], [q]))[0], losses(name, compared([r], [c], [q]))[0]
        clean = losses(name, compared([c], [r], [1.0]))[0]
        assert (1 - eps) * kept + eps * flipped == pytest.approx(clean, rel=1e-12, abs=1e-12)


@every
@pytest.mark.parametrize(("c", "r"), [(200.0, 0.0), (-200.0, 0.0), (0.0, 200.0), (200.0, 200.0), (-100.0, 100.0)])
def test_far_out_a_loss_and_its_slopes_are_finite(name: str, c: float, r: float) -> None:
    r_w, r_l = torch.tensor([c], requires_grad=True), torch.tensor([r], requires_grad=True)
    seen = compared([0.0], [0.0], [1.0]).seen
    pair = Compared(r_w - r_l, r_w, r_l, torch.tensor([0.9]), BETA, seen)
    loss = LINKS[name](pair, knobs=KNOBS.get(name, {})).sum()
    slopes = torch.autograd.grad(loss, [r_w, r_l], allow_unused=True, materialize_grads=True)
    assert all(bool(torch.isfinite(value).all()) for value in (loss, *slopes))


@every
def test_in_half_precision_a_loss_is_the_same_to_its_digits(name: str) -> None:
    c, r, q = [0.7, -1.3, 2.2], [0.1, 0.4, -0.8], [0.9, 0.6, 0.3]
    full = compared(c, r, q)
    low = [value.detach().to(torch.bfloat16) for value in (full.z, full.chosen, full.rejected, full.q)]
    made = LINKS[name](Compared(*low, BETA, full.seen), knobs=KNOBS.get(name, {}))
    assert made.double().tolist() == pytest.approx(losses(name, full), rel=0.05, abs=0.05)


@every
def test_only_links_that_compare_lack_a_reference_of_their_own(name: str) -> None:
    """A constant on both sides' rewards, which is one on the reference, cancels where a link sees their gap only."""
    here, there = losses(name, compared([0.7], [0.1], [0.9])), losses(name, compared([2.7], [2.1], [0.9]))
    absolute = name in ("nca", "sppo", "apo_zero", "apo_down", "bco_pair")
    assert (here == pytest.approx(there, abs=1e-12)) is not absolute


def test_a_hinge_that_is_satisfied_says_nothing() -> None:
    pair = compared([2.0, 0.5], [0.0, 0.0], [1.0, 1.0])
    made = LINKS["hinge"](pair, knobs={"hinge_margin": 1.0})
    (slope,) = torch.autograd.grad(made.sum(), pair.chosen)
    assert made.tolist() == [0.0, 0.5]
    assert slope.tolist() == [0.0, -1.0]


def test_bco_of_a_pair_lies_above_dpo() -> None:
    draws = 4 * torch.randn(1000, 2, dtype=Double, generator=torch.Generator().manual_seed(0))
    pair = compared(draws[:, 0].tolist(), draws[:, 1].tolist(), [1.0] * 1000)
    assert all(a > b for a, b in zip(losses("bco_pair", pair), losses("logistic", pair), strict=True))


def test_discopop_pulls_the_wrong_way_near_zero() -> None:
    """It rises with z between about -0.12 and 0.07, falls elsewhere, and is logistic below and exponential above."""
    z = numbers([i / 1000 for i in range(-1000, 1001)]).requires_grad_(True)
    pair = compared([0.0] * len(z), [0.0] * len(z), [1.0] * len(z))._replace(z=z)
    (slope,) = torch.autograd.grad(LINKS["discopop"](pair, knobs={}).sum(), z)
    rises = z.detach()[slope > 0]
    assert [round(float(end), 2) for end in (rises.min(), rises.max())] == [-0.12, 0.07]
    assert len(rises) == round(1000 * float(rises.max() - rises.min())) + 1
    assert losses("discopop", compared([-8.0], [0.0], [1.0]), sharpness=0.05) == pytest.approx([soft(-8.0)])
    assert losses("discopop", compared([8.0], [0.0], [1.0]), sharpness=0.05) == pytest.approx([math.exp(-8)])
    (plain, sharp) = (losses("discopop", compared([0.1], [0.0], [1.0]), sharpness=tau) for tau in (1.0, 0.05))
    assert abs(plain[0] - sharp[0]) > 0.05


def test_a_channel_without_flips_is_the_logistic_link_and_one_with_flips_is_bounded() -> None:
    pair = compared([0.7, -200.0], [0.1, 200.0], [0.9, 1.0])
    slopes = []
    for name, knobs in (("logistic", {}), ("flip_channel", {"channel_flips": 0.0})):
        slopes.append(torch.autograd.grad(LINKS[name](pair, knobs=knobs).sum(), pair.chosen, retain_graph=True)[0])
    assert losses("flip_channel", pair, channel_flips=0.0) == pytest.approx(losses("logistic", pair), abs=1e-12)
    assert slopes[0].tolist() == pytest.approx(slopes[1].tolist(), abs=1e-12)
    assert losses("flip_channel", pair, channel_flips=0.2)[1] == pytest.approx(-math.log(0.2))


@pytest.mark.parametrize(
    ("name", "knobs", "q", "said"),
    [
        ("square", {"tau": 0.0}, 1.0, "tau is 0.0; expected a number above 0"),
        ("discopop", {"sharpness": 0.0}, 1.0, "sharpness is 0.0"),
        ("flip_channel", {"channel_flips": None}, 1.0, "channel_flips is None"),
        ("flip_channel", {"channel_flips": 0.5}, 1.0, "below 0.5"),
        ("reverse_kl", {}, 1.0, "above 0 and below 1.*smoothing above 0"),
        ("square_logit", {}, 0.0, "above 0 and below 1"),
        ("forward_kl", {}, 1.2, "between 0 and 1"),
    ],
)
def test_what_has_no_value_is_refused(name: str, knobs: dict[str, Any], q: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        LINKS[name](compared([1.0], [0.0], [q]), knobs=knobs)


def test_a_channel_has_no_default_that_fits_all() -> None:
    part: Part = LINKS["flip_channel"]
    assert part.knobs == {"channel_flips": None}
