"""A small world for the ledger: one question, two answers, and as many different judgments as asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tiebreak.records import Judgment, Prompt, Response
from tiebreak.store import Ledger


class World:
    """Records that belong together, made afresh on each call."""

    prompt = Prompt(text="Summarise: the cat sat on the mat.", fields={"subreddit": "cats"}, tags=("tldr",))
    responses = (
        Response(prompt_id=prompt.id, text="A cat sat.", maker="tiny@1", settings={"temperature": 1.0}, tokens=4),
        Response(prompt_id=prompt.id, text="Mats.", maker="tiny@1", draw=1),
    )

    def judgments(self, n: int, *, by: str = "rule:coin", start: int = 0) -> Iterator[Judgment]:
        slots = tuple(response.id for response in self.responses)
        for attempt in range(start, start + n):
            yield Judgment(
                prompt_id=self.prompt.id, slots=slots, verdict="slot", winner=attempt % 2, by=by, attempt=attempt
            )

    def fill(self, ledger: Ledger) -> None:
        ledger.add_prompts([self.prompt])
        ledger.add_responses(self.responses)


@pytest.fixture
def world() -> World:
    return World()
