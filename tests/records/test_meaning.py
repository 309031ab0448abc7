"""What a judgment says about which answer is better, and what a record refuses to say."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.records import InputError, Judgment, Message, Pair, Prompt, Response, from_dict, quiet


def judged(**said: Any) -> Judgment:
    return Judgment(**{"prompt_id": "p", "slots": ("a", "b"), "verdict": "slot", "by": "human:ann", **said})


def test_the_winner_is_better_for_certain() -> None:
    first = judged(winner=0)
    assert (first.p_better("a"), first.p_better("b")) == (1.0, 0.0)
    second = judged(winner=1)
    assert (second.p_better("a"), second.p_better("b")) == (0.0, 1.0)


def test_a_tie_is_one_half_for_both() -> None:
    assert [judged(verdict="tie").p_better(r) for r in "ab"] == [0.5, 0.5]


@pytest.mark.parametrize("verdict", ["skip", "invalid", "both_bad"])
def test_a_verdict_that_names_no_better_one_says_nothing(verdict: str) -> None:
    assert [judged(verdict=verdict).p_better(r) for r in "ab"] == [None, None]


@given(st.floats(0, 1), st.sampled_from(["slot", "tie"]))
def test_a_probability_speaks_before_the_verdict_and_sums_to_one(p: float, verdict: str) -> None:
    judgment = judged(verdict=verdict, winner=0 if verdict == "slot" else None, probability=p)
    assert judgment.p_better("a") == p
    assert judgment.p_better("b") == 1.0 - p


def test_one_of_many_is_better_than_the_rest() -> None:
    judgment = judged(slots=("a", "b", "c"), winner=2)
    assert [judgment.p_better(r) for r in "abc"] == [0.0, 0.0, 1.0]


def test_a_probability_of_the_first_says_nothing_exact_about_three() -> None:
    assert judged(slots=("a", "b", "c"), winner=0, probability=0.6).p_better("a") == 1.0


def test_both_orders_of_a_pair_are_one_item() -> None:
    assert judged(winner=0).item == judged(slots=("b", "a"), winner=1).item
    assert judged(winner=0).item != judged(winner=0, prompt_id="o").item


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"verdict": "left"}, "verdict 'left'; expected one of slot, tie, both_bad, skip, invalid"),
        ({"verdict": "tie", "winner": 0}, "only 'slot' has one"),
        ({"winner": None}, "only 'slot' has one"),
        ({"winner": 2}, "names slot 2 of 2"),
        ({"winner": -1}, "names slot -1 of 2"),
        ({"winner": 0, "probability": 1.5}, "probability 1.5; expected a number from 0 to 1"),
        ({"winner": 0, "probability": float("nan")}, "probability nan"),
        ({"winner": 0, "strength": 7.0}, "strength 7.0; expected a number from 0 to 1"),
    ],
)
def test_a_judgment_that_makes_no_sense_is_refused(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        judged(**said)


@pytest.mark.parametrize("p", [0.49, 1.01, float("nan")])
def test_a_pair_points_from_the_better_to_the_worse(p: float) -> None:
    with pytest.raises(InputError, match=r"lies between 0\.5 and 1"):
        Pair(prompt_id="p", chosen_id="a", rejected_id="b", p=p)


def test_a_pair_needs_two_responses() -> None:
    with pytest.raises(InputError, match="same response on both sides"):
        Pair(prompt_id="p", chosen_id="a", rejected_id="a")


def test_an_unknown_key_is_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"A Prompt has no field 'txt'; it has context, .*text"):
        from_dict(Prompt, {"txt": "q"})


@pytest.mark.parametrize("kind", [Prompt, Response, Judgment, Pair])
def test_a_missing_key_is_refused_in_a_sentence(kind: type[Any]) -> None:
    with pytest.raises(InputError, match=rf"A {kind.__name__} needs"):
        from_dict(kind, {})


def test_a_conversation_reads_as_turns_or_as_plain_text() -> None:
    prompt = from_dict(Prompt, {"text": [{"role": "user", "content": "Hi"}, ["assistant", "Hello"]]})
    assert prompt.conversational
    assert prompt.text == (Message("user", "Hi"), Message("assistant", "Hello"))
    assert prompt.plain == "user: Hi\n\nassistant: Hello"
    assert Prompt(text="Hi").plain == "Hi"


def test_the_split_group_defaults_to_the_question() -> None:
    assert Prompt(text="q", fields={"a": 1}).group == Prompt(text="q", fields={"a": 2}).group
    assert Prompt(text="q").group != Prompt(text="r").group
    assert Prompt(text="q", group="g").group == "g"


def test_records_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Prompt(text="q").text = "r"  # type: ignore[misc]


def test_the_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(1, 2, {"loss": 0.5})
    assert capsys.readouterr() == ("", "")
