"""What servers answer, in all their shapes, and what each of them does not take.

Read here: OpenAI, vLLM, SGLang, llama.cpp, Ollama, LM Studio and their like; with log-probabilities, without, and as
completion servers write them; thoughts in tags or in a field of their own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CUT_OFF = ("abort", "error")
"""Finish reasons of a completion that the server itself broke off: no answer of the model."""

_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
_CLOSING = tuple(closing for _, closing in _TAGS)
# At the beginning of a line only: a rationale may well mention a tag that it read.
_BLOCK = re.compile(
    "|".join(rf"(?:^|(?<={re.escape(end)}))[ \t]*{re.escape(tag)}.*?(?:{re.escape(end)}|\Z)" for tag, end in _TAGS),
    re.DOTALL | re.MULTILINE,
)

_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|maximum model length|"
    r"model'?s context length|available context size|context window|context (?:length|size)[^.]{0,40}exceed|"
    r"exceeds?[^.]{0,60}context|prompt is too long|too long to fit into the model|"
    r"(?:prompt|input)[^.]{0,80}exceeds[^.]{0,40}(?:maximum|limit)|context the overflows|loaded with context length|"
    r"inputs`? tokens \+ `?max_new_tokens|max_tokens must be at least 1, got -",
    re.IGNORECASE,
)
_REFUSES = re.compile(
    r"support|deprecat|not allowed|not permitted|forbidden|unknown|unrecogni|unexpected|only the default", re.IGNORECASE
)
_SCHEMA = re.compile(r"json_schema|structured.outputs?|guided", re.IGNORECASE)
_FILTERED = ("content_filter", "content_policy_violation", "invalid_prompt")
_FILTER = re.compile(r"content management policy|content policy|flagged as potentially violating", re.IGNORECASE)


class Token(NamedTuple):
    """One generated token with the log-probabilities of the likeliest tokens in its place, itself among them."""

    text: str
    top: Mapping[str, float]


class Reply(NamedTuple):
    """What the model wrote, what it cost and how long the answered call took, in seconds.

    ``tokens`` are those of ``text``, None where the server gave no log-probabilities; ``finish`` is the server's finish
    reason. ``cached`` says that nothing was paid now; ``price`` is what was, in US dollars, None where no price is
    known. ``thought`` is what a reasoning model wrote before its answer.
    """

    text: str
    tokens: tuple[Token, ...] | None
    tokens_in: int | None
    tokens_out: int | None
    latency: float
    finish: str
    cached: bool = False
    price: float | None = None
    thought: str = ""


def read_chat(text: str | bytes, latency: float) -> Reply | None:
    """Return the reply in a server's JSON, None where it is not a whole chat completion."""
    try:
        found = json.loads(text)
        choice = found["choices"][0]
        message = choice["message"]
        said, thought = _parts(message.get("content"))
        usage = found.get("usage") or {}
        tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        finish = choice.get("finish_reason") or ""
        if finish in CUT_OFF:
            return None
        aside = message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    said = said or (message.get("refusal") or "")
    tokens = _tokens(choice.get("logprobs"))
    apart = [part for part in (aside if isinstance(aside, str) else "", thought) if part]
    if apart or "<" in said or "[" in said or tokens is not None:
        said, tokens, thought = _without_thought(said, tokens, apart)
    return Reply(
        text=said,
        tokens=tokens,
        tokens_in=tokens_in if isinstance(tokens_in, int) else None,
        tokens_out=tokens_out if isinstance(tokens_out, int) else None,
        latency=latency,
        finish=str(finish),
        thought=thought,
    )


def _parts(content: Any) -> tuple[str, str]:
    """Return text and thought of a message's content, which is a string, null, or a list of typed parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        return json.dumps(content), ""
    said, thought = [], []
    for part in content:
        if isinstance(part, str):
            said.append(part)
        elif part.get("type") in ("thinking", "reasoning"):
            inside = part.get("thinking") or part.get("text") or ""
            thought.append(inside if isinstance(inside, str) else _parts(inside)[0])
        else:
            said.append(part.get("text") or "")
    return "".join(said), "".join(thought)


def _without_thought(
    said: str, tokens: tuple[Token, ...] | None, apart: Sequence[str]
) -> tuple[str, tuple[Token, ...] | None, str]:
    """Return the answer, its tokens and the thought: what stands in tags, before a lone closing tag, or apart."""
    text, thoughts = said, list(apart)
    ends = [(text.find(end), end) for tag, end in _TAGS if end in text and tag not in text[: text.find(end)]]
    if ends:
        # The template opened the thought in the prompt, so that the reply only closes it.
        at, end = min(ends)
        thoughts.append(text[:at])
        text = text[at + len(end) :]
    thoughts += [found[0] for found in _BLOCK.finditer(text)]
    text = _BLOCK.sub("", text)
    if not thoughts:
        return said, tokens, ""
    text = text.lstrip()
    return text, _aligned(text, tokens), "\n".join(_bare(thought) for thought in thoughts).strip()


def _aligned(text: str, tokens: tuple[Token, ...] | None) -> tuple[Token, ...] | None:
    """Return the last tokens that make up ``text``; None where none do, for a thought's token is no answer's."""
    if tokens is None:
        return None
    left = text.strip()
    for at in range(len(tokens) - 1, -1, -1):
        piece = tokens[at].text
        if not left or piece in _CLOSING:
            return tokens[at + 1 :] if not left else None
        bare = piece.strip()
        if left.endswith(bare):
            left = left[: len(left) - len(bare)].rstrip()
        elif bare.endswith(left):
            return tokens[at:] if not bare[: -len(left)].strip() else None
        elif not _special(piece):
            return None
    return tokens if not left else None


def _special(piece: str) -> bool:
    """Return whether a token is one that a server leaves out of the text, like an end of turn."""
    return (piece.startswith("<") and piece.endswith(">")) or piece in ("", "</s>")


def _bare(thought: str) -> str:
    for tag, end in _TAGS:
        thought = thought.strip().removeprefix(tag).removesuffix(end)
    return thought.strip()


def _tokens(logprobs: Any) -> tuple[Token, ...] | None:
    """Return the tokens in either shape of log-probabilities, None where there are none that can be read."""
    if not isinstance(logprobs, Mapping):
        return None
    try:
        if content := logprobs.get("content"):
            return tuple(Token(entry["token"], _top(entry)) for entry in content)
        if pieces := logprobs.get("tokens"):
            return tuple(_legacy(logprobs, at, piece) for at, piece in enumerate(pieces))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return None


def _top(entry: Mapping[str, Any]) -> dict[str, float]:
    given = entry.get("top_logprobs") or ()
    top: dict[str, float] = {near["token"]: near["logprob"] for near in given}
    if len(top) < len(given) or None in top.values():
        top = _added_up(given)
    if entry.get("logprob") is not None:
        top.setdefault(entry["token"], float(entry["logprob"]))
    return top


def _added_up(given: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    top: dict[str, float] = {}
    for near in given:
        here = near["logprob"]
        if here is None:
            continue
        # Two token ids may decode to one text; their probabilities add up.
        known = top.get(near["token"])
        top[near["token"]] = float(here) if known is None else math.log(math.exp(known) + math.exp(here) or 5e-324)
    return top


def _legacy(logprobs: Mapping[str, Any], at: int, piece: str) -> Token:
    """Return one token as completion servers write it: parallel lists of tokens, their own and the likeliest's."""
    tops, own = logprobs.get("top_logprobs") or (), logprobs.get("token_logprobs") or ()
    top = {text: float(p) for text, p in ((tops[at] if at < len(tops) else None) or {}).items() if p is not None}
    if at < len(own) and own[at] is not None:
        top.setdefault(piece, float(own[at]))
    return Token(piece, top)


def said(text: str) -> str:
    """Return the server's message, from the shapes servers use, shortened to one line."""
    message: Any = text
    error = _error(text)
    if error:
        message = error.get("message") or text
    line = " ".join(str(message).split()) or "nothing"
    return line.rstrip(".") if len(line) <= 300 else line[:300] + "..."


def _error(text: str) -> dict[str, Any]:
    """Return what a server says about an error, with at least a ``message`` where it says any."""
    try:
        found = json.loads(text)
        found = found[0] if isinstance(found, list) and found else found
        error = found.get("error") or found.get("detail") or found.get("message")
        code = {"code": found["code"]} if isinstance(found.get("code"), str) else {}
    except (ValueError, AttributeError, IndexError, KeyError):
        return {}
    return error if isinstance(error, dict) else {**code, "message": error} if error else {}


def too_long(text: str) -> bool:
    """Return whether an error says that the request does not fit into the model's context."""
    error = _error(text)
    return _TOO_LONG.search(" ".join(str(error.get(name) or "") for name in ("message", "type", "code"))) is not None


def out_of_money(text: str) -> bool:
    """Return whether a 429 says that the account is empty, which no waiting mends."""
    error = _error(text)
    return "insufficient_quota" in (error.get("code"), error.get("type"))


def unwelcome(text: str) -> bool:
    """Return whether an error says that a provider's filter refuses the texts of the request."""
    error = _error(text)
    return error.get("code") in _FILTERED or _FILTER.search(str(error.get("message") or "")) is not None


class Manners:
    """What one server does not take: learnt from its refusals, and not sent again.

    A limit of tokens goes by its other name then, temperature and schema are left out. Anything else that a server
    refuses is for the user to decide.
    """

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        """The refused names with the server's words."""

    def fit(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the request as this server takes it."""
        if self.refused.keys().isdisjoint(body):
            return body
        fitted = {name: value for name, value in body.items() if name not in self.refused}
        if "max_tokens" in self.refused and "max_tokens" in body:
            fitted["max_completion_tokens"] = body["max_tokens"]
        return fitted

    def learn(self, text: str, sent: Mapping[str, Any]) -> str:
        """Return which name in the request ``sent`` was refused and is left out from now on, or nothing."""
        error = _error(text) or {"message": text}
        message, param = str(error.get("message") or ""), str(error.get("param") or "")
        names = {
            "max_tokens": "max_completion_tokens" in message,
            "temperature": _REFUSES.search(message) is not None,
            "response_format": True,
        }
        for name, blamed in names.items():
            said_so = re.search(rf"\b{name}\b", message) is not None or param.split(".")[0] == name
            if name == "response_format" and _SCHEMA.search(message):
                said_so = True
            if name in sent and said_so and blamed:
                self.refused.setdefault(name, said(text))
                return name
        return ""


def as_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``response_format`` that holds an answer to ``schema``."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}
