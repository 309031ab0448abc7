"""The curate steps by name, and how a list of them runs.

A step takes rows and gives rows, and says how many it dropped for which reason; the funnel is those reports in order.
The first step derives rows from judgments, the later ones work on rows: pairs, or responses with a grade each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from tiebreak.curate import rows_of_pairs, rows_of_texts
from tiebreak.records import Graded, InputError, Judgment, Pair, Prompt, Response
from tiebreak.registry import Row, Table


class Texts:
    """Prompts and responses by id: those of a ledger, read when asked for, and those that earlier steps made."""

    def __init__(
        self,
        prompts: Callable[[Sequence[str]], Sequence[Prompt]] = lambda _ids: (),
        responses: Callable[[Sequence[str]], Sequence[Response]] = lambda _ids: (),
    ) -> None:
        self._read: Mapping[type, Callable[[Sequence[str]], Sequence[Any]]] = {Prompt: prompts, Response: responses}
        self._known: dict[str, Prompt | Response] = {}

    def add(self, made: Sequence[Prompt | Response]) -> None:
        """Take in what a step made."""
        self._known.update((one.id, one) for one in made)

    def prompts(self, ids: Sequence[str]) -> list[Prompt]:
        """Return the prompts called ``ids``, in that order.

        Raises:
            InputError: one is nowhere.
        """
        return self._find(Prompt, ids)

    def responses(self, ids: Sequence[str]) -> list[Response]:
        """Return the responses called ``ids``, in that order.

        Raises:
            InputError: one is nowhere.
        """
        return self._find(Response, ids)

    def _find(self, kind: type, ids: Sequence[str]) -> list[Any]:
        missing = sorted({key for key in ids if key not in self._known})
        self._known.update((one.id, one) for one in (self._read[kind](missing) if missing else ()))
        if lost := [key for key in missing if key not in self._known]:
            raise InputError(f"curate needs the text of the {kind.__name__.lower()} {lost[0]}, which is not known.")
        return [self._known[key] for key in ids]


@dataclass(frozen=True)
class Rows:
    """What a step sees: the judgments of each item, the rows derived so far (None before the first step), and texts."""

    items: Mapping[str, Sequence[Judgment]]
    rows: Sequence[Pair] | Sequence[Graded] | None = None
    texts: Texts = field(default_factory=Texts)


class Step(NamedTuple):
    """What a step gives back: rows, how many went for which reason, new prompts and responses, and what it changed."""

    rows: Sequence[Pair] | Sequence[Graded]
    dropped: Mapping[str, int]
    made: Sequence[Prompt | Response] = ()
    changed: Mapping[str, int] = MappingProxyType({})


class Done(NamedTuple):
    """What a list of steps gives: training rows, the funnel, and the prompts and responses that steps made."""

    rows: list[Pair] | list[Graded]
    funnel: list[Stage]
    made: list[Prompt | Response]


class Stage(NamedTuple):
    """One line of the funnel; ``unit`` is ``items`` going into the first step, later ``pairs``, ``lists``, ``answers``.

    ``unit_out`` is what comes out.

    Rows that a step makes of one row come out as more than went in: ``rows_out`` is not ``rows_in`` less what dropped.
    """

    step: str
    unit: str
    rows_in: int
    rows_out: int
    dropped: Mapping[str, int]
    changed: Mapping[str, int] = MappingProxyType({})
    unit_out: str = "pairs"


STEPS = Table("curate", "curate step", [*rows_of_pairs.ROWS, *rows_of_texts.ROWS])

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


def curate(judgments: Sequence[Judgment], steps: Sequence[Written], texts: Texts | None = None) -> Done:
    """Run ``steps`` over ``judgments``.

    A judgment that another one revises gives way to it. ``texts`` knows the words, for steps that read them.

    Raises:
        InputError: no judgments, no steps, or a first step that does not derive rows.
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
    rows = Rows(items, texts=texts or Texts())
    funnel: list[Stage] = []
    made: list[Prompt | Response] = []
    for name, knobs in settled:
        count, unit = (len(items), "items") if rows.rows is None else (len(rows.rows), unit_of(rows.rows))
        done: Step = STEPS[name].load()(rows, **knobs)
        rows.texts.add(done.made)
        made += done.made
        dropped = {reason: number for reason, number in done.dropped.items() if number}
        changed = {what: number for what, number in done.changed.items() if number}
        funnel.append(Stage(name, unit, count, len(done.rows), dropped, changed, unit_of(done.rows)))
        rows = replace(rows, rows=done.rows)
    return Done(list(rows.rows or []), funnel, made)  # type: ignore[arg-type]


def unit_of(rows: Sequence[Pair] | Sequence[Graded]) -> str:
    """Return what rows are called in the funnel."""
    if any(isinstance(row, Graded) for row in rows):
        return "lists" if any(isinstance(row, Graded) and len(row.response_ids) > 1 for row in rows) else "answers"
    return "pairs"


def pairs_of(rows: Rows, step: str) -> Sequence[Pair]:
    """Return the pairs a later step works on; a list of steps that has none yet, or lists by now, is an InputError."""
    if rows.rows is None:
        raise InputError(f"The curate step {step!r} has no pairs yet; begin with soft_label, plurality or score_pairs.")
    pairs = [row for row in rows.rows if isinstance(row, Pair)]
    if len(pairs) < len(rows.rows):
        raise InputError(f"The curate step {step!r} works on pairs and comes after one that made {unit_of(rows.rows)}.")
    return pairs


def graded_of(rows: Rows, step: str) -> Sequence[Graded]:
    """Return the graded rows a later step works on; without any, an InputError says what makes them."""
    graded = [row for row in rows.rows or () if isinstance(row, Graded)]
    if not graded and (rows.rows is None or rows.rows):
        raise InputError(f"The curate step {step!r} works on graded answers; put ranked_list or attributes before it.")
    return graded


def items_of(rows: Rows, step: str) -> Mapping[str, Sequence[Judgment]]:
    """Return the judgments a first step works on; after another step it would undo what that one did."""
    if rows.rows is not None:
        raise InputError(f"The curate step {step!r} derives rows from judgments, so it has to be the first one.")
    return rows.items
