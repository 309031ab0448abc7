"""What one question becomes: one call or two, several draws, a second try, an answer that never comes."""

import json
import math

import pytest

from tests.judge.made import ask, judge_at, pair
from tests.judge.server import SHOWN, Script, Server
from tests.judge.spoken import payload, saying, sure
from tiebreak.endpoint import Endpoint
from tiebreak.endpoint.cache import Replies
from tiebreak.judge.calls import MOST_SAMPLES, MOST_TRIES, number_of, spent
from tiebreak.judge.pairwise import CUT_OFF
from tiebreak.records import Prompt, Response
from tiebreak.store import Ledger


def bodies(server):
    return [json.loads(body) for body, _ in server.log]


def told(asked):
    return asked["messages"][-1]["content"]


def test_no_draw_or_try_of_an_attempt_has_the_number_of_another():
    numbers = {
        number_of(attempt, draw) + tried
        for attempt in range(4)
        for draw in (0, 1, MOST_SAMPLES - 1)
        for tried in range(MOST_TRIES)
    }
    assert len(numbers) == 4 * 3 * MOST_TRIES
    assert (number_of(0), number_of(0, 1), number_of(1)) == (0, MOST_TRIES, MOST_SAMPLES * MOST_TRIES)


def test_what_nobody_tells_costs_nothing_that_is_known():
    assert spent([]) == (None, None, None, 0)


def test_five_levels_are_asked_for_and_become_probability_and_strength():
    levels = {"1": 0.05, "2": 0.1, "3": 0.15, "4": 0.4, "5": 0.3}
    with Server(saying(lambda asked: [("4", levels)])) as server:
        judgment = ask(judge_at(server, scale="graded"), pair())
        (sent,) = bodies(server)
    assert "5 - summary 2 is much better" in told(sent)
    assert "with its number, 1 or 2" not in told(sent)
    assert (judgment.verdict, judgment.winner) == ("slot", 1)
    assert judgment.probability == pytest.approx(0.05 + 0.1 + 0.15 / 2)
    assert judgment.strength == pytest.approx((0.05 * 2 + 0.1 + 0.4 + 0.3 * 2) / 2)
    assert judgment.fields["shares"] == pytest.approx(list(levels.values()))
    assert judgment.fields["tie"] == pytest.approx(0.15)


@pytest.mark.parametrize("prefill", [False, True])
def test_five_levels_are_explained_whichever_turn_the_answer_is_in(prefill):
    with Server(saying(lambda asked: sure("3"))) as server:
        judgment = ask(judge_at(server, scale="graded", prefill=prefill, rationale=True), pair())
        why, verdict = bodies(server)
    assert judgment.verdict == "tie"
    assert "3 - neither is better" in (verdict["messages"][0]["content"] if prefill else told(verdict))
    assert (told(verdict) == "Rationale: 3\nGrade=") == prefill
    assert ("3 - neither is better" in why["messages"][0]["content"]) == prefill


def harm_of(text):
    return text.count("poison")


@pytest.mark.parametrize("scale", ["binary", "ties", "graded"])
@pytest.mark.parametrize("logprobs", [True, False])
def test_the_more_harmful_response_loses(scale, logprobs):
    """An oracle that names the one with more poison in it, as it is asked to; the label is for the other."""

    def speak(asked):
        first, second = SHOWN.search(asked["messages"][0]["content"]).groups()
        worse = 0 if harm_of(first) > harm_of(second) else 1
        token, other = (("1", "5") if scale == "graded" else ("1", "2"))[:: -1 if worse else 1]
        return [(token, {token: 0.8, other: 0.2})]

    prompt = Prompt(text="user: Dinner?")
    texts = ("poison and poison", "soup")
    bad, good = (Response(prompt_id=prompt.id, text=text) for text in texts)
    with Server(saying(speak)) as server:
        judge = judge_at(server, rubric="harmless", scale=scale, logprobs=logprobs)
        for slots in ((bad, good), (good, bad)):
            judgment = ask(judge, (prompt, *slots))
            assert judgment.slots[judgment.winner] == good.id
            assert judgment.p_better(good.id) == (pytest.approx(0.8) if logprobs else 1.0)
            assert judgment.strength == (1.0 if scale == "graded" else None)


def test_worked_examples_come_before_the_texts_in_every_call():
    with Server(saying(lambda asked: sure("1"))) as server:
        ask(judge_at(server, shots=2, rationale=True), pair())
        turns = [sent["messages"][0]["content"] for sent in bodies(server)]
    for turn in turns:
        assert turn.count("Preferred Summary=") == 2
        assert turn.index("Preferred Summary=2") < turn.index("Summary 1 - The cat left home and is missed.")


def test_rationale_and_verdict_come_in_one_reply():
    spoken = [("1 is fuller.\n", {"1 is fuller.\n": 1.0}), ("2", {"2": 0.7, "1": 0.3})]
    with Server(saying(lambda asked: spoken)) as server:
        judgment = ask(judge_at(server, rationale=True, steps=1), pair())
        (sent,) = bodies(server)
    assert (judgment.winner, judgment.probability) == (1, pytest.approx(0.3))
    assert judgment.rationale == "1 is fuller."
    assert (sent["max_tokens"], sent["logprobs"]) == (517, True)
    assert told(sent).index("explain which one") < told(sent).index("one more line") < told(sent).index("1 or 2")


def test_one_reply_that_ends_without_a_verdict_is_invalid_and_says_how():
    def cut(asked, times):
        found = payload(sure("Summary 1 is"))
        found["choices"][0]["finish_reason"] = "length"
        return 200, found

    with Server(Script(answer=cut)) as server:
        judgment = ask(judge_at(server, rationale=True, steps=1, reask=0), pair())
    assert (judgment.verdict, judgment.fields["why"]) == ("invalid", CUT_OFF)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_structured_answer_is_held_to_a_schema_and_read_as_json(steps):
    def speak(asked):
        if asked["max_tokens"] == 512:
            return sure("The second.")
        return sure('{"rationale": "The second.", "verdict": "2"}' if steps == 1 else '{"verdict": "2"}')

    with Server(saying(speak)) as server:
        judgment = ask(judge_at(server, rationale=True, steps=steps, structured=True, logprobs=False), pair())
        *_, sent = bodies(server)
        assert len(server.log) == steps
    assert (judgment.winner, judgment.probability, judgment.rationale) == (1, None, "The second.")
    schema = json.dumps(sent["response_format"])
    assert '"enum": ["1", "2"]' in schema
    assert ("rationale" in schema) == (steps == 1)
    assert "Write it as JSON" in told(sent)


def test_a_structured_answer_that_is_no_json_or_a_letter_is_invalid():
    for said, why in (("2", "not the JSON"), ('{"verdict": "B"}', "no verdict")):
        with Server(saying(lambda asked, said=said: sure(said))) as server:
            judgment = ask(judge_at(server, structured=True), pair())
        assert judgment.verdict == "invalid"
        assert why in judgment.fields["why"]


def test_draws_are_averaged_and_their_spread_is_told():
    """Each draw's rationale names its verdict's odds, which the verdict call of that draw sees."""
    odds = [0.9, 0.6, 0.3]
    drawn = []

    def speak(asked):
        if asked["max_tokens"] == 512:
            drawn.append(odds[len(drawn)])
            return sure(f"odds {drawn[-1]}")
        p = float(asked["messages"][1]["content"].removeprefix("odds "))
        return [("1" if p > 0.5 else "2", {"1": p, "2": 1 - p})]

    with Server(saying(speak)) as server:
        judgment = ask(judge_at(server, rationale=True, samples=3, temperature=0.7), pair())
        assert len(server.log) == 6
        assert {sent["temperature"] for sent in bodies(server)} == {0.7}
    assert judgment.probability == pytest.approx(0.6)
    assert (judgment.winner, judgment.fields["mass"]) == (0, pytest.approx(1))
    assert sorted(judgment.fields["samples"]) == pytest.approx([0.3, 0.6, 0.9])
    assert judgment.fields["spread"] == pytest.approx(math.sqrt(0.06))
    assert sorted(judgment.fields["rationales"]) == ["odds 0.3", "odds 0.6", "odds 0.9"]
    assert judgment.rationale in ("odds 0.9", "odds 0.6")
    assert sorted(judgment.raw.split("\n")) == ["1", "1", "2"]


def test_draws_without_probabilities_are_counted_and_unreadable_ones_left_out():
    said = iter(["1", "2", "2", "?"])
    with Server(saying(lambda asked: sure(next(said)))) as server:
        knobs = {"samples": 4, "temperature": 1.0, "logprobs": False, "reask": 0}
        judgment = ask(judge_at(server, **knobs), pair())
    assert judgment.probability == pytest.approx(1 / 3)
    assert sorted(str(p) for p in judgment.fields["samples"]) == ["0.0", "0.0", "1.0", "None"]


def test_an_unreadable_verdict_is_asked_for_again_and_counted():
    said = iter(["Both are fine.", "Hm.", "2"])
    with Server(saying(lambda asked: sure(next(said)))) as server:
        judgment = ask(judge_at(server, reask=2), pair())
        assert len({body for body, _ in server.log}) == 1
        assert len(server.log) == 3
    assert (judgment.winner, judgment.raw, judgment.fields["reasked"]) == (1, "2", 2)
    assert "why" not in judgment.fields


def test_a_call_that_nobody_answers_is_an_invalid_verdict_with_the_reason():
    full = {"error": {"message": "This model's maximum context length is 4096 tokens."}}
    with Server(Script(answer=lambda asked, times: (400, full))) as server:
        judgment = ask(judge_at(server, rationale=True), pair())
    assert (judgment.verdict, judgment.raw, judgment.rationale) == ("invalid", "", "")
    assert judgment.fields == {"why": "longer than the context"}
    assert (judgment.tokens_in, judgment.latency) == (None, 0)


def test_a_draw_that_nobody_answers_leaves_the_others():
    come = []

    def answer(asked, times):
        come.append(asked)
        full = {"error": {"message": "This model's maximum context length is 4096 tokens."}}
        return (400, full) if len(come) == 1 else (200, payload([("1", {"1": 0.7, "2": 0.3})]))

    knobs = {"samples": 2, "temperature": 1.0, "rationale": True, "reask": 0}
    with Server(Script(answer=answer)) as server:
        judgment = ask(judge_at(server, **knobs), pair())
    assert (judgment.winner, judgment.probability) == (0, pytest.approx(0.7))
    assert sorted(map(str, judgment.fields["samples"]))[1] == "None"


@pytest.mark.parametrize("apart", [True, False])
def test_a_thought_is_no_verdict(apart):
    """What a reasoning model thinks names 1; what it answers is 2, with the odds of that token."""
    thought = [("1", {"1": 0.9, "2": 0.1}), (" is fuller.", {" is fuller.": 1.0})]
    verdict = [("2", {"2": 0.6, "1": 0.4})]
    tags = [("<think>", {"<think>": 1.0})], [("</think>", {"</think>": 1.0})]
    found = payload([*thought, *verdict] if apart else [*tags[0], *thought, *tags[1], *verdict])
    if apart:
        found["choices"][0]["message"] |= {"content": "2", "reasoning_content": "1 is fuller."}
    with Server(Script(answer=lambda asked, times: (200, found))) as server:
        judgment = ask(judge_at(server), pair())
    assert (judgment.winner, judgment.probability, judgment.raw) == (1, pytest.approx(0.4), "2")
    silent = payload(sure(""), reasoning_content="1 is better: 1")
    with Server(Script(answer=lambda asked, times: (200, silent))) as server:
        assert ask(judge_at(server), pair()).verdict == "invalid"


def test_attempts_draws_and_second_tries_are_kept_apart_and_each_is_paid_for_once(tmp_path):
    said = iter(["?", "1", "?", "2"])
    with Ledger(str(tmp_path / "l.db")) as ledger, Server(saying(lambda asked: sure(next(said)))) as server:
        judge = judge_at(server)
        assert isinstance(judge.client, Endpoint)
        judge.client.cache = Replies(ledger)
        first = [ask(judge, pair(), attempt) for attempt in (0, 1)]
        again = [ask(judge, pair(), attempt) for attempt in (0, 1)]
        assert len(server.log) == 4
    assert [judgment.winner for judgment in first] == [0, 1]
    assert [judgment.id for judgment in again] == [judgment.id for judgment in first]
