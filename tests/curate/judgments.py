"""Judgments, lists and pairs that the tests of this room share, and a way to run steps on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiebreak.curate.table import Rows, Step, Texts
from tiebreak.records import Graded, Judgment, Pair

A, B = "a", "b"

Running = Callable[[Rows], Step]


def said(
    p: float | None = None, *, slots: tuple[str, ...] = (A, B), winner: int | None = None, **more: Any
) -> Judgment:
    """A judgment of P(first slot) = ``p``, or of a winner alone."""
    if winner is None and p is not None:
        winner = None if p == 0.5 else int(p < 0.5)
    fields = {"verdict": "tie" if winner is None else "slot", "by": "rule:x", "prompt_id": "p", **more}
    if fields["verdict"] != "slot":
        winner = None
    return Judgment(slots=slots, winner=winner, probability=p, **fields)


def met(*results: tuple[str, str, float], prompt: str = "p") -> list[Judgment]:
    """Judgments of one prompt: each names two answers and P(the first is better)."""
    return [said(p, slots=(a, b), prompt_id=prompt) for a, b, p in results]


def marked(
    ratings: Mapping[str, Sequence[float | None]],
    *,
    slots: tuple[str, ...] = (A, B),
    winner: int | None = None,
    **more: Any,
) -> Judgment:
    """A judgment with ratings by aspect, one for each slot; a tie unless there is a winner."""
    return said(slots=slots, winner=winner, ratings=ratings, **more)


def rewarded(*scores: float, judge: str = "one", slots: tuple[str, ...] = (A, B), **more: Any) -> Judgment:
    """What a reward model wrote of two answers."""
    winner = None if scores[0] == scores[1] else int(scores[0] < scores[1])
    return said(slots=slots, winner=winner, by=f"model:{judge}@1", fields={"scores": list(scores)}, **more)


def judged(
    *judgments: Judgment, rows: Sequence[Pair] | Sequence[Graded] | None = None, texts: Texts | None = None
) -> Rows:
    """What a step sees of ``judgments``, by item as ``curate`` sorts them."""
    items: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        items.setdefault(judgment.item, []).append(judgment)
    return Rows(items, rows, texts or Texts())


def through(rows: Rows, *steps: Running) -> list[Any]:
    """The rows after each of ``steps`` in turn."""
    for step in steps:
        rows = Rows(rows.items, step(rows).rows, rows.texts)
    return list(rows.rows or [])


def listed(grades: Mapping[str, float], *, prompt: str = "p", **more: Any) -> Graded:
    """A list of answers with these grades, in the order they are written."""
    return Graded(prompt_id=prompt, response_ids=tuple(grades), grades=tuple(grades.values()), **more)


def chosen(one: str = A, other: str = B, *, prompt: str = "p", **more: Any) -> Pair:
    """A pair of which ``one`` is the chosen side."""
    return Pair(prompt_id=prompt, chosen_id=one, rejected_id=other, **more)


def sides(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [(pair.chosen_id, pair.rejected_id) for pair in pairs]
