"""A judge as a reward: marks from planted probabilities by hand, 10 in one token or two, and pairs in both orders."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from tests.judge.server import Script, Server
from tests.judge.spoken import Spoken, saying
from tests.rewards.made import asked
from tiebreak.judge.score import WHOLE_TEN
from tiebreak.records import InputError
from tiebreak.rewards.combine import Rewards, read_terms
from tiebreak.rewards.judged import make_score
from tiebreak.rewards.table import Answered, Scores

ZERO: Spoken = [("0", {"0": 0.9, ".": 0.1})]


def scores(server: Server, answered: list[Answered], **knobs: Any) -> Scores:
    """Score with the marking judge at the server, as a recipe would."""
    written = {"judge_score": {"endpoint": server.url, "model": "m", "key_env": None, "retries": 0, **knobs}}
    terms = read_terms(written, where="reward", model=lambda name: pytest.fail(name), seed=0)
    return Rewards(terms)(answered).totals


def scaled(mean: float) -> Any:
    return pytest.approx(2 * (mean - 1) / 9 - 1)


def requests(server: Server) -> list[dict[str, Any]]:
    return [json.loads(body) for body, _ in server.log]


def test_the_mark_is_the_mean_over_the_probabilities_renormalised() -> None:
    chances = {"7": 0.4, " 7": 0.1, "8": 0.2, "10": 0.1, "The": 0.2}
    with Server(saying(lambda asked: [("7", chances)])) as server:
        assert scores(server, [asked("a")]) == [[scaled((7 * 0.5 + 8 * 0.2 + 10 * 0.1) / 0.8)]]
        (sent,) = requests(server)
    assert (sent["top_logprobs"], sent["temperature"]) == (20, 0.0)
    assert "Summary - a" in sent["messages"][0]["content"]


def test_the_ends_of_the_scale_are_minus_1_and_1() -> None:
    for text, worth in (("1", -1.0), ("10", 1.0)):
        with Server(saying(lambda asked, text=text: [(text, {text: 1.0})])) as server:
            assert scores(server, [asked("a")], ten="one") == [[worth]]


def test_a_10_in_two_tokens_is_read_where_the_reply_is_one() -> None:
    first = {"1": 0.6, "9": 0.3, "8": 0.1}
    with Server(saying(lambda asked: [("1", first), *ZERO])) as server:
        mean = 0.6 * (0.9 * 10 + 0.1 * 1) + 0.3 * 9 + 0.1 * 8
        assert scores(server, [asked("a")]) == [[scaled(mean)]]
        assert len(server.log) == 1


def nine_or_ten(asked: dict[str, Any]) -> Spoken:
    """A tokenizer of single digits: the reply is 9, and a third of the mass is on what begins a 10."""
    last = asked["messages"][-1]
    if last["content"] == WHOLE_TEN:
        return [("1", {"1": 1.0}), ("0", {"0": 1.0})]
    if last["role"] == "assistant":
        return [("0", {"0": 0.96, ".": 0.04})]
    return [("9", {"9": 0.6, "1": 0.3, "8": 0.1})]


def test_a_10_in_two_tokens_is_asked_for_where_the_reply_is_another_number() -> None:
    mean = 0.6 * 9 + 0.1 * 8 + 0.3 * (0.96 * 10 + 0.04 * 1)
    with Server(saying(nine_or_ten)) as server:
        written = {"judge_score": {"endpoint": server.url, "model": "m", "key_env": None}}
        rewards = Rewards(read_terms(written, where="reward", model=lambda name: pytest.fail(name), seed=0))
        assert rewards([asked("a")]).totals == [[scaled(mean)]]
        first, probe, again = requests(server)
        assert rewards([asked("b")]).totals == [[scaled(mean)]]
        assert len(server.log) == 5
    assert probe["messages"] == [{"role": "user", "content": WHOLE_TEN}]
    assert again["messages"] == [*first["messages"], {"role": "assistant", "content": "1"}]
    assert (again["continue_final_message"], again["max_tokens"]) == (True, 1)


def test_how_the_tokenizer_writes_10_can_be_said() -> None:
    with Server(saying(nine_or_ten)) as server:
        assert scores(server, [asked("a")], ten="one") == [[scaled(0.6 * 9 + 0.1 * 8 + 0.3 * 1)]]
        assert len(server.log) == 1
        scores(server, [asked("a")], ten="two")
        assert len(server.log) == 3


def test_with_a_token_of_its_own_for_10_a_1_is_a_1() -> None:
    def speak(asked: dict[str, Any]) -> Spoken:
        if asked["messages"][-1]["content"] == WHOLE_TEN:
            return [("10", {"10": 1.0})]
        return [("2", {"2": 0.8, "1": 0.2})]

    with Server(saying(speak)) as server:
        assert scores(server, [asked("a")]) == [[scaled(1.8)]]
        assert len(server.log) == 2


def test_a_model_that_cannot_write_10_is_told() -> None:
    def speak(asked: dict[str, Any]) -> Spoken:
        said = "Ten" if asked["messages"][-1]["content"] == WHOLE_TEN else "2"
        return [(said, {said: 0.8, "1": 0.2})]

    with Server(saying(speak)) as server, pytest.raises(InputError, match=r"wrote 'Ten'.*ten: one or ten: two"):
        scores(server, [asked("a")])


def test_without_probabilities_the_text_counts() -> None:
    with Server(saying(lambda asked: [("Score: 8", {"Score: 8": 1.0})])) as server:
        assert scores(server, [asked("a")], logprobs=False) == [[scaled(8)]]
        assert scores(server, [asked("a")]) == [[scaled(8)]]
        assert [sent.get("logprobs") for sent in requests(server)] == [None, True]


def test_what_cannot_be_read_has_no_score_and_is_counted() -> None:
    def speak(asked: dict[str, Any]) -> Spoken:
        said = "Summary - good" in asked["messages"][0]["content"]
        return [("8", {"8": 1.0})] if said else [("I like it", {"I like it": 1.0})]

    with Server(saying(speak)) as server:
        written = {"judge_score": {"endpoint": server.url, "model": "m", "key_env": None}}
        rewards = Rewards(read_terms(written, where="reward", model=lambda name: pytest.fail(name), seed=0))
        done = rewards([asked("good", "bad")])
        with pytest.raises(InputError, match="the mark cannot be read: 'I like it'; ask a model that keeps"):
            rewards([asked("bad")])
    assert done.totals == [[scaled(8), None]]
    assert done.faults == {"reward judge_score: the mark cannot be read: 'I like it'": 1}


def test_equal_completions_of_a_prompt_are_asked_about_once() -> None:
    with Server(saying(lambda asked: [("8", {"8": 1.0})])) as server:
        answered = [asked("a", "a", "b"), asked("a", text="Another?"), asked("a")]
        assert scores(server, answered) == [[scaled(8)] * 3, [scaled(8)], [scaled(8)]]
        assert len(server.log) == 3


def test_a_dead_endpoint_ends_the_run_in_the_clients_sentence() -> None:
    with Server(Script(status=401)) as server, pytest.raises(InputError, match="answered 401: scripted"):
        scores(server, [asked("a")])
    with pytest.raises(InputError, match="cannot be reached"):
        scores(server, [asked("a")])


def test_a_call_that_fails_calls_the_others_off() -> None:
    with Server(Script(status=401, delay=0.02)) as server:
        many = [asked(*map(str, range(60)), reference="z")]
        with pytest.raises(InputError, match="answered 401"):
            scores(server, many, concurrency=4)
        after = len(server.log)
        judge = {"endpoint": server.url, "model": "m", "rationale": False, "key_env": None, "concurrency": 4}
        with pytest.raises(InputError, match="answered 401"):
            against(many, **judge)
    assert after < 30
    assert len(server.log) - after < 30


def test_a_judge_works_inside_an_event_loop() -> None:
    async def notebook(server: Server) -> Scores:
        return scores(server, [asked("a")])

    with Server(saying(lambda asked: [("8", {"8": 1.0})])) as server:
        assert asyncio.run(notebook(server)) == [[scaled(8)]]


def test_concurrency_bounds_the_calls_in_flight() -> None:
    with Server(saying(lambda asked: [("8", {"8": 1.0})], delay=0.02)) as server:
        make_score(server.url, "m", concurrency=3, key_env=None)([asked(*map(str, range(12)))])
        assert 1 <= server.peak <= 3


def against(answered: list[Answered], **knobs: Any) -> Scores:
    terms = read_terms({"judge_against": knobs}, where="reward", model=lambda name: pytest.fail(name), seed=0)
    return Rewards(terms)(answered).totals


def test_a_rule_says_how_probably_a_completion_beats_the_reference() -> None:
    answered = [asked("four", "two", "a", reference="two"), asked("x", reference="xyz", text="Another?")]
    content = [1 / (1 + math.exp(-gap)) for gap in (1, -2, -2)]
    plain = against(answered, by="rule", rule="longer", sharpness=1.0)
    assert plain == [pytest.approx([content[0], 0.5, content[1]]), pytest.approx([content[2]])]


def test_both_orders_are_averaged_so_a_taste_for_a_slot_cancels() -> None:
    bias, content = 0.6, 1 / (1 + math.exp(-1))
    (row,) = against([asked("four", reference="one")], by="rule", rule="longer", slot_bias=bias)
    assert row == [pytest.approx((1 - bias) * content + bias / 2)]
    (row,) = against([asked("four", reference="one")], by="rule", rule="longer", slot_bias=1.0)
    assert row == [0.5]


def test_the_seed_of_the_run_is_the_judges_unless_it_has_its_own() -> None:
    answered = [asked(*"abcdef", reference="xyz")]

    def by(run: int, **own: Any) -> Scores:
        written = {"judge_against": {"by": "rule", "rule": "longer", "noise": 1.0, **own}}
        return Rewards(read_terms(written, where="r", model=lambda name: pytest.fail(name), seed=run))(answered).totals

    assert by(1) == by(1)
    assert by(1) != by(2)
    assert by(1, seed=3) == by(2, seed=3) == by(3)


def test_a_model_judges_against_the_known_answer() -> None:
    answered = [asked("a longer one", "a", "same", reference="same", fields={"gold": "something in between"})]
    with Server() as server:
        judge = {"endpoint": server.url, "model": "m", "rationale": False, "key_env": None}
        assert against(answered, **judge) == [pytest.approx([0.9, 0.1, 0.5])]
        assert len(server.log) == 4
        assert against(answered, answer="gold", **judge) == [pytest.approx([0.1, 0.1, 0.1])]


def test_no_known_answer_or_no_verdict_is_no_score() -> None:
    with pytest.raises(InputError, match="there is no known answer to compare with; name the field"):
        against([asked("a")], by="rule", rule="longer")
    with Server(Script(reply="Both are fine.")) as server:
        judge = {"endpoint": server.url, "model": "m", "rationale": False, "key_env": None}
        with pytest.raises(InputError, match=r"the verdict cannot be read: 'Both are fine\."):
            against([asked("a", reference="b")], **judge)
