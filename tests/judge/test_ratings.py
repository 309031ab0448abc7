"""Reading ratings: what is well formed comes back exactly, and each kind of malformed answer is lost and says why."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.endpoint import Reply, Token
from tiebreak.judge.ratings import CUT, Form, Mark, Marks, form_text, read_ratings, schema
from tiebreak.judge.rubric import shipped
from tiebreak.judge.scheme import Aspect, parse_scheme

TRUTH = Aspect("truth", 1, 5, False, "Is it true?", {1: "no", 5: "yes"})
TONE = Aspect("good_tone", 1, 5, True, "Is it kind?", {1: "no", 5: "yes"})
BOTH = (TRUTH, TONE)

LINES = """\
Response 1
truth: 4 - right, with a slip
good_tone: n/a - a list has no tone

Response 2
truth: 2 - wrong
good_tone: 5 - kind
"""
SAID = {
    "truth": (Mark(4, "right, with a slip"), Mark(2, "wrong")),
    "good_tone": (Mark(None, "a list has no tone"), Mark(5, "kind")),
}


def reply(text: str, tokens: tuple[Token, ...] | None = None, finish: str = "stop") -> Reply:
    return Reply(text, tokens, 10, 10, 0.1, finish)


def read(text: str, form: Form = "lines", finish: str = "stop") -> Marks:
    return read_ratings(reply(text, finish=finish), BOTH, form)


def lost(marks: Marks) -> dict[str, tuple[str, str]]:
    assert all(mark.rating is None for pair in marks.values() for mark in pair if mark.lost)
    return {name: (first.lost, second.lost) for name, (first, second) in marks.items() if first.lost or second.lost}


def everywhere(why: str) -> dict[str, tuple[str, str]]:
    return {"truth": (why, why), "good_tone": (why, why)}


def told(**changes: Any) -> dict[str, Any]:
    """The same as ``LINES`` as an object."""
    made = {
        slot: {name: {"why": mark.why, "rating": "n/a" if mark.rating is None else mark.rating} for name, mark in block}
        for slot, block in (
            ("first", [(name, pair[0]) for name, pair in SAID.items()]),
            ("second", [(name, pair[1]) for name, pair in SAID.items()]),
        )
    }
    return made | changes


def test_lines_are_read() -> None:
    assert read(LINES) == SAID


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("truth: 4 -", "- **Truth:** 4 \u2014"),
        ("good_tone: n/a", "* Good Tone: N/A"),
        ("good_tone", "good-tone"),
        ("Response 1", "**Response 1:**"),
        ("Response 1", "Here is what I think.\n\n### response 1"),
        ("with a slip", "\n  with a slip"),
        ("\n\n", "\n"),
        ("\n", "\r\n"),
        ("kind\n", "kind"),
    ],
)
def test_how_it_is_dressed_changes_nothing(old: str, new: str) -> None:
    assert read(LINES.replace(old, new)) == SAID


def test_a_rating_needs_no_reason() -> None:
    found = read(LINES.replace(" - right, with a slip", ""))
    assert found["truth"][0] == Mark(4)
    assert not lost(found)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("0 - bad", "off the scale: 0"),
        ("6 - great", "off the scale: 6"),
        ("44 - great", "off the scale: 44"),
        ("-4 - low", "not a whole number: '-4'"),
        ("4.5 - between", "not a whole number: '4.5'"),
        ("4/5 - good", "not a whole number: '4/5'"),
        ("4 - 5", "not a whole number: '4 - 5'"),
        ("4 - 5 - good", "not a whole number: '4 - 5 - good'"),
        ("4-5 - good", "not a whole number: '4-5'"),
        ("four - good", "not a whole number: 'four'"),
        ("\u0664 - good", "not a whole number: '\u0664'"),
        ("good", "not a whole number: 'good'"),
        ("RATING - REASON", "not a whole number: 'RATING'"),
        ("n/a - no facts", "n/a, which it cannot be"),
        ("", "not a whole number: ''"),
    ],
)
def test_a_rating_that_is_none_is_lost_alone(said: str, why: str) -> None:
    found = read(LINES.replace("4 - right, with a slip", said))
    assert lost(found) == {"truth": (why, "")}
    assert found["truth"][1] == SAID["truth"][1]
    assert found["good_tone"] == SAID["good_tone"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 blocks instead of 2"),
        ("I cannot rate these.", "0 blocks instead of 2"),
        (LINES.split("\n\n")[0], "1 block instead of 2"),
        (LINES + "\nResponse 3\ntruth: 5 - yes\n", "3 blocks instead of 2"),
        (LINES.replace("Response 2", "Response 1"), "other blocks than Response 1 and Response 2"),
        (LINES.replace("Response 1", "Response 0"), "other blocks than Response 1 and Response 2"),
        (json.dumps(told()), "0 blocks instead of 2"),
    ],
)
def test_a_wrong_count_of_blocks_leaves_every_rating_empty(text: str, why: str) -> None:
    assert lost(read(text)) == everywhere(why)


def test_missing_and_said_twice() -> None:
    assert lost(read(LINES.replace("truth: 2 - wrong\n", ""))) == {"truth": ("", "missing")}
    assert lost(read(LINES.replace("truth: 2", "truth: 2 - wrong\ntruth: 2"))) == {"truth": ("", "said twice")}


def test_what_was_being_written_when_the_reply_was_cut_is_lost() -> None:
    assert lost(read(LINES.rstrip(), finish="length")) == {"good_tone": ("", CUT)}
    assert lost(read(LINES[:40], finish="length")) == everywhere(CUT)
    assert lost(read(json.dumps(told())[:-3], "json", finish="length")) == everywhere(CUT)


def test_an_object_is_read() -> None:
    assert read(json.dumps(told()), "json") == SAID
    assert read(f"```json\n{json.dumps(told(), indent=1)}\n```\n", "json") == SAID


@pytest.mark.parametrize(
    ("rating", "why"),
    [
        (0, "off the scale: 0"),
        (6, "off the scale: 6"),
        (4.0, "not a whole number: '4.0'"),
        ("4", "not a whole number: '4'"),
        (True, "not a whole number: 'True'"),
        (None, "not a whole number: 'None'"),
        ("n/a", "n/a, which it cannot be"),
    ],
)
def test_a_rating_in_an_object_that_is_none_is_lost_alone(rating: object, why: str) -> None:
    first = {**told()["first"], "truth": {"why": "", "rating": rating}}
    found = read(json.dumps(told(first=first)), "json")
    assert lost(found) == {"truth": (why, "")}
    assert found["good_tone"] == SAID["good_tone"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        (LINES, "not a JSON object"),
        (json.dumps(told())[:-5], "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        (f"Sure! {json.dumps(told())}", "not a JSON object"),
        (json.dumps({"first": told()["first"]}), "1 block instead of 2"),
        (json.dumps(told(third=told()["first"])), "3 blocks instead of 2"),
        (json.dumps({"one": {}, "two": {}}), "other blocks than first and second"),
        (json.dumps(told()).replace('"second"', '"first"'), "a key stands twice"),
    ],
)
def test_an_object_of_another_shape_leaves_every_rating_empty(text: str, why: str) -> None:
    assert lost(read(text, "json")) == everywhere(why)


@pytest.mark.parametrize("block", [{}, [], 4, {"truth": 4}, {"truth": {"why": "no rating"}}])
def test_an_entry_that_is_not_there_is_missing(block: object) -> None:
    assert lost(read(json.dumps(told(second=block)), "json")) == {
        "truth": ("", "missing"),
        "good_tone": ("", "missing"),
    }


def near(text: str, **odds: float) -> Token:
    """A token with the probabilities of what could have stood there; ``_4`` is " 4"."""
    return Token(text, {said.replace("d", "").replace("_", " "): math.log(p) for said, p in odds.items()})


def bare(text: str, *tokens: Token) -> tuple[Mark, Mark]:
    return read_ratings(reply(text, tokens or None), (TONE,), "bare")["good_tone"]


def test_the_rating_is_the_expectation_at_its_place() -> None:
    first, second = bare("4 2", near("4", d4=0.6, d5=0.2, d9=0.1), near(" 2", _2=0.5, d2=0.25, _1=0.25))
    assert first.rating == pytest.approx((4 * 0.6 + 5 * 0.2) / 0.8)
    assert first.mass == pytest.approx(0.8)
    assert second.rating == pytest.approx(2 * 0.75 + 0.25)
    assert second.mass == pytest.approx(1.0)


def test_the_place_is_found_where_spaces_are_tokens_or_stripped() -> None:
    four, two = near("4", d4=0.5, d5=0.5), near("2", d2=0.5, d1=0.5)
    space = near(" ", **{"_": 1.0})
    assert [mark.rating for mark in bare("4 2", four, space, two)] == pytest.approx([4.5, 1.5])
    assert [mark.rating for mark in bare("4\n2", four, two, near("<end>", x=1.0))] == pytest.approx([4.5, 1.5])
    assert [mark.rating for mark in bare("\u01204 2", near("\u01204", d4=0.5, d5=0.5), near(" 2", d2=1.0))] == (
        pytest.approx([4.5, 2.0])
    )


@pytest.mark.parametrize("tokens", [(), (near("4 2", d4=0.5, d5=0.5),), (near("4", x=1.0), near(" 2", x=1.0))])
def test_without_a_token_of_its_own_the_number_counts(tokens: tuple[Token, ...]) -> None:
    assert bare("4 2", *tokens) == (Mark(4), Mark(2))


def test_bare_n_a_is_no_rating_and_not_lost() -> None:
    assert bare("n/a, 3") == (Mark(), Mark(3))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 numbers instead of 2"),
        ("4", "1 number instead of 2"),
        ("4 3 2", "3 numbers instead of 2"),
        ("Response 1: 4", "not two bare numbers"),
        ("4.5", "not two bare numbers"),
        ("4-5", "not two bare numbers"),
    ],
)
def test_another_count_of_bare_numbers_is_lost(text: str, why: str) -> None:
    assert [mark.lost for mark in bare(text)] == [why, why]


def test_a_bare_number_off_the_scale_is_lost_alone() -> None:
    assert bare("7 3", near("7", d7=0.6, d5=0.4), near(" 3", _3=1.0)) == (
        Mark(lost="off the scale: 7"),
        Mark(3, mass=1),
    )


SCHEMES = [parse_scheme(text, where=name) for name, text in shipped("[scheme]\n").items()]
Planted = list[tuple[Aspect, int | None, int | None]]


@st.composite
def plants(draw: st.DrawFn) -> Planted:
    """Ratings of both answers on every aspect of a shipped scheme, None where it does not apply."""

    def rating(aspect: Aspect) -> int | None:
        levels = st.integers(aspect.low, aspect.high)
        return draw(levels | st.none() if aspect.optional else levels)

    return [(aspect, rating(aspect), rating(aspect)) for aspect in draw(st.sampled_from(SCHEMES)).aspects]


def written(form: Form, planted: Planted, why: str) -> str:
    """What a judge with these ratings writes who keeps to the form."""
    said = [{plant[0].name: "n/a" if plant[slot] is None else plant[slot] for plant in planted} for slot in (1, 2)]
    if form == "json":
        blocks = [{name: {"why": why, "rating": rating} for name, rating in block.items()} for block in said]
        return json.dumps(dict(zip(("first", "second"), blocks, strict=True)))
    return "\n\n".join(
        "\n".join([f"Response {slot}", *(f"{name}: {rating} - {why}" for name, rating in block.items())])
        for slot, block in enumerate(said, 1)
    )


REASONS = st.sampled_from(["", "clear", "3 errors", "says 3 - and means it: 5"])


@given(plants(), st.sampled_from(["lines", "json"]), REASONS)
def test_planted_ratings_come_back(planted: Planted, form: Form, why: str) -> None:
    found = read_ratings(reply(written(form, planted, why)), [aspect for aspect, _, _ in planted], form)
    assert found == {aspect.name: (Mark(first, why), Mark(second, why)) for aspect, first, second in planted}


@given(st.text() | st.text('Response 12\ntruhgod_e:45/na-{}"first', max_size=80), st.sampled_from(["lines", "json"]))
def test_no_text_raises_and_what_is_no_rating_is_lost_or_n_a(text: str, form: Form) -> None:
    for name, pair in read(text, form).items():
        for mark in pair:
            assert (mark.rating in range(1, 6)) or mark.lost or name == "good_tone"


def test_a_schema_asks_for_every_aspect_of_both_and_nothing_else() -> None:
    made = schema(BOTH)
    for block in (made, *made["properties"].values()):
        assert block["required"] == list(block["properties"])
        assert block["additionalProperties"] is False
    rated = made["properties"]["second"]["properties"]
    five = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    assert rated["truth"]["properties"]["rating"] == five
    assert rated["good_tone"]["properties"]["rating"] == {"anyOf": [five, {"type": "string", "enum": ["n/a"]}]}
    assert list(rated["truth"]["properties"]) == ["why", "rating"]


@pytest.mark.parametrize("form", ["lines", "json", "bare"])
def test_n_a_is_offered_only_where_an_aspect_may_be(form: Form) -> None:
    assert "n/a" in form_text((TONE,), form)
    assert "n/a" not in form_text((TRUTH,), form)
