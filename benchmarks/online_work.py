"""What both sides of ``online.py`` are given and what they give back: prompts, a reward, a step and its times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from workload import draw, vocabulary

RATE = 1e-6
"""TRL's default learning rate for both methods, held constant."""

TOKENS = 35
"""New tokens of every completion, the mean of the tldr shape; forced, so that both sides sample as many."""

BETA = {"grpo": 0.0, "rloo": 0.05, "ppo": 0.05}
"""Weight of the reference: TRL's defaults, with which GRPO has no reference and RLOO has one; PPO's is ours."""


class Group(NamedTuple):
    """A prompt with its completions and what was made of their rewards, as token ids and numbers."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()


class Times(NamedTuple):
    """Seconds of a step and of its parts, which add up to it.

    ``sampling`` is prompts to completions; ``scoring`` rewards, advantages and log-probs of the policy before the
    update and of the reference; ``update`` the rest: loss, backward, clipping, optimizer and bookkeeping.
    """

    step: float
    sampling: float
    scoring: float
    update: float


class Turn(NamedTuple):
    """One step of one side: its times, its numbers and what it learned from."""

    times: Times
    loss: float
    grad_norm: float
    groups: list[Group]


def prompts(job: dict[str, Any], *, more: int = 0) -> list[tuple[int, ...]]:
    """Return the prompts of all steps of a job, and of some ``more`` steps, in the order of the steps."""
    rows = draw(job["shape"], job["prompts"] * (job["steps"] + more), model=job["model"], seed=job["seed"])
    return [row.prompt for row in rows]


def reward(completion: Sequence[int]) -> float:
    """Return the share of even ids: cheap, and different from completion to completion."""
    return sum(token % 2 == 0 for token in completion) / len(completion)


def tokenizer(model: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are the ids themselves, with end-of-sequence and padding apart."""
    size = vocabulary(model)
    words = {str(i): i for i in range(size - 2)} | {"<eos>": size - 2, "<pad>": size - 1}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>")
