"""A ledger with prompts and two answers to each, and a person who answers from a list of keys."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from tiebreak.collect.keyboard import Keyboard
from tiebreak.collect.queue import Queue, person, rubric_of
from tiebreak.collect.terminal import collect
from tiebreak.records import Prompt, Response
from tiebreak.store import Ledger

Pair = tuple[Prompt, Response, Response]
QUESTION = "Which answer is better?"
RUBRIC = rubric_of(QUESTION)
ANN, BOB = person("ann"), person("bob")


def pair(number: int, first: str | None = None, second: str | None = None) -> Pair:
    """Return a prompt with two answers."""
    prompt = Prompt(text=f"Question {number}: ", source="test")
    texts = (first or f"Good answer {number}.", second or f"Poor answer {number}.")
    one, other = (Response(prompt_id=prompt.id, text=text, maker="model@1", draw=n) for n, text in enumerate(texts))
    return prompt, one, other


def hold(ledger: Ledger, pairs: Sequence[Pair]) -> list[Pair]:
    """Write pairs into the ledger."""
    ledger.add_prompts(prompt for prompt, *_ in pairs)
    ledger.add_responses(response for _, *answers in pairs for response in answers)
    return list(pairs)


def ask(queue: Queue, keys: str, by: str = ANN, width: int = 80) -> tuple[int, str]:
    """Let somebody answer, a line of ``keys`` for each key or text; return their answers and what they read."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    given = collect(queue, by, question=QUESTION, keyboard=Keyboard(io.StringIO(keys)), console=console)
    assert isinstance(console.file, io.StringIO)
    return given, console.file.getvalue()
