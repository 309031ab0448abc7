"""The rows that differ from DPO by link, target or terms: each its formula, and each passes the kit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.train.seen_made import (
    Double,
    leaves,
    loss_of,
    pairs,
    part_of,
    slopes,
    slopes_by_difference,
    whole_of,
    with_leaf,
)
from tests.train.tabular import Drawn, prefixes, table
from tiebreak.registry import Row
from tiebreak.train.objectives.by_link import PACES, ROWS
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective, parts_of, settled
from tiebreak.train.pace import Pace

NAMES = [row.name for row in ROWS]
ROW = {row.name: row.knobs or {} for row in ROWS}
every = pytest.mark.parametrize("name", NAMES)
COUPLED = ("aot", "aot_unpaired", "hypo_online_kl")


class One(NamedTuple):
    """A pair in plain numbers."""

    w: float
    r: float
    ref_w: float
    ref_r: float
    long_w: int
    long_r: int
    p: float
    margin: float

    @property
    def rho(self) -> tuple[float, float]:
        return self.w - self.ref_w, self.r - self.ref_r

    @property
    def gap(self) -> float:
        return self.rho[0] - self.rho[1]


def soft(z: float) -> float:
    return math.log1p(math.exp(-z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def kl(a: float, b: float) -> float:
    return a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))


def discovered(z: float) -> float:
    m = sigmoid(z / 0.05)
    return (1 - m) * soft(z) + m * math.exp(-z)


def per_token(one: One) -> float:
    return one.rho[0] / one.long_w - one.rho[1] / one.long_r


PLAIN: dict[str, Callable[[One], float]] = {
    "cdpo": lambda x: 0.9 * soft(0.1 * x.gap) + 0.1 * soft(-0.1 * x.gap),
    "robust_dpo": lambda x: (0.9 * soft(0.1 * x.gap) - 0.1 * soft(-0.1 * x.gap)) / 0.8,
    "osp": lambda x: x.p * soft(0.1 * x.gap) + (1 - x.p) * soft(-0.1 * x.gap),
    "spa": lambda x: soft(0.1 * x.gap),
    "ipo_sum": lambda x: (x.gap - 5) ** 2,
    "ipo_mean": lambda x: (per_token(x) - 5) ** 2,
    "hinge": lambda x: max(0.0, 1 - 0.05 * x.gap),
    "slic": lambda x: max(0.0, 1 - x.w + x.r) - 0.1 * x.w,
    "exo": lambda x: kl(sigmoid(0.1 * x.gap), 0.999),
    "rpo_backward": lambda x: kl(sigmoid(x.margin), sigmoid(0.2 * x.gap)),
    "rpo_forward": lambda x: kl(sigmoid(0.2 * x.gap), sigmoid(x.margin)),
    "rpo_square": lambda x: (0.2 * x.gap - x.margin) ** 2,
    "nca": lambda x: soft(0.01 * x.rho[0]) + 0.5 * soft(-0.01 * x.rho[0]) + 0.5 * soft(-0.01 * x.rho[1]),
    "sppo": lambda x: (x.rho[0] - 1000 * (x.p - 0.5)) ** 2 + (x.rho[1] - 1000 * (0.5 - x.p)) ** 2,
    "apo_zero": lambda x: 1 - sigmoid(0.1 * x.rho[0]) + sigmoid(0.1 * x.rho[1]),
    "apo_down": lambda x: sigmoid(0.1 * x.rho[0]) + 1 - sigmoid(0.1 * x.gap),
    "bco_pair": lambda x: soft(0.01 * x.rho[0]) + soft(-0.01 * x.rho[1]),
    "discopop": lambda x: discovered(0.05 * x.gap),
    "rpo_nll": lambda x: soft(0.1 * x.gap) - x.w / x.long_w,
}
"""The loss of one pair with the row's own defaults. Sorted links and branches beside have tests of their own."""


def ones(seen: Seen) -> list[One]:
    """The pairs of ``seen`` in plain numbers."""
    read = [x.tolist() for x in (seen.logps, seen.reference, seen.lengths, seen.p, seen.margin)]  # type: ignore[union-attr]
    lp, ref, long, p, margin = read
    return [
        One(lp[i], lp[i + 1], ref[i], ref[i + 1], long[i], long[i + 1], p[i // 2], margin[i // 2])
        for i in range(0, len(lp), 2)
    ]


@pytest.mark.parametrize("name", list(PLAIN))
def test_a_row_is_its_formula(name: str) -> None:
    for seed in range(3):
        seen = pairs(5, seed=seed)
        weight = seen.weight[0::2].tolist()
        mean = sum(w * PLAIN[name](one) for w, one in zip(weight, ones(seen), strict=True)) / sum(weight)
        assert loss_of(seen, **ROW[name]) == pytest.approx(mean, rel=1e-9)


def test_rows_have_names_of_their_own_and_say_what_they_are() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(PACES)
    assert set(PLAIN) | {*COUPLED, "rationale_dpo", "rationale_orpo", "selm", "xpo"} == set(NAMES)
    assert not {"rdpo", "r_dpo", "rpo", "hypo", "selfie"} & set(NAMES)
    for row in ROWS:
        assert row.does
        assert row.formula
        assert row.use
        assert "20" in row.paper


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_names_all_its_scalars_and_a_pace(row: Row) -> None:
    """What a row shows in a listing is all that can be set of it."""
    knobs = settled(row.knobs or {})
    parts: dict[str, Part] = parts_of(knobs)
    assert {name for part in parts.values() for name in part.knobs} <= set(row.knobs or {}) | {"nll_over"}
    assert Pace(**PACES[row.name]).rate(0, 9) > 0


def seen_by(theta: Tensor, reference: Tensor) -> Seen:
    """Two prompts, two pairs each, with a rationale and a drawn answer beside, under a tabular policy."""
    answers = [((1, 0), (0,), (2, 2), (1, 1)), ((2, 1), (1, 2), (1, 0), (2, 0))]
    rows = [(prompt, four) for prompt in (0, 1) for four in answers]
    drawn = [Drawn(prompt, answer) for prompt, four in rows for answer in four]
    lengths = torch.tensor([len(one.answer) for one in drawn])
    starts = 4 * torch.arange(4)
    which = torch.arange(16).repeat_interleave(lengths)

    def summed(logits: Tensor) -> Tensor:
        prompt, row, token = prefixes(drawn)
        logps = logits.log_softmax(-1)[prompt, row, token]
        return torch.zeros(16, dtype=Double).index_add(0, which, logps)

    return Seen(
        lengths=lengths,
        weight=torch.ones(16, dtype=Double),
        logps=summed(theta),
        reference=summed(reference),
        chosen=starts,
        rejected=starts + 1,
        p=torch.tensor([0.9, 0.8, 1.0, 0.7], dtype=Double),
        margin=torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=Double),
        tree=torch.arange(4).repeat_interleave(4),
        beside={"rationale": starts + 2, "drawn": starts + 3},
        readings={"extrapolated": summed(1.5 * theta.detach() - 0.5 * reference)},
    )


def batch() -> Seen:
    """Such rows with their log-probs as what takes a gradient."""
    seen = seen_by(table(2), table(1).detach())
    return replace(seen, logps=seen.logps.detach().requires_grad_(True))  # type: ignore[union-attr]


@every
def test_a_policy_learns_to_prefer(name: str) -> None:
    """In 50 steps the gap between both sides rises; but for DiscoPOP, which has a hollow just below the start."""
    theta, reference = table(3), table(3).detach()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    past: dict[str, Tensor] = {}

    def gap() -> float:
        logps = seen_by(theta, reference).logps
        assert logps is not None
        return float((logps[0::4] - logps[1::4]).mean().detach())

    before = gap()
    for _ in range(50):
        outcome = objective(replace(seen_by(theta, reference), past=past), **ROW[name])
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        past = dict(outcome.kept)
    assert (gap() > before + 0.5) is (name != "discopop")


@every
def test_slopes_are_difference_quotients(name: str) -> None:
    """But for the online KL, whose gradient is right on average only."""
    if name == "hypo_online_kl":
        return
    seen = batch()
    found, quotient = slopes(seen, **ROW[name]), slopes_by_difference(seen, **ROW[name])
    assert set(found) == {"logps"}
    assert found["logps"].tolist() == pytest.approx(quotient["logps"].tolist(), rel=1e-6, abs=1e-7)


REFERENCE = {
    "ignores": ("slic", "rationale_orpo"),
    "sees": ("ipo_mean", "nca", "sppo", "apo_zero", "apo_down", "bco_pair", "aot_unpaired", "hypo_online_kl"),
}
"""Of rows that are not plain comparisons of sums, what a constant per prompt in the reference does."""


@every
def test_a_constant_per_prompt_in_the_reference(name: str) -> None:
    """It cancels in the slopes of comparisons, and not where a side is worth something by itself."""
    seen = batch()
    assert seen.reference is not None
    moved = replace(seen, reference=seen.reference + torch.tensor([3.0, -1.0, 2.0, 5.0]).repeat_interleave(4))
    other = replace(seen, reference=seen.reference.flip(0))
    here, there = (slopes(one, **ROW[name])["logps"] for one in (seen, moved))
    assert bool(torch.allclose(here, there, rtol=1e-9, atol=1e-12)) is (name not in REFERENCE["sees"])
    assert (loss_of(seen, **ROW[name]) == loss_of(other, **ROW[name])) is (name in REFERENCE["ignores"])


@every
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    seen = batch()
    turned = replace(part_of(seen, [2, 0, 3, 1]), whole=None)
    assert loss_of(turned, **ROW[name]) == pytest.approx(loss_of(seen, **ROW[name]), rel=1e-12)


@every
def test_parts_of_a_batch_add_up_where_rows_are_not_coupled(name: str) -> None:
    seen = batch()
    halves = [part_of(replace(seen, whole=whole_of(seen)), rows) for rows in ([0, 2], [1, 3])]
    total = sum(objective(half, **ROW[name]).loss for half in halves)
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, leaves(seen)["logps"])
    apart = not torch.allclose(gradient, slopes(seen, **ROW[name])["logps"], rtol=1e-10, atol=1e-14)
    assert apart is any(part.couples for part in parts_of(ROW[name]).values()) is (name in COUPLED)
    if not apart:
        assert float(total.detach()) == pytest.approx(loss_of(seen, **ROW[name]), rel=1e-12)


@every
def test_a_row_of_weight_two_is_the_row_twice(name: str) -> None:
    """But for the online KL, where a copy of an answer would be another draw to compare with."""
    if name == "hypo_online_kl":
        return
    seen = batch()
    weighted = replace(seen, weight=torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=Double).repeat_interleave(4))
    twice = replace(part_of(seen, [0, 1, 2, 3]), whole=None)
    again = part_of(seen, [1])
    joined = joined_rows(twice, again)
    assert loss_of(weighted, **ROW[name]) == pytest.approx(loss_of(joined, **ROW[name]), rel=1e-12)


def joined_rows(one: Seen, other: Seen) -> Seen:
    """The rows of both."""
    branches, rows = len(one.lengths), len(one.p)  # type: ignore[arg-type]

    def both(name: str, move: int = 0) -> Any:
        return torch.cat([getattr(one, name), getattr(other, name) + move])

    same = {name: both(name) for name in ("lengths", "weight", "logps", "reference", "p", "margin")}
    moved = {name: both(name, branches) for name in ("chosen", "rejected")}
    beside = {role: torch.cat([one.beside[role], other.beside[role] + branches]) for role in one.beside}
    readings = {name: torch.cat([one.readings[name], other.readings[name]]) for name in one.readings}
    return replace(one, **same, **moved, tree=both("tree", rows), beside=beside, readings=readings)


def in_single(seen: Seen) -> Seen:
    low = {name: getattr(seen, name).detach().float() for name in ("logps", "reference", "weight", "p", "margin")}
    return replace(seen, **low, readings={name: value.float() for name, value in seen.readings.items()})


@every
def test_a_gap_of_200_is_finite_in_single_precision(name: str) -> None:
    for move in (200.0, -200.0):
        seen = in_single(batch())
        logps = seen.logps.detach().clone()  # type: ignore[union-attr]
        side = seen.chosen if move < 0 else seen.rejected
        logps[side] -= abs(move) / ROW[name]["beta"]
        seen = with_leaf(seen, "logps", logps.requires_grad_(True))
        outcome = objective(seen, **ROW[name])
        assert math.isfinite(float(outcome.loss.detach()))
        assert bool(torch.isfinite(torch.autograd.grad(outcome.loss, logps)[0]).all())
