"""Auxiliary terms: means over rows or tokens, and gradients that are right on average."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.train.seen_made import Double, loss_of, numbers, pairs, part_of, slopes, whole_of
from tiebreak.records import InputError
from tiebreak.train.objectives.by_link import ROWS
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective
from tiebreak.train.objectives.terms import TERMS, first_of

ROW = {row.name: row.knobs or {} for row in ROWS}
DPO: dict[str, Any] = {"score": "log_ratio", "link": "logistic", "beta": 0.1}
HEAD: dict[str, Any] = {"score": "head", "link": "logistic"}


def term(name: str, seen: Seen, **knobs: Any) -> float:
    return float(TERMS[name](seen, knobs=knobs).detach())


def with_beside(count: int = 3, role: str = "drawn", *, seed: int = 0) -> Seen:
    """Rows of a pair and one branch beside it."""
    seen = pairs(count, seed=seed)
    source = torch.Generator().manual_seed(seed + 7)
    place = torch.arange(3 * count).reshape(count, 3)
    order = torch.empty(3 * count, dtype=torch.long)
    order[place[:, :2].flatten()] = torch.arange(2 * count)
    order[place[:, 2]] = 2 * count + torch.arange(count)
    beside = {
        "lengths": torch.randint(2, 9, (count,), generator=source),
        "logps": -5 * torch.rand(count, dtype=Double, generator=source),
        "reference": -5 * torch.rand(count, dtype=Double, generator=source),
        "scores": torch.zeros(count, dtype=Double),
        "weight": seen.weight[0::2],
        "tree": torch.arange(count),
        "grades": torch.full((count,), math.nan, dtype=Double),
    }
    joined = {name: torch.cat([getattr(seen, name).detach(), value])[order] for name, value in beside.items()}
    joined["logps"].requires_grad_(True)
    joined["scores"].requires_grad_(True)
    chosen, rejected, there = place.T
    return replace(seen, **joined, chosen=chosen, rejected=rejected, beside={role: there}, readings={}, compared={})


def test_the_likelihood_is_a_mean_over_tokens_or_rows_or_a_sum() -> None:
    seen = pairs([-6.0, -2.0], [-1.0, -1.0], lengths=[3, 9, 5, 9], weight=[2.0, 2.0, 1.0, 1.0])
    assert term("nll", seen) == pytest.approx((2 * 6 + 2) / (2 * 3 + 5))
    assert term("nll", seen, nll_over="rows") == pytest.approx((2 * 6 / 3 + 2 / 5) / 3)
    assert term("nll", seen, nll_over="sum") == pytest.approx((2 * 6 + 2) / 3)
    with pytest.raises(InputError, match=r"nll_over is 'token'.*Did you mean 'tokens'"):
        term("nll", seen, nll_over="token")


def test_the_first_branch_of_a_row_is_what_is_imitated() -> None:
    seen = with_beside(3)
    bare = replace(seen, tree=None)
    assert first_of(seen).tolist() == first_of(bare).tolist() == [0, 3, 6]
    alone = replace(bare, chosen=None, rejected=None, alone=torch.tensor([1, 4]))
    assert first_of(alone).tolist() == [1, 4]
    assert first_of(replace(alone, alone=None)).tolist() == list(range(9))


def test_a_rationale_is_learned_and_never_compared() -> None:
    seen = with_beside(3, "rationale")
    there = seen.beside["rationale"].tolist()
    assert seen.logps is not None
    weight, lp, lengths = seen.weight.tolist(), seen.logps.tolist(), seen.lengths.tolist()
    total = sum(weight[i] for i in there)
    mean = -sum(weight[i] * lp[i] / lengths[i] for i in there) / total
    assert loss_of(seen, **ROW["rationale_dpo"]) == pytest.approx(loss_of(seen, **DPO) + mean)
    assert loss_of(seen, **{**ROW["rationale_dpo"], "rationale": 0.0}) == loss_of(seen, **DPO)
    whole = slopes(seen, **ROW["rationale_dpo"])["logps"]
    compared = slopes(seen, **DPO)["logps"]
    assert [float(compared[i]) for i in there] == [0.0] * 3
    assert [float(whole[i]) for i in there] == pytest.approx([-weight[i] / lengths[i] / total for i in there])
    sides = [i for i in range(9) if i not in there]
    assert torch.equal(whole[sides], compared[sides])


def test_the_released_form_of_a_rationale_has_a_parallel_slope() -> None:
    """S(g lp) has g sigmoid(-g lp) times the slope of -lp."""
    seen = with_beside(3, "rationale")
    assert seen.logps is not None
    knobs = {**ROW["rationale_dpo"], "rationale_link": "logsigmoid", "rationale_scale": 0.3}
    there = seen.beside["rationale"]
    value = [math.log1p(math.exp(-0.3 * float(lp))) for lp in seen.logps[there].detach()]
    weight = seen.weight[there]
    mean = float((weight * numbers(value)).sum() / weight.sum())
    assert loss_of(seen, **knobs) == pytest.approx(loss_of(seen, **DPO) + mean)
    ratio = 0.3 * torch.sigmoid(-0.3 * seen.logps[there].detach())
    assert slopes(seen, **knobs)["logps"][there].tolist() == pytest.approx((-ratio * weight / weight.sum()).tolist())
    with pytest.raises(InputError, match=r"rationale_link is 'nl'.*Did you mean 'nll'"):
        term("rationale", seen, rationale_link="nl")


def test_rationale_orpo_is_its_formula() -> None:
    """-mean_t log p_t(y_w) + 0.1 S(log odds) - mean_t log p_t(why), rows of equal weight."""
    seen = replace(with_beside(2, "rationale"), weight=torch.ones(6, dtype=Double))
    assert seen.logps is not None
    lp, lengths = seen.logps.tolist(), seen.lengths.tolist()
    mean = [a / b for a, b in zip(lp, lengths, strict=True)]
    odds = [a - math.log(-math.expm1(a)) for a in mean]
    written = -(lp[0] + lp[3]) / (lengths[0] + lengths[3])
    apart = [math.log1p(math.exp(odds[i + 1] - odds[i])) for i in (0, 3)]
    why = -(mean[2] + mean[5]) / 2
    assert loss_of(seen, **ROW["rationale_orpo"]) == pytest.approx(written + 0.1 * sum(apart) / 2 + why)


def test_selm_and_xpo_are_one_method() -> None:
    """SELM's alpha beta rho and XPO's alpha lp have one slope, and differ by a constant."""
    seen = with_beside(3)
    assert seen.logps is not None
    assert seen.reference is not None
    there, weight = seen.beside["drawn"], seen.weight[seen.beside["drawn"]]
    assert ROW["selm"]["optimism"] == 0.001 * ROW["selm"]["beta"]
    knobs = {**ROW["selm"], "optimism": 0.3}
    bonus = 0.3 * (weight * seen.logps[there]).sum() / weight.sum()
    xpo = objective(seen, **{**knobs, "optimism": 0.0}).loss + bonus
    constant = 0.3 * float((weight * seen.reference[there]).sum() / weight.sum())
    assert float(xpo.detach()) - loss_of(seen, **knobs) == pytest.approx(constant)
    (slope_of_xpo,) = torch.autograd.grad(xpo, seen.logps)
    assert slopes(seen, **knobs)["logps"].tolist() == pytest.approx(slope_of_xpo.tolist(), abs=1e-15)
    assert slopes(seen, **knobs)["logps"][there].tolist() == pytest.approx((0.3 * weight / weight.sum()).tolist())
    assert loss_of(seen, **{**ROW["xpo"], "optimism": 0.0}) == loss_of(seen, **DPO)


def test_optimism_finds_the_untried_arm() -> None:
    """Two arms, pairs of the first against itself: DPO stays, and the bonus moves away from the habit."""
    ends = {}
    for weight in (0.0, 0.05):
        theta = numbers([2.0, 0.0]).requires_grad_(True)
        reference = theta.detach().log_softmax(0)
        for _ in range(50):
            logps = theta.log_softmax(0)[torch.tensor([0, 0, 0])]
            seen = Seen(
                lengths=torch.ones(3),
                weight=torch.ones(3, dtype=Double),
                logps=logps,
                reference=reference[torch.tensor([0, 0, 0])],
                chosen=torch.tensor([0]),
                rejected=torch.tensor([1]),
                p=torch.ones(1, dtype=Double),
                tree=torch.zeros(3, dtype=torch.long),
                beside={"drawn": torch.tensor([2])},
            )
            (down,) = torch.autograd.grad(objective(seen, **{**ROW["selm"], "optimism": weight}).loss, theta)
            theta = (theta - down).detach().requires_grad_(True)
        ends[weight] = float(theta.softmax(0)[1].detach())
    assert ends[0.0] == pytest.approx(1 / (1 + math.exp(2)))
    assert ends[0.05] > 1.5 * ends[0.0]


def test_centring_is_of_the_sum_and_sees_a_constant() -> None:
    seen = pairs(3, weight=torch.ones(6))
    assert seen.scores is not None
    sums = [float(a + b) for a, b in seen.scores.detach().reshape(3, 2)]
    knobs = {**HEAD, "centring": 0.01}
    assert loss_of(seen, **knobs) == pytest.approx(loss_of(seen, **HEAD) + 0.01 * sum(s**2 for s in sums) / 3)
    moved = replace(seen, scores=seen.scores.detach() + 1.0)
    assert loss_of(moved, **HEAD) == pytest.approx(loss_of(seen, **HEAD), abs=1e-12)
    assert loss_of(moved, **knobs) != pytest.approx(loss_of(seen, **knobs))
    wide = pairs(3, width=2, weight=torch.ones(6))
    assert wide.scores is not None
    both = wide.scores.detach()[0::2] + wide.scores.detach()[1::2]
    assert term("centring", wide) == pytest.approx(float((both**2).sum() / 3))


SPLIT = {
    "nll": {"nll_over": "tokens"},
    "rows": {"nll_over": "rows"},
    "sum": {"nll_over": "sum"},
    "rationale": {},
    "optimism": {},
    "centring": {},
}


@pytest.mark.parametrize("name", list(SPLIT))
def test_shares_of_a_term_add_up_to_the_whole(name: str) -> None:
    """Of a batch in two parts, values and gradients are those of the batch at once."""
    seen = with_beside(5, "rationale" if name == "rationale" else "drawn")
    part: Part = TERMS["nll" if name in ("rows", "sum") else name]
    halves = [part_of(replace(seen, whole=whole_of(seen)), rows) for rows in ([0, 3], [4, 1, 2])]
    leaf = seen.scores if name == "centring" else seen.logps
    at_once = part(seen, knobs=SPLIT[name])
    in_parts = sum(part(half, knobs=SPLIT[name]) for half in halves)
    assert float(in_parts.detach()) == pytest.approx(float(at_once.detach()), rel=1e-12)
    gradients = [torch.autograd.grad(value, leaf)[0].tolist() for value in (at_once, in_parts)]  # type: ignore[arg-type]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-12, abs=1e-15)


def test_only_the_online_kl_couples_rows() -> None:
    assert [name for name, part in TERMS.items() if part.couples] == ["online_kl"]
