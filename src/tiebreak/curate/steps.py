"""Steps on pairs: leave some out, and say how many and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from tiebreak.curate.table import Rows, Step, pairs_of
from tiebreak.records import InputError, Pair
from tiebreak.registry import nearest

DROPS: Mapping[str, Callable[[Pair], bool]] = {
    "ties": lambda pair: pair.p == 0.5,
    "conflicts": lambda pair: pair.conflict,
}


def drop(rows: Rows, *, what: str | list[str] = "ties") -> Step:
    """Leave out pairs that are ``ties`` (p = 1/2) or ``conflicts`` (judgments that favour both sides)."""
    wanted = [what] if isinstance(what, str) else what
    if not isinstance(wanted, list):
        raise InputError(f"drop is given {what!r}; expected {' or '.join(DROPS)}, or a list of them.")
    for name in wanted:
        if name not in DROPS:
            raise InputError(
                f"drop does not know {name!r}; it can drop {' and '.join(DROPS)}.{nearest(str(name), DROPS)}"
            )
    dropped: Counter[str] = Counter()
    kept = []
    for pair in pairs_of(rows, "drop"):
        reason = next((name for name in wanted if DROPS[name](pair)), None)
        if reason is None:
            kept.append(pair)
        else:
            dropped[reason] += 1
    return Step(kept, dropped)


def confident(rows: Rows, *, p: float = 0.6) -> Step:
    """Keep pairs with P(chosen is better) of at least ``p``."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0.5 <= p <= 1.0:
        raise InputError(f"confident has p = {p!r}; expected a number from 0.5 to 1.")
    pairs = pairs_of(rows, "confident")
    kept = [pair for pair in pairs if pair.p >= p]
    return Step(kept, {f"p below {p}": len(pairs) - len(kept)})


def first(rows: Rows, *, n: int = 1000) -> Step:
    """Keep the first ``n`` pairs by id, the same ones every time."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"first has n = {n!r}; expected a whole number of at least 1.")
    pairs = sorted(pairs_of(rows, "first"), key=lambda pair: pair.id)
    return Step(pairs[:n], {"past the first n": max(0, len(pairs) - n)})
