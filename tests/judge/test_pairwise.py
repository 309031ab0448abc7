import dataclasses
import json
import math

import pytest

from tests.judge.made import ask, judge_at, pair
from tests.judge.server import Script, Server
from tiebreak.judge.pairwise import fill, make, parse_rubric, plain, prefilled, read_rubric
from tiebreak.judge.table import Question
from tiebreak.records import InputError, Message, Prompt, Response

ADDRESS = {"endpoint": "http://localhost:8000/v1", "model": "m"}


def question(post, first="one", second="two", **prompt):
    asked = Prompt(text=post, **prompt)
    return Question(asked, (Response(prompt_id=asked.id, text=first), Response(prompt_id=asked.id, text=second)))


def bodies(server):
    return [json.loads(body) for body, _ in server.log]


@pytest.mark.parametrize("name", ["tldr", "helpful"])
def test_the_shipped_rubrics_are_whole(name):
    sections = parse_rubric(read_rubric(name), where=name)
    assert all(sections.values())


def test_a9_texts_are_inserted_whole_whatever_they_contain():
    post = "TL;DR: is what I say {{first}} {second} %s [verdict]\n\n{{ prompt }} \\1 Summary 1 - fake\n\nTL;DR:"
    asked = question(post, "{{second}} TL;DR: \\g<0>", "{{prompt}} [question]")
    text = fill(parse_rubric(read_rubric("tldr"), where="tldr")["question"], asked)
    assert text.count(post) == 1
    assert text.endswith("Summary 1 - {{second}} TL;DR: \\g<0>\n\nSummary 2 - {{prompt}} [question]")


def test_a_conversation_and_its_context_are_shown():
    asked = question((Message("user", "Hi"), Message("assistant", "Yes?")), context="A shop.")
    assert fill("{{prompt}}", asked) == "A shop.\n\nuser: Hi\n\nassistant: Yes?"


def test_a_rationale_comes_first_and_the_verdict_call_sees_it():
    with Server(Script(prefer=lambda first, second: 0.8)) as server:
        judgment = ask(judge_at(server, rationale=True, price_in=1.0, price_out=2.0), pair())
        why, verdict = bodies(server)
    assert (why["max_tokens"], "logprobs" in why) == (512, False)
    assert (verdict["max_tokens"], verdict["top_logprobs"], verdict["temperature"]) == (5, 20, 0.0)
    assert [turn["role"] for turn in verdict["messages"]] == ["user", "assistant", "user"]
    assert verdict["messages"][1]["content"] == judgment.rationale == "The first covers more, the second is shorter."
    assert judgment.probability == pytest.approx(0.8)
    assert judgment.fields["mass"] == pytest.approx(0.99)
    assert (judgment.raw, judgment.winner, judgment.verdict) == ("1", 0, "slot")
    assert judgment.price == pytest.approx((judgment.tokens_in + 2 * judgment.tokens_out) / 1e6)
    assert judgment.tokens_in == sum(len(body) // 4 for body, _ in server.log)
    assert judgment.latency > 0


def test_a_prefilled_turn_is_continued_as_rlaif_does():
    with Server() as server:
        ask(judge_at(server, rationale=True, prefill=True), pair())
        why, verdict = bodies(server)
    assert why["messages"][-1] == {"role": "assistant", "content": "Rationale:"}
    assert verdict["messages"][-1]["content"] == (
        "Rationale: The first covers more, the second is shorter.\nPreferred Summary="
    )
    assert why["messages"][0] == verdict["messages"][0]
    for body in (why, verdict):
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_without_log_probabilities_the_text_decides():
    with Server(Script(logprobs=False, prefer=lambda first, second: 0.0)) as server:
        judgment = ask(judge_at(server), pair())
        ask(judge_at(server, logprobs=False), pair())
        assert "logprobs" not in bodies(server)[1]
    assert (judgment.verdict, judgment.winner, judgment.probability) == ("slot", 1, None)


def test_a10_a_server_whose_tokens_carry_the_space_is_read():
    with Server(Script(spoken=(" 1", " 2"))) as server:
        judgment = ask(judge_at(server), pair())
    assert judgment.probability == pytest.approx(0.9)
    assert judgment.raw == " 1"


def test_a14_an_unreadable_reply_is_invalid_and_kept():
    with Server(Script(reply="Both are fine.")) as server:
        judgment = ask(judge_at(server), pair())
    assert (judgment.verdict, judgment.winner, judgment.probability) == ("invalid", None, None)
    assert judgment.raw == "Both are fine."


def test_a_tie_is_offered_and_read_where_allowed():
    with Server(Script(reply="0")) as server:
        assert ask(judge_at(server, ties="allow"), pair()).verdict == "tie"
        assert ask(judge_at(server), pair()).verdict == "invalid"
        allowed, forbidden = (body["messages"][-1]["content"] for body in bodies(server))
    assert "the answer is 0" in allowed
    assert "the answer is 0" not in forbidden


@pytest.mark.parametrize("messages", [plain, prefilled])
@pytest.mark.parametrize("rationale", [True, False])
def test_the_verdict_call_always_holds_both_texts_and_the_sentence_on_ties(messages, rationale):
    sections = parse_rubric(read_rubric("helpful"), where="helpful")
    turns = messages(sections, question("Q", "first text", "second text"), "because", rationale=rationale, ties=True)
    everything = "\n".join(turn["content"] for turn in turns)
    assert "first text" in everything
    assert "second text" in everything
    assert "the answer is 0" in everything
    assert ("because" in everything) == rationale


def test_a17_everything_that_steers_is_in_the_rubric_and_the_model_in_by(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text(read_rubric("tldr").replace("expert rater", "strict rater"))
    changed = [
        {},
        {"rubric": "helpful"},
        {"rubric": str(own)},
        {"rationale": False},
        {"prefill": True},
        {"ties": "allow"},
        {"logprobs": False},
        {"top_logprobs": 5},
        {"temperature": 0.5},
        {"rationale_tokens": 100},
        {"verdict_tokens": 1},
    ]
    assert len({make(**ADDRESS, **change).rubric for change in changed}) == len(changed)
    steers_nothing = [{"price_in": 1.0}, {"timeout": 5.0}, {"retries": 1}, {"key_env": "MY_KEY"}]
    assert {make(**ADDRESS, **change).rubric for change in steers_nothing} == {make(**ADDRESS).rubric}
    assert make(**ADDRESS).by == "model:m@localhost"
    assert make(**ADDRESS, revision="abc").by == "model:m@abc"


def test_a_rubric_file_moved_elsewhere_is_the_same_rubric(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text(read_rubric("tldr"))
    assert make(**ADDRESS, rubric=str(own)).rubric == make(**ADDRESS).rubric


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"\[question\]"),
        ("hello\n[question]\n{{prompt}}{{first}}{{second}}\n[verdict]\nsay\n", "belongs to neither"),
        ("[question]\n{{prompt}}{{first}}{{second}}\n", r"\[verdict\]"),
        ("[question]\n{{prompt}}{{first}}\n[verdict]\nsay\n", "second"),
        ("[question]\n{{promt}}{{first}}{{second}}\n[verdict]\nsay\n", "Did you mean 'prompt'"),
        ("[question]\n{{prompt}}{{first}}{{second}}\n[verdikt]\nsay\n", "Did you mean 'verdict'"),
    ],
)
def test_a_broken_prompt_file_is_refused_at_the_door(text, said):
    with pytest.raises(InputError, match=said):
        parse_rubric(text, where="own.txt")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "needs endpoint"),
        ({"endpoint": "http://localhost:1/v1"}, "needs model"),
        ({**ADDRESS, "rubric": "tldrr"}, "Did you mean 'tldr'"),
        ({**ADDRESS, "ties": "yes"}, "ties"),
        ({**ADDRESS, "endpoint": "localhost:8000"}, "http://localhost:8000/v1"),
    ],
)
def test_a_wrong_knob_is_refused_with_the_cure(knobs, said):
    with pytest.raises(InputError, match=said):
        make(**knobs)


def test_a_rubric_without_the_section_a_knob_uses_is_refused(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("[question]\n{{prompt}}{{first}}{{second}}\n[verdict]\nsay 1 or 2\n")
    assert make(**ADDRESS, rubric=str(own), rationale=False)
    with pytest.raises(InputError, match=r"\[rationale\]"):
        make(**ADDRESS, rubric=str(own))


def test_a_judge_cannot_be_changed_behind_its_rubric():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(**ADDRESS).temperature = 1.0


def test_probabilities_from_the_server_are_exact():
    with Server(Script(prefer=lambda first, second: 0.123)) as server:
        assert math.isclose(ask(judge_at(server), pair()).probability, 0.123)
