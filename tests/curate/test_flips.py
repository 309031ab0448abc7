"""Sides exchanged: what has a side follows, what has none stays, and twice is nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.curate.judgments import chosen, judged, said, sides
from tiebreak.curate.flips import agrees, exchange, flip, plant_flips
from tiebreak.curate.table import Rows
from tiebreak.records import InputError, Pair

numbers = st.floats(-5, 5)


@given(
    st.floats(0.5, 1.0),
    st.one_of(st.none(), numbers),
    st.one_of(st.none(), st.tuples(numbers, numbers)),
    st.booleans(),
    st.sampled_from(["", "q"]),
)
def test_flipping_twice_is_the_identity(p: float, margin: Any, scores: Any, flipped: bool, other: str) -> None:
    pair = chosen(p=p, margin=margin, scores=scores, flipped=flipped, rejected_prompt_id=other, band=0, n=3)
    there = exchange(pair)
    assert exchange(there) == pair
    assert there != pair
    assert (there.chosen_id, there.rejected_id, there.p) == ("b", "a", p)
    assert there.flipped is not flipped
    assert flip(Rows({}, [pair])).rows == [there]
    assert flip(Rows({}, [there])).rows == [pair]


def test_the_sign_of_the_strength_follows_the_flip() -> None:
    """Trap 19: a margin that kept its sign would push the mended pair back."""
    there = exchange(chosen(margin=-1.5, spread=0.5, scores=(1.0, 4.0), judgment_ids=("j",)))
    assert (there.margin, there.spread, there.scores, there.judgment_ids) == (1.5, 0.5, (4.0, 1.0), ("j",))


def test_an_answer_to_another_prompt_takes_its_prompt_along() -> None:
    there = exchange(chosen("a", "b", rejected_prompt_id="q"))
    assert (there.prompt_id, there.chosen_id, there.rejected_prompt_id, there.rejected_id) == ("q", "b", "p", "a")


def test_a_rationale_argues_for_one_side() -> None:
    with pytest.raises(InputError, match="argues for its chosen side; exchange sides before rationale"):
        exchange(chosen(beside={"rationale": "r"}))


def test_a_band_is_flipped_or_what_has_a_negative_margin() -> None:
    pairs = [chosen(prompt=f"p{i}", band=i, margin=m) for i, m in enumerate((-1.0, -0.5, 2.0, None))]
    assert sides(flip(Rows({}, pairs)).rows) == [("b", "a"), ("a", "b"), ("a", "b"), ("a", "b")]
    assert sides(flip(Rows({}, pairs), what=[1, 2]).rows) == [("a", "b"), ("b", "a"), ("b", "a"), ("a", "b")]
    done = flip(Rows({}, pairs), what="negative")
    assert [pair.margin for pair in done.rows] == [1.0, 0.5, 2.0, None]
    assert flip(Rows({}, done.rows), what="negative").rows == done.rows


@pytest.mark.parametrize(
    ("pair", "what", "words"),
    [
        (chosen(), 0, "flip reads the band of pairs, and some have none; put bands or curriculum before it"),
        (chosen(), "negative", "flip reads the margin of pairs, and no pair has any; score_pairs or strength makes it"),
        (chosen(band=0), "negativ", "what = 'negativ'; expected the number of a band, a list of them, or negative"),
        (chosen(band=0), -1, "what = -1"),
        (chosen(band=0), True, "what = True"),
    ],
)
def test_a_flip_without_anything_to_go_by_is_refused(pair: Pair, what: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        flip(Rows({}, [pair]), what=what)


def test_planted_flips_are_as_many_as_asked_for_and_hang_on_the_seed_alone() -> None:
    pairs = [chosen(f"x{i}", f"y{i}", prompt=f"p{i}") for i in range(50)]
    done = plant_flips(Rows({}, pairs), share=0.3, seed=7).rows
    assert sum(pair.flipped for pair in done) == 15
    assert [exchange(pair) if pair.flipped else pair for pair in done] == pairs
    assert plant_flips(Rows({}, pairs[::-1]), share=0.3, seed=7).rows == done[::-1]
    assert plant_flips(Rows({}, pairs), share=0.3, seed=8).rows != done
    assert plant_flips(Rows({}, pairs), share=0.0).rows == pairs
    assert all(pair.flipped for pair in plant_flips(Rows({}, pairs), share=1.0).rows)
    with pytest.raises(InputError, match=r"share = 1\.5; expected a number from 0 to 1"):
        plant_flips(Rows({}, pairs), share=1.5)


def test_another_judge_keeps_drops_or_turns_a_pair() -> None:
    sure = {"p": 0.7, "q": 0.55, "r": 0.3, "s": 0.5}
    judgments = [said(p, prompt_id=prompt, by="model:gold@1") for prompt, p in sure.items()]
    humans = [said(winner=0, prompt_id=prompt, by="human:ann") for prompt in "pqrst"]
    rows = judged(*judgments, *humans, rows=[chosen(prompt=prompt) for prompt in "pqrst"])
    done = agrees(rows, by="model:gold@*", p=0.7)
    assert [pair.prompt_id for pair in done.rows] == ["p"]
    assert done.dropped == {"the judge is not sure": 2, "the judge disagrees": 1, "not judged by it": 1}
    turned = agrees(rows, by="model:gold@*", p=0.7, recycle=True)
    assert [(pair.prompt_id, pair.chosen_id, pair.flipped) for pair in turned.rows] == [
        ("p", "a", False),
        ("r", "b", True),
    ]
    assert "the judge disagrees" not in turned.dropped


def test_a_tie_has_no_side_to_agree_with_whatever_its_ids_are() -> None:
    judgments = [said(p, prompt_id=prompt, by="model:gold@1") for prompt, p in (("p", 0.9), ("q", 0.1))]
    rows = judged(*judgments, rows=[chosen(prompt=prompt, p=0.5) for prompt in "pqr"])
    for recycle in (False, True):
        done = agrees(rows, by="model:*", recycle=recycle)
        assert (done.rows, done.dropped, done.changed) == ([], {"ties": 3}, {"sides exchanged": 0})


def test_planted_wrong_labels_are_recycled_by_a_judge_that_knows() -> None:
    right = [chosen(f"x{i}", f"y{i}", prompt=f"p{i}") for i in range(200)]
    knows = [said(0.95, slots=(f"x{i}", f"y{i}"), prompt_id=f"p{i}", by="model:gold@1") for i in range(200)]
    spoilt = plant_flips(Rows({}, right), share=0.3, seed=1).rows
    dropped = agrees(judged(*knows, rows=spoilt), by="model:gold@1")
    assert len(dropped.rows) == 140
    assert dropped.dropped == {"the judge disagrees": 60}
    assert agrees(judged(*knows, rows=spoilt), by="model:gold@1", recycle=True).rows == right


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({}, "agrees needs by, the judge"),
        ({"by": "model:*"}, "no judgment is by 'model:\\*'; there are rule:x"),
        ({"by": "rule:x", "p": 0.4}, "p = 0.4; expected a number from 0.5 to 1"),
        ({"by": "rule:x", "recycle": "yes"}, "recycle = 'yes'; expected true or false"),
    ],
)
def test_a_judge_that_is_not_there_is_refused(knobs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        agrees(judged(said(0.9), rows=[chosen()]), **knobs)
