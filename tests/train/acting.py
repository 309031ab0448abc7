"""A small training on a policy's own answers: prompts, planted rewards, value nets and start models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.models.tiny import causal, tokenizer
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.load import to_reward
from tiebreak.models.logprobs import words
from tiebreak.records import InputError, Prompt
from tiebreak.rewards.combine import Rewards, Term
from tiebreak.rewards.table import Answered, Marks
from tiebreak.train.actor import Actor, Batch, learned
from tiebreak.train.collect import Judged
from tiebreak.train.offline import Pace, Trained, Watch
from tiebreak.train.online import learn
from tiebreak.train.policy_gradient.advantages import LEARNS_VALUES
from tiebreak.train.policy_gradient.presets import POLICY_GRADIENT
from tiebreak.train.policy_gradient.switches import Acted
from tiebreak.train.rollouts import Asked, Rolled, Rollout
from tiebreak.train.track import read_track

PACE = Pace(epochs=2.0, batch=3, learning_rate=1e-3, warmup=0.0, decay="constant")
ROLLOUT = Rollout(n=2, max_new_tokens=5)
STEPS = 4
"""Six prompts, three a batch, twice."""
GOOD = range(2, 66)
"""The tokens that the planted reward wants: a fifth of the vocabulary, so a random policy writes some of them."""
VALUES = ("separate", "shared")
TOKENS: PreTrainedTokenizerBase = tokenizer()

Score = Callable[[Sequence[Answered]], Marks]


def start(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    return causal(kind, seed=seed).model


def ending(share: float = 0.2) -> PreTrainedModel:
    """A policy whose answers end by themselves with about this chance at each token: Phi's head has a bias."""
    model = start("phi")
    with torch.no_grad():
        others = torch.tensor(float(len(TOKENS) - 1)).log() + 1.0  # logits spread by about one
        model.lm_head.bias[TOKENS.eos_token_id] = others + torch.tensor(share / (1 - share)).log()
    return model


def prompts(count: int = 6) -> list[Asked]:
    found = [Prompt(text=f"TITLE: cat {'home ' * (n % 4)}{n}") for n in range(count)]
    return [Asked(prompt, tuple(TOKENS.encode(prompt.plain))) for prompt in found]


def share(answered: Sequence[Answered]) -> Marks:
    """Return the share of good tokens in each completion."""
    found: list[list[float]] = []
    for one in answered:
        assert one.trees is not None
        found.append([sum(token in GOOD for token in branch) / len(branch) for branch in one.trees.branches])
    return found


def rewards(score: Score = share, **more: Any) -> Rewards:
    return Rewards([Term(name="planted", label="planted", score=score, **more)])


def value_net(model: PreTrainedModel, kind: str = "separate") -> nn.Module:
    if kind == "separate":
        return to_reward(model, TOKENS, seed=2)
    head = nn.Linear(model.get_output_embeddings().weight.shape[1], 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def act(method: str, folder: Path, model: PreTrainedModel | None = None, **more: Any) -> Trained:
    """Train with what is given; names of :class:`Watch` become one, ``value`` names the kind of value net."""
    asked: dict[str, Any] = {"pace": PACE, "rollout": ROLLOUT, "seed": 1, "log_every": 1, **more}
    watch = Watch(**{field.name: asked.pop(field.name) for field in fields(Watch) if field.name in asked})
    knobs: Mapping[str, Any] = {**POLICY_GRADIENT[method].knobs, **asked.pop("knobs", {})}
    policy, kind = start() if model is None else model, asked.pop("value", "separate")
    if knobs["advantage"] in LEARNS_VALUES and "critic" not in asked:
        asked["critic"] = value_net(policy, kind)
    rows, scored = asked.pop("asked", None), asked.pop("rewards", None)
    return learn(
        policy,
        TOKENS,
        prompts() if rows is None else rows,
        rewards() if scored is None else scored,
        knobs,
        asked.pop("pace"),
        asked.pop("rollout"),
        folder=folder,
        watch=watch,
        **asked,
    )


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a track, without what a clock says."""
    rows = read_track(folder / name)
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def column(folder: Path, name: str) -> list[float]:
    return [row[name] for row in lines(folder) if name in row]


def stop_at(step: int) -> Any:
    def progress(done: int, steps: int, shown: object) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def refused(folder: Path, method: str = "grpo", **more: Any) -> str:
    """The one sentence that a training is refused with."""
    with pytest.raises(InputError) as said:
        act(method, folder, **more)
    assert "\n" not in str(said.value)
    return str(said.value)


def rolled(tree: Tree, finishes: Sequence[str], sampled: Tensor | None = None) -> Rolled:
    """A prompt's completions as if drawn; log-probs of -1 of the learned tokens where none are given."""
    logps = torch.full((learned(tree),), -1.0) if sampled is None else sampled
    one = Asked(Prompt(text=f"by hand {tree.trunk}"), tree.trunk)
    return Rolled(one, tree, tuple("" for _ in tree.branches), tuple(finishes), logps)


def judged(
    tree: Tree,
    scores: Sequence[float | None],
    finishes: Sequence[str] = (),
    sampled: Tensor | None = None,
    baseline: float | None = None,
) -> Judged:
    ends = finishes or ["stop"] * len(tree.branches)
    return Judged(rolled(tree, ends, sampled), tuple(scores), {"planted": tuple(scores)}, baseline)


def gradients(actor: Actor, batch: Batch, loss: Callable[[Acted], Any], **more: Any) -> tuple[float, Tensor]:
    """The loss and the gradient of all trees of ``batch`` as one minibatch."""
    rows = more.pop("rows", range(len(batch.trees)))
    with actor.ready():
        done = actor.gradient(batch, list(rows), loss, minibatches=more.pop("minibatches", 1))
        flat = torch.cat([p.grad.flatten() for p in actor.trained if p.grad is not None])
        actor.forget()
    return done.numbers["loss"], flat


def own_logps(model: PreTrainedModel, trees: Sequence[Tree], temperature: float = 1.0) -> Tensor:
    """What the model says of the learned tokens of ``trees``, each tree alone."""
    with torch.no_grad(), forest_mode(model):
        return torch.cat([words(model, plant([tree]), temperature=temperature).logps for tree in trees])
