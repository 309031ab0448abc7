import dataclasses
import json
import math

import pytest

from tests.judge.made import ask, judge_at, pair
from tests.judge.server import Script, Server
from tiebreak.judge.pairwise import make
from tiebreak.judge.rubric import load_rubric, read_rubric
from tiebreak.judge.scales import TIES
from tiebreak.judge.table import Question
from tiebreak.judge.turns import plain, prefilled
from tiebreak.records import InputError, Prompt, Response

ADDRESS = {"endpoint": "http://localhost:8000/v1", "model": "m"}


def question(post, first="one", second="two", **prompt):
    asked = Prompt(text=post, **prompt)
    return Question(asked, (Response(prompt_id=asked.id, text=first), Response(prompt_id=asked.id, text=second)))


def bodies(server):
    return [json.loads(body) for body, _ in server.log]


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
        assert len(server.log) == 2
    assert (judgment.verdict, judgment.winner, judgment.probability) == ("invalid", None, None)
    assert judgment.raw == "Both are fine."
    assert judgment.fields == {"finish": "stop", "why": "no verdict in the reply", "reasked": 1}


def test_a_tie_is_offered_and_read_where_allowed():
    with Server(Script(reply="0")) as server:
        assert ask(judge_at(server, ties="allow"), pair()).verdict == "tie"
        assert ask(judge_at(server), pair()).verdict == "invalid"
        allowed, forbidden, again = (body["messages"][-1]["content"] for body in bodies(server))
    assert "the answer is 0" in allowed
    assert "the answer is 0" not in forbidden
    assert again == forbidden


@pytest.mark.parametrize("messages", [plain, prefilled])
@pytest.mark.parametrize("rationale", [True, False])
def test_the_verdict_call_always_holds_both_texts_and_the_sentence_on_ties(messages, rationale):
    asked = question("Q", "first text", "second text")
    turns = messages(load_rubric("helpful"), asked, "because", scale=TIES, rationale=rationale)
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
        {"scale": "graded"},
        {"steps": 1},
        {"shots": 2},
        {"shots": 4},
        {"structured": True},
        {"reask": 0},
        {"temperature": 0.5, "samples": 4},
    ]
    assert len({make(**ADDRESS, **change).rubric for change in changed}) == len(changed)
    steers_nothing = [{"price_in": 1.0}, {"timeout": 5.0}, {"retries": 1}, {"key_env": "MY_KEY"}]
    assert {make(**ADDRESS, **change).rubric for change in steers_nothing} == {make(**ADDRESS).rubric}
    assert make(**ADDRESS, scale="ties").rubric == make(**ADDRESS, ties="allow").rubric
    assert make(**ADDRESS).by == "model:m@localhost"
    assert make(**ADDRESS, revision="abc").by == "model:m@abc"


@pytest.mark.parametrize(
    ("knobs", "rubric"),
    [
        ({}, "0d9d89ef519929af03c6c8f4aad58dfa"),
        ({"rubric": "helpful"}, "aaea6a0a1990aa8f3033f2f783de0f07"),
        ({"ties": "allow"}, "2940790c1d592b3166278f588c7b5c4d"),
        ({"rationale": False, "logprobs": False}, "82bdfc181001286bfdcb574f5c50f342"),
    ],
)
def test_a_judgment_that_was_paid_for_stays_known(knobs, rubric):
    """Words and settings of these have not changed, so their hash must not: else all of it is asked and paid again."""
    assert make(**ADDRESS, **knobs).rubric == rubric


def test_a_rubric_file_moved_elsewhere_is_the_same_rubric(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text(read_rubric("tldr"))
    assert make(**ADDRESS, rubric=str(own)).rubric == make(**ADDRESS).rubric


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "needs endpoint"),
        ({"endpoint": "http://localhost:1/v1"}, "needs model"),
        ({**ADDRESS, "rubric": "tldrr"}, "Did you mean 'tldr'"),
        ({**ADDRESS, "ties": "yes"}, "ties"),
        ({**ADDRESS, "scale": "grded"}, "Did you mean 'graded'"),
        ({**ADDRESS, "scale": "graded", "ties": "allow"}, "leave ties out"),
        ({**ADDRESS, "steps": 3}, "steps is 3; expected 1 to 2"),
        ({**ADDRESS, "reask": 10}, "reask is 10; expected 0 to 9"),
        ({**ADDRESS, "samples": 0, "temperature": 1.0}, "samples is 0"),
        ({**ADDRESS, "samples": 4}, "set temperature above 0"),
        ({**ADDRESS, "samples": 4, "temperature": 1.0, "rationale": False}, "logprobs=false"),
        ({**ADDRESS, "structured": True, "prefill": True}, "exclude each other"),
        ({**ADDRESS, "shots": 5}, "has 4 worked examples; take at most 4"),
        ({**ADDRESS, "shots": -1}, "expected 0 or more"),
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
