"""Ratings of several sides from judgments of pairs: who is ahead of whom, and how surely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from tiebreak.records import InputError, Judgment
from tiebreak.stats.intervals import Estimate, rate
from tiebreak.stats.ratings import bradley_terry, components


class Standing(NamedTuple):
    """Where one side stands.

    ``rating`` is Bradley-Terry's, in log-odds with mean 0; ``score`` the mean of wins (1), ties (1/2) and losses (0)
    against all it met; ``lead`` how far its rating is above the next one below, None for the last.
    """

    name: str
    rating: Estimate
    score: Estimate
    lead: Estimate | None


def standings(judgments: Iterable[Judgment], side: Mapping[str, str]) -> list[Standing]:
    """Return the sides that ``judgments`` compare, best first, intervals clustered by prompt.

    Args:
        judgments: of one judge, or of several that count alike; verdicts decide, a tie is 1/2. Other than pairs of two
            sides, and verdicts that prefer nothing, are passed over.
        side: response id to the side it stands for (its maker).

    Raises:
        InputError: nothing to compare, or sides that never lost to the others, whose rating has no end.
    """
    rows = []
    given = list(judgments)
    revised = {judgment.revises for judgment in given if judgment.revises is not None}
    for judgment in given:
        sides = [side[slot] for slot in judgment.slots if slot in side]
        decides = judgment.winner is not None or judgment.verdict == "tie"
        if decides and judgment.id not in revised and len(judgment.slots) == len(set(sides)) == 2:
            score = 0.5 if judgment.winner is None else float(judgment.winner == 0)
            rows.append((sides[0], sides[1], score, judgment.prompt_id))
    if not rows:
        raise InputError("standings: no judgment prefers one of two different sides; give who made which response.")
    names = sorted({name for row in rows for name in row[:2]})
    code = {name: i for i, name in enumerate(names)}
    first, second = np.array([(code[one], code[two]) for one, two, _, _ in rows]).T
    y, prompts = np.array([row[2] for row in rows]), [row[3] for row in rows]
    group = components(first, second, y, len(names))
    if group.any():
        apart = "; ".join(
            ", ".join(name for name, g in zip(names, group, strict=True) if g == each) for each in np.unique(group)
        )
        raise InputError(
            f"standings: these groups have no end to their distance, since one never lost to the other: {apart}. "
            "Rate each group by itself, or judge more prompts."
        )
    found = bradley_terry(first, second, y, prompts)
    order = sorted(range(len(names)), key=lambda i: (-found.theta[i], names[i]))
    result = []
    for place, i in enumerate(order):
        mine = (first == i) | (second == i)
        got = np.where(first == i, y, 1 - y)[mine]
        at = [prompt for prompt, is_mine in zip(prompts, mine, strict=True) if is_mine]
        lead = found.gap(i, order[place + 1]) if place + 1 < len(order) else None
        result.append(Standing(names[i], found.rating(i), rate(got, at), lead))
    return result
