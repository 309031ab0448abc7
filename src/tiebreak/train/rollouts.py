"""Rollouts: a policy's completions of prompts, as trees that scoring and training read as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiebreak.models.forest import Tree
from tiebreak.models.generate import Drawn, generate
from tiebreak.records import InputError, Prompt, content_id
from tiebreak.rewards.table import Answered


class Asked(NamedTuple):
    """A prompt and its token ids."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How completions are drawn and how often a batch of them is learned from.

    ``n`` completions a prompt, ``max_new_tokens`` each at most; ``temperature`` is that of the policy itself, so its
    log-probs are tempered too. ``repeats`` times through the batch in ``minibatches`` steps each; ``batch`` sequences
    are decoded together.
    """

    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    repeats: int = 1
    minibatches: int = 1
    batch: int = 256

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens", "repeats", "minibatches", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"rollout.{name} is {getattr(self, name)}; it has to be 1 or more.")
        if self.min_new_tokens < 0:
            raise InputError(f"rollout.min_new_tokens is {self.min_new_tokens}; it has to be 0 or more.")
        if not self.temperature > 0:
            raise InputError(
                f"rollout.temperature is {self.temperature}; a policy that learns from its own draws needs one above 0."
            )

    @property
    def updates(self) -> int:
        """Optimizer steps on one batch of rollouts."""
        return self.repeats * self.minibatches


class Rolled(NamedTuple):
    """One prompt's completions: as a tree with EOS where it was drawn, as texts, how each ended, and the log-probs.

    ``sampled`` are those of the drawing policy for each token that is learned, in the order of the tokens.
    """

    asked: Asked
    tree: Tree
    texts: tuple[str, ...]
    finishes: tuple[str, ...]
    sampled: Tensor

    @property
    def answered(self) -> Answered:
        """What a reward sees of it."""
        return Answered(self.asked.prompt, self.texts, self.finishes, tuple(map(len, self.tree.branches)), self.tree)


class Source(Protocol):
    """Whoever completes prompts: the policy in this process, or a server with its weights.

    ``exact`` says that its log-probs are those of the policy as it is, so that nothing is off-policy.
    """

    exact: bool

    def draw(self, asked: Sequence[Asked], *, n: int, temperature: float, turn: str) -> list[list[Drawn]]:
        """Return ``n`` completions of each prompt; with the seed, ``turn`` names the streams they are drawn from."""
        ...


class Local:
    """The policy in this process."""

    exact = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Rollout, *, seed: int, precision: str
    ) -> None:
        self.model, self.how, self.seed = model, how, seed
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.precision = "bfloat16" if precision == "bfloat16" else "float32"

    def draw(self, asked: Sequence[Asked], *, n: int, temperature: float, turn: str) -> list[list[Drawn]]:
        """Draw with the weights as they are now."""
        training = self.model.training
        self.model.eval()
        try:
            return generate(
                self.model,
                [one.ids for one in asked],
                [f"{one.prompt.id}/{turn}" for one in asked],
                n=n,
                max_new_tokens=self.how.max_new_tokens,
                min_new_tokens=self.how.min_new_tokens,
                temperature=temperature,
                seed=self.seed,
                batch=self.how.batch,
                eos=self.eos,
                pad=self.pad,
                precision=self.precision,
            )
        finally:
            self.model.train(training)


def roll(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    *,
    n: int,
    temperature: float,
    turn: str,
) -> list[Rolled]:
    """Complete each prompt ``n`` times; an empty completion is one EOS."""
    drawn = source.draw(asked, n=n, temperature=temperature, turn=turn)
    texts = iter(
        tokenizer.batch_decode(
            [list(one.ids) for draws in drawn for one in draws],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
    )
    found = []
    for one, draws in zip(asked, drawn, strict=True):
        ended = [draw.finish == "stop" for draw in draws]
        branches = tuple(
            (*draw.ids, tokenizer.eos_token_id) if end else draw.ids for draw, end in zip(draws, ended, strict=True)
        )
        logps = torch.tensor([logp for draw in draws for logp in draw.logps])
        written = tuple(next(texts) for _ in draws)
        found.append(Rolled(one, Tree(one.ids, branches), written, tuple(draw.finish for draw in draws), logps))
    return found


def minibatches(count: int, how: Rollout, seed: int, step: int) -> Iterator[list[int]]:
    """Yield the trees of each update of a step: all of them once a repeat, drawn anew where there are several parts."""
    for repeat in range(how.repeats):
        rows = np.arange(count)
        if how.minibatches > 1:
            key = int(content_id("minibatches", seed, step, repeat), 16)
            rows = np.random.Generator(np.random.Philox(key)).permutation(count)
        yield from (part.tolist() for part in np.array_split(rows, how.minibatches) if len(part))
