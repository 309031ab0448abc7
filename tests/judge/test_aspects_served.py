"""The judge that rates aspects against a server: what is sent, what it costs, faults, and a run that goes on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.judge.made import Pair, ledger_with, pairs
from tests.judge.server import Script, Server
from tiebreak.judge.aspects import AspectsJudge, make
from tiebreak.judge.ratings import schema
from tiebreak.judge.run import Judged, judge_pairs
from tiebreak.records import Judgment

SHOWN = re.compile(r"Response 1 - (.*?)\n\nResponse 2 - (.*?)\n\n", re.DOTALL)
ASKED = re.compile(r"^(\w+) \(\d+ to \d+(?:, or n/a)?\): ", re.MULTILINE)
ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")

Answer = tuple[int, dict[str, Any]]


def rating(text: str, aspect: str) -> int:
    """The planted taste: long answers are helpful, and every text has its own ratings of the rest."""
    return (5 if len(text) > 20 else 2) if aspect == "helpfulness" else 1 + (len(text) + len(aspect)) % 5


def payload(text: str, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    choice["logprobs"] = {"content": logprobs} if logprobs else None
    return {"choices": [choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}


def token(digit: str, space: str) -> dict[str, Any]:
    """A token that is the digit with 3/4 of the odds, and the next one on the scale with the rest."""
    odds = {digit: 0.75, str(int(digit) % 5 + 1): 0.25}
    near = [{"token": space + said, "logprob": math.log(p)} for said, p in odds.items()]
    return {**near[0], "top_logprobs": near}


def answers(asked: dict[str, Any], tries: int) -> Answer:
    """A server that rates as planted, in the form that was asked for."""
    text = asked["messages"][0]["content"]
    shown, aspects = SHOWN.search(text), ASKED.findall(text)
    assert shown is not None
    if asked.get("logprobs"):
        digits = [str(rating(shown[slot], aspects[0])) for slot in (1, 2)]
        tokens = [token(digits[0], ""), token(digits[1], " ")]
        return 200, payload(" ".join(digits), tokens)
    block = {
        slot: {a: {"why": "so", "rating": rating(shown[n], a)} for a in aspects}
        for n, slot in ((1, "first"), (2, "second"))
    }
    return 200, payload(json.dumps(block))


def refuses_schemas(asked: dict[str, Any], tries: int) -> Answer:
    if "response_format" in asked:
        return 400, {"error": {"message": "response_format is not supported"}}
    return answers(asked, tries)


def slips(asked: dict[str, Any], tries: int) -> Answer:
    """A server whose first answer to a question is cut short."""
    status, said = answers(asked, tries)
    if len(asked["messages"]) == 1:
        said["choices"][0]["message"]["content"] = said["choices"][0]["message"]["content"][:-9]
    return status, said


def judge_at(server: Server, **knobs: Any) -> AspectsJudge:
    return make(endpoint=server.url, model="scripted", key_env=None, **knobs)


def run(where: Path, made: list[Pair], answer: Callable[[dict[str, Any], int], Answer], **knobs: Any) -> Ran:
    with Server(Script(answer=answer)) as server, ledger_with(where, made) as ledger:
        judged = judge_pairs(ledger, judge_at(server, **knobs), made)
        return judged, ledger.judgments(judged.judgment_ids), [json.loads(body) for body, _ in server.log]


Ran = tuple[Judged, list[Judgment], list[dict[str, Any]]]


def planted(made: list[Pair]) -> list[dict[str, list[int]]]:
    """The ratings of every question in both orders."""
    orders = [pair for _, a, b in made for pair in ((a, b), (b, a))]
    return [{aspect: [rating(slot.text.strip(), aspect) for slot in slots] for aspect in ASPECTS} for slots in orders]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("answer", [answers, refuses_schemas, slips])
def test_planted_ratings_come_back_from_a_server(
    tmp_path: Path, together: bool, answer: Callable[[dict[str, Any], int], Answer]
) -> None:
    made = pairs(6)
    judged, found, _ = run(tmp_path / "l.db", made, answer, together=together)
    assert [judgment.ratings for judgment in found] == planted(made)
    assert judged.counts["invalid"] == 0
    assert {judgment.by for judgment in found} == {"model:scripted@127.0.0.1"}


def test_a_request_holds_the_schema_and_the_tokens_are_added_up(tmp_path: Path) -> None:
    judged, found, sent = run(tmp_path / "l.db", pairs(1), answers, together=False, temperature=0.5, answer_tokens=99)
    assert len(sent) == 2 * len(ASPECTS)
    rated = {aspect.name: aspect for aspect in make(endpoint="http://localhost:1/v1", model="m").scheme.aspects}
    for body in sent:
        (aspect,) = ASKED.findall(body["messages"][0]["content"])
        assert body["response_format"]["json_schema"]["schema"] == schema([rated[aspect]])
        assert (body["temperature"], body["max_tokens"], "logprobs" in body) == (0.5, 99, False)
    assert [(judgment.tokens_in, judgment.tokens_out) for judgment in found] == [(4000, 400)] * 2
    assert (judged.tokens_in, judged.tokens_out) == (8000, 800)


def test_expectations_come_from_the_servers_odds(tmp_path: Path) -> None:
    made = pairs(1)
    _, found, sent = run(tmp_path / "l.db", made, answers, together=False, logprobs=True)
    assert all(body["top_logprobs"] == 20 and "response_format" not in body for body in sent)
    for judgment, ratings in zip(found, planted(made), strict=True):
        assert judgment.fields["mass"] == pytest.approx(1.0)
        for aspect, pair in ratings.items():
            assert judgment.ratings[aspect] == pytest.approx([0.75 * n + 0.25 * (n % 5 + 1) for n in pair])


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    made = pairs(3)
    first, found, _ = run(tmp_path / "l.db", made, answers)
    with Server(Script(answer=answers)) as server, ledger_with(tmp_path / "l.db", made) as ledger:
        again = judge_pairs(ledger, judge_at(server), made)
        assert server.log == []
    assert again.judgment_ids == first.judgment_ids
    assert len(found) == 6
