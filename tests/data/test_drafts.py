"""Forms of prompts: what is added stands where it should, and comes off again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebreak.data.drafts import (
    Demand,
    Shot,
    explaining,
    goal_sentence,
    versus,
    with_demands,
    with_draft,
    with_goal,
    with_shots,
    without_goal,
)
from tiebreak.models.encode import PLAIN_CHAT, encode_prompt
from tiebreak.models.load import train_tokenizer
from tiebreak.records import InputError, Message, Prompt

PLAIN = Prompt(text="POST: a long day.\n\nTL;DR:", context="Be kind.", reference="tired", fields={"own": 1})
TALK = Prompt(
    text=(Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "2+2?")),
    tags=("t",),
    source="s",
    licence="CC0",
    group="g",
)
SHOTS = [Shot("1+1?", "2", "3", "pair"), Shot("Why?", "Because.")]
DEMAND = Demand("commas", ["without"], "Use no commas.")
FORMS = {
    "goal": lambda prompt: with_goal(prompt, 7),
    "draft": lambda prompt: with_draft(prompt, "a draft"),
    "shots": lambda prompt: with_shots(prompt, SHOTS),
    "demands": lambda prompt: with_demands(prompt, [DEMAND]),
    "explain": lambda prompt: explaining(prompt, "yes", "no"),
}


@pytest.mark.parametrize("prompt", [PLAIN, TALK], ids=["plain", "turns"])
@pytest.mark.parametrize("field", FORMS)
def test_a_form_keeps_all_that_belongs_to_the_question_and_says_what_it_did(field: str, prompt: Prompt) -> None:
    told = FORMS[field](prompt)
    kept = ("context", "reference", "tags", "source", "licence", "group")
    assert [getattr(told, name) for name in kept] == [getattr(prompt, name) for name in kept]
    assert set(told.fields) == {*prompt.fields, field}
    assert told.id != prompt.id
    assert told.id == FORMS[field](prompt).id
    assert told.conversational == prompt.conversational
    assert told == Prompt(**{n: getattr(told, n) for n in Prompt.__dataclass_fields__ if n != "id"})
    with pytest.raises(InputError, match=f"has a field '{field}' already"):
        FORMS[field](told)


def test_the_words_of_each_form() -> None:
    assert with_goal(PLAIN, 7.0).text == "Write an answer that scores 7.\n\nPOST: a long day.\n\nTL;DR:"
    assert with_goal(TALK, 7.25).text == (
        Message("system", "Be brief.\n\nWrite an answer that scores 7.25."),
        *TALK.text[1:],
    )
    assert with_goal(Prompt(text=(Message("user", "Hi"),)), -1).text == (
        Message("system", "Write an answer that scores -1."),
        Message("user", "Hi"),
    )
    assert with_draft(TALK, "5").text[-1].content == (
        "Improve on this draft of an answer.\n\nDraft:\n5\n\nWhat is to be answered:\n\n2+2?"
    )
    assert with_demands(PLAIN, [DEMAND, DEMAND]).text == (
        "Keep to these rules.\n- Use no commas.\n- Use no commas.\n\nPOST: a long day.\n\nTL;DR:"
    )
    assert versus("yes", "no") == "[RESPONSE A]\nyes\n\n[RESPONSE B]\nno"
    shown = with_shots(TALK, SHOTS).text[-1].content
    assert "### Question\n\n1+1?\n\n### Preferred answer\n\n2\n\n### Other answer\n\n3" in shown
    assert shown.count("### Other answer") == 1
    assert shown.endswith("\n\n2+2?")
    assert with_shots(PLAIN, SHOTS).fields["shots"] == ["pair", ""]
    ask = explaining(PLAIN, "yes", "no").text
    assert ask.startswith("POST: a long day.\n\nTL;DR:\n\nResponse 1:\nyes\n\nResponse 2:\nno\n\nExplain")
    (turn,) = explaining(TALK, "yes", "no").text
    assert turn.role == "user"
    assert turn.content.startswith(TALK.plain)


def test_no_shots_change_nothing() -> None:
    assert with_shots(PLAIN, []) is PLAIN


@pytest.mark.parametrize("form", [f for f in FORMS if f != "explain"])
def test_what_is_added_is_read_between_the_context_and_the_question_and_the_cue_stays_last(form: str) -> None:
    tokenizer = train_tokenizer([PLAIN.text, PLAIN.context], vocabulary=300)
    told = FORMS[form](PLAIN)
    read = tokenizer.decode(encode_prompt(tokenizer, told, room=4096).ids, skip_special_tokens=True)
    assert read == f"Be kind.\n\n{told.text}"
    assert told.text.endswith("\n\n" + PLAIN.text)
    tokenizer.chat_template = PLAIN_CHAT
    spoken = tokenizer.decode(encode_prompt(tokenizer, FORMS[form](TALK), room=4096).ids, skip_special_tokens=True)
    assert "2+2?" in spoken


turns = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8)), max_size=4)
scores = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-10, 10)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20) | turns.map(tuple), scores, st.text(max_size=5))
def test_a_goal_comes_off_again_and_leaves_the_prompt_it_was_put_on(text: object, goal: float, group: str) -> None:
    prompt = Prompt(text=text, fields={"own": 1}, group=group)
    assert without_goal(with_goal(prompt, goal)) == prompt
    assert without_goal(prompt) is prompt


@settings(max_examples=200, deadline=None)
@given(scores, scores)
def test_different_goals_have_different_words(one: float, other: float) -> None:
    assert (goal_sentence(one) == goal_sentence(other)) == (one == other)


def test_a_goal_that_is_a_field_alone_is_not_one() -> None:
    with pytest.raises(InputError, match="does not ask for it"):
        without_goal(Prompt(text="2+2?", fields={"goal": 3}))
    with pytest.raises(InputError, match="does not ask for it"):
        without_goal(Prompt(text=(), fields={"goal": 3}))


@pytest.mark.parametrize("goal", [math.nan, math.inf, "7", True, None])
def test_a_goal_that_is_no_number_is_refused(goal: object) -> None:
    with pytest.raises(InputError, match="expected a number"):
        with_goal(PLAIN, goal)


def test_a_conversation_without_turns_has_no_place_for_a_draft() -> None:
    with pytest.raises(InputError, match="without turns"):
        with_draft(Prompt(text=()), "a draft")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=10), st.text(max_size=10), st.integers(0, 2**30))
def test_the_preference_of_two_orders_has_no_slot_bias(first: str, second: str, seed: int) -> None:
    """Card 88: whatever scores the orders get, p(a, b) + p(b, a) = 1, and p(a, a) = 1/2."""

    def score(text: str) -> float:
        return math.sin(seed + sum(ord(letter) * (place + 1) for place, letter in enumerate(text)))

    def p(a: str, b: str) -> float:
        return 1 / (1 + math.exp(score(versus(b, a)) - score(versus(a, b))))

    assert p(first, second) + p(second, first) == pytest.approx(1.0, abs=1e-15)
    assert p(first, first) == 0.5
