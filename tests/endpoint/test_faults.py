"""A server that fails one call, some, or all; what it does not take; and a key that is seen nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import Any

import pytest

from tests.endpoint.made import SLOTS, ask, client, unused_port
from tests.judge.server import Script, Server
from tiebreak.endpoint import Reply, Unanswered
from tiebreak.records import InputError

KEY = "sk-very/secret+0123456789"
WHOLE = {"choices": [{"message": {"content": "1"}, "finish_reason": "stop"}]}


def content(asked: dict[str, Any]) -> str:
    return str(asked["messages"][0]["content"])


def poison(status: int, payload: Any, rows: int = 3) -> Script:
    """A server that gives the same bad answer to the first ``rows`` of the texts whenever they come."""
    bad = {f"{SLOTS}{i}" for i in range(rows)}
    return Script(answer=lambda asked, tries: (status, payload) if content(asked) in bad else None)


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


LONG = error("This model's maximum context length is 4096 tokens. However, you requested 5096 tokens.")


@pytest.mark.parametrize(
    ("status", "payload", "why", "tries"),
    [
        (500, error("CUDA error"), "answered 500: CUDA error", 3),
        (200, "<html>proxy</html>", "gave something else than was asked for: <html>proxy</html>", 3),
        (200, '{"choices": [{"mess', "gave something else than was asked for", 3),
        (400, LONG, "longer than the context", 1),
        (500, error("the request exceeds the available context size"), "longer than the context", 1),
        (413, error("too large"), "longer than the context", 1),
        (400, error("filtered", code="content_filter"), "refused by the server's filter", 1),
    ],
)
def test_a_call_that_fails_by_itself_is_unanswered_and_the_others_go_on(
    status: int, payload: Any, why: str, tries: int
) -> None:
    with Server(poison(status, payload)) as server:
        answers = ask(client(server.url, retries=2), n=40, errors=True)
        asked = Counter(body for body, _ in server.log)
    assert all(isinstance(answer, Unanswered) and answer.why.startswith(why) for answer in answers[:3])
    assert all(isinstance(answer, Reply) for answer in answers[3:])
    assert sorted(asked.values())[-3:] == [tries] * 3
    assert "\n" not in str(answers[0])


def test_a_refusal_of_one_row_is_its_own_once_the_server_has_answered() -> None:
    script = Script(answer=lambda asked, tries: (400, error("bad text")) if content(asked).endswith("x0") else None)
    with Server(script) as server:

        async def rows() -> list[Any]:
            endpoint = client(server.url)
            try:
                return [
                    await asyncio.gather(
                        endpoint.chat([{"role": "user", "content": SLOTS + text}], max_tokens=5, temperature=0.0),
                        return_exceptions=True,
                    )
                    for text in ("a", "x0", "b")
                ]
            finally:
                await endpoint.close()

        (first,), (bad,), (last,) = asyncio.run(rows())
    assert isinstance(bad, Unanswered)
    assert isinstance(first, Reply)
    assert isinstance(last, Reply)


def test_a_refusal_of_a_field_is_no_row_though_other_requests_were_answered() -> None:
    script = Script(answer=lambda asked, tries: (400, error("logprobs")) if "logprobs" in asked else None)
    with Server(script) as server:
        endpoint = client(server.url)
        assert all(isinstance(answer, Reply) for answer in ask(endpoint, n=20))
        answers = ask(endpoint, n=20, logprobs=True, errors=True)
    assert not any(isinstance(answer, Unanswered) for answer in answers)
    assert "logprobs=false" in str(answers[0])


def test_a_text_that_times_out_is_unanswered_and_says_after_how_long() -> None:
    slow = asyncio.Event()

    class Hangs(Server):
        async def _answer(self, request: Any) -> Any:
            if f"{SLOTS}0" == content(json.loads(await request.read())):
                await asyncio.wait_for(slow.wait(), 10)
            return await super()._answer(request)

    with Hangs(Script(delay=0.001)) as server:
        answers = ask(client(server.url, retries=0, timeout=1.0), n=30, errors=True)
    assert isinstance(answers[0], Unanswered)
    assert answers[0].why == "gave no answer within 1 s"
    assert all(isinstance(answer, Reply) for answer in answers[1:])


@pytest.mark.parametrize(
    ("status", "payload", "said"),
    [
        (401, error("no"), "key"),
        (403, error("no"), "key"),
        (404, error("no such model"), "model's name"),
        (402, error("pay"), "pay"),
        (429, error("quota", code="insufficient_quota"), "quota"),
        (302, "moved", "redirects"),
        (400, error("unknown field"), "unknown field"),
    ],
)
def test_what_is_wrong_for_all_ends_the_run_and_is_no_row(status: int, payload: Any, said: str) -> None:
    with Server(Script(answer=lambda asked, tries: (status, payload))) as server, pytest.raises(InputError) as told:
        ask(client(server.url))
    assert not isinstance(told.value, Unanswered)
    assert said in str(told.value)
    assert len(server.log) == 1


@pytest.mark.parametrize("payload", [(500, error("down")), (200, "<html>wrong address</html>")])
def test_a_server_that_fails_all_stops_all_with_one_sentence(payload: tuple[int, Any]) -> None:
    with Server(Script(answer=lambda asked, tries: payload)) as server:
        answers = ask(client(server.url, retries=3), n=200, errors=True)
        assert len(server.log) < 100
    assert len({str(answer) for answer in answers}) == 1
    assert not any(isinstance(answer, Unanswered) for answer in answers)
    assert "check that the server runs" in str(answers[0])


def test_a_server_that_goes_away_stops_all_and_is_probed_by_the_next_run() -> None:
    gone: list[bool] = []
    with Server(Script(answer=lambda asked, tries: (503, error("draining")) if gone else None)) as server:
        endpoint = client(server.url, retries=2)
        assert all(isinstance(answer, Reply) for answer in ask(endpoint, n=50))
        gone.append(True)
        first = ask(endpoint, n=300, errors=True)
        before = len(server.log)
        again = ask(endpoint, n=300, errors=True)
        assert len(server.log) == before + 1, "one call finds out for all"
        gone.clear()
        assert all(isinstance(answer, Reply) for answer in ask(endpoint, n=50))
    for answers in (first, again):
        assert len({str(answer) for answer in answers}) == 1
        assert not isinstance(answers[0], Unanswered)


def test_a_connection_that_is_refused_after_answers_stops_all() -> None:
    with Server() as server:
        endpoint = client(server.url, retries=2)
        ask(endpoint, n=20)
    answers = ask(endpoint, n=200, errors=True)
    assert len({str(answer) for answer in answers}) == 1
    assert "cannot be reached" in str(answers[0])


def test_calls_that_were_turned_away_all_come_through() -> None:
    with Server(Script(capacity=5, delay=0.002)) as server:
        answers = ask(client(server.url, retries=12, concurrency=64), n=300)
        assert server.peak <= 5
    assert len(answers) == 300


def test_a_schema_is_sent_and_given_up_where_it_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    schema = {"type": "object", "properties": {"verdict": {"enum": ["1", "2"]}}}

    def strict(asked: dict[str, Any], tries: int) -> tuple[int, Any] | None:
        return (400, error("This response_format type is unavailable now")) if "response_format" in asked else None

    with Server() as server:
        ask(client(server.url), schema=schema)
        sent = json.loads(server.log[0][0])["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    with Server(Script(answer=strict)) as server, caplog.at_level(logging.WARNING):
        endpoint = client(server.url)
        assert all(isinstance(answer, Reply) for answer in ask(endpoint, n=100, schema=schema))
        first = len(server.log)
        ask(endpoint, n=20, schema=schema)
        assert len(server.log) == first + 20, "remembered"
        assert first < 150
    assert len(endpoint.notes) == len(caplog.records) == 1
    assert "response_format" in endpoint.notes[0]


def test_a_reasoning_model_is_asked_as_it_wants() -> None:
    def reasoning(asked: dict[str, Any], tries: int) -> tuple[int, Any] | None:
        if "max_tokens" in asked:
            words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            return 400, error(words, param="max_tokens", code="unsupported_parameter")
        if "temperature" in asked:
            words = (
                "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default is supported"
            )
            return 400, error(words, param="temperature")
        return 200, WHOLE

    with Server(Script(answer=reasoning)) as server:
        endpoint = client(server.url)
        ask(endpoint)
        ask(endpoint, max_tokens=7)
        sent = [json.loads(body) for body, _ in server.log]
    assert len(sent) == 4
    assert sent[3]["max_completion_tokens"] == 7
    assert not {"max_tokens", "temperature"} & set(sent[3])
    assert [note.split(" does not take ")[1].split()[0] for note in endpoint.notes] == ["max_tokens", "temperature"]


@pytest.mark.parametrize(
    "words",
    [
        "Unknown parameter: 'continue_final_message'.",
        "Extra inputs are not permitted: continue_final_message",
        "The conversation must end with a user message; assistant prefill is not supported.",
    ],
)
def test_a_server_that_cannot_go_on_with_an_answer_is_told_by_its_knob(words: str) -> None:
    script = Script(answer=lambda asked, tries: (400, error(words)))
    with Server(script) as server, pytest.raises(InputError, match="prefill=false"):
        ask(client(server.url), continue_final=True)


@pytest.mark.parametrize("status", [400, 403])
def test_a_server_that_gives_no_log_probabilities_is_told_by_its_knob(status: int) -> None:
    words = "You are not allowed to request logprobs from this model."
    script = Script(answer=lambda asked, tries: (status, error(words)))
    with Server(script) as server, pytest.raises(InputError, match="logprobs=false"):
        ask(client(server.url), logprobs=True)


@pytest.mark.parametrize(
    ("script", "retries"),
    [
        (Script(status=401, message="wrong key: {authorization}"), 0),
        (Script(status=500, message="dump: {authorization}"), 1),
        (Script(status=429, message="slow down, {authorization}", retry_after=KEY), 1),
        (Script(status=302, message="see {authorization}"), 1),
        (Script(status=400, message="temperature {authorization} is not supported"), 1),
    ],
)
def test_the_key_is_in_no_error_log_note_or_redirect(
    script: Script, retries: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with Server() as elsewhere, Server(script) as server, caplog.at_level(0):
        object.__setattr__(server.script, "location", elsewhere.url + "/chat/completions")
        endpoint = client(server.url, key_env="MY_KEY", retries=retries)
        with pytest.raises(InputError) as told:
            ask(endpoint)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        assert elsewhere.log == [], "a redirect is not followed"
    shown = (str(told.value), repr(told.value.__context__), repr(endpoint.notes), repr(vars(endpoint)), caplog.text)
    for secret in (KEY, KEY.replace("/", "%2F").replace("+", "%2B"), KEY.replace("/", "\\/")):
        assert not any(secret in place for place in shown)
    assert "[key]" in str(told.value) or endpoint.notes


def test_no_server_at_all_is_one_sentence_for_all() -> None:
    answers = ask(client(f"http://127.0.0.1:{unused_port()}/v1", backoff=60.0), n=100, errors=True)
    assert len({str(answer) for answer in answers}) == 1
    assert "cannot be reached" in str(answers[0])
