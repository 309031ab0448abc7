"""Forests of a batch: every tree once, none over budget, and no more forests than first-fit decreasing promises."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebreak.records import InputError
from tiebreak.train.pack import fill

sizes = st.lists(st.integers(0, 30), max_size=40)
budgets = st.integers(1, 40)


def fewest(trees: tuple[int, ...], budget: int) -> int:
    """The fewest forests by trying every place of every tree; forests with equal room are one case."""
    best = len(trees)

    def place(i: int, room: tuple[int, ...]) -> None:
        nonlocal best
        if len(room) >= best:
            return
        if i == len(trees):
            best = len(room)
            return
        for left in sorted(set(room)):
            if left >= trees[i]:
                rest = list(room)
                rest[rest.index(left)] -= trees[i]
                place(i + 1, tuple(sorted(rest)))
        place(i + 1, tuple(sorted((*room, budget - trees[i]))))

    place(0, ())
    return best


def test_large_trees_open_forests_and_small_ones_fill_the_first_with_room() -> None:
    assert fill([3, 7, 5, 2, 3], 10) == [[0, 1], [2, 3, 4]]


def test_first_fit_takes_the_earliest_forest_and_not_the_tightest() -> None:
    assert fill([6, 5, 5, 4], 10) == [[0, 3], [1, 2]]
    assert fill([4, 7, 6, 3], 10) == [[1, 3], [0, 2]]


def test_equal_trees_go_in_as_they_stand() -> None:
    assert fill([5, 5, 5, 5, 5], 10) == [[0, 1], [2, 3], [4]]


def test_without_a_budget_all_trees_are_one_forest_in_the_order_given() -> None:
    assert fill([9, 1, 5], None) == [[0, 1, 2]]


@pytest.mark.parametrize("budget", [None, 10])
def test_no_trees_need_no_forest(budget: int | None) -> None:
    assert fill([], budget) == []


def test_a_tree_over_budget_is_alone_and_first() -> None:
    assert fill([2, 50, 0, 3], 10) == [[1], [0, 2, 3]]


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_refused(budget: int) -> None:
    with pytest.raises(InputError, match="at least 1, or None"):
        fill([1], budget)


@given(sizes, budgets)
def test_every_tree_is_in_one_forest_in_ascending_order(trees: list[int], budget: int) -> None:
    forests = fill(trees, budget)
    assert sorted(tree for forest in forests for tree in forest) == list(range(len(trees)))
    assert all(forest and forest == sorted(forest) for forest in forests)


@given(sizes, budgets)
def test_only_a_tree_alone_exceeds_the_budget(trees: list[int], budget: int) -> None:
    for forest in fill(trees, budget):
        assert len(forest) == 1 or sum(trees[i] for i in forest) <= budget


@given(sizes, budgets)
def test_no_tree_would_have_fitted_into_an_earlier_forest(trees: list[int], budget: int) -> None:
    forests = fill(trees, budget)
    for later, forest in enumerate(forests):
        for earlier in forests[:later]:
            assert sum(trees[i] for i in earlier) + min(trees[i] for i in forest) > budget


@given(sizes, budgets)
def test_the_forests_are_fewer_than_twice_the_tokens_need(trees: list[int], budget: int) -> None:
    """Any two forests hold more than one budget together, so k of them hold more than k / 2 budgets."""
    fitting = [size for size in trees if size <= budget]
    over = len(trees) - len(fitting)
    forests = len(fill(trees, budget)) - over
    assert forests >= math.ceil(sum(fitting) / budget)
    assert forests < 2 * sum(fitting) / budget or forests <= 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=9), st.integers(20, 30))
def test_the_forests_keep_the_proven_bound(trees: list[int], budget: int) -> None:
    assert 9 * len(fill(trees, budget)) <= 11 * fewest(tuple(trees), budget) + 6


@given(sizes, budgets, st.randoms(use_true_random=False))
def test_the_sizes_of_the_forests_do_not_depend_on_the_order_of_the_rows(trees: list[int], budget: int, rng) -> None:
    mixed = rng.sample(trees, len(trees))
    assert [sorted(trees[i] for i in f) for f in fill(trees, budget)] == [
        sorted(mixed[i] for i in f) for f in fill(mixed, budget)
    ]
