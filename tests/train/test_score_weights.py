"""How much a pair counts: the policy's probability, the strength, and what exchanging two answers would cost."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.train.seen_made import Double, lists, loss_of, numbers, pairs, part_of, slopes
from tiebreak.records import InputError
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.weights import WEIGHTS

DPO: dict[str, Any] = {"score": "log_ratio", "link": "logistic", "beta": 0.1}


def weights(name: str, seen: Seen, **knobs: Any) -> list[float]:
    found = WEIGHTS[name](seen, knobs=knobs)
    assert not found.requires_grad
    listed: list[float] = found.tolist()
    return listed


def test_the_policys_weight_is_of_the_mean_token_of_both_sides() -> None:
    seen = pairs(4, seed=3)
    assert seen.logps is not None
    lp, logs, n = seen.logps.tolist(), seen.readings["collision"].tolist(), seen.lengths.tolist()
    sides = [math.exp((a - b) / c) for a, b, c in zip(lp, logs, n, strict=True)]
    expected = [min(1.0, sides[2 * i] * sides[2 * i + 1]) for i in range(4)]
    assert weights("policy", seen) == pytest.approx(expected, rel=1e-12)
    assert all(0 < weight <= 1 for weight in expected)


def test_the_product_of_the_policys_weights_is_cut_at_1() -> None:
    """The product, not each side: one side above 1 makes up for the other."""
    seen = pairs([-2.0, -1.0], [-4.0, -2.0], lengths=[2, 2, 1, 1])
    seen = replace(seen, readings={"collision": numbers([-6.0, -4.5, -3.0, -3.0])})
    assert weights("policy", seen) == [1.0, 1.0]
    seen = replace(seen, readings={"collision": numbers([-3.0, -2.0, -3.0, -1.0])})
    assert weights("policy", seen) == pytest.approx([math.exp(0.5 - 1.0), 1.0])


def test_text_that_every_token_of_is_as_likely_as_any_weighs_1() -> None:
    """Aligned denominator: under a uniform distribution over V words log p = log sum p^2 = -log V."""
    seen = pairs([-5 * math.log(9)], [-3 * math.log(9)], lengths=[5, 3])
    assert seen.logps is not None
    assert weights("policy", replace(seen, readings={"collision": seen.logps.detach()})) == [1.0]


def test_no_gradient_flows_through_the_policys_weight() -> None:
    """The pull of a pair is that of DPO, times a number."""
    seen = pairs(3, seed=5, share=None)
    factors = torch.tensor(weights("policy", seen), dtype=Double).repeat_interleave(2)
    plain = slopes(seen, **DPO)["logps"]
    assert torch.allclose(slopes(seen, **DPO, weight="policy")["logps"], plain * factors, rtol=1e-12, atol=0)


def test_a_strong_preference_counts_as_its_strength_says_whichever_its_sign() -> None:
    seen = pairs(3, margin=[-2.0, 1.0, 0.0])
    assert weights("strength", seen) == [2.0, 1.0, 0.0]
    even = pairs(3, margin=[1.0, -1.0, 1.0])
    assert loss_of(even, **DPO, weight="strength") == pytest.approx(loss_of(even, **DPO), rel=1e-12)


def test_a_constant_weight_scales_the_pairs_and_not_the_terms() -> None:
    seen = pairs(3)
    here = loss_of(seen, **DPO, weight="constant", pair_weight=0.1, nll=1.0)
    plain, both = loss_of(seen, **DPO), loss_of(seen, **DPO, nll=1.0)
    assert here == pytest.approx(0.1 * plain + (both - plain), rel=1e-12)


def by_hand(grades: list[float], ranks: list[float]) -> list[float]:
    """|2^psi_i - 2^psi_j| |1/log(1+tau_i) - 1/log(1+tau_j)| of every pair; times the share they add up to 1."""
    low, high = min(grades), max(grades)
    gains = [2 ** ((grade - low) / (high - low)) for grade in grades]
    falls = [1 / math.log(1 + rank) for rank in ranks]
    every = itertools.product(range(len(grades)), repeat=2)
    raw = [abs(gains[i] - gains[j]) * abs(falls[i] - falls[j]) for i, j in every if grades[i] > grades[j]]
    return [one * len(raw) / sum(raw) for one in raw]


def test_exchange_costs_are_those_of_a_hand_computed_dcg() -> None:
    """Grades 3, 1, 2 have ranks 1, 3, 2; psi are 1, 0, 1/2."""
    seen = lists([[3.0, 1.0, 2.0]])
    raw = [
        (2 - 1) * (1 / math.log(2) - 1 / math.log(4)),
        (2 - math.sqrt(2)) * (1 / math.log(2) - 1 / math.log(3)),
        (math.sqrt(2) - 1) * (1 / math.log(3) - 1 / math.log(4)),
    ]
    assert weights("dcg", seen) == pytest.approx([3 * one / sum(raw) for one in raw], rel=1e-12)
    assert by_hand([3.0, 1.0, 2.0], [1, 3, 2]) == pytest.approx(weights("dcg", seen), rel=1e-12)


def test_a_rows_weights_times_shares_are_1_whatever_scale_the_grades_are_on() -> None:
    grades = [[3.0, 1.0, 2.0, 1.0], [10.0, 0.0], [0.5, 0.5, 0.25]]
    seen = lists(grades)
    assert seen.share is not None
    for ranks in ("labels", "scores"):
        found = torch.tensor(weights("dcg", seen, ranks=ranks), dtype=Double) * seen.share
        assert seen.tree is not None
        assert torch.zeros(3, dtype=Double).index_add(0, seen.tree[seen.chosen], found).tolist() == pytest.approx(
            [1] * 3
        )
    scaled = lists([[100 * grade - 7 for grade in row] for row in grades])
    assert weights("dcg", scaled) == pytest.approx(weights("dcg", seen), rel=1e-9)


def test_two_answers_are_one_pair_of_weight_1() -> None:
    seen = lists([[1.0, 0.0], [5.0, 3.0]])
    for ranks in ("labels", "scores"):
        assert weights("dcg", seen, ranks=ranks) == pytest.approx([1.0, 1.0])
        assert loss_of(seen, **DPO, weight="dcg", ranks=ranks) == pytest.approx(loss_of(seen, **DPO), rel=1e-12)


def test_equal_grades_share_a_rank_and_rows_of_one_grade_have_no_loss() -> None:
    tied = lists([[2.0, 1.0, 1.0]])
    assert weights("dcg", tied) == pytest.approx(by_hand([2.0, 1.0, 1.0], [1, 2.5, 2.5]), rel=1e-12)
    flat = lists([[1.0, 1.0, 1.0], [1.0, 0.0]])
    assert flat.weight.shape == (5,)
    pull = slopes(flat, **DPO, weight="dcg")["logps"]
    assert torch.isfinite(pull).all()
    assert pull[:3].tolist() == [0.0, 0.0, 0.0]
    assert (pull[3:] != 0).all()
    alone = part_of(flat, [0])
    assert loss_of(alone, **DPO, weight="dcg") == 0


def test_ranks_by_scores_are_those_of_what_the_model_gives_now() -> None:
    grades, rho = [3.0, 2.0, 1.0], [-1.0, 4.0, 0.5]
    logps = numbers(rho).requires_grad_(True)
    seen = lists([grades], logps=logps, reference=torch.zeros(3, dtype=Double), scores=None)
    expected = by_hand(grades, [3, 1, 2])
    assert weights("dcg", seen, ranks="scores") == pytest.approx(expected, rel=1e-12)
    moved = replace(seen, reference=numbers([0.0, 9.0, 0.0]))
    assert weights("dcg", moved, ranks="scores") == pytest.approx(by_hand(grades, [2, 3, 1]), rel=1e-12)
    assert weights("dcg", replace(moved, reference=None), ranks="scores") == pytest.approx(expected, rel=1e-12)
    of_head = replace(seen, logps=None, reference=None, scores=logps)
    assert weights("dcg", of_head, ranks="scores") == pytest.approx(expected, rel=1e-12)


def test_where_the_model_cannot_tell_answers_apart_their_grades_rank_them() -> None:
    """So it is at the first step of a training, when every rho is 0."""
    for rho in ([0.0] * 4, [1.0, 1.0, 0.0, 0.0]):
        values = numbers(rho)
        seen = lists([[3.0, 2.0, 1.0, 1.0]], logps=values, reference=torch.zeros_like(values), scores=None)
        assert weights("dcg", seen, ranks="scores") == weights("dcg", seen)


@pytest.mark.parametrize("ranks", ["labels", "scores"])
def test_the_order_of_a_rows_answers_never_matters(ranks: str) -> None:
    grades, rho = [3.0, 1.0, 1.0, 2.0], [0.5, 0.5, -1.0, 2.0]
    losses = []
    for order in itertools.permutations(range(4)):
        values = numbers([rho[i] for i in order]).requires_grad_(True)
        seen = lists([[grades[i] for i in order]], logps=values, reference=torch.zeros(4, dtype=Double), scores=None)
        losses.append(loss_of(seen, **DPO, weight="dcg", ranks=ranks))
    assert losses == pytest.approx([losses[0]] * 24, rel=1e-12)


def test_branches_beside_have_no_grade_and_no_rank() -> None:
    seen = lists([[3.0, 1.0, 2.0]], scores=None)
    assert seen.logps is not None
    assert seen.reference is not None
    grown = replace(
        seen,
        lengths=torch.tensor([*seen.lengths.tolist(), 4]),
        weight=torch.ones(4, dtype=Double),
        logps=torch.cat([seen.logps, numbers([99.0])]),
        reference=torch.cat([seen.reference, numbers([0.0])]),
        tree=torch.zeros(4, dtype=torch.long),
        grades=numbers([3.0, 1.0, 2.0, math.nan]),
    )
    for ranks in ("labels", "scores"):
        assert weights("dcg", grown, ranks=ranks) == weights("dcg", seen, ranks=ranks)


def test_unknown_ranks_and_scores_of_several_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="ranks 'grades'; expected labels or scores"):
        weights("dcg", lists([[1.0, 0.0]]), ranks="grades")
    with pytest.raises(InputError, match="3 scores of a branch; set ranks to labels"):
        weights("dcg", lists([[1.0, 0.0]], width=3), ranks="scores")


def test_the_names_of_the_weights() -> None:
    assert list(WEIGHTS) == ["constant", "policy", "strength", "dcg"]
