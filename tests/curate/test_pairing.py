"""Which answers become pairs: each rule on planted grades gives the couples it says, and equal ones give none."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest

from tests.curate.judgments import chosen, judged, listed, met, sides
from tiebreak.curate.pairing import all_pairs, best_against_rest, best_random, best_second, best_worst, ranked
from tiebreak.curate.pairs import soft_label
from tiebreak.curate.table import Rows, Step
from tiebreak.records import InputError, Pair

NEITHER, TIE = "neither best nor worst", "best and worst tie"

REWARDS = {"w": 0.1, "x": 0.9, "y": 0.5, "z": 0.3}
ROUND = [("a", "b", 0.6), ("a", "c", 0.7), ("b", "c", 0.9), ("a", "d", 0.8), ("b", "d", 0.6), ("c", "d", 0.6)]
"""Each of four answers meets each: means a 0.7, b (0.4 + 0.9 + 0.6) / 3, c and d (0.3 + 0.1 + 0.6) / 3."""


def of_pairs(step: Any, *results: tuple[str, str, float]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    judgments = met(*results)
    done = step(judged(*judgments, rows=soft_label(judged(*judgments)).rows))
    return sides(done.rows), {why: count for why, count in done.dropped.items() if count}


def of_list(step: Any, grades: dict[str, float]) -> Step:
    return step(Rows({}, [listed(grades)]))


@pytest.mark.parametrize(
    ("step", "couples"),
    [
        (best_worst, [("x", "w")]),
        (best_second, [("x", "y")]),
        (best_against_rest, [("x", "w"), ("x", "z"), ("x", "y")]),
        (all_pairs, [("x", "y"), ("x", "z"), ("x", "w"), ("y", "z"), ("y", "w"), ("z", "w")]),
    ],
)
def test_a_rule_names_these_answers_of_a_fixed_list(step: Any, couples: list[tuple[str, str]]) -> None:
    done = of_list(step, REWARDS)
    assert sides(done.rows) == couples
    assert done.dropped.get("equal grades", 0) == 0
    for pair in done.rows:
        assert isinstance(pair, Pair)
        assert pair.scores == (REWARDS[pair.chosen_id], REWARDS[pair.rejected_id])
        assert pair.margin == pytest.approx(REWARDS[pair.chosen_id] - REWARDS[pair.rejected_id])
        assert pair.p == 1.0


@pytest.mark.parametrize("step", [best_worst, best_second, best_random, best_against_rest, all_pairs])
def test_equal_rewards_give_no_pair(step: Any) -> None:
    done = of_list(step, dict.fromkeys("wxyz", 0.4))
    assert done.rows == []
    assert done.dropped == {"equal grades": 1}


def test_only_answers_of_different_grades_are_paired() -> None:
    assert sides(of_list(all_pairs, {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0}).rows) == [
        ("a", "b"),
        ("a", "c"),
        ("a", "d"),
        ("b", "d"),
        ("c", "d"),
    ]
    assert sides(of_list(best_second, {"a": 1.0, "b": 1.0, "c": 0.0}).rows) == []
    assert sides(of_list(best_against_rest, {"a": 1.0, "b": 1.0, "c": 0.0}).rows) == [("a", "c")]


def test_the_pair_of_a_list_carries_what_the_list_has() -> None:
    row = listed({"a": 0.9, "b": 0.2}, judgment_ids=("j1", "j2"), weight=2.0, user="ann")
    (pair,) = all_pairs(Rows({}, [row])).rows
    assert isinstance(pair, Pair)
    assert (pair.judgment_ids, pair.n, pair.weight, pair.user) == (("j1", "j2"), 2, 2.0, "ann")


def test_a_list_that_cannot_be_paired_is_dropped_with_its_reason() -> None:
    rows = [
        listed({"a": 1.0}, prompt="alone"),
        listed({"a": 1.0, "b": 1.0}, prompt="alike"),
        listed({"a": 1.0, "b": 0.0}, prompt="p", prompt_ids=("p", "q")),
        listed({"a": 1.0, "b": 0.0}, prompt="p", prompt_ids=("p", "p")),
    ]
    done = all_pairs(Rows({}, rows))
    assert len(done.rows) == 1
    assert done.dropped == {"no two answers": 1, "equal grades": 1, "answers to different prompts": 1}


def test_chance_hangs_on_the_seed_and_on_ids_and_draws_each_other_answer_alike() -> None:
    lists = [listed(REWARDS, prompt=f"p{i}") for i in range(3000)]
    done = best_random(Rows({}, lists), seed=1)
    assert done.rows == best_random(Rows({}, lists[::-1]), seed=1).rows[::-1]
    assert done.rows != best_random(Rows({}, lists), seed=2).rows
    drawn = Counter(sides(done.rows))
    assert set(drawn) == {("x", "w"), ("x", "y"), ("x", "z")}
    assert all(abs(count - 1000) < 130 for count in drawn.values())  # five standard deviations


def test_of_each_prompt_the_pair_of_best_and_worst_is_kept_as_it_was_judged() -> None:
    judgments = [*met(*ROUND), *met(("x", "y", 0.2), prompt="q")]
    every = soft_label(judged(*judgments)).rows
    done = best_worst(Rows({}, every))
    assert sides(done.rows) == [("a", "d"), ("y", "x")]
    assert all(pair in every for pair in done.rows)
    assert done.dropped[NEITHER] == 5
    assert best_worst(Rows({}, every[::-1])).rows == done.rows[::-1]


def test_wins_are_means_so_an_answer_met_more_often_wins_no_more() -> None:
    often = [("a", "b", 0.6), ("a", "c", 0.6), ("a", "d", 0.6), ("a", "e", 0.6)]
    assert of_pairs(best_worst, *often, ("f", "e", 0.9)) == ([("f", "e")], {NEITHER: 4})


def test_among_equals_the_best_is_the_first_by_id_and_the_worst_the_last() -> None:
    results = [("b", "a", 0.5), ("d", "c", 0.5), *((low, high, 0.1) for low in "dc" for high in "ba")]
    assert of_pairs(best_worst, *results)[0] == [("a", "d")]
    assert sides(of_list(best_worst, {"d": 0.0, "b": 1.0, "a": 1.0, "c": 0.0}).rows) == [("a", "d")]


@pytest.mark.parametrize(
    ("results", "dropped"),
    [
        ([("a", "b", 0.5)], {TIE: 1}),
        ([("a", "b", 0.9), ("b", "c", 0.9), ("c", "a", 0.9)], {TIE: 1, NEITHER: 2}),
        ([("a", "b", 0.9), ("b", "c", 0.9)], {"best and worst were not judged together": 1, NEITHER: 1}),
        ([("a", "b", 0.5), ("a", "c", 0.9), ("c", "b", 0.9)], {TIE: 1, NEITHER: 2}),
        ([("a", "b", 0.4), ("a", "c", 0.9), ("c", "b", 0.9)], {"the worst beat the best": 1, NEITHER: 2}),
    ],
)
def test_a_prompt_without_a_best_that_beat_its_worst_goes_and_is_counted_once(
    results: list[tuple[str, str, float]], dropped: dict[str, int]
) -> None:
    assert of_pairs(best_worst, *results) == ([], dropped)


def test_the_other_rules_keep_judged_pairs_too() -> None:
    assert of_pairs(best_second, *ROUND) == ([("a", "b")], {"not the best two": 5})
    assert of_pairs(best_against_rest, *ROUND) == (
        [("a", "d"), ("a", "c"), ("a", "b")],
        {"without the best answer": 3},
    )
    kept, dropped = of_pairs(partial(best_random, seed=3), *ROUND)
    assert kept[0] in [("a", "b"), ("a", "c"), ("a", "d")]
    assert dropped == {"not the pair that was drawn": 5}


def test_the_best_that_lost_once_is_not_said_to_have_won() -> None:
    kept, dropped = of_pairs(best_against_rest, ("a", "b", 0.4), ("a", "c", 0.9), ("a", "d", 0.9), ("b", "c", 0.5))
    # means: a 0.73, b (0.6 + 0.5) / 2, c (0.1 + 0.5) / 2, d 0.1
    assert kept == [("a", "d"), ("a", "c")]
    assert dropped == {"the best answer lost": 1, "without the best answer": 1}


def test_ranked_keeps_what_agrees_with_the_mean_win_probability_and_its_p() -> None:
    judgments = met(
        ("a", "b", 0.9), ("b", "c", 0.8), ("a", "c", 0.4), ("a", "d", 0.95), ("b", "d", 0.7), ("c", "d", 0.5)
    )
    every = soft_label(judged(*judgments)).rows
    done = ranked(Rows({}, every))
    # means: a 0.75, b (0.1 + 0.8 + 0.7) / 3, c (0.2 + 0.6 + 0.5) / 3, d (0.05 + 0.3 + 0.5) / 3
    assert [(pair.chosen_id, pair.rejected_id, pair.p) for pair in done.rows] == [
        ("a", "b", 0.9),
        ("a", "d", 0.95),
        ("b", "c", 0.8),
        ("b", "d", 0.7),
    ]
    assert {why: n for why, n in done.dropped.items() if n} == {"judged against the ranking": 1, "equal rank": 1}


def test_a_circle_has_no_ranking_and_gives_no_pair() -> None:
    assert of_pairs(ranked, ("a", "b", 0.9), ("b", "c", 0.9), ("c", "a", 0.9)) == ([], {"equal rank": 3})


def test_users_and_prompts_are_kept_apart() -> None:
    pairs = [chosen("a", "b", user="ann"), chosen("b", "a", user="bob"), chosen("c", "d", rejected_prompt_id="q")]
    done = best_worst(Rows({}, pairs))
    assert done.rows == pairs[:2]
    assert done.dropped["answers to different prompts"] == 1


@pytest.mark.parametrize(
    ("step", "rows", "words"),
    [
        (best_worst, None, "'best_worst' has no pairs yet; begin with soft_label"),
        (ranked, [listed(REWARDS)], "'ranked' works on pairs and comes after one that made lists"),
        (all_pairs, [chosen()], "'all_pairs' works on graded answers"),
        (partial(best_random, seed=-1), [chosen()], "seed = -1; expected a whole number"),
    ],
)
def test_rows_that_a_rule_cannot_take_are_refused(step: Any, rows: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        step(Rows({}, rows))
