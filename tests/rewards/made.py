"""Prompts and terms that the tests of this room share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiebreak.records import Prompt
from tiebreak.rewards.combine import Term
from tiebreak.rewards.table import Answered


def asked(*texts: str, finish: str = "stop", lengths: tuple[int, ...] = (), **prompt: Any) -> Answered:
    """One prompt with completions that all finished alike."""
    return Answered(Prompt(**{"text": "Why?", **prompt}), texts, (finish,) * len(texts), lengths)


def term(*rows: Sequence[Any], label: str = "made", **how: Any) -> Term:
    """A term that gives these values whatever is asked."""
    return Term(name=label, label=label, score=lambda answered: [list(row) for row in rows], **how)


def batch(*sizes: int) -> list[Answered]:
    """A prompt per size, with as many completions."""
    return [asked(*(f"{n} {k}" for k in range(size)), text=f"Prompt {n}") for n, size in enumerate(sizes)]
