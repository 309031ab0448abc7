"""The work both sides get: rows of random token ids with realistic lengths, and models built from their config alone.

Nothing is downloaded and everything follows from seeds, so every process, and either side, sees the same ids and the
same starting weights. Random weights and ids cost what trained ones cost: no step looks at what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

RATES = {"dpo": 1e-6, "reward": 1e-4, "sft": 2e-5}
"""TRL's default learning rates, held constant on both sides so that their weights stay comparable step by step."""


class Row(NamedTuple):
    """One preference pair as token ids; both completions end with the end-of-sequence token."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """A lognormal of this mean, rounded and clipped. ``spread`` is the standard deviation of the logarithm."""

    mean: float
    spread: float
    low: int
    high: int

    def draw(self, chance: np.random.Generator) -> int:
        """Return one length."""
        drawn = chance.lognormal(math.log(self.mean) - self.spread**2 / 2, self.spread)
        return int(np.clip(np.rint(drawn), self.low, self.high))


SHAPES: dict[str, tuple[Lengths, Lengths]] = {
    "tldr": (Lengths(350, 0.23, 32, 512), Lengths(35, 0.5, 8, 64)),
    "long": (Lengths(200, 0.23, 32, 320), Lengths(400, 0.23, 64, 640)),
}
"""Lengths of prompts and completions: summarisation (a long prompt, a short answer) and long answers."""


class Model(NamedTuple):
    """An architecture as transformers configures it."""

    kind: str
    config: dict[str, Any]
    gpu: bool = False


MODELS: dict[str, Model] = {
    "gpt2": Model("gpt2", {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}),
    "llama": Model(
        "llama",
        {
            "vocab_size": 16384,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2-large": Model(
        "gpt2", {"vocab_size": 50257, "n_positions": 1024, "n_embd": 1280, "n_layer": 36, "n_head": 20}, gpu=True
    ),
    "llama-1b": Model(
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        gpu=True,
    ),
    "tiny": Model("gpt2", {"vocab_size": 1000, "n_positions": 1024, "n_embd": 64, "n_layer": 2, "n_head": 4}),
}
"""``tiny`` is for trying the script, not for numbers."""


def vocabulary(model: str) -> int:
    """Return the number of ids; the last two are end-of-sequence and padding."""
    return int(MODELS[model].config["vocab_size"])


def draw(shape: str, rows: int, *, model: str, seed: int) -> list[Row]:
    """Return ``rows`` pairs; the two completions of a pair start with different ids, as answers that differ do."""
    chance = np.random.default_rng(seed)
    prompts, completions = SHAPES[shape]
    words = vocabulary(model) - 2

    def ids(length: int) -> tuple[int, ...]:
        return tuple(int(i) for i in chance.integers(0, words, length))

    pairs = []
    for _ in range(rows):
        prompt = ids(prompts.draw(chance))
        chosen, rejected = (ids(completions.draw(chance) - 1) for _ in range(2))
        if chosen[0] == rejected[0]:
            rejected = ((rejected[0] + 1) % words, *rejected[1:])
        pairs.append(Row(prompt, (*chosen, words), (*rejected, words)))
    return pairs


def build(model: str, task: str, *, seed: int, device: str) -> Any:
    """Return the model with random float32 weights from ``seed``, without dropout, with one label for rewards."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind, settings, _ = MODELS[model]
    size = settings["vocab_size"]
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 2, "pad_token_id": size - 1}
    if kind == "gpt2":
        settings = settings | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = AutoConfig.for_model(kind, **settings, **ids, **({"num_labels": 1} if task == "reward" else {}))
    torch.manual_seed(seed)
    factory = AutoModelForSequenceClassification if task == "reward" else AutoModelForCausalLM
    return factory.from_config(config, dtype=torch.float32, attn_implementation="sdpa").to(device)


class Tokens(NamedTuple):
    """What the rows of a step hold.

    ``all`` counts every sequence with its own prompt, as a user's data has it; ``completion`` the tokens a loss looks
    at; ``padded`` every sequence filled up to the longest; ``shared`` every prompt once and no padding.
    """

    all: int
    completion: int
    padded: int
    shared: int


def count(rows: Sequence[Row], task: str) -> Tokens:
    """Count the tokens of a step's rows."""
    branches = [(row.chosen,) if task == "sft" else (row.chosen, row.rejected) for row in rows]
    lengths = [len(row.prompt) + len(branch) for row, found in zip(rows, branches, strict=True) for branch in found]
    completion = sum(len(branch) for found in branches for branch in found)
    return Tokens(
        all=sum(lengths),
        completion=completion,
        padded=max(lengths) * len(lengths),
        shared=completion + sum(len(row.prompt) for row in rows),
    )
