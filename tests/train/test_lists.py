"""Links of lists: their formulas, what they are with two branches, and what ties and other branches do to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch

from tests.train.seen_made import Double, lists, loss_of, numbers, part_of, slopes, slopes_by_difference
from tiebreak.train.objectives.lists import LISTS
from tiebreak.train.objectives.seen import Listed, Seen
from tiebreak.train.objectives.switches import objective

NAN = float("nan")
GRADES = [[3.0, 1.0, 0.5, -1.0], [1.0, 0.0], [2.0, 2.0, 1.0], [0.3]]
BESIDE = [[3.0, NAN, 1.0, -1.0], [1.0, 0.0, NAN], [NAN, 2.0, 2.0, 1.0], [0.3]]
KNOBS: dict[str, dict[str, Any]] = {
    "plackett_luce": {},
    "best_of_list": {},
    "list_choice": {"grade_temperature": 0.7},
    "list_noise_contrast": {"grade_temperature": 0.7},
    "rrhf": {},
    "steerlm2": {},
    "gpo": {"even": 0.5},
}
LINKS = list(KNOBS)


def knobs_of(link: str, **more: Any) -> dict[str, Any]:
    return {"score": "log_ratio", "link": link, "beta": 0.3, **KNOBS[link], **more}


def losses(link: str, seen: Seen, beta: float = 0.3, **scalars: Any) -> list[float]:
    """The loss of each row, by the link alone."""
    assert seen.logps is not None
    values = beta * (seen.logps - seen.reference).detach()
    return LISTS[link](Listed(values, beta, seen), knobs={**KNOBS[link], **scalars}).tolist()


def valued(grades: Sequence[Sequence[float]], values: Sequence[float], **more: Any) -> Seen:
    """Lists with these log-probs against a reference of 0."""
    made = lists(grades, **more)
    return replace(made, logps=numbers(values).requires_grad_(True), reference=torch.zeros(len(values), dtype=Double))


def rows_of(seen: Seen, beta: float) -> list[list[tuple[float, float, float]]]:
    """Of each row, of each compared branch: its grade, beta x its log-ratio, its reference log-prob."""
    rows: dict[int, list[tuple[float, float, float]]] = {}
    columns = (seen.tree, seen.grades, beta * (seen.logps - seen.reference).detach(), seen.reference)
    for tree, grade, value, reference in zip(*(column.tolist() for column in columns), strict=True):
        rows.setdefault(tree, [])
        if not math.isnan(grade):
            rows[tree].append((grade, value, reference))
    return list(rows.values())


def cost(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x))


def soft(values: Sequence[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def ranking(row: list[tuple[float, float, float]]) -> float:
    return -sum(v - math.log(math.exp(v) + sum(math.exp(u) for h, u, _ in row if h < g)) for g, v, _ in row)


def best(row: list[tuple[float, float, float]]) -> float:
    won, p = [g == max(h for h, _, _ in row) for g, _, _ in row], soft([v for _, v, _ in row])
    return -sum(math.log(x) for x, top in zip(p, won, strict=True) if top) / sum(won)


def choice(row: list[tuple[float, float, float]]) -> float:
    target, p = soft([g / 0.7 for g, _, _ in row]), soft([v for _, v, _ in row])
    return -sum(t * math.log(x) for t, x in zip(target, p, strict=True))


def contrast(row: list[tuple[float, float, float]]) -> float:
    target = soft([g / 0.7 for g, _, _ in row])
    return sum(t * cost(v) + cost(-v) / len(row) for t, (_, v, _) in zip(target, row, strict=True))


def hinges(row: list[tuple[float, float, float]]) -> float:
    return sum(max(0.0, worse - better) for g, better, _ in row for h, worse, _ in row if h < g)


def divergence(row: list[tuple[float, float, float]]) -> float:
    w, b = soft([g - reference for g, _, reference in row]), soft([v for _, v, _ in row])
    return sum(x * math.log(x / y) for x, y in zip(w, b, strict=True))


def regression(row: list[tuple[float, float, float]]) -> float:
    return sum((v / 0.3 - (g - 0.5) / 0.3) ** 2 for g, v, _ in row) / len(row)


BY_HAND: dict[str, Callable[[list[tuple[float, float, float]]], float]] = {
    "plackett_luce": ranking,
    "best_of_list": best,
    "list_choice": choice,
    "list_noise_contrast": contrast,
    "rrhf": hinges,
    "steerlm2": divergence,
    "gpo": regression,
}


@pytest.mark.parametrize("grades", [GRADES, BESIDE], ids=["all", "beside"])
@pytest.mark.parametrize("link", LINKS)
def test_the_loss_of_a_row_is_the_formula(link: str, grades: list[list[float]]) -> None:
    seen = lists(grades, seed=2)
    expected = [BY_HAND[link](row) for row in rows_of(seen, 0.3)]
    assert losses(link, seen) == pytest.approx(expected, abs=1e-11)
    weights = [float(seen.weight[seen.tree == row][0]) for row in range(len(grades))]
    mean = sum(w * x for w, x in zip(weights, expected, strict=True)) / sum(weights)
    assert loss_of(seen, **knobs_of(link)) == pytest.approx(mean, abs=1e-11)


@pytest.mark.parametrize("link", LINKS)
def test_the_gradient_is_that_of_differences_and_none_reaches_a_branch_beside(link: str) -> None:
    seen = lists(BESIDE, seed=2)
    found, measured = slopes(seen, **knobs_of(link))["logps"], slopes_by_difference(seen, **knobs_of(link))["logps"]
    torch.testing.assert_close(found, measured, atol=1e-7, rtol=1e-6)
    assert seen.grades is not None
    assert found[seen.grades.isnan()].tolist() == [0.0] * 3


@pytest.mark.parametrize("link", LINKS)
def test_parts_of_a_batch_add_up_to_it(link: str) -> None:
    seen, knobs = lists(BESIDE), knobs_of(link)
    found = [objective(part_of(seen, rows), **knobs).loss for rows in ([2, 0], [3], [1])]
    assert sum(float(loss.detach()) for loss in found) == pytest.approx(loss_of(seen, **knobs), abs=1e-12)
    pieces = [torch.autograd.grad(loss, seen.logps)[0] for loss in found]
    torch.testing.assert_close(sum(pieces), slopes(seen, **knobs)["logps"], atol=1e-12, rtol=0)
    assert not LISTS[link].couples


@pytest.mark.parametrize("link", LINKS)
def test_neither_the_order_of_rows_nor_of_branches_matters(link: str) -> None:
    seen = lists(BESIDE)
    assert seen.tree is not None
    assert seen.chosen is not None
    assert seen.rejected is not None
    turned = replace(part_of(seen, [3, 1, 0, 2]), whole=None)
    assert loss_of(turned, **knobs_of(link)) == pytest.approx(loss_of(seen, **knobs_of(link)), abs=1e-12)
    order = torch.tensor([2, 0, 3, 1, 6, 5, 4, 10, 8, 7, 9, 11])
    place = torch.argsort(order)
    fields = {name: getattr(seen, name)[order] for name in ("lengths", "logps", "reference", "grades")}
    mixed = replace(seen, **fields, chosen=place[seen.chosen], rejected=place[seen.rejected])
    assert losses(link, mixed) == pytest.approx(losses(link, seen), abs=1e-12)


@pytest.mark.parametrize("link", [name for name in LINKS if name not in ("gpo", "list_noise_contrast")])
def test_a_constant_per_prompt_in_the_reference_cancels(link: str) -> None:
    seen = lists(GRADES)
    moved = replace(seen, reference=seen.reference + torch.tensor([7.0, -2.0, 4.0, 1.0]).double()[seen.tree])
    assert losses(link, moved) == pytest.approx(losses(link, seen), abs=1e-11)


@pytest.mark.parametrize("link", ["gpo", "list_noise_contrast"])
def test_where_scores_are_read_by_themselves_it_does_not(link: str) -> None:
    seen = lists(GRADES)
    moved = replace(seen, reference=seen.reference + 1.0)
    assert min(abs(a - b) for a, b in zip(losses(link, moved), losses(link, seen), strict=True)) > 1e-4


@pytest.mark.parametrize("link", LINKS)
def test_far_out_everything_is_finite(link: str) -> None:
    for top in (200.0, -200.0):
        seen = lists([[3.0, 1.0, 0.5], [1.0, NAN, 1.0]])
        values = torch.tensor([top, 0.0, -top, top, 0.0, -top], requires_grad=True)
        single = {name: getattr(seen, name).float() for name in ("weight", "grades", "share")}
        seen = replace(seen, **single, logps=values, reference=torch.zeros(6))
        loss = objective(seen, **knobs_of(link, beta=1.0)).loss
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        assert values.grad is not None
        assert bool(values.grad.isfinite().all())


@pytest.mark.parametrize("link", ["plackett_luce", "best_of_list"])
def test_two_branches_are_dpo(link: str) -> None:
    seen = lists([[1.0, 0.0], [0.2, 0.9], [5.0, 4.0]])
    dpo = {"score": "log_ratio", "link": "logistic", "beta": 0.3}
    assert loss_of(seen, **knobs_of(link)) == pytest.approx(loss_of(seen, **dpo), abs=1e-14)
    here, there = slopes(seen, **knobs_of(link))["logps"], slopes(seen, **dpo)["logps"]
    torch.testing.assert_close(here, there, atol=1e-14, rtol=0)


def test_the_probabilities_of_all_rankings_add_up_to_1() -> None:
    values = [0.3, -1.2, 2.0, 0.7]
    total = sum(
        math.exp(-losses("plackett_luce", valued([list(order)], values))[0]) for order in permutations([3.0, 2, 1, 0])
    )
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("link", ["plackett_luce", "best_of_list"])
def test_rankings_drawn_from_rewards_are_learned_to_those_rewards(link: str) -> None:
    """Over all rankings, each as likely as rewards make it, the expected gradient of a tabular policy is nothing."""
    rewards = [0.3, -1.2, 2.0, 0.7]
    start = torch.randn(4, dtype=Double, generator=torch.Generator().manual_seed(0)).log_softmax(0)
    theta = (start + numbers(rewards) / 0.3).requires_grad_(True)
    total, chances = torch.zeros((), dtype=Double), 0.0
    for order in permutations([3.0, 2, 1, 0]):
        chance = math.exp(-losses("plackett_luce", valued([list(order)], rewards), beta=1.0)[0])
        seen = replace(lists([list(order)]), logps=theta.log_softmax(0), reference=start)
        total, chances = total + chance * objective(seen, **knobs_of(link)).loss, chances + chance
    (slope,) = torch.autograd.grad(total, theta)
    assert float(slope.abs().max()) < 1e-12
    assert chances == pytest.approx(1.0, abs=1e-12)


def test_the_first_step_of_a_ranking_is_the_choice_of_the_best() -> None:
    seen = valued([[1.0, 0.0, 0.0, 0.0]], [0.3, -1.2, 2.0, 0.7])
    assert losses("plackett_luce", seen) == pytest.approx(losses("best_of_list", seen), abs=1e-12)
    assert losses("best_of_list", seen) == pytest.approx([-math.log(soft([0.09, -0.36, 0.6, 0.21])[0])], abs=1e-12)


def test_a_tie_is_never_compared_with_itself() -> None:
    tied = valued([[1.0, 1.0, 0.0]], [2.0, -1.0, 0.5])
    assert losses("plackett_luce", tied, beta=1.0) == pytest.approx([cost(1.5) + cost(-1.5)], abs=1e-12)
    even = valued([[1.0, 1.0, 1.0]], [2.0, -1.0, 0.5])
    for link in ("plackett_luce", "rrhf"):
        assert losses(link, even) == [0.0]
        assert slopes(even, **knobs_of(link))["logps"].tolist() == [0.0] * 3
    assert losses("best_of_list", even, beta=1.0) == pytest.approx(
        [-sum(math.log(p) for p in soft([2.0, -1.0, 0.5])) / 3], abs=1e-12
    )


def test_a_choice_is_learned_to_the_optimal_policy_of_its_reward() -> None:
    grades = [[3.0, 1.0, 0.5, -1.0], [1.0, 0.0]]
    there = [g / 0.7 / 0.3 + 4.0 for row in grades for g in row]
    slope = slopes(valued(grades, there), **knobs_of("list_choice"))["logps"]
    assert float(slope.abs().max()) < 1e-12
    cold = valued([[3.0, 1.0, 2.9]], [0.4, 1.0, -2.0])
    assert losses("list_choice", cold, grade_temperature=1e-3) == pytest.approx(losses("best_of_list", cold), abs=1e-9)


def test_a_choice_of_two_is_dpo_with_the_soft_label_of_their_gap() -> None:
    seen = lists([[1.0, 0.0]])
    (d,) = (float(v) for v in 0.3 * (seen.logps - seen.reference).detach() @ numbers([1.0, -1.0]).reshape(2, 1))
    q = 1 / (1 + math.exp(-1 / 0.7))
    assert losses("list_choice", seen) == pytest.approx([q * cost(d) + (1 - q) * cost(-d)], abs=1e-12)


def test_noise_contrast_is_least_at_the_log_of_k_times_the_share() -> None:
    grades = [[3.0, 1.0, 0.5, -1.0], [1.0, 0.0]]
    there = [math.log(len(row) * p) / 0.3 for row in grades for p in soft([g / 0.7 for g in row])]
    assert float(slopes(valued(grades, there), **knobs_of("list_noise_contrast"))["logps"].abs().max()) < 1e-12


def test_noise_contrast_of_a_sure_pair_is_nca() -> None:
    pair = valued([[1.0, 0.0]], [2.0, -0.7])
    found = losses("list_noise_contrast", pair, beta=1.0, grade_temperature=1e-3)
    assert found == pytest.approx([cost(2.0) + 0.5 * cost(-2.0) + 0.5 * cost(0.7)], abs=1e-9)


def test_rrhf_asks_for_order_alone() -> None:
    grades, ordered = [[3.0, 1.0, 0.5]], [5.0, 4.99, -100.0]
    assert losses("rrhf", valued(grades, ordered)) == [0.0]
    assert losses("rrhf", valued(grades, [1.0, 4.0, 2.0]), beta=1.0) == [3.0 + 1.0]
    assert losses("rrhf", valued([[1.0, 1.0, 0.0]], [1.0, 4.0, 2.0]), beta=1.0) == [1.0]
    slope = slopes(valued(grades, [1.0, 4.0, 2.0]), **knobs_of("rrhf", beta=1.0))["logps"]
    assert slope.tolist() == [-2.0, 1.0, 1.0]
    two = {"score": "log_ratio", "link": "rrhf", "beta": 1.0}
    pair = lists([[1.0, 0.0], [1.0, 0.0]])
    (gaps,) = ((pair.logps - pair.reference).detach().reshape(2, 2) @ numbers([1.0, -1.0]).reshape(2, 1)).T.tolist()
    weights = pair.weight[::2].tolist()
    hinge = sum(w * max(0.0, -gap) for w, gap in zip(weights, gaps, strict=True)) / sum(weights)
    assert loss_of(pair, **two) == pytest.approx(hinge, abs=1e-12)


def test_the_likelihood_beside_a_list_is_that_of_its_best_branch() -> None:
    seen = lists([[3.0, 1.0, 0.5], [1.0, NAN, 0.0]])
    firsts = torch.tensor([0, 3])
    knobs = {"score": "mean_log_prob", "link": "rrhf"}
    more = loss_of(seen, **knobs, nll=2.0) - loss_of(seen, **knobs)
    tokens = (seen.weight * seen.lengths)[firsts].sum()
    expected = -2.0 * (seen.weight * seen.logps.detach())[firsts].sum() / tokens
    assert more == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_steerlm2_is_the_estimator_of_the_paper(seed: int) -> None:
    """sum_i (w_i - b_i) grad NLL_i with the weights held fixed, and they add up to nothing."""
    seen = lists([[-3.0, 1.0, 0.5, -7.0]], seed=seed)
    logps, reference, grades = (getattr(seen, name).detach() for name in ("logps", "reference", "grades"))
    w, b = (grades - reference).softmax(0), (logps - reference).softmax(0)
    slope = slopes(seen, **knobs_of("steerlm2", beta=1.0))["logps"]
    torch.testing.assert_close(slope, -(w - b), atol=1e-10, rtol=0)
    assert abs(float(slope.sum())) < 1e-12
    assert losses("steerlm2", seen, beta=1.0, per_token=True) == pytest.approx(
        [losses("steerlm2", seen, beta=1.0)[0] / float(seen.lengths.double().mean())], abs=1e-12
    )


def test_steerlm2_rests_at_its_target_and_with_one_answer() -> None:
    seen = lists([[-3.0, 1.0, 0.5], [2.0]])
    there = replace(seen, logps=(seen.grades + numbers([4.0] * 4)).requires_grad_(True))
    assert float(slopes(there, **knobs_of("steerlm2", beta=1.0))["logps"].abs().max()) < 1e-12
    assert losses("steerlm2", there, beta=1.0) == pytest.approx([0.0, 0.0], abs=1e-12)
    assert slopes(seen, **knobs_of("steerlm2", beta=1.0))["logps"][3] == 0


def test_gpo_pins_each_branch_to_its_win_score() -> None:
    """Two branches are soft SPPO on both sides; scores in place of probabilities have their even point at 0."""
    wins = [[0.8, 0.2], [0.5, 0.5]]
    there = [(g - 0.5) / 0.01 for row in wins for g in row]
    assert losses("gpo", valued(wins, there), beta=0.01) == pytest.approx([0.0, 0.0], abs=1e-12)
    assert losses("gpo", valued(wins, [0.0] * 4), beta=0.01) == pytest.approx([30.0**2, 0.0], abs=1e-9)
    here = losses("gpo", valued([[0.8, 0.1, 0.6]], [1.0, 2.0, -1.0]), even=0.5)
    there = losses("gpo", valued([[0.3, -0.4, 0.1]], [1.0, 2.0, -1.0]), even=0.0)
    assert here == pytest.approx(there, abs=1e-12)


def test_every_list_needs_grades_and_one_a_reference_of_its_own() -> None:
    assert list(LISTS) == LINKS
    assert all(part.needs == ("grades",) for part in LISTS.values())
    assert [name for name, part in LISTS.items() if part.reads] == ["steerlm2"]
