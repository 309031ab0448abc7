"""The tiebreak side of ``online.py``: its own online loop, one step at a time, on completions that are handed to it.

The loop is the one users get. It runs in a thread, waits before each step for the completions to learn from and hands
back what the step took, so another side can run between two steps. It samples all the same, for the time that takes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from online_work import BETA, RATE, TOKENS, Group, Times, Turn, reward, tokenizer
from our_side import wait
from workload import build

from tiebreak.models.generate import Drawn
from tiebreak.records import Prompt
from tiebreak.rewards.combine import Rewards, Term
from tiebreak.rewards.table import Answered
from tiebreak.train.offline import Watch
from tiebreak.train.online import learn
from tiebreak.train.pace import Pace
from tiebreak.train.policy_gradient.presets import POLICY_GRADIENT
from tiebreak.train.rollouts import Asked, Local, Rollout
from tiebreak.train.track import read_track
from tiebreak.train.update import Compute

METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"aggregation": "batch_token_mean", "kl": "", "kl_in": "", "beta": BETA["grpo"]},
    "rloo": {"beta": BETA["rloo"]},
    "ppo": {"beta": BETA["ppo"]},
}
"""What differs from a method's row: TRL's GRPO is by default DAPO's mean over tokens, without a reference."""

MATRIX = ("mm", "addmm", "bmm", "baddbmm", "linear", "scaled_dot_product", "convolution")
"""Names of operations that are products of matrices, attention's among them."""


class Enough(Exception):
    """Ends the loop after its last step, before it writes a checkpoint, which TRL does not do here either."""


def even(answered: Sequence[Answered]) -> list[list[float]]:
    """The reward as the loop calls it: on token ids."""
    return [[reward(ids) for ids in one.trees.branches] for one in answered if one.trees is not None]


class Ours:
    """The loop of one method with its models.

    Args:
        job: what to measure.
        given: the prompts of all steps, in their order.
        folder: for what the loop writes.
        shared: whether a prompt is computed once for all of its completions, or each completion has a copy of its own.
    """

    def __init__(self, job: dict[str, Any], given: Sequence[tuple[int, ...]], folder: str, *, shared: bool = True):
        self.job, self.folder, self.copies = job, Path(folder), 1 if shared else job["generations"]
        self.n = job["generations"] // self.copies
        self.asked = [
            Asked(Prompt(text=f"{number}.{copy}"), ids)
            for number, ids in enumerate(given)
            for copy in range(self.copies)
        ]
        self.todo: SimpleQueue[Sequence[Group] | None] = SimpleQueue()
        self.done: SimpleQueue[Turn | BaseException] = SimpleQueue()
        self.drawn: list[Group] = []
        self.marks = [0.0, 0.0, 0.0]
        self.profile: torch.profiler.profile | None = None
        self.exact = True
        self.thread: Thread | None = None

    def step(self, groups: Sequence[Group] | None = None) -> Turn:
        """Take one step, learning from the completions of ``groups``, or from its own where there are none."""
        if self.thread is None:
            self.thread = Thread(target=self._in_thread, daemon=True)
            self.thread.start()
        self.todo.put(groups)
        found = self.done.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def run(self) -> None:
        """Run the whole loop on its own completions, one step after the other."""
        for _ in range(self.job["steps"]):
            self.todo.put(None)
        self._learn()

    def draw(self, asked: Sequence[Asked], *, n: int, temperature: float, turn: str) -> list[list[Drawn]]:
        """Sample, then answer with the completions that were handed in: a source of completions to the loop."""
        groups = self.todo.get()
        wait(self.job["device"])
        began = time.perf_counter()
        drawn = self.local.draw(asked, n=n, temperature=temperature, turn=turn)
        wait(self.job["device"])
        sampled = time.perf_counter()
        if groups is not None:
            flat = [ids for group in groups for ids in group.completions]
            assert [one.ids for one in asked] == [g.prompt for g in groups for _ in range(self.copies)]
            drawn = [
                [Drawn(ids, "length", (0.0,) * len(ids)) for ids in flat[i * n : (i + 1) * n]]
                for i in range(len(asked))
            ]
        width = self.copies
        self.drawn = [
            Group(asked[i].ids, tuple(one.ids for draws in drawn[i : i + width] for one in draws))
            for i in range(0, len(asked), width)
        ]
        if self.profile is not None:  # here, for a profiler sees its own thread only
            self.profile.start()
        self.marks = [began, sampled, time.perf_counter()]
        return drawn

    def _in_thread(self) -> None:
        try:
            self._learn()
        except BaseException as error:
            self.done.put(error)

    def _learn(self) -> None:
        job, task = self.job, self.job["task"]
        model = build(job["model"], task, seed=job["seed"], device=job["device"])
        words = tokenizer(job["model"])
        rollout = Rollout(n=self.n, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        self.local = Local(model, words, rollout, seed=job["seed"], precision=job["precision"])
        batch = job["prompts"] * self.copies
        critic = build(job["model"], "reward", seed=job["seed"], device=job["device"]) if task == "ppo" else None
        try:
            learn(
                model,
                words,
                self.asked,
                Rewards([Term(name="even", label="even", score=even)]),
                {**POLICY_GRADIENT[task].knobs, **METHODS[task]},
                Pace(batch=batch, learning_rate=RATE, warmup=0.0, decay="constant", order="given"),
                rollout,
                seed=job["seed"],
                folder=self.folder,
                critic=critic,
                watch=Watch(log_every=1, checkpoint_every=job["steps"] + 1),
                compute=Compute(precision=job["precision"]),
                source=self,
                progress=self._after,
            )
        except Enough:
            return

    def _after(self, number: int, total: int, _: Mapping[str, float]) -> None:
        wait(self.job["device"])
        (began, sampled, resumed), ended = self.marks, time.perf_counter()
        if self.profile is not None:
            self.profile.stop()
        row = read_track(self.folder / "metrics.jsonl")[-1]
        sampling, scoring, learned = sampled - began, row["time/score"], ended - resumed
        times = Times(sampling + learned, sampling, scoring, learned - scoring)
        self.done.put(Turn(times, row["loss"], row["grad_norm"], self.drawn))
        if number == total:
            raise Enough


def shares(ours: Ours) -> dict[str, float]:
    """Take one step, with a profiler behind its sampling, and say which share is sampling, products, and neither."""
    ours.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    times = ours.step().times
    products = [e for e in ours.profile.events() if any(name in e.name for name in MATRIX)]
    ours.profile = None
    matrix = sum(event.self_cpu_time_total for event in products) / 1e6 / times.step
    sampled = times.sampling / times.step
    return {"sampling": sampled, "matrix": matrix, "neither": 1 - sampled - matrix, "seconds": times.step}
