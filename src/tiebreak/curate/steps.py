"""Steps on pairs: leave some out, or keep one of each prompt, and say how many went and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import fsum

from tiebreak.curate.table import Rows, Step, pairs_of
from tiebreak.records import InputError, Pair
from tiebreak.registry import nearest

DROPS: Mapping[str, Callable[[Pair], bool]] = {
    "ties": lambda pair: pair.p == 0.5,
    "conflicts": lambda pair: pair.conflict,
}

NEITHER = "neither best nor worst"
TIE = "best and worst tie"
APART = "best and worst were not judged together"
CROSSED = "the worst beat the best"
"""Why :func:`best_worst` drops a pair."""


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


def best_worst(rows: Rows) -> Step:
    """Keep one pair of each prompt: the answer that wins most against the one that wins least.

    How much an answer wins is its mean P(better) over all pairs it is in, so an answer met more often wins no more by
    that. Among equals the best is the first by id and the worst the last. The pair is kept as it was judged: where the
    two tie or never met, or where the worst won when they met, the prompt goes, and one of its pairs is counted under
    that reason.
    """
    prompts: dict[str, list[Pair]] = {}
    for pair in pairs_of(rows, "best_worst"):
        prompts.setdefault(pair.prompt_id, []).append(pair)
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for pairs in prompts.values():
        found = _best_worst(pairs)
        dropped[NEITHER] += len(pairs) - 1
        if isinstance(found, Pair):
            kept.append(found)
        else:
            dropped[found] += 1
    return Step(kept, dropped)


def _best_worst(pairs: Sequence[Pair]) -> Pair | str:
    """Return the pair of best and worst among the pairs of one prompt, or why there is none."""
    won: dict[str, list[float]] = {}
    for pair in pairs:
        won.setdefault(pair.chosen_id, []).append(pair.p)
        won.setdefault(pair.rejected_id, []).append(1.0 - pair.p)
    # Rounded, so that equal means are equal whatever their terms are.
    means = {key: round(fsum(values) / len(values), 12) for key, values in sorted(won.items())}
    best = max(means, key=lambda key: means[key])
    worst = min(reversed(means), key=lambda key: means[key])
    if means[best] == means[worst]:
        return TIE
    together = [pair for pair in pairs if {pair.chosen_id, pair.rejected_id} == {best, worst}]
    if not together:
        return APART
    pair = min(together, key=lambda pair: pair.id)
    if pair.p == 0.5:
        return TIE
    return pair if pair.chosen_id == best else CROSSED
