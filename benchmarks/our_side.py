"""The tiebreak side: one Learner, fed the same rows as TRL's trainer, with a stopwatch around its optimizer step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from workload import RATES, Row, build

from tiebreak.models.forest import Tree
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example
from tiebreak.train.update import Compute

METHODS = {"dpo": "dpo", "reward": "bradley_terry", "sft": "sft"}


class Taken(NamedTuple):
    """What one optimizer step took and gave."""

    seconds: float
    loss: float
    grad_norm: float


def wait(device: str) -> None:
    """Let the GPU finish, so that a stopwatch sees the work and not its launch."""
    if device == "cuda":
        torch.cuda.synchronize()


def examples(rows: Sequence[Row], task: str) -> list[Example]:
    """Return ``rows`` as trees: a prompt with both completions, or with the chosen one where there is no comparison."""
    return [Example(Tree(row.prompt, (row.chosen,) if task == "sft" else (row.chosen, row.rejected))) for row in rows]


class Ours:
    """A model in training, on its own or with the reference's log-probs from a table made before the first step."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.task, self.device, self.total, self.pairs = job["task"], job["device"], job["steps"], job["pairs"]
        self.model = build(job["model"], self.task, seed=job["seed"], device=self.device)
        self.reference = None
        if self.task == "dpo":
            self.reference = build(job["model"], self.task, seed=job["seed"] + 1, device=self.device).eval()
        knobs = dict(OFFLINE[METHODS[self.task]].knobs)
        if self.task == "reward":
            knobs["target"] = "hard"
        pace = Pace(batch=self.pairs, learning_rate=RATES[self.task], warmup=0.0, decay="constant")
        compute = Compute(precision=job["precision"], checkpointing=False, tokens=None)
        self.learner = Learner(self.model, knobs, pace, compute, reference=self.reference)
        self.cached = job["setting"]["ours_cached"] and self.reference is not None
        self.cache: dict[Row, torch.Tensor] = {}
        self.done = 0

    def cache_references(self, rows: Sequence[Row]) -> float:
        """Fill the table where it is used and return the seconds of a batch (the median): a cost paid once a row."""
        if not self.cached:
            return 0.0
        spent = []
        with self.learner.ready():
            for start in range(0, len(rows), self.pairs):
                part = rows[start : start + self.pairs]
                wait(self.device)
                began = time.perf_counter()
                found = self.learner.reference_logps(examples(part, self.task))
                wait(self.device)
                spent.append(time.perf_counter() - began)
                self.cache.update(zip(part, found, strict=True))
        return sorted(spent)[len(spent) // 2]

    def step(self, rows: Sequence[Row]) -> Taken:
        """Take one optimizer step; entering and leaving forest mode, done once in a training run, is not timed."""
        references = torch.stack([self.cache[row] for row in rows]) if self.cached else None
        with self.learner.ready():
            wait(self.device)
            began = time.perf_counter()
            step = self.learner.step(examples(rows, self.task), self.done, self.total, references=references)
            wait(self.device)
            seconds = time.perf_counter() - began
        self.done += 1
        return Taken(seconds, step.numbers["loss"], step.numbers["grad_norm"])

    def models(self) -> dict[str, Any]:
        """Return the models by what they are for."""
        return {"policy": self.model} | ({"reference": self.reference} if self.reference is not None else {})
