"""The formulas, to seven digits, and the rows that name them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebreak.records import InputError
from tiebreak.train.objectives.links import LINKS
from tiebreak.train.objectives.links import logistic as logistic_link
from tiebreak.train.objectives.part import choose
from tiebreak.train.objectives.presets import OBJECTIVES, OFFLINE, PACES, SETTLES
from tiebreak.train.objectives.seen import Compared
from tiebreak.train.objectives.switches import Seen, check, objective, settled
from tiebreak.train.pace import DECAYS, Pace

Double = torch.float64
finite = st.floats(-30, 30)
share = st.floats(0, 1)


def logistic(z: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    seen = Seen(lengths=torch.ones(1), weight=torch.ones(1))
    return logistic_link(Compared(z, z, torch.zeros_like(z), q, 1.0, seen))


def pair_batch(chosen: list[float], rejected: list[float], p: list[float] | None = None, **more: Any) -> Seen:
    """A batch of pairs whose branch values are given: scores, and log-probs with a reference of 0."""
    values = torch.tensor([v for pair in zip(chosen, rejected, strict=True) for v in pair], dtype=Double)
    values.requires_grad_(True)
    firsts = torch.arange(len(chosen)) * 2
    fields: dict[str, Any] = {
        "lengths": torch.full((len(values),), 4),
        "weight": torch.ones(len(values), dtype=Double),
        "logps": values,
        "scores": values,
        "reference": torch.zeros_like(values),
        "chosen": firsts,
        "rejected": firsts + 1,
        "p": torch.tensor(p or [1.0] * len(chosen), dtype=Double),
    }
    return Seen(**{**fields, **more})


def loss_and_gradient(seen: Seen, **knobs: Any) -> tuple[float, list[float]]:
    outcome = objective(seen, **knobs)
    values = seen.scores if knobs["score"] == "head" else seen.logps
    assert values is not None
    (gradient,) = torch.autograd.grad(outcome.loss, values)
    return float(outcome.loss.detach()), gradient.tolist()


REWARD = OFFLINE["bradley_terry"].knobs
DPO = OBJECTIVES["dpo"].knobs
METHODS_OF_ROWS = [*OFFLINE]


@given(finite, share)
def test_the_soft_loss_is_the_formula(d: float, q: float) -> None:
    """-[q log sigmoid(d) + (1-q) log sigmoid(-d)]."""
    expected = q * math.log1p(math.exp(-d)) + (1 - q) * math.log1p(math.exp(d))
    z = torch.tensor([d], dtype=Double)
    assert float(logistic(z, torch.tensor([q], dtype=Double))) == pytest.approx(expected, abs=1e-7)
    assert float(logistic(z, torch.ones(1, dtype=Double))) == pytest.approx(math.log1p(math.exp(-d)), abs=1e-7)


@given(st.floats(0.02, 0.98))
def test_the_soft_loss_is_least_at_the_log_odds(q: float) -> None:
    z = torch.tensor([math.log(q / (1 - q))], dtype=Double, requires_grad=True)
    (gradient,) = torch.autograd.grad(logistic(z, torch.tensor([q], dtype=Double)).sum(), z)
    assert abs(float(gradient)) < 1e-12


@pytest.mark.parametrize("z", [-200.0, 200.0])
def test_far_out_the_loss_is_finite_and_linear(z: float) -> None:
    there = torch.tensor([z], requires_grad=True)
    loss = logistic(there, torch.tensor([0.3])).sum()
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert there.grad is not None
    assert float(there.grad) == pytest.approx(0.7 if z > 0 else -0.3)


def test_soft_labels_are_not_dropped_in_silence() -> None:
    """Seed defect A2: the option was on, and hard labels were trained."""
    chosen, rejected, p = [1.0, -0.5], [0.2, 0.3], [0.6, 0.9]
    soft = loss_and_gradient(pair_batch(chosen, rejected, p), **REWARD)
    hard = loss_and_gradient(pair_batch(chosen, rejected, p), **{**REWARD, "target": "hard"})
    sure = loss_and_gradient(pair_batch(chosen, rejected), **REWARD)
    assert hard == sure
    assert abs(soft[0] - hard[0]) > 0.05
    assert max(abs(a - b) for a, b in zip(soft[1], hard[1], strict=True)) > 0.05
    d = [a - b for a, b in zip(chosen, rejected, strict=True)]
    expected = [(1 / (1 + math.exp(-z)) - q) / 2 for z, q in zip(d, p, strict=True)]
    assert soft[1][::2] == pytest.approx(expected, abs=1e-12)


@given(finite, finite, st.floats(-50, 50))
@settings(max_examples=50)
def test_bradley_terry_does_not_see_a_constant(a: float, b: float, shift: float) -> None:
    here = loss_and_gradient(pair_batch([a], [b], [0.8]), **REWARD)
    there = loss_and_gradient(pair_batch([a + shift], [b + shift], [0.8]), **REWARD)
    assert here[0] == pytest.approx(there[0], abs=1e-9)
    assert here[1] == pytest.approx(there[1], abs=1e-9)


def test_dpo_starts_at_ln_2_and_pulls_by_beta_sigmoid_of_minus_beta_d() -> None:
    start = pair_batch([-30.0, -41.5], [-28.0, -50.25])
    start = pair_batch([-30.0, -41.5], [-28.0, -50.25], reference=start.logps.detach())  # type: ignore[union-attr]
    assert loss_and_gradient(start, **DPO)[0] == pytest.approx(math.log(2), abs=1e-12)
    rho = ([3.0, -1.0], [-2.0, 4.0])
    loss, gradient = loss_and_gradient(pair_batch(*rho), **DPO)
    beta, d = 0.1, [5.0, -5.0]
    slopes = [-beta / (1 + math.exp(beta * z)) / 2 for z in d]
    assert gradient[::2] == pytest.approx(slopes, abs=1e-12)
    assert gradient[1::2] == pytest.approx([-slope for slope in slopes], abs=1e-12)
    assert loss == pytest.approx(sum(math.log1p(math.exp(-beta * z)) for z in d) / 2, abs=1e-12)


def test_a_constant_per_prompt_in_the_reference_cancels() -> None:
    moved = torch.tensor([7.0, 7.0, -3.0, -3.0], dtype=Double)
    here = loss_and_gradient(pair_batch([1.0, 2.0], [0.0, 4.0]), **DPO)
    there = loss_and_gradient(pair_batch([1.0, 2.0], [0.0, 4.0], reference=moved), **DPO)
    assert here[0] == pytest.approx(there[0], abs=1e-12)


@given(finite, finite, share)
def test_swapping_the_sides_and_the_label_changes_nothing(a: float, b: float, q: float) -> None:
    here, _ = loss_and_gradient(pair_batch([a], [b], [q]), **REWARD)
    there, _ = loss_and_gradient(pair_batch([b], [a], [1 - q]), **REWARD)
    assert here == pytest.approx(there, abs=1e-9)


def test_the_likelihood_loss_is_the_mean_over_tokens_of_the_batch() -> None:
    logps = torch.tensor([-6.0, -2.0], dtype=Double, requires_grad=True)
    seen = Seen(lengths=torch.tensor([3, 5]), weight=torch.ones(2, dtype=Double), logps=logps)
    outcome = objective(seen, **OBJECTIVES["sft"].knobs)
    assert float(outcome.loss.detach()) == pytest.approx(8 / 8)
    twice = Seen(lengths=torch.tensor([3, 5]), weight=torch.tensor([2.0, 1.0], dtype=Double), logps=logps)
    assert objective(twice, **OBJECTIVES["sft"].knobs).loss.item() == pytest.approx((6 + 6 + 2) / (3 + 3 + 5))


@pytest.mark.parametrize("row", [REWARD, DPO], ids=["reward", "dpo"])
def test_a_weight_of_two_is_the_row_twice(row: dict[str, Any]) -> None:
    weighted = pair_batch([1.0, 2.0], [0.5, 3.0], [0.9, 0.7], weight=torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=Double))
    twice = pair_batch([1.0, 1.0, 2.0], [0.5, 0.5, 3.0], [0.9, 0.9, 0.7])
    assert loss_and_gradient(weighted, **row)[0] == pytest.approx(loss_and_gradient(twice, **row)[0], abs=1e-12)


def test_metrics_are_named_as_trl_names_them_and_a_tie_is_half_right() -> None:
    outcome = objective(pair_batch([1.0, 0.0, 2.0], [0.0, 0.0, 3.0]), **DPO)
    assert {name: pytest.approx(float(value)) for name, value in outcome.metrics.items()} == {
        "rewards/chosen": 0.1,
        "rewards/rejected": 0.1,
        "rewards/margins": 0.0,
        "rewards/accuracies": 0.5,
        "logps/chosen": 1.0,
        "logps/rejected": 1.0,
    }


@pytest.mark.parametrize("row", METHODS_OF_ROWS, ids=lambda row: row.name)
def test_every_row_says_what_it_is_and_settles(row: Any) -> None:
    knobs = row.settle({}, where="test")
    assert row.settle(knobs, where="test") == knobs
    if row.more == SETTLES:
        assert settled(settled(knobs)) == settled(knobs)
    assert row.paper
    assert row.formula
    assert row.use


def test_every_method_has_a_pace_of_its_own() -> None:
    assert set(PACES) == {row.name for row in METHODS_OF_ROWS}
    paces = [{name: value for name, value in pace.items() if name != "reference"} for pace in PACES.values()]
    assert all(Pace(**pace).rate(0, 9) > 0 for pace in paces)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"link": "logistik"}, "'logistik'.*'logistic'"),
        ({"score": "log_ration"}, "'log_ration'.*'log_ratio'"),
        ({"target": "softer"}, "'softer'.*'soft'"),
        ({"score": "", "link": "", "nll": 0.0}, "nothing to learn"),
        ({"score": "head", "nll": 1.0}, "nll has to be 0"),
    ],
)
def test_switches_that_do_not_exist_or_do_nothing_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(**{**DPO, **wrong})


def test_a_function_of_ones_own_stands_in_for_any_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_switches.py").write_text(
        "def hinge(pair):\n    return (1 - pair.z).clamp_min(0)\n"
        "def half(seen):\n    return 0.5 * (seen.logps - seen.reference)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    knobs = {**DPO, "link": "own_switches:hinge", "score": "own_switches:half", "beta": 1.0}
    check(**knobs)
    assert float(objective(pair_batch([1.0], [0.0]), **knobs).loss) == pytest.approx(0.5)
    with pytest.raises(InputError, match="no 'hing'"):
        choose("link", LINKS, "own_switches:hing")


def test_a_pace_warms_up_and_decays() -> None:
    pace = Pace(epochs=2, batch=4, learning_rate=1.0, warmup=0.25, decay="linear")
    assert [round(pace.rate(step, 8), 4) for step in range(8)] == [0.5, 1.0, 1.0, 0.8333, 0.6667, 0.5, 0.3333, 0.1667]
    for decay in DECAYS:
        rates = [Pace(learning_rate=1.0, warmup=0.0, decay=decay).rate(step, 20) for step in range(20)]
        assert rates[0] == 1.0
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] > 0
    with pytest.raises(InputError, match=r"Did you mean 'cosine'"):
        Pace(decay="cosin")
    with pytest.raises(InputError, match="more than 0"):
        Pace(batch=0)
