"""The offline loop: answers or preference pairs in, a trained model out. SFT, reward models and DPO are one loop.

Batches, schedule and weights depend on the seed and the step alone, so a killed run that resumes ends with the same
weights, bit for bit, on one machine with one thread count.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiebreak.models.adapters import Adapter, adapt, has_adapter
from tiebreak.models.heap import keep_freed_memory
from tiebreak.models.readings import OF_TWO
from tiebreak.records import InputError, Progress, quiet
from tiebreak.registry import nearest
from tiebreak.train import checkpoint
from tiebreak.train.best import FRESH, Best
from tiebreak.train.learner import Asked, Learner, asked_of
from tiebreak.train.memory import find_tokens, is_out_of_memory, out_of_memory
from tiebreak.train.objectives.switches import objective, parts_of, settled
from tiebreak.train.optimizers import Ema
from tiebreak.train.order import Facts, Order
from tiebreak.train.pace import Pace
from tiebreak.train.reference import Follower, Reference, cached_logps, frozen_copy
from tiebreak.train.rows import Example, Loss, check_rows, mark_of
from tiebreak.train.track import Track
from tiebreak.train.trackers import opened
from tiebreak.train.update import Compute, Step

__all__ = ["Compute", "Example", "Pace", "Reference", "Trained", "Watch", "fit", "settle"]

LN2 = math.log(2.0)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How a training is watched: steps between evaluations (0: at the end only), checkpoints and lines of metrics.

    ``keep`` is ``last`` or ``best``, the weights with the lowest held-out loss; ``patience`` ends the training after
    that many evaluations without a lower one (0: never). ``trackers`` are names of TRACKERS.
    """

    evaluate_every: int = 0
    checkpoint_every: int = 200
    log_every: int = 10
    keep: str = "last"
    patience: int = 0
    trackers: tuple[str, ...] = ()

    @property
    def chooses(self) -> dict[str, Any]:
        """What evaluations decide: which weights are kept, and when to stop; empty where they decide nothing."""
        if self.keep == "last" and not self.patience:
            return {}
        return {"keep": self.keep, "patience": self.patience, "evaluate_every": self.evaluate_every}

    def __post_init__(self) -> None:
        for name, least in (("checkpoint_every", 1), ("log_every", 1), ("evaluate_every", 0), ("patience", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be {least} or more.")
        if self.keep not in ("last", "best"):
            raise InputError(f"keep is {self.keep!r}; expected last or best.")
        if (self.patience or self.keep == "best") and not self.evaluate_every:
            raise InputError("keep: best and patience need evaluations on the way; set evaluate_every.")


class Trained(NamedTuple):
    """What a training run did; ``stopped``: it ended early; ``best``: the step with the best held-out result.

    ``faults`` counts by reason what went wrong and was contained, such as completions that a reward could not score.
    """

    steps: int
    tokens: int
    seconds: float
    last: dict[str, float]
    stopped: bool = False
    best: int = 0
    faults: Mapping[str, int] = MappingProxyType({})


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    folder: Path,
    held_out: Sequence[Example] = (),
    watch: Watch | None = None,
    compute: Compute | None = None,
    reference: Reference | None = None,
    adapter: Adapter | None = None,
    optimizer: str = "adamw",
    optimizer_knobs: Mapping[str, Any] | None = None,
    ema: float = 0.0,
    loss: Loss = objective,
    cache: Path | None = None,
    auto_tokens: bool = False,
    against: PreTrainedModel | None = None,
    progress: Progress = quiet,
) -> Trained:
    """Train ``model`` in place on ``examples`` with the objective that ``knobs`` name.

    Args:
        model: the start, a classifier where the score map is ``head``; a resumed run gets the same one again.
        examples: rows; pair objectives need two branches in each.
        knobs: the switches and scalars of ``loss``; what is not given is its default.
        pace: epochs, batch size, order and learning rate.
        seed: orders the rows and draws an adapter.
        folder: holds ``metrics.jsonl`` and ``checkpoint/``, which stays until ``checkpoint.discard`` removes it.
        held_out: rows that are never trained on, evaluated as ``watch`` says and at the end.
        watch: when to evaluate, save and log, and when to stop.
        compute: precision, activation checkpointing and the token budget of a forest.
        reference: where the log-probs of the start come from, and whether it follows the policy.
        adapter: train this adapter instead of all weights; it stays in ``model``.
        optimizer: a row of OPTIMIZERS.
        optimizer_knobs: those of its knobs that differ.
        ema: decay of a moving average of the weights, which becomes the result; 0 is none.
        loss: the switches, or a function of that shape: a ``Seen`` and keywords with ``score`` to an ``Outcome``.
        cache: folder of reference log-probs that trainings share; ``folder`` when missing.
        auto_tokens: take the token budget of a forest from the memory that is free, in place of ``compute``'s.
        against: a frozen model that is the reference, in each step, in place of the start: no first loss is ln 2 then.
        progress: called after each step with steps done, steps in all and the latest numbers.

    Raises:
        InputError: rows, knobs, a checkpoint, a reference, a gradient or memory that is not as it has to be.
    """
    whole, watch = settle(loss, knobs), watch or Watch()
    asked = asked_of(loss, whole)
    _check(model, examples, held_out, watch, asked)
    follow = _follow(reference or Reference(), against, asked)
    made = {"optimizer": optimizer, **(optimizer_knobs or {}), "ema": ema, "seed": seed, "adapter": repr(adapter)}
    run = _mark(model, examples, held_out, whole, pace, compute or Compute(), follow, loss, made, watch, against)
    model = model if adapter is None else adapt(model, adapter, seed=seed)
    own: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "optimizer_knobs": optimizer_knobs}
    learner = Learner(model, whole, pace, compute, reference=_beside(model, asked, follow, against), **own)
    training = _Training(learner, _order(examples, pace, seed), examples, held_out, watch, folder, run)
    training.carry(ema, follow, auto_tokens=auto_tokens, moved=bool(against) or (not adapter and has_adapter(model)))
    return training.go(progress, None if follow.compute == "step" else cache or folder / "reference")


def _follow(follow: Reference, against: PreTrainedModel | None, asked: Asked) -> Reference:
    """Return where the reference's log-probs come from: in the step where a model is given or both are read at once."""
    if against is None:
        return replace(follow, compute="step") if asked.reads.intersection(OF_TWO) else follow
    if follow.sync_every:
        raise InputError("A reference that is given stays as it is; set sync_every to 0.")
    return replace(follow, compute="step")


def _beside(
    model: PreTrainedModel, asked: Asked, follow: Reference, against: PreTrainedModel | None
) -> PreTrainedModel | None:
    """Return the frozen model that is the reference in each step, if the objective compares and is asked to so."""
    compares = "reference" in asked.reads
    if against is not None and not compares:
        raise InputError("The objective compares with no reference; leave out the model to compare against.")
    return against or (frozen_copy(model, follow) if compares and follow.compute == "step" else None)


def _check(
    model: PreTrainedModel,
    rows: Sequence[Example],
    held_out: Sequence[Example],
    watch: Watch,
    asked: Asked,
) -> None:
    """Refuse rows that cannot be trained on, and a watch that has nothing to watch."""
    if not held_out and (watch.patience or watch.keep == "best"):
        raise InputError("keep: best and patience need held-out rows; set held_out above 0.")
    check_rows(rows, model, kind=asked.kind, needs=asked.needs)
    if held_out:
        check_rows(held_out, model, kind=asked.kind, needs=asked.needs)


def _mark(
    model: PreTrainedModel,
    rows: Sequence[Example],
    held_out: Sequence[Example],
    knobs: Mapping[str, Any],
    pace: Pace,
    compute: Compute,
    follow: Reference,
    loss: Loss,
    made: Mapping[str, Any],
    watch: Watch,
    against: PreTrainedModel | None,
) -> str:
    """Return a hash of all that decides the result; how a batch is split does not, so a resumed run may change it."""
    rows = [*rows, *held_out] if watch.chooses else rows
    settings = {**made, **watch.chooses, "loss": f"{loss.__module__}:{loss.__qualname__}"}
    settings |= {name: value for name, value in asdict(compute).items() if name != "tokens"}
    settings |= {} if against is None else {"against": mark_of(against, ())}
    return mark_of(model, rows, knobs, asdict(pace), asdict(follow), settings)


def _order(rows: Sequence[Example], pace: Pace, seed: int) -> Order:
    unsure = [1 - abs(2 * row.p - 1) for row in rows]
    facts = Facts(tokens=[row.tree.size for row in rows], labels=[row.label for row in rows], difficulty=unsure)
    size: dict[str, Any] = {"batch": pace.batch, "batch_tokens": pace.batch_tokens}
    return Order(facts, seed=seed, by=pace.order, mixture=pace.mixture, **size)


class _Training:
    """A learner with its rows, its references and its state on disk."""

    def __init__(
        self,
        learner: Learner,
        order: Order,
        rows: Sequence[Example],
        held_out: Sequence[Example],
        watch: Watch,
        folder: Path,
        run: str,
    ) -> None:
        self.learner, self.order, self.rows, self.held_out = learner, order, rows, held_out
        self.watch, self.folder, self.run = watch, folder, run
        self.steps = order.steps(learner.pace.epochs)
        self.average: Ema | None = None
        self.follower: Follower | None = None
        self.references: Tensor | None = None
        self.apart: Tensor | None = None
        self.moved = False

    def carry(self, ema: float, follow: Reference, *, auto_tokens: bool, moved: bool) -> None:
        """Take along from step to step what ``ema`` and ``follow`` ask for, and split batches into what then fits.

        ``moved`` says that the start has left its reference already, so that no first loss is known beforehand.
        """
        self.moved = moved
        if ema:
            self.average = Ema(self.learner.model, ema)
        if self.learner.reference is not None and follow.sync_every:
            self.follower = Follower(self.learner.reference, follow)
        if auto_tokens:
            self.learner.compute = replace(self.learner.compute, tokens=find_tokens(self.learner, self.rows))

    def look_back(self, cache: Path | None) -> None:
        """Get the log-probs of a reference that stays, while the model still is that reference.

        Those of the held-out rows are kept, for they are asked for often; those of the rows only where ``cache`` says
        that they are not to be computed in the step.
        """
        if not self.learner.compares:
            return
        if self.held_out and self.follower is None:
            self.apart = self.learner.reference_logps(self.held_out)
        if cache is not None:
            self.references = cached_logps(self.learner, self.rows, cache).logps

    def go(self, progress: Progress, cache: Path | None) -> Trained:
        """Take all steps, or those a checkpoint has left."""
        with self.learner.ready():
            return self._go(progress, cache)

    def _go(self, progress: Progress, cache: Path | None) -> Trained:
        started = time.monotonic()
        self.look_back(cache)
        if self.learner.model.device.type == "cpu":
            keep_freed_memory()
        watch = self.watch
        self.best = Best(self.learner.nets, self.folder, keep=watch.keep, patience=watch.patience, average=self.average)
        fresh = {"run": self.run, "step": 0, "tokens": 0, **FRESH}
        state: dict[str, Any] = self._restore() or fresh
        self.learner.past = {name: torch.tensor(value) for name, value in state.get("past", {}).items()}
        settings = {**self.learner.knobs, **asdict(self.learner.pace), **asdict(self.learner.compute)}
        trackers = opened(self.watch.trackers, self.folder, run=self.run, settings=settings, after=state["step"])
        with Track(self.folder / "metrics.jsonl", after=state["step"], trackers=trackers) as track:
            while state["step"] < self.steps and not state["stopped"]:
                self._step(state, track, progress)
                if state["step"] % self.watch.checkpoint_every == 0 and state["step"] < self.steps:
                    self._save(state)
            if "last" not in state:
                self._finish(state, track)
                self._save(state)
        kept = {name: state[name] for name in ("tokens", "last", "stopped")}
        return Trained(steps=state["step"], seconds=time.monotonic() - started, best=state["best_step"], **kept)

    def _step(self, state: dict[str, Any], track: Track, progress: Progress) -> None:
        number, watch, learner = state["step"], self.watch, self.learner
        rows = self.order.rows(number)
        references = None if self.references is None else self.references[rows]
        done = self._take([self.rows[i] for i in rows], number, references)
        if self.average is not None:
            self.average.update(learner.model)
        if self.follower is not None:
            self.follower.follow(learner.model, number + 1)
        state |= {"step": number + 1, "tokens": state["tokens"] + done.tokens, "numbers": done.numbers}
        if learner.past:
            state["past"] = {name: value.tolist() for name, value in learner.past.items()}
        if (number + 1) % watch.log_every == 0 or number + 1 in (1, self.steps):
            epoch = (number + 1) / self.steps * learner.pace.epochs
            track.write(number + 1, {"epoch": epoch, "num_tokens": state["tokens"], **done.numbers})
        if (
            watch.evaluate_every
            and self.held_out
            and (number + 1) % watch.evaluate_every == 0
            and number + 1 < self.steps
        ):
            self._judge(state, track)
        shown = ("loss", "grad_norm", "learning_rate")
        progress(number + 1, self.steps, {name: done.numbers[name] for name in shown})

    def _take(self, rows: Sequence[Example], number: int, references: Tensor | None) -> Step:
        """Take one step; out of memory is said with the split that fits, for it changes nothing else."""
        try:
            check = partial(_assert_start, self.learner) if number == 0 and not self.moved else None
            return self.learner.step(rows, number, self.steps, references, check=check)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(self.learner, rows, error, data=self.rows) from None

    def _measure(self) -> dict[str, float]:
        """Evaluate the held-out rows as one batch: no mean of means, whatever the batch size."""
        learner = self.learner
        with self.best.weights(), torch.no_grad():
            learner.model.eval()
            values = learner.values(self.held_out)
            learner.model.train()
        apart = self.apart
        if apart is None and learner.compares:
            apart = learner.reference_logps(self.held_out)
        outcome = learner.outcome(self.held_out, values, apart)
        return {f"eval/{name}": float(value) for name, value in {"loss": outcome.loss, **outcome.metrics}.items()}

    def _judge(self, state: dict[str, Any], track: Track) -> None:
        """Evaluate, and note how good it is."""
        measured = self._measure()
        track.write(state["step"], measured)
        self.best.judge(state, measured, measured["eval/loss"])

    def _finish(self, state: dict[str, Any], track: Track) -> None:
        """Evaluate at the end, and leave in the model what the training was to give."""
        if self.held_out and not state["stopped"]:
            self._judge(state, track)
            state["stopped"] = False
        state["last"] = self.best.finish(state) or state["numbers"]

    def _extras(self) -> dict[str, checkpoint.Stateful]:
        return {
            name: extra
            for name, extra in (("average", self.average), ("reference", self.follower))
            if extra is not None
        }

    def _restore(self) -> dict[str, Any] | None:
        at = self.folder / "checkpoint"
        return checkpoint.load(at, self.learner.model, self.learner.optimizer, run=self.run, extras=self._extras())

    def _save(self, state: dict[str, Any]) -> None:
        at = self.folder / "checkpoint"
        checkpoint.save(at, self.learner.model, self.learner.optimizer, state, self._extras())


def settle(loss: Loss, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all knobs of ``loss``; a user's own function brings its defaults and says what it reads by ``score``."""
    if loss is objective:
        return settled(knobs)
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
    return whole


def _assert_start(learner: Learner, loss: float) -> None:
    """Refuse a reference that is not the policy's start: dropout, another precision or other weights."""
    knobs = learner.knobs
    known = learner.loss is objective and set(parts_of(knobs)) <= {"score", "compare", "link", "target"}
    if known and (knobs["score"], knobs["link"]) == ("log_ratio", "logistic") and not abs(loss - LN2) < 1e-3:
        raise InputError(
            f"The first loss is {loss:.4f} and should be ln 2 = {LN2:.4f}: policy and reference differ before any "
            "update (dropout on, another precision, or not the same weights)."
        )
