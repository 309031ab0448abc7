"""From scores to what a token is credited with: penalties, masks, and where a reward lands."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.acting import judged
from tiebreak.models.forest import Tree
from tiebreak.train.actor import Batch, Looked
from tiebreak.train.collect import Judged
from tiebreak.train.credit import credit
from tiebreak.train.policy_gradient.presets import PLAIN, POLICY_GRADIENT
from tiebreak.train.policy_gradient.shape import overlong, shaped, with_missing_eos

TWO = Tree((2, 3), ((4, 5, 0), (6, 7, 8, 9, 1)))
"""A completion that ended, with EOS, and one that ran into the limit of five tokens."""
ENDS = ("stop", "length")
LIMIT = 5


def credited(
    groups: list[Judged], looked: Looked | None = None, *, own: bool = True, exact: bool = True, **knobs: Any
) -> tuple[Batch, dict[str, float]]:
    whole = {**PLAIN, **knobs}
    form = {name: whole[name] for name in ("missing_eos", "missing_eos_value")}
    return credit(
        groups,
        looked or Looked(None, None, None),
        knobs=whole,
        beta=float(knobs.get("beta", 0.0)),
        shape=partial(shaped, **form, share=whole["overlong"], limit=LIMIT),
        own=own,
        exact=exact,
        device=torch.device("cpu"),
    )


def returns(scores: list[float | None], finishes: tuple[str, ...] = ENDS, **knobs: Any) -> list[list[float]]:
    """What REINFORCE++ without whitening credits: each token's reward from here on."""
    batch, _ = credited([judged(TWO, scores, finishes)], advantage="whitened", **knobs)
    return [piece.tolist() for piece in batch.flat["advantages"].split([3, 5])]


def test_a_reward_lands_on_the_last_token_of_its_own_completion() -> None:
    batch, _ = credited([judged(TWO, [2.0, -1.0], ENDS)], advantage="whitened", gamma=0.5)
    assert batch.flat["advantages"].tolist() == [0.5, 1.0, 2.0, -0.0625, -0.125, -0.25, -0.5, -1.0]


def test_an_answer_without_an_end_scores_the_value_whatever_it_says() -> None:
    """Detail 23: replaced, so an unbounded reward cannot outweigh it."""
    for score in (0.0, 5.0, 1e6):
        found = returns([2.0, score], missing_eos="replace", missing_eos_value=-1.0)
        assert found == [[2.0] * 3, [-1.0] * 5]


def test_or_the_value_is_taken_from_its_reward() -> None:
    assert returns([2.0, 7.0], missing_eos="subtract", missing_eos_value=1.0) == [[2.0] * 3, [6.0] * 5]
    assert returns([2.0, 7.0]) == [[2.0] * 3, [7.0] * 5]


@pytest.mark.parametrize("form", ["replace", "subtract"])
def test_an_answer_nobody_could_score_pays_nothing_and_teaches_nothing(form: str) -> None:
    batch, numbers = credited([judged(TWO, [2.0, None], ENDS)], advantage="whitened", missing_eos=form)
    assert batch.flat["kept"].tolist() == [1.0] * 3 + [0.0] * 5
    assert batch.flat["advantages"].tolist() == [2.0] * 3 + [0.0] * 5
    assert numbers["completions/unscored"] == 0.5
    assert numbers["objective/scores"] == 2.0


@given(st.integers(1, 40), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_the_soft_limit_is_the_papers_in_three_pieces(limit: int, tenths: int) -> None:
    """DAPO, equation 13, with L_max the limit and L_cache its share."""
    share = tenths / 10
    buffer = share * limit
    for length in range(1, limit + 1):
        found = float(overlong(torch.tensor([length]), limit=limit, share=share)[0])
        soft = 0.0 if not buffer or length <= limit - buffer else (limit - buffer - length) / buffer
        assert found == pytest.approx(soft, abs=1e-5)
        assert -1.0 <= found <= 0.0
    last = float(overlong(torch.tensor([limit]), limit=limit, share=share)[0])
    assert last == pytest.approx(-1.0 if buffer else 0.0, abs=1e-5)


def test_the_soft_limit_is_added_to_the_reward() -> None:
    assert returns([2.0, 2.0], overlong=0.8) == [[1.5] * 3, [1.0] * 5]


def test_penalties_come_in_the_papers_order() -> None:
    """First the value for the missing end, then the limit: a truncated answer pays both."""
    assert returns([2.0, 7.0], missing_eos="replace", missing_eos_value=-1.0, overlong=0.8) == [[1.5] * 3, [-2.0] * 5]


def test_masked_answers_are_compared_with_and_not_learned_from() -> None:
    batch, _ = credited([judged(TWO, [1.0, 0.0], ENDS)], advantage="group_mean", truncated="mask")
    assert batch.flat["kept"].tolist() == [1.0] * 3 + [0.0] * 5
    assert batch.flat["advantages"][:3].tolist() == [0.5] * 3
    kept, _ = credited([judged(TWO, [1.0, 0.0], ENDS)], advantage="group_mean")
    assert kept.flat["kept"].tolist() == [1.0] * 8


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_the_distance_is_paid_at_each_token_in_the_reward(kl: str) -> None:
    reference = torch.tensor([-1.0, -2.0, -0.5, -1.5, -1.0, -3.0, -1.0, -0.2])
    batch, numbers = credited(
        [judged(TWO, [2.0, -1.0], ENDS)],
        Looked(None, reference, None),
        advantage="whitened",
        kl=kl,
        kl_in="reward",
        beta=0.1,
    )
    l = (-1.0 - reference).tolist()  # noqa: E741
    worth = {"k1": lambda x: x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(-x) - 1 + x}[kl]
    paid = [-0.1 * worth(x) for x in l]
    paid[2] += 2.0
    paid[7] -= 1.0
    expected = [math.fsum(paid[i:3]) for i in range(3)] + [math.fsum(paid[i:8]) for i in range(3, 8)]
    assert batch.flat["advantages"].tolist() == pytest.approx(expected, abs=1e-5)
    assert numbers["objective/kl"] == pytest.approx((sum(l[:3]) + sum(l[3:])) / 2, abs=1e-6)
    assert numbers["objective/rlhf_reward"] == pytest.approx((expected[0] + expected[3]) / 2, abs=1e-5)
    assert numbers["objective/scores"] == 0.5


def test_the_distance_in_the_loss_is_not_paid_in_the_reward_too() -> None:
    batch, _ = credited(
        [judged(TWO, [2.0, -1.0], ENDS)],
        Looked(None, torch.full((8,), -3.0), None),
        advantage="whitened",
        kl="k3",
        kl_in="loss",
        beta=0.1,
    )
    assert batch.flat["advantages"].tolist() == [2.0] * 3 + [-1.0] * 5
    assert "reference" in batch.flat


def test_values_are_one_a_token_and_returns_are_what_they_should_have_been() -> None:
    """Not one scalar a sequence: with gamma and lambda 1 a token's return is the completion's reward."""
    values = torch.linspace(-1, 1, 8)
    batch, numbers = credited(
        [judged(TWO, [2.0, -1.0], ENDS)], Looked(None, None, values), advantage="gae", gamma=1.0, lam=1.0
    )
    assert batch.flat["returns"].tolist() == pytest.approx([2.0] * 3 + [-1.0] * 5, abs=1e-6)
    torch.testing.assert_close(batch.flat["advantages"], batch.flat["returns"] - values)
    missed = (batch.flat["returns"] - values).var(unbiased=False) / batch.flat["returns"].var(unbiased=False)
    assert numbers["value/explained_variance"] == pytest.approx(1 - float(missed), abs=1e-6)


@pytest.mark.parametrize("advantage", ["gae", "whitened"])
def test_a_single_completion_of_one_token_has_no_nan(advantage: str) -> None:
    values = Looked(None, None, torch.tensor([0.3]))
    batch, numbers = credited([judged(Tree((2,), ((0,),)), [1.0])], values, advantage=advantage, whiten=True)
    assert all(bool(values.isfinite().all()) for values in batch.flat.values())
    assert all(math.isfinite(value) for value in numbers.values())


def test_whitening_looks_at_what_is_learned_alone() -> None:
    groups = [judged(TWO, [2.0, 9.0], ENDS), judged(TWO, [-1.0, None], ENDS)]
    batch, _ = credited(groups, advantage="whitened", whiten=True, truncated="mask")
    kept = batch.flat["kept"].bool()
    assert kept.tolist() == [True] * 3 + [False] * 5 + [True] * 3 + [False] * 5
    some = batch.flat["advantages"][kept]
    assert float(some.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(some.std()) == pytest.approx(1.0, abs=1e-6)


def test_groups_are_prompts() -> None:
    groups = [judged(TWO, [1.0, 0.0]), judged(TWO, [3.0, 3.0])]
    batch, numbers = credited(groups, advantage="group_mean")
    assert batch.flat["advantages"].tolist() == [0.5] * 3 + [-0.5] * 5 + [0.0] * 8
    assert numbers["groups/mixed"] == 0.5


def test_what_is_known_of_a_prompt_is_its_own() -> None:
    groups = [judged(TWO, [1.0, 0.0], baseline=1.0), judged(TWO, [3.0, 3.0], baseline=0.5)]
    batch, _ = credited(groups, advantage="greedy")
    assert batch.flat["advantages"].tolist() == [0.0] * 3 + [-1.0] * 5 + [2.5] * 8


TAUGHT = Tree(TWO.trunk, TWO.branches, ((True, False, True), (True, True, True, False, False)))
"""A tool's words within the first completion, and some at the end of the second."""


def test_tokens_that_are_not_taught_are_credited_nowhere_and_the_last_real_token_gets_the_reward() -> None:
    sampled = torch.arange(5.0)
    one = judged(TAUGHT, [2.0, -1.0], ENDS, sampled)
    batch, numbers = credited([one], advantage="whitened", gamma=0.5)
    assert batch.flat["advantages"].tolist() == [1.0, 2.0, -0.25, -0.5, -1.0]
    assert batch.flat["old"].tolist() == sampled.tolist()
    assert batch.flat["kept"].tolist() == [1.0] * 5
    assert batch.starts == [0, 5]
    assert numbers["completions/mean_length"] == 4.0, "tokens of the completion, whoever wrote them"


def test_tokens_that_are_not_taught_pay_no_distance_and_have_no_value() -> None:
    seen = Looked(torch.full((5,), -1.0), torch.full((5,), -1.5), torch.zeros(5))
    one = judged(TAUGHT, [2.0, -1.0], ENDS)
    batch, numbers = credited([one], seen, advantage="gae", lam=1.0, kl="k1", kl_in="reward", beta=0.1)
    assert numbers["objective/kl"] == pytest.approx((2 * 0.5 + 3 * 0.5) / 2)
    assert batch.flat["returns"].tolist() == pytest.approx([1.9, 1.95, -1.15, -1.1, -1.05])


def test_answers_of_another_policy_are_weighed_up_to_the_bound() -> None:
    old, sampled = torch.full((8,), -1.0), torch.linspace(-3.0, 1.0, 8)
    one = judged(TWO, [1.0, 0.0], ENDS, sampled)
    batch, numbers = credited([one], Looked(old, None, None), own=False, exact=False, trust=2.0)
    torch.testing.assert_close(batch.flat["trust"], (old - sampled).exp().clamp(max=2.0))
    assert batch.flat["old"].tolist() == old.tolist()
    assert numbers["sampling/gap"] == pytest.approx(float((old - sampled).square().mean().sqrt()))


def test_a_second_look_stands_in_for_log_probs_kept_in_less_precision() -> None:
    old = torch.full((8,), -1.2)
    narrow, _ = credited([judged(TWO, [1.0, 0.0])], Looked(old, None, None), exact=False)
    assert narrow.flat["old"].tolist() == old.tolist()
    neither, _ = credited([judged(TWO, [1.0, 0.0])], exact=False)
    assert "old" not in neither.flat, "the update takes its own, and the ratio is 1"


def test_the_forms_of_the_penalty_are_pure() -> None:
    rewards, ended = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    assert with_missing_eos(rewards, ended, form="replace", value=-1.0).tolist() == [1.0, -1.0]
    assert with_missing_eos(rewards, ended, form="subtract", value=0.5).tolist() == [1.0, 1.5]
    assert with_missing_eos(rewards, ended, form="", value=9.0).tolist() == [1.0, 2.0]
    assert rewards.tolist() == [1.0, 2.0]
    assert POLICY_GRADIENT["ppo_summarize"].knobs is not None
    assert POLICY_GRADIENT["ppo_summarize"].knobs["missing_eos_value"] == -1.0
