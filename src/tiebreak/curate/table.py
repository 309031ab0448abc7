"""The curate steps by name, and how a list of them runs.

A step takes rows and gives rows, and says how many it dropped for which reason; the funnel is those reports in order.
The first step derives pairs from judgments, the later ones work on pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Return a written step's name and all its knobs; what it does not have is refused."""
    if isinstance(step, str):
        name, given = step, {}
    elif len(step) == 1:
        name, value = next(iter(step.items()))
        first = next(iter(STEPS[name].settle({}, where="curate")), "")
        given = dict(value) if isinstance(value, Mapping) else {} if value is None else {first: value}
    else:
        raise InputError(f"A curate step is written as {dict(step)!r}; expected a name or one name with its knobs.")
    return name, STEPS[name].settle(given, where=f"curate: {name}")


def curate(judgments: Sequence[Judgment], steps: Sequence[Written]) -> tuple[list[Pair], list[Stage]]:
    """Run ``steps`` over ``judgments``; return the training pairs and the funnel.

    A judgment that another one revises gives way to it.

    Raises:
        InputError: no judgments, or a first step that does not derive pairs.
    """
    if not judgments:
        raise InputError("There are no judgments to curate; import or judge some first.")
    revised = {judgment.revises for judgment in judgments if judgment.revises}
    items: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        if judgment.id not in revised:
            items.setdefault(judgment.item, []).append(judgment)
    rows = Rows(items)
    funnel: list[Stage] = []
    for written in steps:
        name, knobs = settle(written)
        count, unit = (len(items), "items") if rows.pairs is None else (len(rows.pairs), "pairs")
        done = STEPS[name].load()(rows, **knobs)
        funnel.append(Stage(name, unit, count, len(done.pairs), dict(Counter(done.dropped))))
        rows = Rows(items, done.pairs)
    return list(rows.pairs or []), funnel


def pairs_of(rows: Rows, step: str) -> Sequence[Pair]:
    """Return the pairs a later step works on; a list of steps that does not begin with pairs is an InputError."""
    if rows.pairs is None:
        raise InputError(f"The curate step {step!r} has no pairs yet; begin with soft_label or plurality.")
    return rows.pairs
