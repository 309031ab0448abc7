"""Rows of every shape reach an objective as what they are, and rows that lack something are refused with the cure."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from tests.models.tiny import causal, ids
from tiebreak.models.forest import Tree
from tiebreak.records import InputError
from tiebreak.train.rows import Example, check_rows, mismatched, see, whole_of


def tree(branches: int, seed: int = 0) -> Tree:
    draw = random.Random(seed)
    return Tree(ids(draw, 4), tuple((*ids(draw, 2 + i), 0) for i in range(branches)))


def seen(rows: list[Example], kind: Any, **more: Any) -> Any:
    values = torch.arange(float(sum(row.values for row in rows)))
    return see(rows, values, head=False, kind=kind, **{"reference": None, **more})


def test_pairs_name_their_branches_and_carry_p_and_margin() -> None:
    made = seen([Example(tree(2), p=0.7, margin=2.0), Example(tree(2), p=0.9, margin=0.0, weight=3.0)], "pairs")
    assert made.chosen.tolist() == [0, 2]
    assert made.rejected.tolist() == [1, 3]
    assert made.p.tolist() == pytest.approx([0.7, 0.9])
    assert made.margin.tolist() == [2.0, 0.0]
    assert made.weight.tolist() == [1.0, 1.0, 3.0, 3.0]
    assert made.tree.tolist() == [0, 0, 1, 1]
    assert made.share is None


def test_a_list_is_all_its_strict_pairs_with_equal_shares_and_ties_are_none() -> None:
    made = seen([Example(tree(3), grades=(2.0, 1.0, 1.0)), Example(tree(2), grades=(1.0, 1.0))], "list")
    pairs = list(zip(made.chosen.tolist(), made.rejected.tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2)]
    assert made.share.tolist() == [0.5, 0.5]
    assert made.margin.tolist() == [1.0, 1.0]
    assert made.grades.tolist() == [2.0, 1.0, 1.0, 1.0, 1.0]
    assert made.tree.tolist() == [0, 0, 0, 1, 1]


def test_branches_beside_are_found_by_role_and_have_no_grade() -> None:
    rows = [
        Example(tree(3), beside=("rationale",)),
        Example(tree(2)),
        Example(tree(4), beside=("drawn", "rationale")),
    ]
    made = seen(rows, "pairs")
    assert {role: places.tolist() for role, places in made.beside.items()} == {"rationale": [2, 8], "drawn": [7]}
    assert made.chosen.tolist() == [0, 3, 5]
    graded = seen([Example(tree(3), grades=(1.0, 0.0), beside=("drawn",))], "list").grades.tolist()
    assert graded[:2] == [1.0, 0.0]
    assert math.isnan(graded[2])


def test_answers_that_stand_alone_have_a_label_or_ratings() -> None:
    rows = [Example(tree(1), grades=(1.0,)), Example(tree(2), grades=(0.25,), beside=("mismatched",))]
    made = seen(rows, "alone")
    assert made.alone.tolist() == [0, 1]
    assert made.label.tolist() == [1.0, 0.25]
    assert made.beside["mismatched"].tolist() == [2]
    rated = seen([Example(tree(1), ratings=(4.0, math.nan)), Example(tree(1), ratings=(1.0, 2.0))], "alone")
    assert rated.ratings[1].tolist() == [1.0, 2.0]
    assert torch.isnan(rated.ratings).tolist() == [[False, True], [False, False]]


def test_steps_stand_alone_one_by_one() -> None:
    taught = ((False, True, True),)
    rows = [Example(tree(1)._replace(taught=taught), steps=(1.0, 0.0), weight=2.0), Example(tree(1), steps=(0.5,) * 3)]
    made = seen(rows, "alone")
    assert made.alone.tolist() == [0, 1, 2, 3, 4]
    assert made.label.tolist() == [1.0, 0.0, 0.5, 0.5, 0.5]
    assert made.weight.tolist() == [2.0, 2.0, 1.0, 1.0, 1.0]
    assert whole_of(rows, "alone").weight == 7.0


def test_readings_are_columns_by_name() -> None:
    values = torch.arange(8.0).view(2, 4)
    readings = ("public", "collision", "token_kl")
    made = see([Example(tree(2))], values, head=False, kind="pairs", reference=values[:, :2], readings=readings)
    assert made.logps.tolist() == [0.0, 4.0]
    assert {name: column.tolist() for name, column in made.readings.items()} == {
        "public": [1.0, 5.0],
        "collision": [2.0, 6.0],
        "token_kl": [3.0, 7.0],
    }
    assert made.reference.tolist() == [0.0, 4.0]
    assert {name: column.tolist() for name, column in made.compared.items()} == {"public": [1.0, 5.0]}


@pytest.mark.parametrize(
    ("row", "kind", "needs", "said"),
    [
        (Example(tree(3)), "pairs", (), "3 completions; a pair objective needs 2, or a grade for each"),
        (Example(tree(1)), "pairs", (), "1 completions"),
        (Example(tree(2)), "list", (), "2 completions and 0 grades; the curate step ranked_list"),
        (Example(tree(2)), "alone", (), "should stand alone; the curate step unpair"),
        (Example(tree(1)), "alone", ("label",), "no label.*unpair"),
        (Example(tree(1), grades=(1.0,)), "alone", ("ratings",), "no ratings.*attributes"),
        (Example(tree(2)), "pairs", ("margin",), "no margin.*score_pairs"),
        (Example(tree(2)), "pairs", ("rationale",), "no rationale.*curate step rationale"),
        (Example(tree(2)), "pairs", ("drawn",), "no drawn"),
    ],
)
def test_a_row_that_lacks_something_says_what_and_who_makes_it(row: Example, kind: Any, needs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_rows([row], causal("llama").model, kind=kind, needs=needs)


def test_a_mismatched_completion_is_another_prompts_and_the_same_for_the_same_seed() -> None:
    rows = [Example(tree(1, seed), grades=(float(seed % 2),)) for seed in range(6)]
    twin = Example(rows[0].tree._replace(branches=((9, 9, 0),)), grades=(0.0,))
    made = mismatched([*rows, twin], 20, seed=3)
    assert made == mismatched([*rows, twin], 20, seed=3)
    assert made != mismatched([*rows, twin], 20, seed=4)
    owners = {branch: row.tree.trunk for row in [*rows, twin] for branch in row.tree.branches}
    for row, own in zip(made, [*rows, twin], strict=True):
        assert row.tree.branches[0] == own.tree.branches[0]
        assert row.beside == ("mismatched",)
        assert owners[row.tree.branches[1]] != row.tree.trunk
    with pytest.raises(InputError, match="two prompts or more"):
        mismatched([rows[0], twin], 20, seed=0)
