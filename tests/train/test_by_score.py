"""The rows that differ from DPO by score, offset or weight: their formulas, and what they are when neutral."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.train.seen_made import (
    Double,
    leaves,
    lists,
    loss_of,
    numbers,
    pairs,
    part_of,
    slopes,
    slopes_by_difference,
    whole_of,
    with_leaf,
)
from tests.train.test_score_weights import by_hand
from tiebreak.registry import Row
from tiebreak.train.objectives.by_score import PACES, ROWS
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.objectives.scores import SLACK
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective, parts_of, settled
from tiebreak.train.pace import Pace
from tiebreak.train.reference import Reference

KNOBS: Mapping[str, dict[str, Any]] = {row.name: dict(row.knobs or {}) for row in ROWS}
NAMES = list(KNOBS)
DPO = dict(OFFLINE["dpo"].knobs or {})
STOPPED = ("wpo", "tdpo2")
"""Rows with a stopped gradient, which differences cannot see."""


def knobs_of(name: str, **changes: Any) -> dict[str, Any]:
    return settled({**KNOBS[name], **changes})


def seen_for(name: str, *, seed: int = 0) -> Seen:
    """A batch of pairs, or of lists for the row that takes them."""
    if "ranks" in KNOBS[name]:
        return lists([[3.0, 1.0, 2.0], [1.0, 0.0], [2.0, 2.0, 1.0, 0.0]], seed=seed, scores=None)
    return pairs(4, seed=seed)


@dataclass(frozen=True)
class Side:
    """What is known of one side of a pair, as plain numbers."""

    lp: float
    ref: float
    n: int
    score: float
    public: float
    public_ref: float
    collision: float
    kl: float

    @property
    def rho(self) -> float:
        return self.lp - self.ref

    @property
    def mean(self) -> float:
        return self.lp / self.n


def sides_of(seen: Seen) -> list[Side]:
    assert seen.logps is not None
    assert seen.reference is not None
    readings = (seen.readings[name] for name in ("collision", "token_kl"))
    scores = seen.logps if seen.scores is None else seen.scores
    public = (seen.readings["public"], seen.compared["public"])
    columns = (seen.logps, seen.reference, seen.lengths, scores, *public, *readings)
    return [Side(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def s(z: float) -> float:
    """-log sigmoid(z)."""
    return math.log1p(math.exp(-z))


def alphapo_reward(side: Side) -> float:
    return (1 - math.exp(side.mean) ** -0.25) / 0.25


def log_odds(side: Side) -> float:
    p = math.exp(side.mean)
    return math.log(p / (1 - p))


def halved_tail(side: Side) -> float:
    return 0.5 * (side.rho + side.public - side.public_ref)


def fluency(side: Side) -> float:
    return math.exp((side.lp - side.collision) / side.n)


FORMULAS: Mapping[str, Callable[[Side, Side, float], float]] = {
    "simpo": lambda w, r, m: s(10 * (w.mean - r.mean) - 3.0),
    "simpo_nll": lambda w, r, m: s(10 * (w.mean - r.mean) - 3.0),
    "cpo": lambda w, r, m: s(0.1 * (w.lp - r.lp)),
    "orpo": lambda w, r, m: 0.1 * s(log_odds(w) - log_odds(r)),
    "alphapo": lambda w, r, m: s(2.5 * (alphapo_reward(w) - alphapo_reward(r)) - 0.25),
    "length_normalised_dpo": lambda w, r, m: s(5 * (w.rho / w.n - r.rho / r.n)),
    "r_dpo": lambda w, r, m: s(0.1 * (w.rho - r.rho) + 0.01 * (w.n - r.n)),
    "ld_dpo": lambda w, r, m: s(0.1 * (halved_tail(w) - halved_tail(r))),
    "forward_kl_dpo": lambda w, r, m: s(0.1 * (math.exp(-r.rho) - math.exp(-w.rho))),
    "js_dpo": lambda w, r, m: s(0.1 * (s(r.rho) - s(w.rho))),
    "alpha_divergence_dpo": lambda w, r, m: s(0.1 * (math.exp(-r.rho / 2) - math.exp(-w.rho / 2)) / 0.5),
    "tr_dpo": lambda w, r, m: s(0.1 * (w.rho - r.rho)),
    "dpo_ref_clip": lambda w, r, m: s(0.1 * (w.lp - r.lp - max(0.0, w.ref - r.ref))),
    "dpop": lambda w, r, m: s(0.3 * (w.rho - r.rho) - 50 * max(0.0, 0.3 * (w.ref - w.lp) - SLACK)),
    "tdpo1": lambda w, r, m: s(0.1 * (w.rho - r.rho - (r.kl - w.kl))),
    "tdpo2": lambda w, r, m: s(0.1 * (w.rho - r.rho - 0.5 * (r.kl - w.kl))),
    "odpo": lambda w, r, m: s(0.1 * (w.rho - r.rho) - math.log(m)),
    "margin_dpo": lambda w, r, m: s(0.1 * (w.rho - r.rho) - m),
    "wpo": lambda w, r, m: min(1.0, fluency(w) * fluency(r)) * s(0.01 * (w.rho - r.rho)),
    "lambda_dpo": lambda w, r, m: s(0.1 * (w.rho - r.rho)),
    "curry_dpo": lambda w, r, m: s(0.1 * (w.rho - r.rho)),
    "reward_augmented_dpo": lambda w, r, m: 0.7 * s(0.01 * (w.rho - r.rho)) + 0.3 * s(0.01 * (r.rho - w.rho)),
    "fspo": lambda w, r, m: (w.rho - r.rho - 1 / (2 * 0.01)) ** 2,
    "mapl_intra": lambda w, r, m: s(w.score - r.score),
}
"""The loss of one pair: chosen side, rejected side, margin. Likelihood terms and a list's weights are not in it."""
LIST_WEIGHTS = [
    *by_hand([3.0, 1.0, 2.0], [1, 3, 2]),
    1.0,
    *by_hand([2.0, 2.0, 1.0, 0.0], [1.5, 1.5, 3, 4]),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_row_is_its_formula(name: str, seed: int) -> None:
    seen = seen_for(name, seed=seed)
    assert seen.chosen is not None
    assert seen.rejected is not None
    assert seen.margin is not None
    assert seen.share is not None
    sides, weight, first = sides_of(seen), seen.weight.tolist(), [0, 3, 5] if "ranks" in KNOBS[name] else [0, 2, 4, 6]
    total = sum(weight[i] for i in first)
    every = zip(seen.chosen.tolist(), seen.rejected.tolist(), seen.margin.tolist(), seen.share.tolist(), strict=True)
    costs = [weight[w] * part * FORMULAS[name](sides[w], sides[r], m) / total for w, r, m, part in every]
    if "ranks" in KNOBS[name]:
        costs = [cost * own for cost, own in zip(costs, LIST_WEIGHTS, strict=True)]
    tokens = sum(weight[i] * sides[i].n for i in first)
    likelihood = -sum(weight[i] * sides[i].lp for i in first) / tokens
    expected = math.fsum(costs) + KNOBS[name]["nll"] * likelihood
    assert loss_of(seen, **knobs_of(name)) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STOPPED])
def test_gradients_are_those_of_differences(name: str) -> None:
    seen = seen_for(name, seed=2)
    exact, near = slopes(seen, **knobs_of(name)), slopes_by_difference(seen, **knobs_of(name))
    for leaf, gradient in exact.items():
        steepest = max(1.0, float(gradient.abs().max()))
        assert torch.allclose(gradient, near[leaf], rtol=1e-5, atol=1e-9 * steepest), leaf


def test_stopped_gradients_leave_the_rest_as_differences_have_it() -> None:
    seen = pairs(3, seed=2)
    exact, near = slopes(seen, **knobs_of("tdpo2")), slopes_by_difference(seen, **knobs_of("tdpo2"))
    assert torch.allclose(exact["logps"], near["logps"], rtol=1e-5, atol=1e-9)
    assert exact["token_kl"][::2].tolist() == [0.0] * 3
    assert (near["token_kl"][::2] != 0).all()
    assert torch.allclose(exact["token_kl"][1::2], near["token_kl"][1::2], rtol=1e-5, atol=1e-9)
    both = slopes(seen, **knobs_of("tdpo1"))["token_kl"]
    assert (both[::2] < 0).all()
    assert (both[1::2] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(name: str) -> None:
    """And a batch in another order too."""
    seen, knobs = seen_for(name), knobs_of(name)
    whole, pull = loss_of(seen, **knobs), slopes(seen, **knobs)
    for parts in ([[0], [1, 2]], [[2, 0], [1]], [[1, 0, 2]]):
        if seen.tree is not None and int(seen.tree.max()) == 3:
            parts[-1].append(3)
        cut = [part_of(seen, rows) for rows in parts]
        assert math.fsum(loss_of(part, **knobs) for part in cut) == pytest.approx(whole, rel=1e-12)
        found = leaves(seen)
        summed = torch.stack([objective(part, **knobs).loss for part in cut]).sum()
        gradients = torch.autograd.grad(summed, list(found.values()), allow_unused=True, materialize_grads=True)
        for leaf, gradient in zip(found, gradients, strict=True):
            assert torch.allclose(gradient, pull[leaf], rtol=1e-10, atol=1e-14), leaf


@pytest.mark.parametrize("name", NAMES)
def test_branches_beside_a_row_change_nothing(name: str) -> None:
    """Not even one without a learned token: padding of a batch."""
    seen, knobs = seen_for(name), knobs_of(name)
    before = slopes(seen, **knobs)

    def longer(values: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.cat([values, torch.tensor([fill, fill], dtype=values.dtype)])

    grown = replace(
        seen,
        **{n: longer(getattr(seen, n), 0.0) for n in ("logps", "reference", "scores") if getattr(seen, n) is not None},
        lengths=torch.cat([seen.lengths, torch.tensor([0, 3])]),
        weight=longer(seen.weight, float(seen.weight[-1])),
        grades=longer(seen.grades, math.nan) if seen.grades is not None else None,
        tree=torch.cat([seen.tree, seen.tree[-1:].repeat(2)]) if seen.tree is not None else None,
        readings={key: longer(value, 0.0) for key, value in seen.readings.items()},
        compared={key: longer(value, 0.0) for key, value in seen.compared.items()},
        beside={"rationale": torch.tensor([len(seen.lengths), len(seen.lengths) + 1])},
        whole=whole_of(seen),
    )
    outcome = objective(grown, **knobs)
    assert float(outcome.loss.detach()) == pytest.approx(loss_of(seen, **knobs), rel=1e-12)
    found = leaves(seen)
    gradients = torch.autograd.grad(outcome.loss, list(found.values()), allow_unused=True, materialize_grads=True)
    for leaf, gradient in zip(found, gradients, strict=True):
        assert torch.allclose(gradient, before[leaf], rtol=1e-12, atol=1e-15), leaf


def in_float32(seen: Seen) -> Seen:
    def narrow(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().float()
        return {key: narrow(one) for key, one in value.items()} if isinstance(value, Mapping) else value

    made = Seen(**{key: narrow(value) for key, value in vars(seen).items()})
    for name, value in leaves(seen).items():
        made = with_leaf(made, name, value.detach().float().requires_grad_(True))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_close_to_float64(name: str) -> None:
    seen, knobs = seen_for(name), knobs_of(name)
    assert loss_of(in_float32(seen), **knobs) == pytest.approx(loss_of(seen, **knobs), rel=1e-4)
    for leaf, gradient in slopes(in_float32(seen), **knobs).items():
        assert torch.allclose(gradient.double(), slopes(seen, **knobs)[leaf], rtol=1e-3, atol=1e-5), leaf


@pytest.mark.parametrize("name", NAMES)
def test_far_out_everything_is_finite(name: str) -> None:
    """|z| = 200 and beyond, in float32; a log-probability without a reference is below 0."""
    reference_free = "reference" not in {read for part in parts_of(knobs_of(name)).values() for read in part.reads}
    far = numbers([-2000.0, -1e-8, -1e-8, -2000.0] if reference_free else [-2000.0, 2000.0, 2000.0, -2000.0])
    fields = {"margin": numbers([1e3, 1e-6]), "lengths": torch.tensor([10] * 4)}
    seen = replace(pairs(2), logps=far.clone().requires_grad_(True), reference=torch.zeros(4, dtype=Double), **fields)
    readings = {**seen.readings, "public": far, "collision": torch.full((4,), -50.0, dtype=Double)}
    seen = in_float32(replace(seen, scores=far.clone().requires_grad_(True), readings=readings))
    assert math.isfinite(loss_of(seen, **knobs_of(name)))
    for gradient in slopes(seen, **knobs_of(name)).values():
        assert torch.isfinite(gradient).all()


def at_equal_lengths(seen: Seen, n: int) -> Seen:
    return replace(seen, lengths=torch.full_like(seen.lengths, n))


REDUCTIONS: list[tuple[str, str, dict[str, Any], dict[str, Any], Callable[[Seen], Seen]]] = [
    ("simpo", "cpo", {"gamma": 0.0}, {"beta": 10 / 4, "nll": 0.0}, lambda seen: at_equal_lengths(seen, 4)),
    ("simpo_nll", "simpo", {"nll": 0.0}, {}, lambda seen: seen),
    ("alphapo", "simpo", {"power_alpha": 0.0}, {"beta": 2.5, "gamma": 0.25}, lambda seen: seen),
    ("length_normalised_dpo", "dpo", {}, {"beta": 5 / 7}, lambda seen: at_equal_lengths(seen, 7)),
    ("r_dpo", "dpo", {"length_penalty": 0.0}, {}, lambda seen: seen),
    ("r_dpo", "dpo", {}, {}, lambda seen: at_equal_lengths(seen, 3)),
    ("ld_dpo", "dpo", {"tail_weight": 1.0}, {}, lambda seen: seen),
    ("alpha_divergence_dpo", "dpo", {"divergence_alpha": 1.0}, {}, lambda seen: seen),
    ("alpha_divergence_dpo", "forward_kl_dpo", {"divergence_alpha": 0.0}, {}, lambda seen: seen),
    ("tr_dpo", "dpo", {}, {}, lambda seen: seen),
    ("dpop", "dpo", {"drop_penalty": 0.0}, {"beta": 0.3}, lambda seen: seen),
    ("tdpo2", "dpo", {"token_kl_weight": 0.0}, {}, lambda seen: seen),
    ("odpo", "dpo", {"log_margin_scale": 0.0}, {}, lambda seen: seen),
    ("odpo", "dpo", {}, {}, lambda seen: replace(seen, margin=torch.ones(4, dtype=Double))),
    ("margin_dpo", "dpo", {"margin_scale": 0.0}, {}, lambda seen: seen),
    ("wpo", "dpo", {}, {"beta": 0.01}, lambda seen: replace(seen, readings={"collision": torch.full((8,), -99.0)})),
    ("lambda_dpo", "dpo", {}, {}, lambda seen: seen),
    ("lambda_dpo", "dpo", {"ranks": "scores"}, {}, lambda seen: replace(seen, scores=None)),
    ("curry_dpo", "dpo", {}, {}, lambda seen: seen),
    ("reward_augmented_dpo", "dpo", {"smoothing": 0.0}, {"beta": 0.01}, lambda seen: seen),
    ("mapl_intra", "bradley_terry", {}, {"target": "hard"}, lambda seen: seen),
]


@pytest.mark.parametrize(("name", "parent", "neutral", "same", "shaped"), REDUCTIONS)
def test_at_its_neutral_setting_a_row_is_its_parent(
    name: str, parent: str, neutral: dict[str, Any], same: dict[str, Any], shaped: Callable[[Seen], Seen]
) -> None:
    seen = shaped(pairs(4, seed=4))
    of_parent = dict((KNOBS[parent] if parent in KNOBS else OFFLINE[parent].knobs) or {}) | same
    assert loss_of(seen, **knobs_of(name, **neutral)) == pytest.approx(loss_of(seen, **of_parent), rel=1e-12)
    here, there = slopes(seen, **knobs_of(name, **neutral)), slopes(seen, **of_parent)
    for leaf in ("logps", "scores"):
        assert leaf not in here or torch.allclose(here[leaf], there[leaf], rtol=1e-10, atol=1e-15)


def test_every_row_settles_and_says_what_it_is() -> None:
    for row in ROWS:
        assert isinstance(row, Row)
        assert row.does
        assert row.formula
        assert row.use
        assert "arXiv" in row.paper
        whole, parts = settled(KNOBS[row.name]), parts_of(KNOBS[row.name])
        assert whole.items() >= KNOBS[row.name].items()
        own = {
            knob
            for switch in ("score", "compare", "offset", "weight")
            if switch in parts
            for knob in parts[switch].knobs
        }
        assert own <= set(KNOBS[row.name]), "a row names the scalars of its switches"
    assert len(set(NAMES)) == len(NAMES)
    assert set(FORMULAS) == set(NAMES)


def test_every_row_has_a_pace_and_tr_dpo_a_reference_that_follows() -> None:
    assert set(PACES) == set(NAMES)
    for pace in PACES.values():
        assert Pace(**{key: value for key, value in pace.items() if key != "reference"}).rate(0, 9) > 0
    assert [name for name, pace in PACES.items() if "reference" in pace] == ["tr_dpo"]
    assert Reference(**PACES["tr_dpo"]["reference"]) == Reference(compute="step", sync_every=512, sync_mix=0.6)
