"""How far apart the two sides of a pair are: by its margin, by its scores, or by its probability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tiebreak.curate.marks import EXACT
from tiebreak.records import InputError, Pair
from tiebreak.registry import nearest

NO_GAP: Mapping[str, str] = {"margin": "no margin", "scores": "no scores"}
"""Why a pair is dropped that has no such gap."""

_GAPS: Mapping[str, Callable[[Pair], float | None]] = {
    "margin": lambda pair: pair.margin,
    "scores": lambda pair: None if pair.scores is None else pair.scores[0] - pair.scores[1],
    "p": lambda pair: 2 * pair.p - 1,
}
_MADE_BY = {
    "margin": "score_pairs or strength makes it",
    "scores": "score_pairs makes them",
}


def gaps(pairs: Sequence[Pair], of: str, step: str, *, known: Sequence[str] = tuple(_GAPS)) -> list[float | None]:
    """Return the gap of each pair in favour of its chosen side, None where it has none.

    ``of`` is ``margin``, ``scores`` (that of the chosen side less that of the rejected one) or ``p`` (2p - 1).

    Raises:
        InputError: an ``of`` that is not among ``known``, or pairs of which not one has it.
    """
    if of not in known:
        raise InputError(f"{step} has of = {of!r}; expected {' or '.join(known)}.{nearest(str(of), known)}")
    found = [_GAPS[of](pair) for pair in pairs]
    if found and all(gap is None for gap in found):
        raise InputError(f"{step} reads the {of} of pairs, and no pair has any; {_MADE_BY[of]}.")
    return [None if gap is None else round(gap, EXACT) for gap in found]
