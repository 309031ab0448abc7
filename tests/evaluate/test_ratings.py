"""Standings of several sides from judgments."""

from __future__ import annotations

import math

import pytest

from tiebreak.evaluate.ratings import standings
from tiebreak.records import InputError, Judgment
from tiebreak.stats.intervals import rate

SIDE = {f"{name}{n}": name for name in ("best", "middle", "last") for n in range(9)}


def meet(n: int, one: str, two: str, winner: int | None, **more: object) -> Judgment:
    verdict = more.pop("verdict", "tie" if winner is None else "slot")
    slots = (f"{one}{n}", f"{two}{n}")
    return Judgment(prompt_id=f"p{n}", slots=slots, verdict=verdict, winner=winner, by="model:j", **more)  # type: ignore[arg-type]


def test_a_chain_of_sides_is_ranked_with_its_scores_and_leads():
    given = [meet(n, "best", "middle", int(n > 5)) for n in range(9)]
    given += [meet(n, "last", "middle", int(n > 2)) for n in range(9)]
    found = standings(given, SIDE)
    assert [row.name for row in found] == ["best", "middle", "last"]
    assert [row.rating.value for row in found] == pytest.approx([math.log(2), 0.0, -math.log(2)], abs=1e-12)
    assert [row.rating.n for row in found] == [9, 18, 9]
    assert found[0].score == rate([1] * 6 + [0] * 3, [f"p{n}" for n in range(9)])
    assert found[1].score.value == 0.5
    assert found[0].lead is not None
    assert found[0].lead.value == pytest.approx(math.log(2), abs=1e-12)
    assert found[0].lead.low < math.log(2) < found[0].lead.high
    assert found[2].lead is None


def test_a_tie_is_half_and_what_prefers_nothing_is_passed_over():
    wrong = meet(0, "middle", "best", 0)
    given = [wrong, meet(0, "middle", "best", 1, revises=wrong.id), meet(1, "best", "middle", None)]
    given += [meet(2, "best", "middle", 1), meet(3, "best", "middle", None, verdict="invalid")]
    given += [
        meet(4, "best", "nobody", 0),
        meet(5, "best", "middle", None, verdict="both_bad"),
        meet(6, "best", "middle", 0),
    ]
    best, _ = standings(given, SIDE)
    assert (best.name, best.score.value, best.score.n) == ("best", 2.5 / 4, 4)
    assert best.rating.value == pytest.approx(math.log(2.5 / 1.5) / 2, abs=1e-12)


def test_sides_without_end_are_named():
    given = [meet(n, "best", "middle", 0) for n in range(3)]
    given += [meet(3, "middle", "last", 0), meet(4, "middle", "last", 1)]
    with pytest.raises(InputError, match="one never lost to the other: best; last, middle"):
        standings(given, SIDE)
    with pytest.raises(InputError, match="no judgment prefers one of two different sides"):
        standings([meet(0, "best", "middle", None, verdict="skip")], SIDE)
