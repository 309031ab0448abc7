"""A policy's scored answers to many prompts, on disk as they come: a killed run repeats a chunk of prompts at most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tiebreak.models.forest import Tree
from tiebreak.records import InputError, Progress
from tiebreak.train.collect import Collector, Judged, shown
from tiebreak.train.memory import is_out_of_memory
from tiebreak.train.rollouts import Asked, Rolled
from tiebreak.train.track import Track, read_track

CHUNK = 256
"""Prompts between two writes."""


class Answers(NamedTuple):
    """A prompt's answers as a round keeps them: token ids as bytes, for there are many, and the first one's text.

    ``scores`` are raw totals and ``terms`` the scores by term, None where nobody could say.
    """

    asked: Asked
    branches: tuple[bytes, ...]
    text: str
    finishes: tuple[str, ...]
    scores: tuple[float | None, ...]
    terms: Mapping[str, Sequence[float | None]]

    def tree(self, places: Sequence[int]) -> Tree:
        """Return the prompt with the answers at ``places``, in that order."""
        ids = [np.frombuffer(self.branches[place], dtype=np.int32).tolist() for place in places]
        return Tree(self.asked.ids, tuple(map(tuple, ids)))


def answers_of(judged: Judged) -> Answers:
    """Return what a round keeps of a prompt's scored answers."""
    rolled = judged.rolled
    branches = tuple(_packed(branch) for branch in rolled.tree.branches)
    return Answers(rolled.asked, branches, rolled.texts[0], rolled.finishes, judged.scores, judged.terms)


def draw(collector: Collector, path: Path, *, turn: str, done: float, run: str, progress: Progress) -> list[Answers]:
    """Return the policy's scored answers to all prompts that could be scored; those in ``path`` are not drawn again.

    A prompt of which no answer has a score is left out; the rewards' faults tell why.

    Args:
        collector: draws and scores; its rewards and faults go on from what ``path`` says they were.
        path: a line per :data:`CHUNK` of prompts, with token ids, texts, how each ended, and scores.
        turn: names the streams that answers are drawn from.
        done: the share of the run that is done, for rewards with a schedule.
        run: names the run, so that answers of another one are refused.
        progress: called with prompts answered and prompts in all.

    Raises:
        InputError: ``path`` is of another run, memory ran out, or no answer of a chunk could be scored.
    """
    asked, known = collector.asked, read_track(path)
    if any(line["run"] != run for line in known):
        raise InputError(
            f"{path} holds answers of a training with another start, other prompts, knobs or seed; remove it or train "
            "in another folder."
        )
    if known:
        collector.faults = dict(known[-1]["faults"])
        collector.rewards.load(known[-1]["rewards"])
    found = [one for line in known for one in _read(asked, line)]
    with Track(path, after=len(known)) as track:
        for number in range(len(known), math.ceil(len(asked) / CHUNK)):
            rows = range(number * CHUNK, min((number + 1) * CHUNK, len(asked)))
            try:
                judged = collector.collect(partial(_same, rows), turn, done)
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                raise InputError("Memory ran out while answers were drawn; lower rollout.batch.") from error
            line = _written(judged, {asked[row].prompt.id: row for row in rows})
            state = {"faults": dict(collector.faults), "rewards": collector.rewards.state()}
            track.write(number + 1, {"run": run, **line, **state})
            found += _read(asked, line)
            progress(rows.stop, len(asked), {})
    return found


def averages(answers: Sequence[Answers]) -> dict[str, float]:
    """Return how answers are on average: the total, each term of the reward that scored any, length, share of EOS."""
    terms = {name: [value for one in answers for value in one.terms[name]] for name in answers[0].terms}
    every: dict[str, Sequence[float | None]] = {
        "objective/scores": [score for one in answers for score in one.scores],
        **{f"rewards/{name}": values for name, values in terms.items()},
        "completions/mean_length": [len(branch) / 4 for one in answers for branch in one.branches],
        "completions/eos_share": [float(finish == "stop") for one in answers for finish in one.finishes],
    }
    return {name: mean(values) for name, values in every.items() if any(value is not None for value in values)}


def mean(values: Sequence[float | None]) -> float:
    """Return the mean of the values that are there, 0 where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else 0.0


def samples(answers: Sequence[Answers], most: int) -> Iterator[dict[str, Any]]:
    """Yield the first prompts with their first answer as a person wants to read them."""
    for one in answers[:most]:
        rolled = Rolled(one.asked, Tree(one.asked.ids, ()), (one.text,), one.finishes, torch.empty(0))
        yield from shown([Judged(rolled, one.scores, one.terms)], 1)


def _same(rows: Sequence[int], attempt: int) -> Sequence[int]:
    return rows


def _written(judged: Sequence[Judged], places: Mapping[str, int]) -> dict[str, Any]:
    """Return a chunk as JSON has it."""
    return {
        "rows": [places[one.rolled.asked.prompt.id] for one in judged],
        "branches": [one.rolled.tree.branches for one in judged],
        "texts": [one.rolled.texts for one in judged],
        "finishes": [one.rolled.finishes for one in judged],
        "scores": [one.scores for one in judged],
        "terms": [one.terms for one in judged],
    }


def _read(asked: Sequence[Asked], line: Mapping[str, Any]) -> list[Answers]:
    """Return what :func:`_written` wrote."""
    parts = zip(*(line[name] for name in ("rows", "branches", "texts", "finishes", "scores", "terms")), strict=True)
    return [
        Answers(asked[row], tuple(map(_packed, branches)), texts[0], tuple(finishes), tuple(scores), terms)
        for row, branches, texts, finishes, scores, terms in parts
    ]


def _packed(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype=np.int32).tobytes()
