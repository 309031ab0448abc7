"""The curate steps by name, and how a list of them runs.

A step takes rows and gives rows, and says how many it dropped for which reason; the funnel is those reports in order.
The first step derives rows from judgments, the later ones work on rows: pairs, or responses with a grade each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from tiebreak.curate import rows_of_pairs, rows_of_texts
from tiebreak.curate.knobs import Lacking
from tiebreak.records import Graded, InputError, Judgment, Pair, Prompt, Response
from tiebreak.registry import Row, Table, load_object


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
    """What a step sees: the judgments of each item, the rows derived so far (None before the first step), and texts.

    ``heard`` are the judgments of everybody by item, for a step that names whom it listens to; ``items`` where missing.
    """

    items: Mapping[str, Sequence[Judgment]]
    rows: Sequence[Pair] | Sequence[Graded] | None = None
    texts: Texts = field(default_factory=Texts)
    heard: Mapping[str, Sequence[Judgment]] | None = None

    def said(self, by: object) -> Mapping[str, Sequence[Judgment]]:
        """Return the judgments that a step with this ``by`` chooses among."""
        return self.items if by is None or self.heard is None else self.heard


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


def settle(step: Written, where: str = "curate") -> tuple[str, dict[str, Any]]:
    """Return a written step's name and all its knobs; what it does not have is refused.

    The knobs of a user's own step are the keywords of its function.

    Raises:
        InputError: neither a name nor one name with its knobs, an unknown step or knob, or no switch where one is.
    """
    if isinstance(step, str):
        name, value = step, None
    elif isinstance(step, Mapping) and len(step) == 1:
        name, value = next(iter(step.items()))
    else:
        raise InputError(f"{where}: a step is written as {step!r}; expected a name or one name with its knobs.")
    row = STEPS[name]
    knobs = row.knobs or _keywords(row)
    if isinstance(value, Mapping):
        given = dict(value)
    elif value is None:
        given = {}
    elif knobs:
        given = {next(iter(knobs)): value}
    else:
        raise InputError(f"{where}: {name!r} has no knobs; write it as {name} alone.")
    for knob, value in given.items():
        if isinstance(knobs.get(knob), bool) and not isinstance(value, bool):
            raise InputError(f"{where}: {name} has {knob} = {value!r}; expected true or false.")
    return name, replace(row, knobs=knobs).settle(given, where=where)


def _code(row: Row) -> Callable[..., Step]:
    """Return the code of a step; a message about a user's own names it once."""
    loaded: Callable[..., Step] = load_object(row.target, what="The curate step")
    return loaded


def _keywords(row: Row) -> dict[str, Any]:
    named = inspect.signature(_code(row)).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in named if p.kind is p.KEYWORD_ONLY}


def check(steps: Sequence[Written], where: str = "curate") -> None:
    """Refuse a list of steps that cannot run on any judgments, before there are some.

    Each of this room's own steps is carried out on nothing, so that it says itself what is wrong with its knobs and its
    place. What only judgments can tell, such as an aspect that nobody rated, and a user's own step wait for them.

    Raises:
        InputError: no steps, or one that is unknown, has a wrong knob, or stands first or later and should not.
    """
    if not steps:
        raise InputError(
            f"{where} has no steps; write a list such as [soft_label, drop: ties]. It begins with "
            "soft_label, plurality, score_pairs or ranked_list, which make rows of judgments."
        )
    for number, written in enumerate(steps):
        name, knobs = settle(written, where)
        if (row := STEPS[name]).knobs is None:
            continue
        try:
            _code(row)(Rows({}, [] if number else None), **knobs)
        except Lacking:
            continue


def curate(
    judgments: Sequence[Judgment],
    steps: Sequence[Written],
    texts: Texts | None = None,
    *,
    others: Sequence[Judgment] = (),
) -> Done:
    """Run ``steps`` over ``judgments``.

    A judgment that another one revises gives way to it. ``texts`` knows the words, for steps that read them. Steps that
    name whom they listen to, by ``by``, choose among ``others`` as well.

    Raises:
        InputError: no judgments, no steps, or a first step that does not derive rows.
    """
    everything = {judgment.id: judgment for judgment in (*judgments, *others)}
    if not everything:
        raise InputError("There are no judgments to curate; import or judge some first.")
    check(steps)
    settled = [settle(written) for written in steps]
    revised = {judgment.revises for judgment in everything.values() if judgment.revises}
    items = _by_item(judgment for judgment in judgments if judgment.id not in revised)
    heard = _by_item(judgment for judgment in everything.values() if judgment.id not in revised) if others else None
    rows = Rows(items, texts=texts or Texts(), heard=heard)
    funnel: list[Stage] = []
    made: list[Prompt | Response] = []
    for name, knobs in settled:
        looked = rows.said(knobs.get("by"))
        count, unit = (len(looked), "items") if rows.rows is None else (len(rows.rows), unit_of(rows.rows))
        done = _code(STEPS[name])(rows, **knobs)
        rows.texts.add(done.made)
        made += done.made
        dropped = {reason: number for reason, number in done.dropped.items() if number}
        changed = {what: number for what, number in done.changed.items() if number}
        funnel.append(Stage(name, unit, count, len(done.rows), dropped, changed, unit_of(done.rows)))
        rows = replace(rows, rows=done.rows)
    return Done(list(rows.rows or []), funnel, made)  # type: ignore[arg-type]


def _by_item(judgments: Iterable[Judgment]) -> dict[str, list[Judgment]]:
    items: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        items.setdefault(judgment.item, []).append(judgment)
    return items


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


def graded_of(rows: Rows, step: str, made_by: str = "ranked_list or attributes") -> Sequence[Graded]:
    """Return the graded rows a later step works on; without any, an InputError says which steps make them."""
    graded = [row for row in rows.rows or () if isinstance(row, Graded)]
    if not graded and (rows.rows is None or rows.rows):
        raise InputError(f"The curate step {step!r} works on graded answers; put {made_by} before it.")
    return graded


def at_first(rows: Rows, step: str) -> Rows:
    """Return what a first step works on; after another step it would undo what that one did."""
    if rows.rows is not None:
        raise InputError(f"The curate step {step!r} derives rows from judgments, so it has to be the first one.")
    return rows
