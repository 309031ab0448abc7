"""What a token is credited with, by hand for each row of ADVANTAGES."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiebreak.train.policy_gradient.advantages import (
    ADVANTAGES,
    COMPARES_DRAWS,
    LEARNS_VALUES,
    Rewarded,
    Settings,
    optimal_value,
    whiten,
)
from tiebreak.train.policy_gradient.flat import discounted, means, shifted, sums

Double = torch.float64
numbers = st.floats(-5, 5)
LENGTHS = [3, 0, 1, 4, 2]
often = settings(max_examples=30, deadline=None)


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=Double)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dtype=Double, generator=torch.Generator().manual_seed(seed))


def batch(rewards: Tensor, group: Sequence[int], lengths: Sequence[int] = (), **more: Any) -> Rewarded:
    """Completions of one token unless told otherwise, all of them scored and without penalties."""
    sizes = torch.tensor(lengths or [1] * len(group), dtype=torch.long)
    fields: dict[str, Any] = {
        "rewards": rewards,
        "scored": torch.ones(len(group), dtype=torch.bool),
        "penalties": torch.zeros(int(sizes.sum()), dtype=rewards.dtype),
        "group": torch.tensor(group, dtype=torch.long),
        "branch": torch.arange(len(group)).repeat_interleave(sizes),
        "lengths": sizes,
    }
    return Rewarded(**{**fields, **more})


def advantages(name: str, seen: Rewarded, **how: float) -> Tensor:
    return ADVANTAGES[name](seen, Settings(**how)).advantages


def uneven(**more: Any) -> Rewarded:
    """Five completions of 3, 0, 1, 4 and 2 tokens, with penalties and values."""
    count = sum(LENGTHS)
    seen = batch(normal(len(LENGTHS), 4), [0, 0, 1, 1, 1], LENGTHS, penalties=normal(count, 1))
    return replace(seen, **{"values": normal(count, 2), "baseline": normal(2, 3), **more})


def pieces(values: Tensor, lengths: list[int]) -> list[list[float]]:
    return [piece.tolist() for piece in values.split(lengths)]


def rewards_by_token(seen: Rewarded) -> list[list[float]]:
    """Penalties, and in the last token of each completion its reward too."""
    found = pieces(seen.penalties, seen.lengths.tolist())
    for piece, reward in zip(found, seen.rewards.tolist(), strict=True):
        if piece:
            piece[-1] += reward
    return found


@often
@given(st.lists(st.integers(0, 4), max_size=5), st.floats(0, 1), st.randoms())
def test_a_discounted_sum_is_the_double_loop(lengths: list[int], factor: float, draw: Any) -> None:
    values = real(*(draw.uniform(-2, 2) for _ in range(sum(lengths))))
    expected = [
        sum(factor ** (later - place) * piece[later] for later in range(place, len(piece)))
        for piece in pieces(values, lengths)
        for place in range(len(piece))
    ]
    found = discounted(values, torch.tensor(lengths, dtype=torch.long), factor)
    torch.testing.assert_close(found, real(*expected), atol=1e-12, rtol=0)


@often
@given(st.lists(st.integers(0, 4), max_size=5))
def test_the_next_value_stays_within_the_completion(lengths: list[int]) -> None:
    values = torch.arange(1, sum(lengths) + 1, dtype=Double)
    expected = [value for piece in pieces(values, lengths) for value in [*piece[1:], 0.0][: len(piece)]]
    assert shifted(values, torch.tensor(lengths, dtype=torch.long)).tolist() == expected


def test_sums_and_means_of_completions_and_of_one_without_tokens() -> None:
    values, branch = real(1.0, 2.0, 6.0, 4.0), torch.tensor([0, 0, 0, 2])
    assert sums(values, branch, 3).tolist() == [9.0, 0.0, 4.0]
    assert means(values, branch, torch.tensor([3, 0, 1])).tolist() == [3.0, 0.0, 4.0]


def test_a_reward_lands_on_the_last_token_of_its_own_completion() -> None:
    """The second completion has no tokens: nobody else is paid its reward."""
    seen = batch(real(1.0, 10.0, 100.0), [0, 0, 0], [2, 0, 3], penalties=real(0.1, 0.2, 0.3, 0.4, 0.5))
    assert seen.dense.tolist() == pytest.approx([0.1, 1.2, 0.3, 0.4, 100.5])
    assert seen.totals.tolist() == pytest.approx([1.3, 10.0, 101.2])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0), (0.0, 1.0)])
def test_generalised_advantages_are_the_double_loop(gamma: float, lam: float) -> None:
    seen = uneven()
    assert seen.values is not None
    expected: list[float] = []
    for paid, values in zip(rewards_by_token(seen), pieces(seen.values, LENGTHS), strict=True):
        behind = [*values, 0.0]
        errors = [r + gamma * behind[t + 1] - behind[t] for t, r in enumerate(paid)]
        for t in range(len(paid)):
            expected.append(sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(paid))))
    found = ADVANTAGES["gae"](seen, Settings(gamma, lam))
    torch.testing.assert_close(found.advantages, real(*expected), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.returns, real(*expected) + seen.values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_with_lambda_one_they_are_the_return_minus_the_value(gamma: float) -> None:
    seen = uneven()
    found, plain = (ADVANTAGES[name](seen, Settings(gamma, 1.0)) for name in ("gae", "reinforce"))
    torch.testing.assert_close(found.advantages, plain.advantages, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.returns, plain.returns, atol=1e-12, rtol=0)
    assert plain.returns is not None
    if gamma == 1.0:
        whole = [sum(paid[t:]) for paid in rewards_by_token(seen) for t in range(len(paid))]
        torch.testing.assert_close(plain.returns, real(*whole), atol=1e-12, rtol=0)


def test_with_lambda_zero_they_are_the_temporal_difference() -> None:
    seen = batch(real(5.0), [0], [3], penalties=real(-0.1, -0.2, -0.3), values=real(1.0, 2.0, 4.0))
    expected = [-0.1 + 0.5 * 2 - 1, -0.2 + 0.5 * 4 - 2, -0.3 + 5 - 4]
    assert advantages("gae", seen, gamma=0.5, lam=0.0).tolist() == pytest.approx(expected, abs=1e-12)


def test_exact_values_leave_only_what_the_last_token_taught() -> None:
    """A net that foresees the reward has no errors, whatever lambda is."""
    seen = batch(real(2.0, -1.0), [0, 1], [3, 2], values=real(2.0, 2.0, 2.0, -1.0, -1.0))
    for lam in (0.0, 0.5, 1.0):
        assert advantages("gae", seen, lam=lam).tolist() == [0.0] * 5


def test_a_return_is_credited_as_it_is_where_the_batch_whitens() -> None:
    """Return-to-go, so a token does not pay for penalties before it; with values of 0 this is REINFORCE's."""
    seen = batch(real(5.0), [0], [3], penalties=real(-1.0, -2.0, -3.0), values=torch.zeros(3, dtype=Double))
    assert advantages("whitened", seen).tolist() == [-1.0, 0.0, 2.0]
    assert advantages("whitened", seen, gamma=0.5).tolist() == [-1 + 0.5 * (-2 + 0.5 * 2), -2 + 0.5 * 2, 2.0]
    assert advantages("reinforce", seen, gamma=0.5).tolist() == advantages("whitened", seen, gamma=0.5).tolist()


@often
@given(st.lists(numbers, min_size=2, max_size=6), st.lists(numbers, min_size=2, max_size=6))
def test_leaving_one_out_is_the_centred_reward_times_g_by_g_minus_1(first: list[float], second: list[float]) -> None:
    group = [0] * len(first) + [1] * len(second)
    found = advantages("rloo", batch(real(*first, *second), group)).tolist()
    expected = [
        reward - sum(rewards[:place] + rewards[place + 1 :]) / (len(rewards) - 1)
        for rewards in (first, second)
        for place, reward in enumerate(rewards)
    ]
    assert found == pytest.approx(expected, abs=1e-12)
    count = real(*([len(first)] * len(first) + [len(second)] * len(second)))
    centred = advantages("group_mean", batch(real(*first, *second), group))
    assert found == pytest.approx((count / (count - 1) * centred).tolist(), abs=1e-12)


@often
@given(st.lists(st.tuples(st.integers(0, 2), numbers), min_size=2, max_size=9))
def test_each_group_sums_to_nothing_wherever_its_completions_lie(drawn: list[tuple[int, float]]) -> None:
    group, rewards = [prompt for prompt, _ in drawn], real(*(reward for _, reward in drawn))
    for name in COMPARES_DRAWS:
        found = advantages(name, batch(rewards, group))
        assert sums(found, torch.tensor(group), 3).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)


def test_a_group_is_divided_by_its_unbiased_spread() -> None:
    two = advantages("group", batch(real(1.0, 0.0), [0, 0]), epsilon=0.0).tolist()
    assert two == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-12)
    near = advantages("group", batch(real(1.0, 0.0), [0, 0])).tolist()
    assert near == pytest.approx([0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / (math.sqrt(0.5) + 1e-4)], abs=1e-12)
    rewards = normal(5)
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    torch.testing.assert_close(advantages("group", batch(rewards, [0] * 5)), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", sorted(COMPARES_DRAWS))
@pytest.mark.parametrize(("reward", "count"), [(0.0, 2), (0.1, 3), (0.7, 7), (100.3, 8), (-3e7, 5)])
def test_equal_rewards_teach_exactly_nothing(name: str, reward: float, count: int) -> None:
    """In float32 a mean of equal numbers is not always that number, and a division by the spread makes it loud."""
    seen = batch(torch.full((count,), reward), [0] * count)
    for epsilon in (1e-4, 1e-8):
        assert advantages(name, seen, epsilon=epsilon).tolist() == [0.0] * count


@pytest.mark.parametrize("junk", [0.0, 7.0, math.nan])
@pytest.mark.parametrize("name", [*sorted(COMPARES_DRAWS), "greedy", "optimal"])
def test_an_answer_without_a_score_takes_no_part_and_gets_nothing(name: str, junk: float) -> None:
    baseline = real(0.5, 0.25)
    rest = advantages(name, batch(real(1.0, 2.0, 4.0, 3.0), [0, 0, 1, 0], [1, 2, 2, 1], baseline=baseline)).tolist()
    seen = batch(
        real(1.0, junk, 2.0, 4.0, junk, 3.0),
        [0, 0, 0, 1, 1, 0],
        [1, 2, 2, 2, 1, 1],
        baseline=baseline,
        scored=torch.tensor([True, False, True, True, False, True]),
    )
    assert advantages(name, seen).tolist() == [rest[0], 0.0, 0.0, *rest[1:5], 0.0, rest[5]]


@pytest.mark.parametrize("name", sorted(COMPARES_DRAWS))
def test_an_answer_with_nothing_to_compare_to_teaches_nothing(name: str) -> None:
    assert advantages(name, batch(real(3.0, 1.0), [0, 1])).tolist() == [0.0, 0.0]
    none = batch(real(3.0, 1.0), [0, 0], scored=torch.tensor([False, False]))
    assert advantages(name, none).tolist() == [0.0, 0.0]
    assert advantages(name, batch(real(), [])).tolist() == []


@pytest.mark.parametrize("name", [*sorted(COMPARES_DRAWS), "greedy"])
def test_a_penalty_is_part_of_the_reward(name: str) -> None:
    paid = uneven(values=None)
    direct = uneven(values=None, rewards=paid.totals, penalties=torch.zeros_like(paid.penalties))
    torch.testing.assert_close(advantages(name, paid), advantages(name, direct), atol=1e-12, rtol=0)


def test_the_greedy_answer_has_the_advantage_nothing() -> None:
    seen = batch(real(2.0, 3.0, -1.0), [0, 0, 1], [2, 1, 1], baseline=real(2.0, 1.0))
    assert advantages("greedy", seen).tolist() == [0.0, 0.0, 1.0, -2.0]


def test_the_names_of_the_advantages() -> None:
    assert list(ADVANTAGES) == ["gae", "reinforce", "whitened", "rloo", "group", "group_mean", "greedy", "optimal"]
    assert set(ADVANTAGES) > LEARNS_VALUES | COMPARES_DRAWS
    assert {n for n in ADVANTAGES if ADVANTAGES[n](uneven(), Settings()).returns is not None} == LEARNS_VALUES


def test_a_whitened_batch_has_mean_nothing_and_spread_one_over_what_is_learned() -> None:
    values, kept = 3 + 2 * normal(9), torch.tensor([True, True, False, True, True, False, True, True, True])
    found = whiten(values, kept)
    assert float(found[kept].mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(found[kept].var()) == pytest.approx(1.0, abs=1e-7)  # 1e-8 stands beside the variance
    moved = torch.where(kept, values, 1e6)
    torch.testing.assert_close(whiten(moved, kept)[kept], found[kept])
    torch.testing.assert_close(whiten(5 * values - 7, kept), found, atol=1e-7, rtol=0)


def test_one_token_or_none_cannot_be_whitened() -> None:
    assert whiten(real(4.0, 5.0), torch.tensor([False, True])).tolist() == [-1.0, 0.0]
    assert whiten(real(4.0, 5.0), torch.tensor([False, False])).tolist() == [4.0, 5.0]
    assert whiten(torch.full((4,), 0.5), torch.ones(4, dtype=torch.bool)).tolist() == [0.0] * 4


@often
@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0.05, 20))
def test_the_best_value_is_beta_log_mean_exp(rewards: list[float], beta: float) -> None:
    expected = beta * math.log(sum(math.exp(r / beta) for r in rewards) / len(rewards))
    found = float(optimal_value(real(*rewards), beta))
    assert found == pytest.approx(expected, abs=1e-12)
    assert sum(rewards) / len(rewards) - 1e-12 <= found <= max(rewards) + 1e-12
    moved = float(optimal_value(real(*rewards) + 3, beta))
    assert moved == pytest.approx(found + 3, abs=1e-12)


def test_the_best_value_of_one_reward_is_that_reward() -> None:
    assert optimal_value(torch.tensor([[1.7], [-300.0]]), 0.003).tolist() == pytest.approx([1.7, -300.0])


@pytest.mark.parametrize("kind", [torch.float32, Double])
def test_the_best_value_goes_from_the_largest_reward_to_their_mean(kind: torch.dtype) -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0], dtype=kind)
    assert float(optimal_value(rewards, 1e-7)) == pytest.approx(6.0, abs=1e-6)
    assert float(optimal_value(rewards, 1e7)) == pytest.approx(3.0, abs=2e-6)
