"""A small training in rounds: prompts, a planted reward, and what a run leaves on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tests.models.tiny import causal, tokenizer
from tiebreak.models.adapters import Adapter
from tiebreak.records import Prompt
from tiebreak.rewards.combine import Rewards, Term
from tiebreak.rewards.table import Answered
from tiebreak.train.offline import Pace, Trained
from tiebreak.train.rollouts import Asked, Rollout
from tiebreak.train.rounds import repeat
from tiebreak.train.track import read_track

LOW = 165
"""Half of the vocabulary: the share of tokens below it is the planted reward."""
WORDS = tokenizer()
ASKED = [
    Asked(Prompt(text=text, source="cats"), tuple(WORDS(text)["input_ids"]))
    for text in (f"My cat number {i}" for i in range(24))
]
PACE = Pace(epochs=2.0, batch=8, learning_rate=3e-3)
ROLLOUT = Rollout(n=4, max_new_tokens=5)
DPO = {"rounds": 2}
RAFT = {"objective": "sft", "rounds": 2}
LORA = Adapter(rank=4, alpha=8.0)


def low(answered: Sequence[Answered]) -> list[list[float | None]]:
    return [[sum(t < LOW for t in ids) / len(ids) for ids in one.trees.branches] for one in answered if one.trees]


def rewards(score: Callable[..., Any] = low, **more: Any) -> Rewards:
    return Rewards([Term(name="low", label="low", score=score, **more)])


def rounds(folder: Path, knobs: dict[str, Any], model: PreTrainedModel | None = None, **more: Any) -> Trained:
    asked: dict[str, Any] = {"pace": PACE, "rollout": ROLLOUT, "seed": 3, "folder": folder, **more}
    scored, prompts = asked.pop("rewards", None) or rewards(), asked.pop("asked", ASKED)
    model = causal("llama").model if model is None else model
    return repeat(model, WORDS, prompts, scored, knobs, asked.pop("pace"), asked.pop("rollout"), **asked)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each round without the clock, those of an evaluation with those of its round."""
    found: dict[int, dict[str, Any]] = {}
    for row in read_track(folder / "metrics.jsonl"):
        found.setdefault(row["step"], {}).update({k: v for k, v in row.items() if not k.startswith("time/")})
    return list(found.values())


def drawn(folder: Path, number: int) -> list[dict[str, Any]]:
    """The prompts of a round as the file of draws has them."""
    parts = ("rows", "branches", "texts", "finishes", "scores")
    return [
        dict(zip(parts, values, strict=True))
        for line in read_track(folder / f"round-{number}" / "draws.jsonl")
        for values in zip(*(line[part] for part in parts), strict=True)
    ]
