"""Prompts, terms and a marking server that the tests of this room share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.judge.server import Server
from tiebreak.records import Prompt
from tiebreak.rewards.combine import Term
from tiebreak.rewards.table import Answered

Spoken = list[tuple[str, dict[str, float]]]
"""The tokens of a reply, each with the probabilities in its place."""


def asked(*texts: str, finish: str = "stop", lengths: tuple[int, ...] = (), **prompt: Any) -> Answered:
    """One prompt with completions that all finished alike."""
    return Answered(Prompt(**{"text": "Why?", **prompt}), texts, (finish,) * len(texts), lengths)


def term(*rows: Sequence[Any], label: str = "made", **how: Any) -> Term:
    """A term that gives these values whatever is asked."""
    return Term(name=label, label=label, score=lambda answered: [list(row) for row in rows], **how)


def batch(*sizes: int) -> list[Answered]:
    """A prompt per size, with as many completions."""
    return [asked(*(f"{n} {k}" for k in range(size)), text=f"Prompt {n}") for n, size in enumerate(sizes)]


@dataclass
class Marker(Server):
    """A server that answers each request with the tokens ``speak`` gives for it; any status but 200 is an error."""

    speak: Callable[[dict[str, Any]], Spoken] = lambda asked: []

    def _decide(self, body: bytes, request: web.Request) -> tuple[int, dict[str, Any]]:
        asked = json.loads(body)
        self.log.append((body, self.script.status))
        if self.script.status != 200:
            return self.script.status, {"error": {"message": self.script.message}}
        spoken = self.speak(asked)
        content = [
            {
                "token": token,
                "logprob": math.log(chances[token]),
                "top_logprobs": [{"token": other, "logprob": math.log(p)} for other, p in chances.items()],
            }
            for token, chances in spoken
        ]
        message = {"role": "assistant", "content": "".join(token for token, _ in spoken)}
        logprobs = {"content": content} if asked.get("logprobs") else None
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}]}
