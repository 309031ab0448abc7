"""Collecting experience: prompts in, completions with their scores out. The nets learn elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tiebreak.records import Progress
from tiebreak.rewards.combine import Rewards
from tiebreak.rewards.table import NothingScored
from tiebreak.train.policy_gradient.advantages import optimal_value
from tiebreak.train.policy_gradient.presets import PLAIN
from tiebreak.train.policy_gradient.shape import shaped
from tiebreak.train.rollouts import Asked, Rolled, Rollout, Source, roll
from tiebreak.train.track import Track, read_track

Shape = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scores, whether each completion ended, and lengths in tokens, (B,) each, to rewards (B,)."""


class Judged(NamedTuple):
    """A prompt's completions with the raw score of each, None where nobody could say, and the scores by term.

    ``baseline`` is what is known of the prompt beforehand, for advantages that want it.
    """

    rolled: Rolled
    scores: tuple[float | None, ...]
    terms: Mapping[str, Sequence[float | None]]
    baseline: float | None = None

    @property
    def mixed(self) -> bool:
        """Whether the scores differ, so that a comparison within the group teaches something."""
        return len({score for score in self.scores if score is not None}) > 1

    @property
    def scored(self) -> bool:
        """Whether any completion has a score."""
        return any(score is not None for score in self.scores)


@dataclass
class Collector:
    """Draws completions of ``asked`` and has them scored, with the baselines that the method's advantage wants."""

    source: Source
    rewards: Rewards
    tokenizer: PreTrainedTokenizerBase
    asked: Sequence[Asked]
    rollout: Rollout
    knobs: Mapping[str, Any] = field(default_factory=lambda: PLAIN)
    optimal: list[float] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    clock: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        how, limit = self.knobs, self.rollout.max_new_tokens
        form = {name: how[name] for name in ("missing_eos", "missing_eos_value")}
        self.shape: Shape = partial(shaped, **form, share=how["overlong"], limit=limit)

    def collect(self, batches: Callable[[int], Sequence[int]], turn: str, done: float) -> list[Judged]:
        """Return the scored groups of one step, at most as many as its batch has prompts.

        Args:
            batches: the rows of attempt 0, 1, ... of this step.
            turn: names the step, for the streams that completions are drawn from.
            done: the share of the run that is done, for rewards with a schedule.
        """
        rows = batches(0)
        found: list[Judged] = []
        judged: list[Judged] = []
        for attempt in range(1 + self.knobs["dynamic"]):
            more = rows if not attempt else batches(attempt)
            judged = self._ask(more, f"{turn}.{attempt}", done)
            found += [one for one in judged if one.scored and (one.mixed or not self.knobs["dynamic"])]
            if len(found) >= len(rows):
                break
        found = found or [one for one in judged if one.scored]
        if not found:
            raise NothingScored(
                "No prompt of a step has both an answer and a greedy answer that a reward could score, so there is "
                "nothing to learn from; look at the rewards."
            )
        return found[: len(rows)]

    def greedy(self, asked: Sequence[Asked], turn: str, done: float) -> list[Judged]:
        """Answer ``asked`` once each with the likeliest tokens, leaving running normalisation as it was.

        Where no answer at all can be scored that is counted and no reason to stop, for nothing is learned from them.
        """
        before, rolled = self.rewards.state(), self._roll(asked, 1, 0.0, turn)
        try:
            return self._scored(rolled, done)
        except NothingScored as error:
            self._count({f"held out: {error}": len(rolled)})
            return [Judged(one, (None,), {}) for one in rolled]
        finally:
            self.rewards.load(before)

    def find_optimal(self, path: Path, *, run: str, beta: float, draws: int, batch: int, progress: Progress) -> None:
        """Estimate the best value of every prompt from the start's own answers, and keep them on disk (A*-PO, stage 1).

        A prompt that no reward could score has the value 0. A killed run goes on where it stopped; what another run
        has written counts for nothing.
        """
        known = [row for row in read_track(path) if row.get("run") == run]
        if known:
            self.rewards.load(known[-1]["rewards"])
            self.faults = dict(known[-1]["faults"])
        self.optimal = [value for row in known for value in row["values"]]
        with Track(path, after=len(known)) as track:
            for start in range(len(self.optimal), len(self.asked), batch):
                part = self.asked[start : start + batch]
                judged = self._scored(self._roll(part, draws, self.rollout.temperature, "optimal"), 0.0)
                worth = [[r for r in self._worth(one) if r is not None] or [0.0] for one in judged]
                values = [float(optimal_value(torch.tensor(some), beta)) for some in worth]
                after = {"rewards": self.rewards.state(), "faults": self.faults}
                track.write(start // batch + 1, {"run": run, "values": values, **after})
                self.optimal += values
                progress(start + len(part), len(self.asked), {})

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds spent inside to the clock."""
        started = time.perf_counter()
        yield
        self.clock[what] = self.clock.get(what, 0.0) + time.perf_counter() - started

    def _ask(self, rows: Sequence[int], turn: str, done: float) -> list[Judged]:
        asked = [self.asked[row] for row in rows]
        judged = self._scored(self._roll(asked, self.rollout.n, self.rollout.temperature, turn), done)
        if self.knobs["advantage"] == "greedy":
            bases = self._scored(self._roll(asked, 1, 0.0, f"{turn}.greedy"), done)
            return [
                one._replace(baseline=self._worth(base)[0])
                if base.scored
                else one._replace(scores=(None,) * len(one.scores))
                for one, base in zip(judged, bases, strict=True)
            ]
        if self.knobs["advantage"] == "optimal":
            return [one._replace(baseline=self.optimal[row]) for one, row in zip(judged, rows, strict=True)]
        return judged

    def _roll(self, asked: Sequence[Asked], n: int, temperature: float, turn: str) -> list[Rolled]:
        with self.timed("time/sample"):
            return roll(self.source, self.tokenizer, asked, n=n, temperature=temperature, turn=turn)

    def _scored(self, rolled: Sequence[Rolled], done: float) -> list[Judged]:
        with self.timed("time/score"):
            scored = self.rewards([one.answered for one in rolled], done=done)
        self._count(scored.faults)
        return [
            Judged(one, tuple(scored.totals[i]), {label: values[i] for label, values in scored.terms.items()})
            for i, one in enumerate(rolled)
        ]

    def _count(self, faults: Mapping[str, int]) -> None:
        for reason, count in faults.items():
            self.faults[reason] = self.faults.get(reason, 0) + count

    def _worth(self, judged: Judged) -> list[float | None]:
        """Return what the scores are worth, ends and lengths considered, as a baseline has to be on the same scale."""
        scores = torch.tensor([score or 0.0 for score in judged.scores])
        ended = torch.tensor([finish == "stop" for finish in judged.rolled.finishes])
        lengths = torch.tensor([len(branch) for branch in judged.rolled.tree.branches])
        worth = self.shape(scores, ended, lengths).tolist()
        return [None if score is None else value for score, value in zip(judged.scores, worth, strict=True)]


def shown(judged: Sequence[Judged], most: int) -> Iterator[dict[str, Any]]:
    """Yield the first samples of a step as a person wants to read them: not chosen by how well they went."""
    for one in judged[:most]:
        rolled = one.rolled
        yield {
            "prompt_id": rolled.asked.prompt.id,
            "prompt": rolled.asked.prompt.plain,
            "completion": rolled.texts[0],
            "finish": rolled.finishes[0],
            "score": one.scores[0],
            "terms": {label: values[0] for label, values in one.terms.items()},
        }
