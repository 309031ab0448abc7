"""What each verifier accepts and rejects, the traps among them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.rewards.made import asked
from tiebreak.models.forest import Tree
from tiebreak.records import InputError, Prompt
from tiebreak.registry import Table
from tiebreak.rewards.table import BATCHED, REWARDS, Unscored
from tiebreak.rewards.verify import choice, common, exact, f1, make_ends, make_length, parses, regex, rouge, rule, words

LETTERS = [
    ("B", "B"),
    ("(b)", "B"),
    ("**B**", "B"),
    ("B. Paris", "B"),
    ("B) Paris", "B"),
    ("B\nbecause it is", "B"),
    ("The answer is B.", "B"),
    ("The answer is (C)", "C"),
    ("Answer: **D**", "D"),
    ("The correct option is B because A is wrong.", "B"),
    ("Option A is wrong. Answer: C", "C"),
    ("The answer is A. No, the answer is B.", "B"),
    (r"\boxed{C}", "C"),
    (r"So \boxed{\text{(C)}}", "C"),
    ("So it is C.", "C"),
    ("I choose (D), as it rains.", "D"),
    ("A. Rome\nB. Paris\nSo it is B", "B"),
    ("", ""),
    ("A cat", ""),
    ("A cat sat.", ""),
    ("a dog", ""),
    ("F", ""),
    ("Because", ""),
    ("A or B", ""),
    ("(A) or (B)", ""),
    ("The answer is A or B", ""),
    ("The answer is A/B", ""),
    ("(A) Rome (B) Paris (C) Bonn", ""),
    ("A. Rome\nB. Paris", ""),
    ("E = mc^2 holds", ""),
]


@pytest.mark.parametrize(("said", "letter"), LETTERS)
def test_a_choice_is_read_or_there_is_none(said: str, letter: str) -> None:
    marks = [choice(Prompt(text="Q", reference=known), said, {}) for known in "ABCDE"]
    assert marks == [float(known == letter) for known in "ABCDE"]


def test_the_known_choice_is_a_letter_an_option_or_its_place() -> None:
    prompt = Prompt(text="Q", fields={"letter": "(b)", "option": "B. Paris", "place": 1, "beyond": 7, "word": "Paris"})
    for name in ("letter", "option", "place"):
        assert choice(prompt, "B", prompt.fields, answer=name) == 1.0
    for name in ("beyond", "word"):
        with pytest.raises(InputError, match="begins with none of the letters"):
            choice(prompt, "B", prompt.fields, answer=name)
    assert choice(prompt, "B", prompt.fields) is None
    assert choice(Prompt(text="Q", reference="F"), "The answer is F", {}, letters="ABCDEF") == 1.0


EXACT = [
    ("Paris", "paris", True),
    ("Paris", " Paris.\n", True),
    ("The Eiffel Tower", "eiffel tower!", True),
    ("1000", "1,000", True),
    ("rock-n-roll", "rock n roll", False),
    ("Paris", "Paris, France", False),
    ("3.5", "35", False),
    ("3.5", "3.5.", True),
    ("-2", "2", False),
    ("-2", "−2", True),
    ("Café", "Cafe\u0301", True),
    ("ﬁne", "fine", True),
    ("हिन्दी", "हिन्द", False),
    ("Paris", "", False),
    ("A", "", False),
    ("A", "a.", True),
    ("The", "a", False),
]


@pytest.mark.parametrize(("known", "said", "same"), EXACT)
def test_an_exact_match_sets_aside_dress_and_never_digits(known: str, said: str, same: bool) -> None:
    prompt = Prompt(text="Q", reference=known)
    assert exact(prompt, said, {}) == float(same)
    assert (f1(prompt, said, {}) == 1.0) == same


def test_an_exact_match_can_be_literal() -> None:
    prompt = Prompt(text="Q", reference="Paris")
    assert exact(Prompt(text="Q", reference="?!"), "", {}) == 0.0
    assert exact(Prompt(text="Q", reference="?!"), " ?! ", {}) == 1.0
    assert exact(prompt, " Paris\n", {}, literal=True) == 1.0
    assert exact(prompt, "paris", {}, literal=True) == 0.0


def test_words_are_those_of_squad() -> None:
    assert words("The U.S. is a land, an 'idea'!") == ["us", "is", "land", "idea"]


def test_f1_counts_shared_words_as_often_as_both_have_them() -> None:
    prompt = Prompt(text="Q", reference="red red blue")
    assert f1(prompt, "red blue green green", {}) == pytest.approx(2 * 2 / (3 + 4))
    assert f1(prompt, "yellow", {}) == 0.0
    assert f1(prompt, "", {}) == 0.0
    several = Prompt(text="Q", fields={"answers": ["yellow", "red"]})
    assert f1(several, "red", several.fields, answer="answers") == 1.0


def test_rouge_is_the_f1_of_the_longest_common_subsequence() -> None:
    prompt = Prompt(text="Q", reference="police killed the gunman")
    assert rouge(prompt, "Police kill the gunman.", {}) == pytest.approx(0.75)
    assert rouge(prompt, "the gunman kill police", {}) == pytest.approx(0.5)
    assert rouge(prompt, "police killed the gunman", {}) == 1.0
    assert rouge(prompt, "", {}) == 0.0


def test_the_bits_count_what_the_table_counts() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = ([draw.choice("abcd") for _ in range(draw.randrange(70))] for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert common(a, b) == table[-1][-1]


def test_a_pattern_is_found_or_matches_the_whole() -> None:
    prompt = Prompt(text="Q")
    assert regex(prompt, "Well, yes.", {}, pattern="(?i)YES") == 1.0
    assert regex(prompt, "Well, yes.", {}, pattern="yes", whole=True) == 0.0
    assert regex(prompt, "yes", {}, pattern="yes", whole=True) == 1.0
    assert regex(prompt, "", {}, pattern="x*") == 1.0


KEYS = {"name": "string", "age": "integer"}
JSON: list[tuple[str, dict[str, Any], bool]] = [
    ("{}", {}, True),
    (" [1, 2]\n", {}, True),
    ("", {}, False),
    ("{'a': 1}", {}, False),
    ('{"a": 1} done', {}, False),
    ("NaN", {}, False),
    ("[" * 100_000, {}, False),
    ("1" * 5000, {}, False),
    ('{"name": "Ann", "age": 3, "more": null}', {"keys": KEYS}, True),
    ('{"name": "Ann", "age": 3.0}', {"keys": KEYS}, True),
    ('{"name": "Ann", "age": 3.5}', {"keys": KEYS}, False),
    ('{"name": "Ann", "age": true}', {"keys": KEYS}, False),
    ('{"name": "Ann", "age": "3"}', {"keys": KEYS}, False),
    ('{"name": "Ann"}', {"keys": KEYS}, False),
    ('[{"name": "Ann", "age": 3}]', {"keys": KEYS}, False),
    ('{"a": true, "b": null, "c": 1}', {"keys": {"a": "boolean", "b": "null", "c": "number"}}, True),
    ('{"a": true}', {"keys": {"a": "any"}}, True),
    ('```json\n{"a": 1}\n```', {}, False),
    ('```json\n{"a": 1}\n```\n', {"fence": True}, True),
    ('{"a": 1}', {"fence": True}, True),
]


@pytest.mark.parametrize(("said", "knobs", "good"), JSON)
def test_json_parses_and_has_the_keys(said: str, knobs: dict[str, Any], good: bool) -> None:
    assert parses(Prompt(text="Q"), said, {}, **knobs) == float(good)


def test_a_rule_gives_its_quality() -> None:
    prompt = Prompt(text="Q", reference="a b")
    assert rule(prompt, "four", {}, rule="shorter") == -4.0
    assert rule(prompt, "a b", {}, rule="overlap") == 1.0


@pytest.mark.parametrize("name", ["exact", "f1", "rouge", "choice"])
def test_without_a_known_answer_there_is_no_score(name: str) -> None:
    verify = REWARDS[name].load()
    for prompt in (Prompt(text="Q"), Prompt(text="Q", reference=" ")):
        assert verify(prompt, "said", prompt.fields) is None
    assert verify(Prompt(text="Q", reference="A"), "said", {}, answer="gold") is None


def test_length_is_minus_the_distance_from_a_band() -> None:
    said = asked("", "one", "one two", "one two three", "one two three four", lengths=(1, 2, 3, 4, 9))
    assert make_length("words", 2, 3)([said]) == [[-2.0, -1.0, 0.0, 0.0, -1.0]]
    assert make_length("characters", least=3)([said]) == [[-3.0, 0.0, 0.0, 0.0, 0.0]]
    assert make_length("tokens", most=3)([said]) == [[0.0, 0.0, 0.0, -1.0, -6.0]]


def test_the_soft_punishment_is_that_of_dapo() -> None:
    limit, buffer, sizes = 100, 20, (0, 79, 80, 81, 90, 99, 100, 101, 500)
    said = asked(*("x" for _ in sizes), lengths=sizes)
    worth = [0.0 if n <= limit - buffer else (limit - buffer - n) / buffer if n <= limit else -1.0 for n in sizes]
    assert make_length("tokens", most=limit, buffer=buffer)([said]) == [pytest.approx(worth)]


def test_tokens_are_those_that_were_sampled() -> None:
    trees = asked("a", "b")._replace(trees=Tree((1,), ((5, 6, 0), (5, 0))))
    assert make_length("tokens", most=2)([trees]) == [[-1.0, 0.0]]
    (unknown,) = make_length("tokens", most=2)([asked("a")])[0]
    assert isinstance(unknown, Unscored)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"unit": "word", "most": 3}, "Did you mean 'words'"),
        ({}, "neither least nor most"),
        ({"least": 4, "most": 3}, "least to be the smaller"),
        ({"most": "3"}, "a whole number of words"),
        ({"most": True}, "a whole number of words"),
        ({"most": -1}, "0 or more"),
        ({"buffer": 3}, "neither"),
        ({"most": 3, "buffer": 4}, "no longer than that"),
        ({"most": 3, "buffer": 0}, "no longer than that"),
        ({"most": 3, "least": 1, "buffer": 1}, "most alone"),
    ],
)
def test_a_band_that_is_none_is_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_length(**knobs)


def test_ends_tells_a_completion_that_stopped() -> None:
    assert make_ends()([asked("a", "b"), asked("c", finish="length")]) == [[1.0, 1.0], [0.0]]
    (unknown,) = make_ends()([asked("a", finish="")])[0]
    assert isinstance(unknown, Unscored)


def test_every_row_loads_and_has_the_knobs_of_its_code() -> None:
    assert isinstance(REWARDS, Table)
    assert {row.name for row in REWARDS} >= BATCHED
    for row in REWARDS:
        assert row.does
        code = row.load()
        if row.name in BATCHED or row.name == "json":
            continue
        assert {**(code.__kwdefaults__ or {})} == row.knobs, row.name


def test_an_empty_completion_is_a_completion() -> None:
    prompt = Prompt(text="Q", reference="A")
    for row in REWARDS:
        if row.name not in BATCHED:
            knobs = {"rule": {"rule": "longer"}, "regex": {"pattern": "A"}}.get(row.name, {})
            assert row.load()(prompt, "", {}, **knobs) == 0.0
