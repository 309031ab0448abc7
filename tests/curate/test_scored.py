"""Pairs by ratings: of two answers that were rated together, the better marks are the chosen side."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.curate.judgments import judged, marked, said, sides
from tiebreak.curate.marks import overall, rated
from tiebreak.curate.scored import score_pairs
from tiebreak.records import InputError, Judgment, Pair


def one(*judgments: Judgment, **knobs: Any) -> Pair:
    (pair,) = score_pairs(judged(*judgments), **knobs).rows
    assert isinstance(pair, Pair)
    return pair


def why(*judgments: Judgment, **knobs: Any) -> dict[str, int]:
    done = score_pairs(judged(*judgments), **knobs)
    assert done.rows == []
    return {reason: count for reason, count in done.dropped.items() if count}


BOTH = marked({"helpful": [4, 2], "true": [3, 4]})


def test_the_pair_has_the_scores_of_both_sides_and_their_gap() -> None:
    pair = one(BOTH)
    assert (pair.chosen_id, pair.rejected_id, pair.scores, pair.margin, pair.p) == ("a", "b", (3.5, 3.0), 0.5, 1.0)
    assert (pair.n, pair.conflict, pair.judgment_ids) == (1, False, (BOTH.id,))


def test_one_aspect_or_a_weighted_sum_can_order_the_other_way() -> None:
    assert sides([one(BOTH, of="helpful"), one(BOTH, of="true")]) == [("a", "b"), ("b", "a")]
    pair = one(BOTH, of={"helpful": 1.0, "true": 3.0})
    assert (pair.chosen_id, pair.scores, pair.margin) == ("b", (14.0, 13.0), 1.0)
    assert one(BOTH, of={"helpful": -1.0}).chosen_id == "b"


def test_what_does_not_apply_is_out_of_the_mean_and_never_a_zero() -> None:
    partly = marked({"helpful": [4, 3], "honest": [None, 5]})
    assert one(partly).scores == (4.0, 3.0)  # over helpful, which both are rated on
    assert why(partly, of="fine_grained") == {"equal scores": 1}  # 4 against (3 + 5) / 2
    assert why(partly, of="honest") == {"no ratings that compare the answers": 1}


def test_ratings_follow_their_answer_when_the_slots_turn() -> None:
    there, back = marked({"m": [5, 1]}), marked({"m": [3, 4]}, slots=("b", "a"), attempt=1)
    pair = one(there, back)
    assert (pair.chosen_id, pair.scores, pair.n, pair.conflict) == ("a", (4.5, 2.0), 2, False)
    other = marked({"m": [1, 2]}, attempt=2)
    assert one(there, back, other).conflict


def test_all_strict_orders_of_answers_rated_in_one_prompt() -> None:
    four = marked({"m": [2, 5, 2, 3]}, slots=("w", "x", "y", "z"))
    done = score_pairs(judged(four))
    assert sides(done.rows) == [("x", "w"), ("z", "w"), ("x", "y"), ("x", "z"), ("z", "y")]
    assert sides(score_pairs(judged(four), gap=2).rows) == [("x", "w"), ("x", "y"), ("x", "z")]
    assert why(four, gap=4) == {"gap below 4": 1}


@pytest.mark.parametrize(
    ("judgment", "knobs", "reason"),
    [
        (marked({"m": [2, 2]}), {}, "equal scores"),
        (marked({"m": [3, 2]}), {"gap": 1.5}, "gap below 1.5"),
        (marked({"m": [3, 2]}, winner=1), {"agree": True}, "the scores contradict the verdict"),
        (marked({"m": [3, 2]}, verdict="both_bad"), {}, "no readable verdict"),
        (marked({"m": [3, 2]}, verdict="invalid"), {}, "no readable verdict"),
        (marked({"m": [3]}, slots=("a",)), {}, "not a pair of responses"),
    ],
)
def test_an_item_without_a_pair_is_counted_with_its_reason(judgment: Judgment, knobs: Any, reason: str) -> None:
    assert why(judgment, **knobs) == {reason: 1}


def test_a_verdict_that_agrees_or_ties_does_not_contradict() -> None:
    assert one(marked({"m": [3, 2]}, winner=0), agree=True).chosen_id == "a"
    assert one(marked({"m": [3, 2]}), agree=True).chosen_id == "a"
    assert one(marked({"m": [3, 2]}, winner=1)).chosen_id == "a"


def test_the_ratings_of_named_judges_count() -> None:
    judgments = [marked({"m": [3, 2]}, by="model:x@1"), marked({"m": [1, 5]}, by="model:y@1")]
    assert one(*judgments, by="model:x@*").chosen_id == "a"
    assert one(*judgments, by=["model:y@1"]).chosen_id == "b"
    other = marked({"m": [1, 5]}, by="model:y@1", prompt_id="q")
    assert score_pairs(judged(judgments[0], other), by="model:x*").dropped["not judged by those named"] == 1


@pytest.mark.parametrize(
    ("judgments", "knobs", "words"),
    [
        ([said(0.9)], {}, "score_pairs has of = 'mean', which reads ratings, and no judgment has any"),
        ([BOTH], {"of": "helpfull"}, "of = 'helpfull'; expected mean, fine_grained, helpful, true.*'helpful'"),
        ([BOTH], {"of": {"helpful": 0}}, "expected a number for each aspect, not all of them 0"),
        ([BOTH], {"of": {"quality": 1}}, "'quality'"),
        ([BOTH], {"gap": -1}, "gap = -1; expected a number of at least 0"),
        ([BOTH], {"gap": float("nan")}, "gap = nan"),
        ([BOTH], {"by": "human:*"}, "no judgment is by 'human:\\*'; there are rule:x"),
        ([BOTH], {"by": 3}, "by = 3; expected the name of a judge"),
        ([marked({"m": [1, 2, 3]})], {}, "m = \\[1, 2, 3\\]; expected a number or null for each of its 2 answers"),
        ([marked({"m": ["good", "bad"]})], {}, "expected a number or null"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(judgments: Any, knobs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        score_pairs(judged(*judgments), **knobs)


marks = st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=3, max_size=3)


@given(st.lists(marks, min_size=1, max_size=4), st.permutations(range(3)), st.sampled_from(["mean", "fine_grained"]))
def test_the_order_in_which_answers_were_shown_changes_no_score(
    ratings: list[list[int | None]], turn: list[int], of: str
) -> None:
    names = ("x", "y", "z")
    plain = marked({f"m{i}": row for i, row in enumerate(ratings)}, slots=names)
    turned = marked(
        {f"m{i}": [row[place] for place in turn] for i, row in enumerate(ratings)},
        slots=tuple(names[place] for place in turn),
    )
    assert overall(rated([plain]), of) == overall(rated([turned]), of)
    there, back = (score_pairs(judged(one), of=of) for one in (plain, turned))
    assert sides(there.rows) == sides(back.rows)
    assert [pair.scores for pair in there.rows] == [pair.scores for pair in back.rows]
    assert there.dropped == back.dropped
