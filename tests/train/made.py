"""A small training: rows and start models. Run as a program it trains slowly, to be killed."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.models.tiny import causal, ids
from tiebreak.models.forest import Tree
from tiebreak.models.load import to_reward
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.offline import Example, Pace, Trained, Watch, fit

METHODS = ("sft", "bradley_terry", "dpo")
PACE = Pace(epochs=2.0, batch=4, learning_rate=3e-3)
ROWS, STEPS = 10, 6


def start(method: str, kind: str = "llama", **more: Any) -> PreTrainedModel:
    loaded = causal(kind, **more)
    return to_reward(loaded.model, loaded.tokenizer, seed=2) if method == "bradley_terry" else loaded.model


def examples(method: str, count: int = ROWS, seed: int = 0) -> list[Example]:
    draw = random.Random(seed)
    sides = 1 if method == "sft" else 2
    return [
        Example(
            Tree(ids(draw, draw.randrange(2, 9)), tuple((*ids(draw, draw.randrange(1, 8)), 0) for _ in range(sides))),
            p=draw.uniform(0.5, 1.0),
        )
        for _ in range(count)
    ]


def train(method: str, folder: Path, model: PreTrainedModel | None = None, **more: Any) -> Trained:
    """Train with what is given; names of :class:`Watch` become one."""
    asked: dict[str, Any] = {"pace": PACE, "rows": examples(method), "seed": 1, "knobs": {}, "log_every": 1, **more}
    rows, pace = asked.pop("rows"), asked.pop("pace")
    watch = Watch(**{field.name: asked.pop(field.name) for field in fields(Watch) if field.name in asked})
    knobs: Mapping[str, Any] = {**OFFLINE[method].knobs, **asked.pop("knobs")}
    return fit(start(method) if model is None else model, rows, knobs, pace, folder=folder, watch=watch, **asked)


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


if __name__ == "__main__":
    name, place = sys.argv[1:]
    train(name, Path(place), checkpoint_every=1, progress=lambda done, steps, shown: time.sleep(0.15))
