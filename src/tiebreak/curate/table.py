"""The curate steps by name, and how a list of them runs.

A step takes rows and gives rows, and says how many it dropped for which reason; the funnel is those reports in order.
The first step derives pairs from judgments, the later ones work on pairs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tiebreak.records import InputError, Judgment, Pair
from tiebreak.registry import Row, Table


@dataclass(frozen=True)
class Rows:
    """What a step sees: the judgments of each item, and the pairs derived so far (None before the first step)."""

    items: Mapping[str, Sequence[Judgment]]
    pairs: Sequence[Pair] | None = None


class Step(NamedTuple):
    """What a step gives back: the pairs that remain and how many went for which reason."""

    pairs: list[Pair]
    dropped: Mapping[str, int]


class Stage(NamedTuple):
    """One line of the funnel. ``unit`` is ``items`` going into the first step and ``pairs`` after it."""

    step: str
    unit: str
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]


STEPS = Table(
    "curate",
    "curate step",
    [
        Row(
            name="soft_label",
            does="average the judgments of each pair over both orders into P(chosen is better)",
            target="tiebreak.curate.pairs:soft_label",
            knobs={"average": "probability", "clamp": None},
            paper="Lee et al. 2023, arXiv 2309.00267",
        ),
        Row(
            name="plurality",
            does="the most frequent vote decides: a pair with p = 1, or a tie",
            target="tiebreak.curate.pairs:plurality",
            knobs={},
        ),
        Row(
            name="drop",
            does="leave out ties, or pairs whose judgments conflict",
            target="tiebreak.curate.steps:drop",
            knobs={"what": "ties"},
        ),
        Row(
            name="confident",
            does="keep pairs whose probability is at least this far from 1/2",
            target="tiebreak.curate.steps:confident",
            knobs={"p": 0.6},
        ),
        Row(
            name="best_worst",
            does="keep one pair of each prompt: the answer that wins most against the one that wins least",
            target="tiebreak.curate.steps:best_worst",
            knobs={},
        ),
        Row(
            name="first",
            does="keep the first n pairs by id, for a quick look",
            target="tiebreak.curate.steps:first",
            knobs={"n": 1000},
        ),
    ],
)

Written = str | Mapping[str, Any]
"""A step as a recipe writes it: its name, ``{name: value}`` for its first knob, or ``{name: {knob: value}}``."""


def settle(step: Written) -> tuple[str, dict[str, Any]]:
    """Return a written step's name and all its knobs; what it does not have is refused.

    The knobs of a user's own step are the keywords of its function.

    Raises:
        InputError: neither a name nor one name with its knobs, an unknown step or an unknown knob.
    """
    if isinstance(step, str):
        name, value = step, None
    elif isinstance(step, Mapping) and len(step) == 1:
        name, value = next(iter(step.items()))
    else:
        raise InputError(f"A curate step is written as {step!r}; expected a name or one name with its knobs.")
    row = STEPS[name]
    knobs = row.knobs or _keywords(row)
    if isinstance(value, Mapping):
        given = dict(value)
    elif value is None:
        given = {}
    elif knobs:
        given = {next(iter(knobs)): value}
    else:
        raise InputError(f"curate: {name!r} has no knobs; write it as {name} alone.")
    return name, replace(row, knobs=knobs).settle(given, where=f"curate: {name}")


def _keywords(row: Row) -> dict[str, Any]:
    named = inspect.signature(row.load()).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in named if p.kind is p.KEYWORD_ONLY}


def curate(judgments: Sequence[Judgment], steps: Sequence[Written]) -> tuple[list[Pair], list[Stage]]:
    """Run ``steps`` over ``judgments``; return the training pairs and the funnel.

    A judgment that another one revises gives way to it.

    Raises:
        InputError: no judgments, no steps, or a first step that does not derive pairs.
    """
    if not judgments:
        raise InputError("There are no judgments to curate; import or judge some first.")
    if not steps:
        raise InputError("curate has no steps; begin with soft_label or plurality, which derive pairs from judgments.")
    settled = [settle(written) for written in steps]
    revised = {judgment.revises for judgment in judgments if judgment.revises}
    items: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        if judgment.id not in revised:
            items.setdefault(judgment.item, []).append(judgment)
    rows = Rows(items)
    funnel: list[Stage] = []
    for name, knobs in settled:
        count, unit = (len(items), "items") if rows.pairs is None else (len(rows.pairs), "pairs")
        done: Step = STEPS[name].load()(rows, **knobs)
        dropped = {reason: number for reason, number in done.dropped.items() if number}
        funnel.append(Stage(name, unit, count, len(done.pairs), dropped))
        rows = Rows(items, done.pairs)
    return list(rows.pairs or []), funnel


def pairs_of(rows: Rows, step: str) -> Sequence[Pair]:
    """Return the pairs a later step works on; a list of steps that does not begin with pairs is an InputError."""
    if rows.pairs is None:
        raise InputError(f"The curate step {step!r} has no pairs yet; begin with soft_label or plurality.")
    return rows.pairs


def items_of(rows: Rows, step: str) -> Mapping[str, Sequence[Judgment]]:
    """Return the judgments a first step works on; after another step it would undo what that one did."""
    if rows.pairs is not None:
        raise InputError(f"The curate step {step!r} derives pairs from judgments, so it has to be the first one.")
    return rows.items
