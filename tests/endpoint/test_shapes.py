"""What servers answer, one fixture for each shape, and what they refuse in their own words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tiebreak.endpoint.shapes import Manners, Reply, as_schema, out_of_money, read_chat, said, too_long, unwelcome
from tiebreak.judge.verdict import read_reply

USAGE = {"prompt_tokens": 31, "completion_tokens": 1, "total_tokens": 32}


def entry(token: str, p: float, *others: tuple[str, float], **more: Any) -> dict[str, Any]:
    """One place in a list of log-probabilities."""
    near = [{"token": text, "logprob": math.log(q), "bytes": None, **more} for text, q in ((token, p), *others)]
    return {**near[0], "top_logprobs": near}


VERDICT = entry("1", 0.7, ("2", 0.2))


def body(
    content: Any, logprobs: Any = "missing", *, message: dict[str, Any] | None = None, **choice: Any
) -> dict[str, Any]:
    """A chat completion; without ``logprobs`` the field is missing."""
    made = {"index": 0, "message": {"role": "assistant", "content": content, **(message or {})}}
    made |= {"finish_reason": "stop", **choice} | ({} if logprobs == "missing" else {"logprobs": logprobs})
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [made], "usage": USAGE}


SERVERS: dict[str, dict[str, Any]] = {
    "openai": body("1", {"content": [VERDICT], "refusal": None}, message={"refusal": None, "annotations": []}),
    "vllm": {
        **body(
            "1",
            {"content": [VERDICT, entry("<|im_end|>", 0.99)]},
            message={"reasoning_content": None, "tool_calls": []},
            stop_reason=None,
        ),
        "prompt_logprobs": None,
        "kv_transfer_params": None,
    },
    "sglang": {
        **body(
            "1", {"content": [VERDICT]}, message={"reasoning_content": None, "tool_calls": None}, matched_stop=128009
        ),
        "metadata": {"weight_version": "default"},
    },
    "llama.cpp": {
        **body("1", {"content": [entry("1", 0.7, ("2", 0.2), id=16)]}),
        "timings": {"prompt_n": 31, "predicted_n": 1},
        "system_fingerprint": "b6000-abc",
    },
    "ollama": {**body("1", {"content": [VERDICT]}), "system_fingerprint": "fp_ollama"},
    "lm studio": {**body("1", None), "stats": {}, "system_fingerprint": "m"},
    "a completion server": body(
        "1", {"tokens": ["1"], "token_logprobs": [math.log(0.7)], "top_logprobs": [{"2": math.log(0.2)}]}
    ),
}


def read(answer: Any) -> Reply:
    reply = read_chat(json.dumps(answer), 0.5)
    assert reply is not None
    return reply


@pytest.mark.parametrize("server", SERVERS)
def test_every_server_is_read(server: str) -> None:
    reply = read(SERVERS[server])
    assert reply[:1] + reply[2:7] == ("1", 31, 1, 0.5, "stop", False)
    assert (reply.price, reply.thought) == (None, "")
    reading = read_reply(reply.text, reply.tokens)
    assert (reading.verdict, reading.winner) == ("slot", 0)
    wanted = None if server == "lm studio" else pytest.approx(0.7 / 0.9)
    assert reading.probability == wanted


@pytest.mark.parametrize(
    "logprobs",
    [
        "missing",
        None,
        {},
        [],
        {"content": None},
        {"content": []},
        {"tokens": []},
        {"content": [{"token": "1"}, 5]},
        {"content": [{"logprob": -1.0}]},
        "no",
    ],
)
def test_log_probabilities_that_are_not_there_cost_no_answer(logprobs: Any) -> None:
    reply = read(body("1", logprobs))
    assert (reply.text, reply.tokens) == ("1", None)


def test_a_log_probability_of_nothing_is_left_out() -> None:
    empty = {"token": "1", "logprob": None, "top_logprobs": [{"token": "2", "logprob": None}]}
    (token,) = read(body("1", {"content": [empty]})).tokens or ()
    assert token.top == {}
    legacy = {"tokens": ["1", "!"], "token_logprobs": [None], "top_logprobs": [None, {"!": -0.5}]}
    assert [dict(token.top) for token in read(body("1!", legacy)).tokens or ()] == [{}, {"!": -0.5}]


def test_usage_may_be_missing() -> None:
    for usage in (None, {}, {"prompt_tokens": None}):
        reply = read({**body("1"), "usage": usage})
        assert (reply.tokens_in, reply.tokens_out) == (None, None)


@pytest.mark.parametrize(
    "answer",
    [
        "<html><body>502 Bad Gateway</body></html>",
        "",
        '{"choices": [{"message": {"content": "1',
        "[]",
        "null",
        '{"choices": []}',
        '{"choices": [{"text": "1"}]}',
        '{"error": {"message": "overloaded", "code": 529}}',
        '{"choices": [{"message": {"content": "1"}, "finish_reason": "abort"}]}',
        '{"choices": [{"message": {"content": ""}, "finish_reason": "error"}]}',
    ],
)
def test_what_is_no_whole_completion_is_none(answer: str) -> None:
    assert read_chat(answer, 0.0) is None


def test_content_may_be_null_or_parts_or_a_refusal() -> None:
    assert read(body(None)).text == ""
    assert read(body([{"type": "text", "text": "1"}, {"type": "text", "text": "!"}])).text == "1!"
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "2"}]
    assert read(body(parts))[0] == "2"
    assert read(body(parts)).thought == "hm"
    assert read(body(None, message={"refusal": "I will not."})).text == "I will not."


TAGGED = ["<think>", "\n", "1", " or", " 2", "?", "\n", "</think>", "\n\n", "2"]


def tokens(*pieces: str) -> dict[str, Any]:
    return {"content": [entry(piece, 0.8, ("2" if piece == "1" else "1", 0.1)) for piece in pieces]}


@pytest.mark.parametrize(
    ("content", "message", "pieces"),
    [
        ("".join(TAGGED), {}, TAGGED),
        ("".join(TAGGED[1:]), {}, TAGGED[1:]),
        ("2", {"reasoning_content": "\n1 or 2?\n"}, TAGGED),
        ("\n\n2", {"reasoning": "1 or 2?"}, TAGGED),
        ("2", {"reasoning_content": "1 or 2?"}, ["2"]),
        ("2", {"reasoning_content": "1 or 2?"}, ["2", "<|im_end|>"]),
        ("[THINK]1 or 2?[/THINK]2", {}, ["[THINK]", "1", " or", " 2", "?", "[/THINK]", "2"]),
        ("<think>1 or 2?</think>2", {}, ["<th", "ink>", "1", " or", " 2", "?</", "think", ">", "2"]),
    ],
)
def test_a_thought_is_set_aside_and_its_tokens_are_no_verdict(
    content: str, message: dict[str, Any], pieces: list[str]
) -> None:
    reply = read(body(content, tokens(*pieces), message=message))
    assert (reply.text, reply.thought) == ("2", "1 or 2?")
    reading = read_reply(reply.text, reply.tokens)
    assert (reading.winner, reading.probability) == (1, pytest.approx(0.1 / 0.9))


def test_a_thought_that_never_ends_leaves_no_answer() -> None:
    reply = read(body("<think>\n1 is longer, but", tokens("<think>", "\n", "1", " is"), finish_reason="length"))
    assert (reply.text, reply.thought, reply.finish) == ("", "1 is longer, but", "length")
    assert read_reply(reply.text, reply.tokens).verdict == "invalid"
    cut = read(body("2\n<think>or", None))
    assert (cut.text.strip(), cut.thought) == ("2", "or")


def test_tokens_that_do_not_fit_the_answer_are_dropped_with_the_thought() -> None:
    reply = read(body("<think>1</think>2", tokens("1", "x")))
    assert (reply.text, reply.tokens) == ("2", None)


def test_a_tag_that_a_rationale_only_mentions_is_text() -> None:
    text = "The first answer leaves its <think> section in, which hurts."
    assert read(body(text))[0] == text
    assert read(body(text)).thought == ""


def test_tokens_are_left_alone_without_a_thought() -> None:
    (one, two) = read(body("1 ", tokens("1", " "))).tokens or ()
    assert (one.text, two.text) == ("1", " ")


LONG = {
    "openai": {
        "error": {
            "message": "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 "
            "tokens. Please reduce the length of the messages.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    },
    "vllm": {
        "object": "error",
        "message": "This model's maximum context length is 4096 tokens. However, you requested 5096 tokens (4996 in "
        "the messages, 100 in the completion). Please reduce the length of the messages or completion.",
        "type": "BadRequestError",
        "code": 400,
    },
    "vllm, max_tokens": {
        "error": {
            "message": "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length "
            "is 4096 tokens and your request has 4000 input tokens (512 > 4096 - 4000).",
            "param": None,
        }
    },
    "vllm, engine": {"message": "The decoder prompt (length 21535) is longer than the maximum model length of 16384."},
    "sglang": {
        "object": "error",
        "message": "The input (61709 tokens) is longer than the model's context length (4096).",
    },
    "llama.cpp": {
        "error": {
            "code": 400,
            "message": "the request exceeds the available context size, try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 14429,
            "n_ctx": 8192,
        }
    },
    "llama-cpp-python": {"error": {"message": "Requested tokens (2285) exceed context window of 2048"}},
    "lm studio": {
        "error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with "
        "context length of only 4096 tokens"
    },
    "tgi": {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."},
    "anthropic": {"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}},
    "gemini": [{"error": {"message": "The input token count (2000000) exceeds the maximum number of tokens allowed."}}],
}


@pytest.mark.parametrize("server", LONG)
def test_a_full_context_is_known_in_every_wording(server: str) -> None:
    text = json.dumps(LONG[server])
    assert too_long(text)
    assert not Manners().learn(text, {"temperature": 0.0}) or server == "vllm, max_tokens"
    assert not unwelcome(text)


def test_other_errors_are_no_full_context() -> None:
    for message in ("The model `gpt-9` does not exist", "Incorrect API key provided", "max_tokens must be positive"):
        assert not too_long(json.dumps({"error": {"message": message}}))


def refused(message: str, param: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param}})


BODY = {"model": "m", "max_tokens": 5, "temperature": 0.0, "response_format": as_schema({"type": "object"})}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            refused(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
                "instead.",
                "max_tokens",
            ),
            "max_tokens",
        ),
        (
            refused(
                "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
                "supported.",
                "temperature",
            ),
            "temperature",
        ),
        (refused("`temperature` is deprecated for this model."), "temperature"),
        (refused("This response_format type is unavailable now"), "response_format"),
        (refused("Invalid parameter: not supported by this model.", "response_format"), "response_format"),
        (json.dumps({"error": "'response_format.type' must be 'text'"}), "response_format"),
        (json.dumps({"detail": "json_schema is not supported"}), "response_format"),
        (refused("temperature must be between 0 and 2", "temperature"), ""),
        (refused("max_tokens is too large: 100000. This model supports at most 16384 completion tokens"), ""),
        (refused("Unknown parameter: 'continue_final_message'."), ""),
        (refused("messages[0].role is wrong"), ""),
        ("no JSON", ""),
    ],
)
def test_what_a_server_does_not_take_is_learnt_from_its_words(text: str, name: str) -> None:
    manners = Manners()
    assert manners.learn(text, BODY) == name
    fitted = manners.fit(BODY)
    assert name not in fitted
    assert (fitted is BODY) == (not name)
    assert ("max_completion_tokens" in fitted) == (name == "max_tokens")
    assert fitted.get("max_completion_tokens", fitted.get("max_tokens")) == 5


def test_what_was_not_sent_is_not_blamed() -> None:
    assert not Manners().learn(refused("This response_format type is unavailable now"), {"max_tokens": 5})


def test_an_empty_account_and_a_filter_are_told_from_other_refusals() -> None:
    empty = {"error": {"message": "You exceeded your current quota", "type": "x", "code": "insufficient_quota"}}
    assert out_of_money(json.dumps(empty))
    assert not out_of_money('{"error": {"message": "slow down"}}')
    assert not out_of_money("nothing")
    assert unwelcome('{"error": {"message": "The response was filtered", "code": "content_filter"}}')
    assert unwelcome('{"error": {"message": "Invalid prompt: your prompt was flagged as potentially violating"}}')
    assert not unwelcome('{"error": {"message": "bad request"}}')


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"error": {"message": "no such\\n model."}}', "no such model"),
        ('{"error": "plain"}', "plain"),
        ('{"detail": "Not Found"}', "Not Found"),
        ('{"object": "error", "message": "vllm"}', "vllm"),
        ('[{"error": {"message": "gemini"}}]', "gemini"),
        ("<h1>Bad\nGateway</h1>", "<h1>Bad Gateway</h1>"),
        ("", "nothing"),
        ("x" * 400, "x" * 300 + "..."),
    ],
)
def test_an_error_is_told_in_the_servers_words_on_one_line(text: str, line: str) -> None:
    assert said(text) == line
