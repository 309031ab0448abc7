"""Demands that a machine checks, and pairs of one answer behind two prompts."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.texts import Read, Told, question
from tiebreak.curate.constraints import KINDS, constraints, demands_of, holds
from tiebreak.records import InputError, Message, Pair

TEXT = "Paris is the capital of France, with 2 million people.\n\n- museums\n- bridges over the river"
OTHER = "It may well be Lyon!"

TABLE = [
    ("words", ["at most", 15], TEXT, True),
    ("words", ["at most", 14], TEXT, False),
    ("words", ["at least", 15], TEXT, True),
    ("words", ["at most", 3], "one two  three\n", True),
    ("words", ["at most", 2], "one two  three\n", False),
    ("words", ["at least", 3], "one two  three\n", True),
    ("words", ["at least", 4], "one two  three\n", False),
    ("paragraphs", 2, TEXT, True),
    ("paragraphs", 1, TEXT, False),
    ("paragraphs", 1, "\none\ntwo\n", True),
    ("paragraphs", 3, "one\n \ntwo\n\n\n\nthree\n\n", True),
    ("bullets", 2, TEXT, True),
    ("bullets", 0, "2 - 1 is 1", True),
    ("bullets", 1, "  * one\n**bold**", True),
    ("keyword", ["with", "capital"], TEXT, True),
    ("keyword", ["without", "capital"], TEXT, False),
    ("keyword", ["with", "capita"], TEXT, False),
    ("keyword", ["with", "straße"], "STRASSE", False),
    ("keyword", ["with", "strasse"], "Straße", True),
    ("first_word", "paris", TEXT, True),
    ("first_word", "par", TEXT, False),
    ("first_word", "yes", "**Yes**, it is", True),
    ("ending", ["with", "!"], OTHER, True),
    ("ending", ["without", "!"], OTHER + "\n", False),
    ("ending", ["with", "."], TEXT, False),
    ("letters", "small", "all of it", True),
    ("letters", "small", "All of it", False),
    ("letters", "capital", "All of it", True),
    ("digits", ["with"], TEXT, True),
    ("digits", ["without"], OTHER, True),
    ("commas", ["with"], TEXT, True),
    ("commas", ["without"], TEXT, False),
]


@pytest.mark.parametrize(("kind", "value", "text", "met"), TABLE)
def test_a_checker_says_what_a_reader_would(kind: str, value: Any, text: str, met: bool) -> None:
    assert holds(kind, value, text) is met


def test_there_are_nine_kinds_and_each_is_in_the_table() -> None:
    assert {kind for kind, *_ in TABLE} == set(KINDS)
    assert len(KINDS) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_offers_what_a_text_meets_and_what_it_violates_in_words_of_its_own(kind: str) -> None:
    offers = KINDS[kind].offers(TEXT, OTHER)
    assert {holds(kind, value, TEXT) for value in offers} == {True, False}
    sentences = [KINDS[kind].says(value) for value in offers]
    assert len(set(sentences)) == len(offers)
    assert all(sentence.endswith(".") and sentence[0].isupper() for sentence in sentences)


def test_no_word_is_both_demanded_as_the_first_and_forbidden() -> None:
    first = set(KINDS["first_word"].offers("Paris, I say Paris", "Lyon perhaps"))
    words = {word for _, word in KINDS["keyword"].offers("Paris, I say Paris again", "Lyon perhaps, never")}
    assert first == {"paris", "lyon", "perhaps"}
    assert words == {"again", "never"}


texts = st.text(alphabet="ab cD.,!?\n-*1é", max_size=60)


@settings(max_examples=200, deadline=None)
@given(texts, texts, st.integers(1, 4), st.sampled_from(["one", "all"]), st.integers(0, 99))
def test_every_demand_is_met_or_violated_as_it_is_said_to_be(
    text: str, other: str, n: int, violate: str, seed: int
) -> None:
    twin = demands_of(text, other, n=n, violate=violate, kinds=list(KINDS), chance=random.Random(seed))
    if twin is None:
        return
    assert [holds(kind, value, text) for kind, value, _ in twin.met] == [True] * n
    violated = [not holds(kind, value, text) for kind, value, _ in twin.violated]
    assert sum(violated) == (1 if violate == "one" else n)
    assert [demand.kind for demand in twin.met] == [demand.kind for demand in twin.violated]
    assert len({demand.kind for demand in twin.met}) == n
    assert all(one == other for one, other, bad in zip(twin.met, twin.violated, violated, strict=True) if not bad)


def asked() -> Told:
    told = Told()
    talk = question((Message("system", "Be brief."), Message("user", "The capital of France?")))
    told.pair(talk, TEXT, OTHER)
    told.pair(question("And of Spain?"), "Madrid, of course.", "I do not know")
    return told


def check(told: Told, pair: Pair, read: Read) -> list[list[bool]]:
    """What the checker says of the demands of both prompts of a pair."""
    sides = ((pair.prompt_id, pair.chosen_id), (pair.rejected_prompt_id, pair.rejected_id))
    return [[holds(*demand, read.text(key)) for demand in read.prompt(at).fields["demands"]] for at, key in sides]


@pytest.mark.parametrize("violate", ["one", "all"])
def test_one_answer_stands_behind_demands_it_meets_over_demands_it_violates(violate: str) -> None:
    told = asked()
    done = told.later(constraints, violate=violate, keep=False, weight=0.5)
    read = Read(told, done)
    assert [read.text(pair.chosen_id) for pair in done.rows] == [
        TEXT,
        OTHER,
        "Madrid, of course.",
        "I do not know",
    ]
    for pair in done.rows:
        assert read.text(pair.chosen_id) == read.text(pair.rejected_id)
        met, violated = check(told, pair, read)
        assert met == [True] * 3
        assert violated.count(False) == (1 if violate == "one" else 3)
        assert (pair.p, pair.weight, pair.n, pair.judgment_ids) == (1.0, 0.5, 0, ())
        assert read.prompt(pair.prompt_id).group == read.prompt(pair.rejected_prompt_id).group
    assert "\n- " in read.prompt(done.rows[0].prompt_id).text[-1].content


def test_the_reversed_flag_flips_the_label() -> None:
    """A reward that counts the demands met prefers the chosen side, and the other one when the sides are exchanged."""
    told = asked()
    done = told.later(constraints, keep=False)
    read = Read(told, done)
    gaps = [sum(met) - sum(violated) for pair in done.rows for met, violated in [check(told, pair, read)]]
    assert all(gap > 0 for gap in gaps)
    turned = [
        Pair(
            prompt_id=pair.rejected_prompt_id,
            chosen_id=pair.rejected_id,
            rejected_id=pair.chosen_id,
            rejected_prompt_id=pair.prompt_id,
        )
        for pair in done.rows
    ]
    assert [sum(a) - sum(b) for pair in turned for a, b in [check(told, pair, read)]] == [-gap for gap in gaps]


def test_pairs_stay_in_front_and_each_answer_is_used_once() -> None:
    told = asked()
    chosen, rejected = told.rows[0].chosen_id, told.rows[0].rejected_id
    told.rows.append(Pair(prompt_id=told.rows[0].prompt_id, chosen_id=rejected, rejected_id=chosen, p=0.6))
    done = told.later(constraints)
    assert done.rows[:3] == told.rows
    assert len(done.rows) == 3 + 4
    assert [len(told.later(constraints, of=side, keep=False).rows) for side in ("chosen", "rejected")] == [3, 3]


def test_draws_hang_on_the_seed_and_the_answer_alone() -> None:
    told = asked()
    one, same, other = (told.later(constraints, keep=False, seed=seed).rows for seed in (0, 0, 1))
    assert one == same
    assert one != other
    told.rows = told.rows[::-1]
    assert sorted(pair.id for pair in told.later(constraints, keep=False).rows) == sorted(pair.id for pair in one)


def test_an_answer_that_too_few_demands_fit_is_counted() -> None:
    told = Told()
    told.pair(question("Q?"), "1", "2")
    done = told.later(constraints, n=1, kinds=["first_word"])
    assert done.rows == told.rows
    assert done.dropped == {"an answer that too few demands fit": 2}


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": 10}, "n = 10 and 9 kinds"),
        ({"kinds": ["words", "words"], "n": 2}, "n = 2 and 1 kinds"),
        ({"kinds": ["word"]}, r"kind 'word'.*Did you mean"),
        ({"kinds": "words"}, "kinds = 'words'; expected a list"),
        ({"kinds": [["words"]]}, "does not know the kind"),
        ({"violate": "some"}, "violate = 'some'; expected one or all"),
        ({"of": "choosen"}, r"of = 'choosen'.*Did you mean 'chosen'"),
        ({"weight": 0}, "weight = 0"),
        ({"weight": -1}, "weight = -1"),
    ],
)
def test_a_knob_that_is_none_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        asked().later(constraints, **knobs)
