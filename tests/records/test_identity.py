"""An id is a hash of what the record says, and of nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.records import Finding, Graded, Judgment, Message, Pair, Prompt, Response, content_id, from_dict, to_dict

text = st.text(max_size=20)
number = st.floats(0, 1)
leaf = st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False, allow_infinity=False) | text
facts = st.dictionaries(text, leaf | st.lists(leaf, max_size=3), max_size=4)
turns = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text), min_size=1, max_size=3)

prompts = st.builds(
    Prompt,
    text=text | turns.map(tuple),
    context=text,
    reference=st.none() | text,
    fields=facts,
    tags=st.lists(text, max_size=3).map(tuple),
    source=text,
    licence=text,
)
responses = st.builds(
    Response, prompt_id=text, text=text, maker=text, settings=facts, draw=st.integers(0, 9), finish=text
)


@st.composite
def judgments(draw: st.DrawFn) -> Judgment:
    winner = draw(st.none() | st.integers(0, 1))
    return Judgment(
        prompt_id=draw(text),
        slots=("a", "b"),
        verdict="slot" if winner is not None else draw(st.sampled_from(["tie", "both_bad", "skip", "invalid"])),
        winner=winner,
        by=draw(text),
        order_known=draw(st.booleans()),
        probability=draw(st.none() | number),
        strength=draw(st.none() | number),
        ratings=draw(facts),
        rationale=draw(text),
        fields=draw(facts),
        tokens_in=draw(st.none() | st.integers(0, 99)),
        price=draw(st.none() | number),
        attempt=draw(st.integers(0, 3)),
        revises=draw(st.none() | text),
        created_at=draw(text),
    )


pairs = st.builds(
    Pair,
    prompt_id=text,
    chosen_id=st.just("c"),
    rejected_id=st.just("r"),
    p=st.floats(0.5, 1),
    margin=st.none() | number,
    n=st.integers(0, 9),
    conflict=st.booleans(),
    judgment_ids=st.lists(text, max_size=3).map(tuple),
)
findings = st.builds(
    Finding, check=text, subject=text, sentence=text, value=st.none() | number, examples=st.just(("x",))
)
marks = st.dictionaries(text, st.none() | number)
graded = st.builds(
    Graded,
    prompt_id=text,
    response_ids=st.just(("a", "b")),
    grades=st.just(()) | st.tuples(number, number),
    ratings=st.just(()) | st.tuples(marks, marks),
    steps=st.just(()) | st.just((((3, 1.0), (9, 0.0)), ())),
    user=text,
    judgment_ids=st.lists(text, max_size=3).map(tuple),
)
records = st.one_of(prompts, responses, judgments(), pairs, graded, findings)


@given(records)
def test_every_record_comes_back_equal_from_json(record: Any) -> None:
    line = json.dumps(to_dict(record), ensure_ascii=False)
    assert from_dict(type(record), json.loads(line)) == record


@given(records.filter(lambda record: not isinstance(record, Finding)))
def test_a_record_read_without_its_id_gets_the_same_id(record: Any) -> None:
    row = json.loads(json.dumps(to_dict(record)))
    row.pop("id")
    assert from_dict(type(record), row).id == record.id


@given(facts)
def test_key_order_does_not_change_an_id(given_facts: dict[str, Any]) -> None:
    backwards = dict(reversed(given_facts.items()))
    assert Prompt(text="q", fields=given_facts).id == Prompt(text="q", fields=backwards).id
    assert content_id("x", given_facts) == content_id("x", backwards)


PROMPT = Prompt(text="q")
RESPONSE = Response(prompt_id="p", text="a")
JUDGMENT = Judgment(prompt_id="p", slots=("a", "b"), verdict="slot", winner=0, by="rule:length")
PAIR = Pair(prompt_id="p", chosen_id="a", rejected_id="b")
GRADED = Graded(prompt_id="p", response_ids=("a", "b"), grades=(1.0, 0.0))

SAID: list[tuple[Any, dict[str, Any]]] = [
    (PROMPT, {"text": "r"}),
    (PROMPT, {"text": (Message("user", "q"),)}),
    (PROMPT, {"context": "c"}),
    (PROMPT, {"reference": ""}),
    (PROMPT, {"fields": {"a": 1}}),
    (RESPONSE, {"prompt_id": "o"}),
    (RESPONSE, {"text": "b"}),
    (RESPONSE, {"maker": "human:ann"}),
    (RESPONSE, {"settings": {"temperature": 1.0}}),
    (RESPONSE, {"draw": 1}),
    (JUDGMENT, {"prompt_id": "o"}),
    (JUDGMENT, {"slots": ("b", "a")}),
    (JUDGMENT, {"verdict": "tie", "winner": None}),
    (JUDGMENT, {"winner": 1}),
    (JUDGMENT, {"order_known": False}),
    (JUDGMENT, {"probability": 0.7}),
    (JUDGMENT, {"strength": 0.7}),
    (JUDGMENT, {"ratings": {"a": {"helpful": 4}}}),
    (JUDGMENT, {"rationale": "because"}),
    (JUDGMENT, {"by": "human:ann"}),
    (JUDGMENT, {"rubric": "r"}),
    (JUDGMENT, {"raw": "A"}),
    (JUDGMENT, {"fields": {"page": 2}}),
    (JUDGMENT, {"attempt": 1}),
    (JUDGMENT, {"revises": "j"}),
    (PAIR, {"prompt_id": "o"}),
    (PAIR, {"chosen_id": "c"}),
    (PAIR, {"rejected_id": "c"}),
    (PAIR, {"p": 0.7}),
    (PAIR, {"judgment_ids": ("j",)}),
    (PAIR, {"rejected_prompt_id": "o"}),
    (PAIR, {"user": "human:ann"}),
    (PAIR, {"beside": {"rationale": "r"}}),
    (GRADED, {"prompt_id": "o"}),
    (GRADED, {"response_ids": ("a", "c")}),
    (GRADED, {"grades": (1.0, 0.5)}),
    (GRADED, {"ratings": ({"helpful": 4.0}, {})}),
    (GRADED, {"steps": (((3, 1.0),), ())}),
    (GRADED, {"prompt_ids": ("p", "o")}),
    (GRADED, {"user": "human:ann"}),
    (GRADED, {"judgment_ids": ("j",)}),
]
ASIDE: list[tuple[Any, dict[str, Any]]] = [
    (PROMPT, {"tags": ("t",), "source": "s", "licence": "l", "group": "g"}),
    (RESPONSE, {"finish": "stop", "tokens": 3}),
    (JUDGMENT, {"tokens_in": 1, "tokens_out": 2, "price": 0.1, "latency": 0.2, "created_at": "2020-01-01"}),
    (PAIR, {"margin": 0.1, "weight": 2.0, "n": 3, "conflict": True, "band": 1, "flipped": True}),
    (PAIR, {"scores": (4.0, 2.0), "spread": 0.5}),
    (GRADED, {"weight": 2.0}),
]


def show(case: Any) -> str | None:
    return ",".join(case) if isinstance(case, dict) else type(case).__name__


@pytest.mark.parametrize(("record", "change"), SAID, ids=show)
def test_a_change_of_what_is_said_changes_the_id(record: Any, change: dict[str, Any]) -> None:
    assert replace(record, id="", **change).id != record.id


@pytest.mark.parametrize(("record", "change"), ASIDE, ids=show)
def test_what_is_noted_beside_the_content_leaves_the_id(record: Any, change: dict[str, Any]) -> None:
    assert replace(record, id="", **change).id == record.id


@pytest.mark.parametrize("record", [PROMPT, RESPONSE, JUDGMENT, PAIR, GRADED], ids=show)
def test_every_field_is_either_said_or_beside(record: Any) -> None:
    listed = {name for kind, change in [*SAID, *ASIDE] if type(kind) is type(record) for name in change}
    assert listed == {field.name for field in fields(record)} - {"id"}


def test_equal_numbers_make_equal_ids() -> None:
    whole = replace(JUDGMENT, id="", probability=1)
    assert whole == replace(JUDGMENT, id="", probability=1.0)


def test_kinds_do_not_collide() -> None:
    assert content_id("prompt", "q") != content_id("response", "q")


def test_an_id_is_the_same_in_another_process() -> None:
    code = "from tiebreak.records import Prompt; print(Prompt(text='q', fields={'b': 1, 'a': 2}).id)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == Prompt(text="q", fields={"a": 2, "b": 1}).id
    assert len(said) == 32
