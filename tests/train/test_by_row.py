"""Methods of single completions and of lists: what their rows say, what they compute, and that each of them learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.alone_made import alone
from tests.train.seen_made import Double, lists, loss_of
from tiebreak.registry import Row
from tiebreak.train.objectives.alone import ALONE
from tiebreak.train.objectives.by_row import PACES, ROWS
from tiebreak.train.objectives.lists import LISTS
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import check, kind_of, objective, settled
from tiebreak.train.pace import Pace

OF = {row.name: row for row in ROWS}
DPO = {"score": "log_ratio", "link": "logistic", "beta": 0.1}
NAMES = list(OF)
LINKS = {**ALONE, **LISTS}


def knobs_of(name: str, **more: Any) -> dict[str, Any]:
    return settled({**(OF[name].knobs or {}), **more})


def made(name: str) -> Seen:
    """A batch of the shape that a method takes."""
    if kind_of(knobs_of(name)["link"]) == "alone":
        return alone()
    return lists([[0.9, 0.6, 0.2], [0.8, 0.1], [0.7, 0.7, 0.3, float("nan")]])


def narrow(seen: Seen, dtype: torch.dtype) -> Seen:
    """The same batch with numbers of ``dtype``."""
    names = [name for name, value in vars(seen).items() if isinstance(value, Tensor) and value.is_floating_point()]
    cast = {name: getattr(seen, name).detach().to(dtype) for name in names}
    return replace(seen, **cast)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_says_what_it_is_and_settles(row: Row) -> None:
    assert all((row.does, row.formula, row.use, row.paper))
    knobs = settled(row.knobs or {})
    check(**knobs)
    scalars = LINKS[knobs["link"]].knobs
    assert set(row.knobs or {}) == {"score", "link", "beta", "nll", *scalars}
    assert Pace(**PACES[row.name]).rate(0, 9) > 0


def test_the_names_and_links_are_all_there() -> None:
    assert list(PACES) == NAMES
    assert len(NAMES) == len(ROWS)
    links = {knobs_of(name)["link"] for name in NAMES}
    assert LINKS.keys() - links == {"squared", "cross_entropy"}


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_near_and_single_precision_nearer(name: str) -> None:
    seen, knobs = made(name), knobs_of(name)
    exact = loss_of(seen, **knobs)
    assert loss_of(narrow(seen, torch.float32), **knobs) == pytest.approx(exact, rel=1e-4)
    assert loss_of(narrow(seen, torch.bfloat16), **knobs) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("name", ["plackett_luce", "best_of_list"])
def test_lists_of_two_are_dpo(name: str) -> None:
    seen = lists([[1.0, 0.0]] * 5)
    assert loss_of(seen, **knobs_of(name)) == pytest.approx(loss_of(seen, **DPO), abs=1e-14)


def test_unpaired_apo_zero_is_kto_where_nothing_has_drifted() -> None:
    seen = alone(rho=[1.0, -2.0, 3.0, 0.5, 0.0], drift=[-1.0] * 5)
    assert loss_of(seen, **knobs_of("kto")) == loss_of(seen, **knobs_of("apo_zero_unpaired"))
    drifted = alone(rho=[1.0, -2.0, 3.0, 0.5, 0.0], drift=[4.0] * 5)
    assert loss_of(drifted, **knobs_of("kto")) != loss_of(drifted, **knobs_of("apo_zero_unpaired"))


def test_nbpo_without_missing_votes_is_bco_without_a_shift() -> None:
    seen = alone()
    still = replace(seen, past={"bco": torch.tensor([[0.0, 0.0], [1e15, 1e15]], dtype=Double)})
    assert loss_of(seen, **knobs_of("nbpo", missed=0.0)) == pytest.approx(loss_of(still, **knobs_of("bco")), abs=1e-9)


def test_rrhf_is_the_sum_of_its_hinges_and_the_likelihood_of_the_best() -> None:
    seen = lists([[0.9, 0.6, 0.2], [0.8, 0.1]])
    assert seen.logps is not None
    p = (seen.logps.detach() / seen.lengths).tolist()
    hinges = [sum(max(0.0, p[j] - p[i]) for i, j in ((0, 1), (0, 2), (1, 2))), max(0.0, p[4] - p[3])]
    w, lengths, logps = seen.weight.tolist(), seen.lengths.tolist(), seen.logps.tolist()
    ranked = (w[0] * hinges[0] + w[3] * hinges[1]) / (w[0] + w[3])
    imitated = -(w[0] * logps[0] + w[3] * logps[3]) / (w[0] * lengths[0] + w[3] * lengths[3])
    assert loss_of(seen, **knobs_of("rrhf")) == pytest.approx(ranked + imitated, abs=1e-12)
    assert loss_of(seen, **knobs_of("rrhf", beta=100.0)) == pytest.approx(100 * ranked + imitated, abs=1e-9)


def test_steerlm2_is_the_divergence_of_what_the_answers_should_weigh() -> None:
    seen = lists([[-2.0, -5.0, -9.0]])
    logps, reference, grades = (getattr(seen, name).tolist() for name in ("logps", "reference", "grades"))
    w = [math.exp(g - q) for g, q in zip(grades, reference, strict=True)]
    b = [math.exp(p - q) for p, q in zip(logps, reference, strict=True)]
    expected = sum(x / sum(w) * math.log(x / sum(w) * sum(b) / y) for x, y in zip(w, b, strict=True))
    assert loss_of(seen, **knobs_of("steerlm2")) == pytest.approx(expected, abs=1e-12)


def told(theta: Tensor, start: Tensor, name: str) -> Seen:
    """What a policy of three words makes of a batch: 0 is liked, 1 is not and 2 is in between, for each prompt."""
    logps, reference = theta.log_softmax(-1), start.log_softmax(-1)
    prompts = len(theta)
    if kind_of(knobs_of(name)["link"]) == "list":
        seen = lists([[1.0, 0.5, 0.0]] * prompts)
        order: Sequence[int] = (0, 2, 1)
        fields = {"logps": logps[:, order].flatten(), "reference": reference[:, order].flatten()}
    else:
        seen = alone([1.0, 0.0] * prompts)
        beside = [[0, 2], [1, 2]]
        fields = {"logps": logps[:, beside].flatten(), "reference": reference[:, beside].flatten()}
    return replace(seen, **fields, lengths=torch.ones_like(seen.lengths), weight=torch.ones_like(seen.weight))


@pytest.mark.parametrize("name", NAMES)
def test_fifty_steps_raise_the_liked_word_over_the_other(name: str) -> None:
    """From a start that ranks them the wrong way round, on two prompts."""
    start = torch.tensor([[-0.5, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=Double)
    theta = start.clone().requires_grad_(True)
    optimizer, past, gaps = torch.optim.Adam([theta], lr=0.05), {}, []
    for _ in range(50):
        outcome = objective(replace(told(theta, start, name), past=past), **knobs_of(name))
        past = dict(outcome.kept)
        gaps.append((theta[:, 0] - theta[:, 1]).detach())
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
    assert bool((gaps[-1] > gaps[0] + 0.5).all())
    assert bool((gaps[25] > gaps[0]).all())
