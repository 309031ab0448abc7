"""Bands: of a curriculum, easy first, and of an order by strength; and the steps that leave pairs out by a gap."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.curate.judgments import chosen, judged, listed, met, sides, through
from tiebreak.curate.order import band, bands, curriculum
from tiebreak.curate.pairing import best_against_rest
from tiebreak.curate.pairs import soft_label
from tiebreak.curate.steps import drop, first, margin
from tiebreak.curate.table import Rows, Texts
from tiebreak.records import InputError, Pair, Response


def gapped(*margins: float | None, prompt: str = "") -> list[Pair]:
    """Pairs with these margins, each of a prompt of its own unless there is one."""
    return [chosen(f"x{i:03}", f"y{i:03}", prompt=prompt or f"p{i}", margin=m) for i, m in enumerate(margins)]


def banded(done: Any) -> dict[str, int]:
    return {pair.chosen_id: pair.band for pair in done.rows}


def test_the_edges_are_shares_of_the_pairs_in_the_order_of_their_strength() -> None:
    pairs = gapped(*(float(value) for value in (3, -2, 0, 9, 1, -1, 4, 2, 8, 5)))
    done = bands(Rows({}, pairs))
    assert [pair.margin for pair in done.rows] == [-2, -1, 0, 1, 2, 3, 4, 5, 8, 9]
    assert [pair.band for pair in done.rows] == [0, 0, 1, 1, 2, 2, 2, 2, 2, 3]
    halves = bands(Rows({}, pairs), edges=[0.5]).rows
    assert Counter(pair.band for pair in halves) == {0: 5, 1: 5}
    assert bands(Rows({}, pairs), of="p").rows[0].band == 0


def test_stage_k_of_a_curriculum_holds_the_pairs_of_gap_rank_k() -> None:
    row = listed({"r1": 0.9, "r2": 0.8, "r3": 0.5, "r4": 0.1})
    pairs = through(Rows({}, [row]), best_against_rest, curriculum)
    assert [(pair.rejected_id, pair.band) for pair in pairs] == [("r4", 0), ("r3", 1), ("r2", 2)]
    many = gapped(1.0, -5.0, 3.0, 2.0, 0.5, prompt="p")
    assert banded(curriculum(Rows({}, many))) == {"x001": 0, "x002": 1, "x003": 2, "x000": 2, "x004": 2}
    assert banded(curriculum(Rows({}, gapped(1.0, 5.0)))) == {"x000": 0, "x001": 0}


def test_over_all_pairs_the_bands_are_of_one_size_and_easy_comes_first() -> None:
    done = curriculum(Rows({}, gapped(1.0, -6.0, 3.0, 2.0, 5.0, 4.0)), within="all")
    assert [abs(pair.margin or 0) for pair in done.rows] == [6, 5, 4, 3, 2, 1]
    assert [pair.band for pair in done.rows] == [0, 0, 1, 1, 2, 2]
    pairs = soft_label(judged(*met(("a", "b", 0.6), ("a", "c", 0.9)))).rows
    assert sides(curriculum(Rows({}, pairs), bands=2, within="all", of="p").rows) == [("a", "c"), ("a", "b")]


few = st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0, None]), min_size=1, max_size=25).filter(
    lambda margins: any(one is not None for one in margins)
)


@given(few, st.randoms(use_true_random=False), st.sampled_from(["prompt", "all"]), st.integers(1, 4))
def test_every_pair_is_in_one_band_and_ties_are_told_apart_by_id(
    margins: list[float | None], chance: Any, within: str, count: int
) -> None:
    pairs = gapped(*margins, prompt="p")
    turned = pairs[:]
    chance.shuffle(turned)
    for step in (partial(curriculum, bands=count, within=within), partial(bands, edges=(0.3, 0.6))):
        done, again = step(Rows({}, pairs)), step(Rows({}, turned))
        assert done == again
        assert len(done.rows) + done.dropped["no margin"] == len(pairs)
        assert done.dropped["no margin"] == margins.count(None)
        assert {pair.id for pair in done.rows} == {pair.id for pair in pairs if pair.margin is not None}
        there = {pair.band for pair in done.rows}
        by_band = [band(Rows({}, done.rows), keep=number).rows for number in there]
        assert sum(map(len, by_band)) == len(done.rows)


def test_one_band_is_kept_and_the_others_are_counted() -> None:
    pairs = [chosen(prompt=f"p{i}", band=number) for i, number in enumerate((0, 1, 1, 2, 4))]
    done = band(Rows({}, pairs), keep=1)
    assert done.rows == pairs[1:3]
    assert done.dropped == {"band 0": 1, "band 2": 1, "band 4": 1}
    assert band(Rows({}, pairs), keep=[0, 4]).rows == [pairs[0], pairs[4]]
    assert band(Rows({}, []), keep=7).rows == []
    for keep in (7, [0, 7]):
        with pytest.raises(InputError, match=r"band has keep = 7, and the rows have 0, 1, 2, 4\.$"):
            band(Rows({}, pairs), keep=keep)


def test_a_gap_below_the_bound_goes_and_so_does_a_pair_without_one() -> None:
    pairs = gapped(0.5, 1.0, 2.0, -3.0, None)
    done = margin(Rows({}, pairs))
    assert done.rows == pairs[1:3]
    assert done.dropped == {"no margin": 1, "gap below 1": 2}
    # 0.1 + 0.2 is not 0.3 in binary, and a gap of 0.3 is at least 0.3
    assert len(margin(Rows({}, [chosen(margin=0.8 - 0.5)]), least=0.3).rows) == 1


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20), st.floats(0, 3), st.floats(0, 3))
def test_a_higher_bound_keeps_no_more(margins: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    rows = Rows({}, gapped(*margins))
    fewer, more = (margin(rows, least=bound) for bound in (high, low))
    assert {pair.id for pair in fewer.rows} <= {pair.id for pair in more.rows}
    for done in (fewer, more):
        assert len(done.rows) + sum(done.dropped.values()) == len(margins)


def test_a_gap_of_scores_has_a_sign_too() -> None:
    pairs = [chosen(prompt=f"p{i}", scores=scores) for i, scores in enumerate([(4.0, 1.0), (1.0, 4.0), None])]
    done = margin(Rows({}, pairs), least=2, of="scores")
    assert done.rows == pairs[:1]
    assert done.dropped == {"no scores": 1, "gap below 2": 1}


def test_a_pair_with_the_same_text_on_both_sides_can_be_dropped() -> None:
    """Trap 33: such a pair has no gradient, and counts as right or wrong by chance."""
    texts = Texts()
    words = {"a": "Yes.", "b": " Yes.\n", "c": "No."}
    texts.add([Response(prompt_id="p", text=text, id=key) for key, text in words.items()])
    pairs = [chosen("a", "b"), chosen("a", "c"), chosen("c", "b", p=0.5)]
    done = drop(Rows({}, pairs, texts), what=["same_text", "ties"])
    assert done.rows == pairs[1:2]
    assert done.dropped == {"same text": 1, "ties": 1}


def test_the_first_lists_by_id_are_kept_too() -> None:
    lists = [listed({"a": 1.0, "b": 0.0}, prompt=f"p{i}") for i in range(6)]
    done = first(Rows({}, lists), n=2)
    assert done == first(Rows({}, lists[::-1]), n=2)
    assert [row.id for row in done.rows] == sorted(row.id for row in lists)[:2]
    assert done.dropped == {"past the first n": 4}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (bands, "bands reads the margin of pairs, and no pair has any"),
        (curriculum, "curriculum reads the margin of pairs"),
        (partial(margin, of="scores"), "margin reads the scores of pairs, and no pair has any; score_pairs makes them"),
        (partial(margin, of="p"), "of = 'p'; expected margin or scores"),
        (partial(margin, least="wide"), "least = 'wide'; expected a number"),
        (partial(bands, edges=[0.4, 0.2]), "expected each to be above the one before"),
        (partial(bands, edges=[0.4, 0.4]), "expected each to be above the one before"),
        (partial(bands, edges=[0.0, 0.4]), "expected shares between 0 and 1"),
        (partial(bands, edges=0.4), "edges = 0.4"),
        (partial(curriculum, bands=0), "bands = 0; expected a whole number"),
        (partial(curriculum, within="promt"), "within = 'promt'; expected prompt or all"),
        (band, "band reads the band of pairs, and some have none"),
        (partial(band, keep="easy"), "keep = 'easy'; expected the number of a band"),
    ],
)
def test_what_a_step_cannot_do_is_said_in_a_sentence(step: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        step(Rows({}, [chosen()]))
