"""Splits by group: disjoint, exact, seeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.data.split import split_prompts
from tiebreak.records import InputError, Prompt


def prompts(n: int, *, per_group: int = 1) -> list[Prompt]:
    return [Prompt(text=f"p{i}", group=f"g{i // per_group}") for i in range(n)]


def test_no_prompt_and_no_group_stands_on_two_sides_b7():
    asked = prompts(60, per_group=3)
    sets = split_prompts(asked, {"train": None, "test": 0.2, "validation": 2}, seed=1)
    group = {prompt.id: prompt.group for prompt in asked}
    sides = {name: {group[i] for i in ids} for name, ids in sets.items()}
    assert {name: len(groups) for name, groups in sides.items()} == {"train": 14, "test": 4, "validation": 2}
    assert len(set().union(*sides.values())) == 20
    assert sorted(i for ids in sets.values() for i in ids) == sorted(group)


def test_two_prompts_of_the_same_text_share_a_side_by_default():
    asked = [Prompt(text="same", fields={"n": n}) for n in range(2)] + prompts(10)
    sets = split_prompts(asked, {"a": 0.5, "b": 0.5}, seed=3)
    same = {prompt.id for prompt in asked[:2]}
    assert any(same <= set(ids) for ids in sets.values())


def test_the_seed_decides_and_the_order_of_the_prompts_does_not():
    asked = prompts(50)
    one = split_prompts(asked, {"train": 0.8, "test": 0.2}, seed=0)
    other = split_prompts(asked[::-1], {"train": 0.8, "test": 0.2}, seed=0)
    assert {name: set(ids) for name, ids in one.items()} == {name: set(ids) for name, ids in other.items()}
    assert one != split_prompts(asked, {"train": 0.8, "test": 0.2}, seed=1)
    place = {prompt.id: i for i, prompt in enumerate(asked)}
    assert all([place[i] for i in ids] == sorted(place[i] for i in ids) for ids in one.values())


def test_what_nobody_takes_comes_back_as_rest():
    assert {name: len(ids) for name, ids in split_prompts(prompts(10), {"test": 3}, seed=0).items()} == {
        "test": 3,
        "rest": 7,
    }
    assert set(split_prompts(prompts(10), {"test": 1.0}, seed=0)) == {"test"}


@given(st.integers(3, 40), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_fractions_that_add_up_to_one_use_every_group(n, weights):
    shares = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    if min(shares.values()) * n < 1:
        return
    sets = split_prompts(prompts(n), shares, seed=0)
    assert sum(map(len, sets.values())) == n
    assert all(abs(len(sets[name]) - share * n) < 1 for name, share in shares.items())


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({}, "names no sets"),
        ({"a": 11}, r"ask for 11 groups of prompts, there are 10"),
        ({"a": 0.7, "b": 0.7}, "ask for 14 groups"),
        ({"a": 1.5}, "a fraction lies in"),
        ({"a": -1}, "a count is not negative"),
        ({"a": True}, "expected a count, a fraction or null"),
        ({"a": "half"}, "expected a count, a fraction or null"),
        ({"a": None, "b": None}, "a and b both ask for the rest"),
        ({"a": 0.01}, "'a' would be empty with 10 groups"),
        ({"a": 10, "b": None}, "'b' would be empty"),
    ],
)
def test_shares_that_cannot_be_met_are_told(shares, says):
    with pytest.raises(InputError, match=says):
        split_prompts(prompts(10), shares, seed=0)
