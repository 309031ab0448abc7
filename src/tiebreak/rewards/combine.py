"""Several rewards become one: clipped, normalised, weighted and added, multiplied, gated.

Nothing is scored silently: what is no finite number is None, every None is counted with its reason, and a batch in
which nothing could be scored stops the run with the reason.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.records import InputError
from tiebreak.rewards.table import Answered, NothingScored, Scores, Unscored
from tiebreak.rewards.terms import Gate, Schedule, Term, check_terms, read_terms

__all__ = ["Gate", "Rewards", "Schedule", "Scored", "Term", "check_terms", "read_terms"]

SLIGHT = 1e-8
"""Added to the variance in whitening, as in the reference implementation: equal rewards stay as they are."""
LARGEST = 3.4e38
"""Totals become float32."""
LONGEST = 200
"""Characters of a function's error that are repeated."""


class Scored(NamedTuple):
    """What a batch is worth.

    ``totals`` and each of ``terms`` are per prompt and completion, None where there is no score; ``terms`` are by label
    and as the rewards gave them, before clipping and normalising. ``faults`` counts completions by reason.
    """

    totals: Scores
    terms: dict[str, Scores]
    faults: dict[str, int]


class _Run:
    """Mean and spread of all values seen so far (Welford 1962): exact for equal values, and one pass."""

    def __init__(self, count: int = 0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    def add(self, value: float) -> None:
        self.count += 1
        gap = value - self.mean
        self.mean += gap / self.count
        self.squares += gap * (value - self.mean)

    def standard(self, value: float) -> float:
        spread = math.sqrt(self.squares / self.count)
        return (value - self.mean) / spread if spread else 0.0


class Rewards:
    """The terms of a total, with the state of those that are normalised over the whole run."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = tuple(terms)
        self._runs = {term.label: _Run() for term in terms if term.normalise == "running"}
        self._said: dict[str, str] = {}

    def __call__(self, answered: Sequence[Answered], *, done: float = 0.0) -> Scored:
        """Score a batch; ``done`` is the share of the run that is over, from 0 to 1, for weights that change.

        A completion without a number in any term has no total. Running normalisation counts the batch in first.

        Raises:
            InputError: no completion of the batch has a total, or a judge's endpoint gave up.
        """
        raw: dict[str, Scores] = {}
        faults: Counter[str] = Counter()
        lost: dict[str, list[Unscored]] = {}
        for term in self._terms:
            marks = [[_mark(value) for value in row] for row in term.score(answered)]
            lost[term.label] = [mark for row in marks for mark in row if isinstance(mark, Unscored)]
            faults.update(self._fault(term.label, mark) for mark in lost[term.label])
            raw[term.label] = [[None if isinstance(mark, Unscored) else mark for mark in row] for row in marks]
        ready = [self._ready(term, raw[term.label]) for term in self._terms]
        totals: Scores = []
        for i, one in enumerate(answered):
            sums = [self._total([values[i][j] for values in ready], done) for j in range(len(one.texts))]
            beyond = [value is not None and not abs(value) < LARGEST for value in sums]
            faults["the total is not finite"] += sum(beyond)
            totals.append([None if over else value for value, over in zip(sums, beyond, strict=True)])
        if not any(value is not None for row in totals for value in row) and any(totals):
            raise NothingScored(_nothing(lost, sum(map(len, totals))))
        return Scored(totals, raw, {reason: count for reason, count in faults.items() if count})

    @property
    def mark(self) -> str:
        """What is added up and how, in one line; what a term computes it does not say."""
        return repr([(t.label, t.weight, t.clip, t.normalise, t.role, t.gate) for t in self._terms])

    def state(self) -> dict[str, Any]:
        """Return what the rewards have learnt of the run so far, as JSON."""
        return {"running": {label: [run.count, run.mean, run.squares] for label, run in self._runs.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; a state of other terms is an InputError."""
        running = state.get("running", {})
        if set(running) != set(self._runs):
            saved, read = (", ".join(sorted(labels)) or "nothing" for labels in (running, self._runs))
            raise InputError(
                f"The saved state of the rewards normalises {saved} over the run, and the recipe {read}; go on with "
                "the recipe that the run began with, or begin anew."
            )
        self._runs = {label: _Run(int(count), mean, squares) for label, (count, mean, squares) in running.items()}

    def _fault(self, label: str, mark: Unscored) -> str:
        """Return a reason with the first detail met in this run, so that one kind of fault stays one line."""
        return self._said.setdefault(f"{label}: {mark.kind}", f"reward {label}: {_told(mark)}")

    def _ready(self, term: Term, scores: Scores) -> Scores:
        """Clip and normalise."""
        if term.clip is not None:
            low, high = term.clip
            scores = _each(scores, lambda value: min(max(value, low), high))
        if term.normalise == "group":
            return [_grouped(row) for row in scores]
        if term.normalise == "whiten":
            return _whitened(scores)
        if term.normalise == "running":
            run = self._runs[term.label]
            for value in _known(scores):
                run.add(value)
            return _each(scores, run.standard)
        return scores

    def _total(self, values: Sequence[float | None], done: float) -> float | None:
        """Combine the values of one completion, in the order of the terms; the first gate that is shut decides."""
        total, factor = 0.0, 1.0
        shut: float | None = None
        for term, value in zip(self._terms, values, strict=True):
            if value is None:
                return None
            if term.gate is not None:
                shut = term.gate.otherwise if shut is None and value < term.gate.least else shut
            elif term.role == "product":
                factor *= value
            else:
                total += (term.weight.at(done) if isinstance(term.weight, Schedule) else term.weight) * value
        return total * factor if shut is None else shut


def _told(mark: Unscored) -> str:
    detail = " ".join(mark.detail.split())[:LONGEST]
    return f"{mark.kind}: {detail}" if detail else mark.kind


def _nothing(lost: Mapping[str, Sequence[Unscored]], count: int) -> str:
    """Return the sentence for a batch without a single total: of the term that lost most, its first reason."""
    label = max(lost, key=lambda name: len(lost[name]))
    if not lost[label]:
        return f"None of the {count} totals of this batch is finite; lower the weights or clip the terms."
    first = lost[label][0]
    return (
        f"No completion of this batch has a reward: {label!r} could not score {len(lost[label])} of {count}, the first "
        f"for this reason: {_told(first).rstrip('.')}; {first.cure or 'mend that, or leave this reward out'}."
    )


def _mark(value: Any) -> float | Unscored:
    """Return a finite number, or why what a reward gave is none; true is 1, false is 0."""
    if isinstance(value, Unscored):
        return value
    if value is None:
        return Unscored("it gave None", cure="mend the function or the data it reads")
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) == ():
        value = value.item()  # a tensor or an array of one number
    if not isinstance(value, numbers.Real):
        cure = "have it return one number for each completion, or None"
        return Unscored(f"it gave a {type(value).__name__} in place of a number", repr(value)[:LONGEST], cure)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isfinite(number):
        return number
    return Unscored("nan" if math.isnan(number) else "infinite", cure="have it return finite numbers, or None")


def _each(scores: Scores, change: Callable[[float], float]) -> Scores:
    return [[None if value is None else change(value) for value in row] for row in scores]


def _known(scores: Scores) -> list[float]:
    return [value for row in scores for value in row if value is not None]


def _moments(values: Sequence[float]) -> _Run:
    run = _Run()
    for value in values:
        run.add(value)
    return run


def _whitened(scores: Scores) -> Scores:
    """Return scores with a variance of 1 over the batch and the mean they had (arXiv 2403.17031, detail 24)."""
    values = _known(scores)
    if not values:
        return scores
    run = _moments(values)
    scale = 1 / math.sqrt(run.squares / run.count + SLIGHT)
    return _each(scores, lambda value: (value - run.mean) * scale + run.mean)


def _grouped(row: Sequence[float | None]) -> list[float | None]:
    """Return the scores of one prompt minus their mean over their standard deviation (that of n, not n - 1)."""
    values = _known([list(row)])
    run = _moments(values)
    return [None if value is None else run.standard(value) for value in row]
