"""Steps on pairs: leave some out, and say how many and why."""

from __future__ import annotations

from collections import Counter

from tiebreak.curate.table import Rows, Step, pairs_of
from tiebreak.records import InputError

DROPS = {
    "ties": lambda pair: pair.p == 0.5,
    "conflicts": lambda pair: pair.conflict,
}


def drop(rows: Rows, *, what: str | list[str] = "ties") -> Step:
    """Leave out pairs that are ``ties`` (p = 1/2) or ``conflicts`` (judgments that favour both sides)."""
    wanted = [what] if isinstance(what, str) else list(what)
    for name in wanted:
        if name not in DROPS:
            raise InputError(f"drop does not know {name!r}; it can drop {' and '.join(DROPS)}.")
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
    pairs = pairs_of(rows, "confident")
    kept = [pair for pair in pairs if pair.p >= p]
    return Step(kept, {f"p below {p}": len(pairs) - len(kept)})


def first(rows: Rows, *, n: int = 1000) -> Step:
    """Keep the first ``n`` pairs by id, the same ones every time."""
    pairs = sorted(pairs_of(rows, "first"), key=lambda pair: pair.id)
    return Step(pairs[:n], {"past the first n": max(0, len(pairs) - n)})
