"""Rows of graded answers: by wins, by ratings, by votes for one of n, and each answer alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.curate.judgments import chosen, judged, listed, marked, met, said, through
from tiebreak.curate.lists import attributes, choice_of_n, ranked_list, unpair
from tiebreak.curate.pairing import all_pairs, best_worst
from tiebreak.curate.pairs import soft_label
from tiebreak.curate.price import penalise_length
from tiebreak.curate.table import Rows, Texts
from tiebreak.records import Graded, InputError, Response

RESULTS = [("a", "b", 0.6), ("a", "c", 0.7), ("b", "c", 0.9)]


def grades(row: Any) -> dict[str, float]:
    return dict(zip(row.response_ids, row.grades, strict=True))


def counted(done: Any) -> dict[str, int]:
    return {why: count for why, count in done.dropped.items() if count}


def test_a_list_is_graded_by_the_mean_win_probability_the_best_first() -> None:
    judgments = [*met(*RESULTS), said(0.2, slots=("x", "y"), prompt_id="q"), said(verdict="skip", prompt_id="r")]
    done = ranked_list(judged(*judgments))
    first, second = done.rows
    # over the others: a (0.6 + 0.7) / 2, b (0.4 + 0.9) / 2, c (0.3 + 0.1) / 2; a and b tie and a comes first by id
    assert grades(first) == {"a": 0.65, "b": 0.65, "c": 0.2}
    assert list(first.response_ids) == ["a", "b", "c"]
    assert list(grades(second).items()) == [("y", 0.8), ("x", 0.2)]
    assert first.judgment_ids == tuple(sorted(judgment.id for judgment in judgments[:3]))
    assert counted(done) == {"no readable verdict": 1}


def test_pairs_and_judgments_give_the_same_list() -> None:
    rows = judged(*met(*RESULTS))
    assert through(rows, soft_label, ranked_list) == through(rows, ranked_list)


def test_a_list_can_be_graded_by_ratings() -> None:
    judgments = [
        marked({"help": [5, 2], "true": [1, None]}),
        marked({"help": [4, 1], "true": [3, 3]}, slots=("b", "c")),
        marked({"help": [3, None]}, prompt_id="q"),
        marked({"help": [None, None]}, prompt_id="r"),
        said(0.9, prompt_id="s"),
        marked({"help": [3, 1]}, prompt_id="t", verdict="both_bad"),
    ]
    by = partial(ranked_list, judged(*judgments))
    done = by(grade="mean")
    # help: a 5, b (2 + 4) / 2, c 1; true: a 1, b 3, c 3; all three are rated on both
    assert [grades(row) for row in done.rows] == [{"a": 3.0, "b": 3.0, "c": 2.0}]
    assert counted(done) == {"no two answers": 1, "no ratings": 2, "no readable verdict": 1}
    assert grades(by(grade="help").rows[0]) == {"a": 5.0, "b": 3.0, "c": 1.0}
    assert list(by(grade={"help": 1.0, "true": -2.0}).rows[0].response_ids) == ["a", "b", "c"]
    assert grades(by(grade={"true": 1.0}).rows[0]) == {"b": 3.0, "c": 3.0, "a": 1.0}


def test_a_list_by_ratings_makes_pairs_with_gaps() -> None:
    four = [marked({"score": [9, 4, 7, 4]}, slots=("w", "x", "y", "z"))]
    pairs = through(judged(*four), partial(ranked_list, grade="score"), all_pairs)
    assert [(pair.chosen_id, pair.rejected_id, pair.margin) for pair in pairs] == [
        ("w", "y", 2.0),
        ("w", "x", 5.0),
        ("w", "z", 5.0),
        ("y", "x", 3.0),
        ("y", "z", 3.0),
    ]


def test_one_of_n_is_graded_by_its_share_of_votes() -> None:
    names = ("x", "y", "z")
    votes = [said(winner=winner, slots=names, attempt=i) for i, winner in enumerate((1, 1, 2))]
    tie = said(slots=names, attempt=3)
    other = said(verdict="both_bad", slots=names, prompt_id="q")
    done = choice_of_n(judged(*votes, tie, other))
    assert [grades(row) for row in done.rows] == [
        {"y": pytest.approx((2 + 1 / 3) / 4), "z": pytest.approx((1 + 1 / 3) / 4), "x": pytest.approx(1 / 12)}
    ]
    assert counted(done) == {"no readable verdict": 1}


def test_an_answer_has_the_mean_of_its_ratings_and_none_where_it_has_none() -> None:
    judgments = [
        marked({"help": [4, 2], "short": [None, 1]}),
        marked({"help": [1, 5]}, slots=("b", "a"), verdict="invalid"),
        marked({"short": [3, 2]}, prompt_id="q"),
        said(0.9, prompt_id="r"),
    ]
    done = attributes(judged(*judgments))
    assert [(row.prompt_id, row.response_ids, row.ratings) for row in done.rows] == [
        ("p", ("a",), ({"help": 4.5, "short": None},)),
        ("p", ("b",), ({"help": 1.5, "short": 1.0},)),
        ("q", ("a",), ({"help": None, "short": 3.0},)),
        ("q", ("b",), ({"help": None, "short": 2.0},)),
    ]
    assert counted(done) == {"no ratings": 1}
    assert done.rows[0].grades == ()
    with pytest.raises(InputError, match=r"the aspect 'shirt', which nothing rates; .*short\. Did you mean 'short'\?"):
        attributes(judged(*judgments), aspects=["short", "shirt"])
    some = attributes(judged(*judgments), aspects=["short"])
    assert [row.ratings[0] for row in some.rows] == [{"short": 1.0}, {"short": 3.0}, {"short": 2.0}]
    assert counted(some) == {"no ratings": 1}


def test_a_pair_comes_apart_into_two_answers() -> None:
    pairs = [chosen("a", "b", p=0.75, weight=2.0, user="ann", judgment_ids=("j",))]
    rows = unpair(Rows({}, pairs)).rows
    assert {row.response_ids[0]: row.grades for row in rows} == {"a": (1.0,), "b": (0.0,)}
    assert {(row.weight, row.user, row.judgment_ids) for row in rows} == {(2.0, "ann", ("j",))}
    soft = unpair(Rows({}, pairs), soft=True).rows
    assert {row.response_ids[0]: row.grades for row in soft} == {"a": (0.75,), "b": (0.25,)}


def test_a_tie_comes_apart_only_into_soft_labels() -> None:
    tie = Rows({}, [chosen(p=0.5)])
    assert (unpair(tie).rows, unpair(tie).dropped) == ([], {"ties": 1})
    assert [row.grades for row in unpair(tie, soft=True).rows] == [(0.5,), (0.5,)]
    assert unpair(tie, soft=True).dropped == {"ties": 0}


def test_the_two_sides_of_a_pair_are_never_near_each_other() -> None:
    """Trap 14: sorted together, the mismatched answer of KTO's baseline is the other side of the same pair."""
    n = 100
    pairs = [chosen(f"x{i}", f"y{i}", prompt=f"p{i}") for i in range(n)]
    rows = unpair(Rows({}, pairs)).rows
    assert len(rows) == 2 * n
    assert all(rows[i].prompt_id == rows[i + n].prompt_id for i in range(n))
    assert all(rows[i].grades != rows[i + n].grades for i in range(n))
    assert 30 < sum(row.grades == (1.0,) for row in rows[:n]) < 70
    assert rows == unpair(Rows({}, pairs[::-1])).rows
    assert [row.prompt_id for row in rows[:n]] != [pair.prompt_id for pair in pairs]


def test_a_rejected_side_of_another_prompt_stands_alone_with_its_own() -> None:
    rows = unpair(Rows({}, [chosen("a", "b", rejected_prompt_id="q")])).rows
    assert {(row.prompt_id, row.response_ids) for row in rows} == {("p", ("a",)), ("q", ("b",))}


def test_length_costs_a_price_and_ranks_the_answers_anew() -> None:
    texts = Texts()
    made = [Response(prompt_id="p", text="x" * size, id=key) for key, size in (("a", 30), ("b", 10), ("c", 5))]
    texts.add(made)
    row = listed({"a": 0.9, "b": 0.8, "c": 0.1}, ratings=({"m": 1}, {"m": 2}, {"m": 3}))
    (cut,) = penalise_length(Rows({}, [row], texts), per_character=0.01).rows
    assert grades(cut) == {"b": 0.7, "a": 0.6, "c": 0.05}
    assert [one["m"] for one in cut.ratings] == [2, 1, 3]
    assert through(Rows({}, [row], texts), partial(penalise_length, per_character=0.0)) == [row]
    (pair,) = through(Rows({}, [row], texts), partial(penalise_length, per_character=0.05), best_worst)
    assert (pair.chosen_id, pair.rejected_id) == ("b", "a")


@pytest.mark.parametrize(
    ("step", "rows", "words"),
    [
        (partial(ranked_list, grade="mean"), [chosen()], "off judgments: make it the first step"),
        (partial(ranked_list, by="human:*"), [chosen()], "off judgments: make it the first step"),
        (partial(ranked_list, grade="mean"), None, "no judgment has any"),
        (attributes, None, "no judgment has any"),
        (choice_of_n, [chosen()], "'choice_of_n' derives rows"),
        (unpair, [Graded(prompt_id="p", response_ids=("a",), grades=(1.0,))], "works on pairs.*made answers"),
        (partial(unpair, soft=1), [chosen()], "soft = 1; expected true or false"),
        (penalise_length, [Graded(prompt_id="p", response_ids=("a",))], "some rows have none; put ranked_list"),
    ],
)
def test_rows_that_a_step_cannot_take_are_refused(step: Any, rows: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        step(judged(said(0.9), rows=rows))
