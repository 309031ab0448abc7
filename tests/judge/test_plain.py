"""The plain rules: each part decides a pair in which only it differs, and length never decides one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.judge.made import ask
from tiebreak.judge.plain import Parts, parts_of, quality
from tiebreak.judge.rule import make
from tiebreak.records import Prompt, Response

PLANTS = Prompt(text="Explain how plants make food from light: ")
GOOD = "Plants make their food in the leaves."

PAIRS: dict[str, list[tuple[str, str]]] = {
    "says": [(GOOD, ""), (GOOD, " \n\t"), ("No.", "..."), ("No.", "a."), ("No.", "aaa."), ("7 or 8.", "8.")],
    "topic": [
        (GOOD, "Whales sing their songs in the ocean."),
        ("A plant makes it.", "A whale sings it."),
        ("Planted foods.", "Sunken ships."),
        (GOOD, "Plants live their lives in the ocean."),
    ],
    "fresh": [
        ("The plants eat light and so make food.", "The plants eat food the plants eat food."),
        ("It is food, it was light, it had been plants.", "It is food, it is food, it is plants."),
        ("Plants make very very good food.", "Plants make very very very good food."),
        ("Plants, food, light.", "Plants, plants, plants, food, light."),
    ],
    "words": [
        (GOOD, "Plants make their food in the lea\ufffdves."),
        (GOOD, "Plants make their food in the lea\x00ves."),
        (GOOD, "Plants make their food in the \u2603 leaves."),
        (GOOD, "Plants make their food in the lxqwvs."),
        (GOOD, "Plants make their food in the leaaaaves."),
        (GOOD, "Plants make their food in the <|im_end|>leaves<|im_start|>."),
        (GOOD, "Plants make their food !!!!!!!! in the leaves."),
        (GOOD, f"Plants make their food in the {'leaves' * 8}."),
    ],
    "ends": [
        (GOOD, "Plants make their food in the"),
        (GOOD, "Plants make their food in the leaves,"),
        ('Plants "make food".', "Plants make food of"),
        ("Plants need:\n- light\n- food", "Plants need food:"),
        ("Plants need:\n1. light\n2. food", "Plants need:\n1. light\n2."),
        ("Plants make food (of light)", "Plants make food (of"),
        ('He said: "Plants make food"', 'He said of plants, food: "'),
        ("Plants make `food`:\n```\nlight\n```", "Plants make `food`:\n```\nlight"),
    ],
}


@pytest.mark.parametrize(
    ("part", "better", "worse"), [(part, *texts) for part, made in PAIRS.items() for texts in made]
)
def test_each_part_decides_a_pair_in_which_only_it_differs(part: str, better: str, worse: str) -> None:
    one, other = parts_of(PLANTS, better), parts_of(PLANTS, worse)
    differ = {name for name in Parts._fields if getattr(one, name) != getattr(other, name)}
    if part == "says":
        assert one.says > other.says  # with nothing said, nothing else counts
    else:
        assert differ == {part}
    assert quality(PLANTS, better) > quality(PLANTS, worse)


def test_the_formula() -> None:
    text = "Plants plants plants \ufffd"
    says, topic, fresh, words, ends = parts_of(PLANTS, text)
    assert (says, topic, ends) == (1.0, 0.5, 0.0)  # plant, make, food, light: one of the two needed
    assert fresh == 2 / 3
    assert words == 1 - 1 / 7
    assert quality(PLANTS, text) == says * fresh * words * (1 + topic) / 2 * (1 + ends) / 2
    assert quality(PLANTS, GOOD) == 1.0
    assert quality(PLANTS, "") == 0.0


def test_a_loop_counts_as_its_worst_stretch_however_much_stands_before_it() -> None:
    good = " ".join(f"Plants number {i} to {2 * i + 1000}." for i in range(200))
    loop = "and so on and so on " * 20
    fresh = parts_of(PLANTS, good + loop).fresh
    assert fresh == 1 - 50 / 53
    assert parts_of(PLANTS, good).fresh > 0.8


@pytest.mark.parametrize(
    "text",
    [
        "**Bold**: _food_ for plants, and/or `light`.",
        "The caf\u00e9 in Z\u00fcrich (built 1999) sells 20% more plants for $3.50, i.e. light food\u2014said O'Neil.",
        "# Food\n\n1. Light: 3-5 h/day.\n2) H2O!\n* plants",
        "NASA's plants have had had 1,000,000 well-lit hours...",
        "\u690d\u7269\u306f\u5149\u3067\u98df\u3079\u7269\u3092\u4f5c\u308b\u3002",
        "\u092a\u094c\u0927\u0947 \u092d\u094b\u091c\u0928 \u092c\u0928\u093e\u0924\u0947 \u0939\u0948\u0902\u0964",
    ],
)
def test_what_prose_looks_like_elsewhere_is_no_rubble(text: str) -> None:
    parts = parts_of(PLANTS, text)
    assert (parts.says, parts.fresh, parts.words, parts.ends) == (1.0, 1.0, 1.0, 1.0)


def test_what_was_asked_is_the_last_question_with_its_context() -> None:
    talk = Prompt(text=(("user", "Tell me about whales."), ("assistant", "They sing."), ("user", "And plants?")))
    assert parts_of(talk, "Plants grow.").topic == 1.0
    assert parts_of(talk, "Whales sing.").topic == 0.0
    about = Prompt(text="What is it about?", context="Whales sing.")
    assert parts_of(about, "A whale.").topic == 1.0
    assert parts_of(about, "A plant.").topic == 0.0
    assert parts_of(Prompt(text="Why?"), "Nobody knows.").topic == 1.0
    assert parts_of(Prompt(text="What is 12 + 30?"), "12 and 30 are 42.").topic == 1.0


def test_no_word_is_forbidden_and_none_is_asked_for() -> None:
    """B13: a list of words called refusals that mention harm unsafe, and fluent harmful text safe."""
    frames = (
        "I will not help you to {} anybody, about plants or food.",
        "How to {} people with food and light: do so.",
    )
    for frame in frames:
        assert len({quality(PLANTS, frame.format(word)) for word in ("harm", "farm", "kill", "help", "warn")}) == 1
    nouns = ("harmless", "homeless", "dangerous", "generous", "unsafe", "unused", "illegal", "optimal")
    assert len({quality(PLANTS, f"The food of plants is {noun}.") for noun in nouns}) == 1


ENDED = " Yes, plants make food from light."


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.sampled_from([" ", "\n", "\n\n"]), st.text(max_size=80))
def test_nothing_put_behind_an_answer_that_ended_on_topic_raises_it(text: str, gap: str, more: str) -> None:
    assert 0 <= quality(PLANTS, text) <= 1
    assert quality(PLANTS, text + ENDED + gap + more) <= quality(PLANTS, text + ENDED)


FILLER = (
    "I hope this helps.",
    "It is worth noting that there are many things to consider here.",
    "In conclusion, this is a very important matter.",
    "Let me know if you have any questions!",
    "Of course!",
)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.lists(st.sampled_from(FILLER), min_size=1, max_size=12))
def test_filler_never_raises_an_answer_that_says_something_and_ended(text: str, filler: list[str]) -> None:
    answer = f"{text} It is so."
    assert quality(PLANTS, " ".join([answer, *filler])) <= quality(PLANTS, answer)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.sampled_from([texts for made in PAIRS.values() for pair in made for texts in pair]))
def test_a_doubled_text_is_never_better(text: str) -> None:
    for gap in (" ", "\n"):
        assert quality(PLANTS, text + gap + text) <= quality(PLANTS, text)


def test_a_doubled_answer_is_worse() -> None:
    for gap in (" ", "\n\n"):
        assert quality(PLANTS, GOOD + gap + GOOD) < quality(PLANTS, GOOD)


subjects = st.sampled_from(["Leaves", "Roots", "Farmers", "Children", "Scientists", "Bees", "Trees", "Algae"])
verbs = st.sampled_from(["like", "need", "use", "find", "store", "turn over", "share", "study"])
objects = st.sampled_from(["water", "sugar", "warm air", "the sun", "salt", "rich soil", "colour", "green cells"])
sentences = st.lists(
    st.tuples(subjects, verbs, objects), min_size=0, max_size=6, unique_by=(lambda s: s[0], lambda s: s[1])
)


@settings(max_examples=200, deadline=None)
@given(sentences, sentences)
def test_of_two_equally_good_answers_the_longer_one_does_not_win(
    some: list[tuple[str, ...]], more: list[tuple[str, ...]]
) -> None:
    texts = [" ".join([GOOD, *(f"{' '.join(said)}." for said in answer)]) for answer in (some, more)]
    first, second = (Response(prompt_id=PLANTS.id, text=text) for text in texts)
    judgment = ask(make(rule="plain", sharpness=math.inf), (PLANTS, first, second))
    assert (judgment.verdict, judgment.probability) == ("tie", 0.5)
