"""Servers that say given tokens with given probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tests.judge.server import Script

Spoken = list[tuple[str, dict[str, float]]]
"""The tokens of a reply, each with the probabilities in its place."""


def saying(speak: Callable[[dict[str, Any]], Spoken], **script: Any) -> Script:
    """A script that answers each request with the tokens ``speak`` gives for it."""
    return Script(answer=lambda asked, times: (200, payload(speak(asked), bool(asked.get("logprobs")))), **script)


def payload(spoken: Spoken, logprobs: bool = True, **message: Any) -> dict[str, Any]:
    """The completion that says these tokens."""
    content = [
        {
            "token": token,
            "logprob": math.log(chances[token]),
            "top_logprobs": [{"token": other, "logprob": math.log(p)} for other, p in chances.items()],
        }
        for token, chances in spoken
    ]
    said = {"role": "assistant", "content": "".join(token for token, _ in spoken), **message}
    choice = {"index": 0, "message": said, "finish_reason": "stop"}
    choice["logprobs"] = {"content": content} if logprobs else None
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": len(spoken)}}


def sure(text: str) -> Spoken:
    """One token that is certain."""
    return [(text, {text: 1.0})]
