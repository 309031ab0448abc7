"""The offline loop: written answers or preference pairs in, a trained model out. SFT, reward models and DPO are one loop.

Batches, schedule and weights depend on the seed and the step alone, so a killed run that resumes ends with the same
weights, bit for bit, on one machine with one thread count.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.heads import scores
from tiebreak.models.logprobs import token_logps
from tiebreak.records import InputError, Progress, content_id, quiet
from tiebreak.train import checkpoint
from tiebreak.train.objectives.switches import LINKS, SCORES, TARGETS, Outcome, Seen, choose, objective
from tiebreak.train.track import Track

LN2 = math.log(2.0)


class Example(NamedTuple):
    """One row to train on: a tree with one branch, or with the chosen branch first and the rejected one second."""

    tree: Tree
    p: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast and how long: AdamW with linear warm-up, then cosine, linear or constant.

    ``warmup`` is a share of all steps; ``clip`` bounds the gradient's norm; ``batch`` counts rows.
    """

    epochs: float = 1.0
    batch: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.05
    decay: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0

    def steps(self, rows: int) -> int:
        """Return the number of optimizer steps over ``rows`` rows; the last batch of an epoch may be short."""
        per_epoch = math.ceil(rows / self.batch)
        return max(1, round(per_epoch * self.epochs))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of ``step`` (from 0) of ``steps``."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        left = 1.0 - (step - warm) / max(1, steps - warm)
        shape = {"cosine": 0.5 * (1 - math.cos(math.pi * left)), "linear": left, "constant": 1.0}
        return self.learning_rate * shape[self.decay]


class Trained(NamedTuple):
    """What a training run did."""

    steps: int
    tokens: int
    seconds: float
    last: dict[str, float]


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    folder: Path,
    held_out: Sequence[Example] = (),
    evaluate_every: int = 0,
    checkpoint_every: int = 200,
    log_every: int = 10,
    progress: Progress = quiet,
) -> Trained:
    """Train ``model`` in place on ``examples`` with the objective that ``knobs`` name.

    Args:
        model: a causal model, or a sequence classifier where the score map is ``head``.
        examples: rows; pair objectives need two branches in each.
        knobs: the switches and scalars of :func:`~tiebreak.train.objectives.switches.objective`.
        pace: epochs, batch size and learning rate.
        seed: orders the rows.
        folder: holds ``metrics.jsonl`` and, until the end, ``checkpoint/``.
        held_out: rows that are never trained on, evaluated every ``evaluate_every`` steps and at the end.
        evaluate_every: 0 evaluates at the end only.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.
        progress: called after each step with steps done, steps in all and the latest numbers.

    Raises:
        InputError: no rows, the wrong number of branches, an unknown switch, a first DPO loss that is not ln 2 (the
            reference is not the policy's start), or a loss that is not finite.
    """
    _check(examples, knobs)
    started = time.monotonic()
    steps = pace.steps(len(examples))
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=pace.learning_rate,
        weight_decay=pace.weight_decay,
        fused=True,
    )
    with forest_mode(model):
        model.train()
        references = _references(model, [*examples, *held_out], knobs, pace.batch)
        state = checkpoint.load(folder / "checkpoint", model, optimizer) or {"step": 0, "tokens": 0}
        track = Track(folder / "metrics.jsonl", after=state["step"])
        tokens, last = state["tokens"], {}
        for step in range(state["step"], steps):
            rows = _batch(step, len(examples), pace.batch, seed)
            outcome, size = _look(model, [examples[i] for i in rows], knobs, _pick(references, rows))
            if step == 0:
                _assert_start(knobs, outcome)
            tokens += size
            values = _update(model, optimizer, outcome, pace.rate(step, steps), pace.clip, step)
            done = step + 1
            if evaluate_every and (done % evaluate_every == 0) and held_out and done < steps:
                track.write(done, _evaluate(model, held_out, knobs, references, len(examples), pace.batch))
            last = {"loss": values["loss"], "learning_rate": values["learning_rate"]}
            if done % log_every == 0 or step == 0 or done == steps:
                track.write(done, {"epoch": done / steps * pace.epochs, "tokens": tokens, **values})
            progress(done, steps, last)
            if done % checkpoint_every == 0 and done < steps:
                checkpoint.save(folder / "checkpoint", model, optimizer, {"step": done, "tokens": tokens})
        if held_out:
            last = _evaluate(model, held_out, knobs, references, len(examples), pace.batch)
            track.write(steps, last)
        track.close()
        model.eval()
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return Trained(steps, tokens, time.monotonic() - started, last)


def _check(examples: Sequence[Example], knobs: Mapping[str, Any]) -> None:
    if not examples:
        raise InputError("There is nothing to train on: every row was dropped or none was given; look at the funnel.")
    if knobs["score"]:
        choose("score map", SCORES, knobs["score"])
        choose("link", LINKS, knobs["link"])
        choose("target", TARGETS, knobs["target"])
        for number, example in enumerate(examples):
            if len(example.tree.branches) != 2:
                raise InputError(
                    f"Row {number} has {len(example.tree.branches)} completions; a pair objective needs 2."
                )


def _batch(step: int, rows: int, batch: int, seed: int) -> list[int]:
    """Return the rows of ``step``: each epoch is a permutation drawn from (seed, epoch)."""
    per_epoch = math.ceil(rows / batch)
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(int(content_id("epoch", seed, epoch)[:15], 16))
    return torch.randperm(rows, generator=generator)[place * batch : (place + 1) * batch].tolist()


def _look(
    model: PreTrainedModel, rows: Sequence[Example], knobs: Mapping[str, Any], reference: Tensor | None
) -> tuple[Outcome, int]:
    """Run the model over a batch and hand what the objective needs to it; returns the tokens computed too."""
    device = model.device
    forest = plant([row.tree for row in rows]).to(device)
    weight = torch.tensor([row.weight for row in rows], device=device)[forest.tree]
    pair: dict[str, Tensor] = {}
    if knobs["score"]:
        firsts = torch.arange(len(rows), device=device) * 2
        pair = {"chosen": firsts, "rejected": firsts + 1, "p": torch.tensor([row.p for row in rows], device=device)}
    if knobs["score"] == "head":
        seen = Seen(lengths=forest.lengths, weight=weight, scores=scores(model, forest), **pair)
    else:
        logps = forest.sums(token_logps(model, forest))
        seen = Seen(lengths=forest.lengths, weight=weight, logps=logps, reference=reference, **pair)
    return objective(seen, **knobs), forest.ids.numel()


@torch.no_grad()
def _references(
    model: PreTrainedModel, examples: Sequence[Example], knobs: Mapping[str, Any], batch: int
) -> list[Tensor] | None:
    """Return the start model's summed log-probs of every branch, before any update: the policy's start is its reference."""
    if knobs["score"] != "log_ratio":
        return None
    out: list[Tensor] = []
    for start in range(0, len(examples), batch):
        forest = plant([row.tree for row in examples[start : start + batch]]).to(model.device)
        sums = forest.sums(token_logps(model, forest))
        out += sums.view(-1, 2).unbind()
    return out


def _pick(references: list[Tensor] | None, rows: Sequence[int]) -> Tensor | None:
    return None if references is None else torch.cat([references[i] for i in rows])


def _assert_start(knobs: Mapping[str, Any], outcome: Outcome) -> None:
    if knobs["score"] == "log_ratio" and knobs["link"] == "logistic" and not knobs["nll"]:
        loss = float(outcome.loss.detach())
        if not abs(loss - LN2) < 1e-3:
            raise InputError(
                f"The first loss is {loss:.4f} and should be ln 2 = {LN2:.4f}: policy and reference differ before any "
                "update (dropout on, another precision, or not the same weights)."
            )


def _update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, outcome: Outcome, rate: float, clip: float, step: int
) -> dict[str, float]:
    loss = float(outcome.loss.detach())
    if not math.isfinite(loss):
        raise InputError(
            f"The loss at step {step + 1} is {loss}; lower the learning rate or look for broken rows. "
            "The last checkpoint is kept."
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    outcome.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss, **outcome.metrics, "grad_norm": float(norm), "learning_rate": rate}


@torch.no_grad()
def _evaluate(
    model: PreTrainedModel,
    held_out: Sequence[Example],
    knobs: Mapping[str, Any],
    references: list[Tensor] | None,
    offset: int,
    batch: int,
) -> dict[str, float]:
    totals: dict[str, float] = {}
    for start in range(0, len(held_out), batch):
        rows = range(start, min(start + batch, len(held_out)))
        part = [held_out[i] for i in rows]
        outcome, _ = _look(model, part, knobs, _pick(references, [offset + i for i in rows]))
        for name, value in {"loss": float(outcome.loss), **outcome.metrics}.items():
            totals[name] = totals.get(name, 0.0) + value * len(part) / len(held_out)
    return {f"eval/{name}": value for name, value in totals.items()}
