"""The offline loop: answers or preference pairs in, a trained model out. SFT, reward models and DPO are one loop.

Batches, schedule and weights depend on the seed and the step alone, so a killed run that resumes ends with the same
weights, bit for bit, on one machine with one thread count.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiebreak.models.attention import forest_mode
from tiebreak.models.load import without_dropout
from tiebreak.records import InputError, Progress, content_id, quiet
from tiebreak.registry import nearest
from tiebreak.train import checkpoint
from tiebreak.train.objectives.switches import Outcome, check, objective
from tiebreak.train.rows import Example, check_rows, look, look_through, mark_of, see
from tiebreak.train.track import Track

__all__ = ["Example", "Pace", "Trained", "fit", "settle"]

LN2 = math.log(2.0)
DECAYS: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "linear": lambda left: left,
    "constant": lambda left: 1.0,
}
"""Factor of the learning rate by the share of steps that is left."""

Loss = Callable[..., Outcome]


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

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise InputError(
                f"There is no decay {self.decay!r}; there are {', '.join(DECAYS)}.{nearest(self.decay, DECAYS)}"
            )
        for name in ("epochs", "batch", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be more than 0.")

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
        return self.learning_rate * DECAYS[self.decay](left)


class Trained(NamedTuple):
    """What a training run did."""

    steps: int
    tokens: int
    seconds: float
    last: dict[str, float]


@dataclass(frozen=True)
class _Task:
    """What is learned from which rows, and how it is measured."""

    model: PreTrainedModel
    loss: Loss
    knobs: Mapping[str, Any]
    pace: Pace
    rows: Sequence[Example]
    held_out: Sequence[Example]
    seed: int

    @property
    def head(self) -> bool:
        return bool(self.knobs["score"] == "head")

    @property
    def pairs(self) -> bool:
        return bool(self.knobs["score"])

    @property
    def mark(self) -> str:
        """A hash of all that decides the result; taken from the start, before any update."""
        name = {"loss": f"{self.loss.__module__}:{self.loss.__qualname__}", "seed": self.seed}
        return mark_of(self.model, self.rows, self.knobs, asdict(self.pace), name)

    def references(self, rows: Sequence[Example]) -> Tensor | None:
        """Return the start model's log-probs of every pair (R, 2): it is the reference, so this runs before any update.

        A user's own score map gets them too.
        """
        if not rows or self.knobs["score"] in ("", "head", "log_prob"):
            return None
        return look_through(self.model, rows, head=False, batch=self.pace.batch).view(-1, 2)

    def outcome(self, rows: Sequence[Example], values: Tensor, reference: Tensor | None) -> Outcome:
        flat = None if reference is None else reference.flatten()
        seen = see(rows, values, head=self.head, pairs=self.pairs, reference=flat)
        return self.loss(seen, **self.knobs)

    def measure(self, reference: Tensor | None) -> dict[str, float]:
        """Evaluate the held-out rows as one batch: no mean of means, whatever the batch size."""
        values = look_through(self.model, self.held_out, head=self.head, batch=self.pace.batch)
        outcome = self.outcome(self.held_out, values, reference)
        return {f"eval/{name}": value for name, value in _numbers(outcome).items()}


class _Every(NamedTuple):
    """Steps between evaluations (0: at the end only), checkpoints and lines of metrics."""

    evaluate: int
    checkpoint: int
    log: int


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
    loss: Loss = objective,
    progress: Progress = quiet,
) -> Trained:
    """Train ``model`` in place on ``examples`` with the objective that ``knobs`` name.

    The last checkpoint is written after the last step and stays, so that a kill before the model is saved costs
    nothing; :func:`tiebreak.train.checkpoint.discard` removes it.

    Args:
        model: the start: a causal model, or a sequence classifier where the score map is ``head``. A resumed run gets
            the same start again, for it is the reference.
        examples: rows; pair objectives need two branches in each.
        knobs: the switches and scalars of ``loss``; what is not given is its default.
        pace: epochs, batch size and learning rate.
        seed: orders the rows.
        folder: holds ``metrics.jsonl`` and ``checkpoint/``.
        held_out: rows that are never trained on, evaluated every ``evaluate_every`` steps and at the end.
        evaluate_every: 0 evaluates at the end only.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.
        loss: :func:`~tiebreak.train.objectives.switches.objective`, or a function of the same shape: a ``Seen`` and
            keywords, ``score`` among them, to an ``Outcome``.
        progress: called after each step with steps done, steps in all and the latest numbers.

    Raises:
        InputError: rows that cannot be trained on, an unknown switch, a checkpoint of another run, a first DPO loss
            that is not ln 2 (the reference is not the policy's start), or a loss or gradient that is not finite.
    """
    task = _Task(model, loss, settle(loss, knobs), pace, examples, held_out, seed)
    check_rows(examples, model, pairs=task.pairs)
    if held_out:
        check_rows(held_out, model, pairs=task.pairs)
    started = time.monotonic()
    with forest_mode(without_dropout(model).train()):
        state = _learn(task, folder, _Every(evaluate_every, checkpoint_every, log_every), progress)
    model.eval()
    return Trained(state["step"], state["tokens"], time.monotonic() - started, state["last"])


def _learn(task: _Task, folder: Path, every: _Every, progress: Progress) -> dict[str, Any]:
    """Take all steps, or those a checkpoint has left, and return the last state."""
    model, pace, at = task.model, task.pace, folder / "checkpoint"
    run, steps, optimizer = task.mark, pace.steps(len(task.rows)), _optimizer(model, pace)
    reference, apart = task.references(task.rows), task.references(task.held_out)
    state = checkpoint.load(at, model, optimizer, run=run) or {"run": run, "step": 0, "tokens": 0}
    numbers: dict[str, float] = {}
    with Track(folder / "metrics.jsonl", after=state["step"]) as track:
        for step in range(state["step"], steps):
            rows = _batch(step, len(task.rows), pace.batch, task.seed)
            part = [task.rows[i] for i in rows]
            values, size = look(model, part, head=task.head)
            outcome = task.outcome(part, values, None if reference is None else reference[rows])
            numbers = _update(task, optimizer, outcome, step, steps)
            done = step + 1
            state |= {"step": done, "tokens": state["tokens"] + size}
            if done % every.log == 0 or done in (1, steps):
                shown = {"epoch": done / steps * pace.epochs, "tokens": state["tokens"], **numbers}
                track.write(done, {**shown, **_numbers(outcome)})
            if task.held_out and done < steps and every.evaluate and done % every.evaluate == 0:
                track.write(done, task.measure(apart))
            progress(done, steps, numbers)
            if done % every.checkpoint == 0 and done < steps:
                checkpoint.save(at, model, optimizer, state)
        if "last" not in state:
            state["last"] = task.measure(apart) if task.held_out else numbers
            if task.held_out:
                track.write(steps, state["last"])
            checkpoint.save(at, model, optimizer, state)
    return state


def settle(loss: Loss, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all knobs of ``loss``; a user's own function brings its defaults and says what it reads by ``score``."""
    named = {name: p for name, p in inspect.signature(loss).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in knobs:
        if name not in named:
            raise InputError(f"The objective has no knob {name!r}; it has {', '.join(named)}.{nearest(name, named)}")
    whole = {name: p.default for name, p in named.items() if p.default is not p.empty} | dict(knobs)
    if "score" not in whole:
        raise InputError(
            "The objective has no knob score; give its function the keyword score, one of log_ratio, log_prob, head "
            "or empty, which says what it reads."
        )
    if loss is objective:
        check(**whole)
    return whole


def _optimizer(model: PreTrainedModel, pace: Pace) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=pace.learning_rate, weight_decay=pace.weight_decay, fused=True)


def _batch(step: int, rows: int, batch: int, seed: int) -> list[int]:
    """Return the rows of ``step``: each epoch is a permutation drawn from (seed, epoch)."""
    per_epoch = math.ceil(rows / batch)
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(int(content_id("epoch", seed, epoch)[:15], 16))
    order: list[int] = torch.randperm(rows, generator=generator)[place * batch : (place + 1) * batch].tolist()
    return order


def _update(task: _Task, optimizer: torch.optim.Optimizer, outcome: Outcome, step: int, steps: int) -> dict[str, float]:
    """Take one optimizer step; nothing is updated from a loss or a gradient that is not finite."""
    loss = float(outcome.loss.detach())
    _assert_finite("loss", loss, step)
    if step == 0:
        _assert_start(task, loss)
    rate = task.pace.rate(step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    outcome.loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(task.model.parameters(), task.pace.clip))
    if not math.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        _assert_finite("gradient's norm", norm, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss, "grad_norm": norm, "learning_rate": rate}


def _assert_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"The {what} at step {step + 1} is {value}; lower the learning rate or look for broken rows. "
            "The last checkpoint is kept."
        )


def _assert_start(task: _Task, loss: float) -> None:
    """Refuse a reference that is not the policy's start: dropout, another precision or other weights."""
    known = task.loss is objective and task.knobs["score"] == "log_ratio" and task.knobs["link"] == "logistic"
    if known and not task.knobs["nll"] and not abs(loss - LN2) < 1e-3:
        raise InputError(
            f"The first loss is {loss:.4f} and should be ln 2 = {LN2:.4f}: policy and reference differ before any "
            "update (dropout on, another precision, or not the same weights)."
        )


def _numbers(outcome: Outcome) -> dict[str, float]:
    return {"loss": float(outcome.loss.detach()), **{name: float(value) for name, value in outcome.metrics.items()}}
