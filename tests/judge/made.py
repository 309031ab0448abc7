"""Records and judges that the tests of this room share."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.judge.server import Server
from tiebreak.judge.pairwise import PairwiseJudge, make
from tiebreak.judge.table import Question
from tiebreak.records import Judgment, Prompt, Response
from tiebreak.store import Ledger

Pair = tuple[Prompt, Response, Response]


def pair(i: int = 0, a: str = " The cat left home and is missed.", b: str = " A cat.") -> Pair:
    """One pair; the first response is the longer one for even ``i``."""
    prompt = Prompt(
        text=f"SUBREDDIT: r/pets\n\nTITLE: Cat {i}\n\nPOST: My cat left.\n\nTL;DR:", reference="A cat left."
    )
    texts = (a, b) if i % 2 == 0 else (b, a)
    first, second = (Response(prompt_id=prompt.id, text=text, draw=n) for n, text in enumerate(texts))
    return prompt, first, second


def pairs(n: int) -> list[Pair]:
    return [pair(i) for i in range(n)]


def ledger_with(where: object, made: list[Pair]) -> Ledger:
    ledger = Ledger(str(where))
    ledger.add_prompts(prompt for prompt, _, _ in made)
    ledger.add_responses(response for _, *responses in made for response in responses)
    return ledger


def judge_at(server: Server, **knobs: Any) -> PairwiseJudge:
    """A one-call judge at the scripted server, without a key."""
    return make(**{"endpoint": server.url, "model": "scripted", "rationale": False, "key_env": None, **knobs})


def ask(judge: Any, made: Pair, attempt: int = 0) -> Judgment:
    """Ask one question outside of any run."""

    async def once() -> Judgment:
        try:
            answer: Judgment = await judge.ask(Question(made[0], (made[1], made[2]), attempt))
            return answer
        finally:
            await judge.close()

    return asyncio.run(once())
