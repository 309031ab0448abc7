"""Steps that leave rows out, and say how many went and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tiebreak.curate.gaps import NO_GAP, gaps
from tiebreak.curate.knobs import check_count, check_number
from tiebreak.curate.marks import EXACT
from tiebreak.curate.table import Rows, Step, Texts, graded_of, pairs_of
from tiebreak.records import Graded, InputError, Pair
from tiebreak.registry import nearest


def _same(pairs: Sequence[Pair], texts: Texts) -> list[bool]:
    sides = [(pair.chosen_id, pair.rejected_id) for pair in pairs]
    ids = [side for pair in sides for side in pair]
    words = {one.id: one.text.strip() for one in texts.responses(ids)}
    return [words[chosen] == words[rejected] for chosen, rejected in sides]


DROPS: Mapping[str, Callable[[Sequence[Pair], Texts], list[bool]]] = {
    "ties": lambda pairs, texts: [pair.p == 0.5 for pair in pairs],
    "conflicts": lambda pairs, texts: [pair.conflict for pair in pairs],
    "same_text": _same,
}


_SOME = "ties, conflicts or same_text"


def drop(rows: Rows, *, what: str | list[str] = "ties") -> Step:
    """Leave out pairs that teach nothing or too much.

    ``ties`` have p = 1/2, ``conflicts`` have judgments that favour both sides, and ``same_text`` says the same on both
    sides, whatever a judge made of it: such a pair has no gradient and spoils every accuracy.
    """
    wanted = [what] if isinstance(what, str) else what
    if not isinstance(wanted, list) or not wanted:
        raise InputError(f"drop is given {what!r}; expected {_SOME}, or a list of them.")
    for name in wanted:
        if not isinstance(name, str) or name not in DROPS:
            raise InputError(f"drop does not know {name!r}; expected {_SOME}.{nearest(str(name), DROPS)}")
    kept: Sequence[Pair] = pairs_of(rows, "drop")
    dropped: dict[str, int] = {}
    for name in wanted:
        goes = DROPS[name](kept, rows.texts)
        reason = name.replace("_", " ")
        dropped[reason] = dropped.get(reason, 0) + sum(goes)
        kept = [pair for pair, gone in zip(kept, goes, strict=True) if not gone]
    return Step(kept, dropped)


def confident(rows: Rows, *, p: float = 0.6) -> Step:
    """Keep pairs with P(chosen is better) of at least ``p``."""
    check_number("confident", "p", p, 0.5, 1.0)
    pairs = pairs_of(rows, "confident")
    kept = [pair for pair in pairs if pair.p >= p]
    return Step(kept, {f"p below {p}": len(pairs) - len(kept)})


def decide(rows: Rows) -> Step:
    """Take the likelier side of each pair for the better one without doubt: p = 1. A tie stays one.

    It throws away how sure the judgments were, as a set of hard labels has; what else the pair says stays.
    """
    pairs = pairs_of(rows, "decide")
    sure = [replace(pair, p=1.0, id="") if pair.p > 0.5 else pair for pair in pairs]
    return Step(sure, {}, changed={"made sure": sum(0.5 < pair.p < 1.0 for pair in pairs)})


def margin(rows: Rows, *, least: float = 1.0, of: str = "margin") -> Step:
    """Keep pairs whose sides are at least this far apart, as COIG-P does with 2 points of 10 (arXiv 2504.05535).

    ``of`` is ``margin``, or ``scores`` for what the chosen side scored more than the rejected one. The gap has a sign:
    a pair whose scores favour the rejected side has none that would do. A pair without a gap is dropped and counted.

    Raises:
        InputError: a bound that is no number, or pairs of which not one has a margin.
    """
    bound = round(check_number("margin", "least", least), EXACT)
    pairs = pairs_of(rows, "margin")
    found = gaps(pairs, of, "margin", known=tuple(NO_GAP))
    kept = [pair for pair, gap in zip(pairs, found, strict=True) if gap is not None and gap >= bound]
    dropped = Counter({NO_GAP[of]: sum(gap is None for gap in found)})
    dropped[f"gap below {least:g}"] = len(pairs) - len(kept) - dropped.total()
    return Step(kept, dropped)


def first(rows: Rows, *, n: int = 1000) -> Step:
    """Keep the first ``n`` rows by id, the same ones every time."""
    check_count("first", "n", n, 1)
    if rows.rows and isinstance(rows.rows[0], Graded):
        lists = sorted(graded_of(rows, "first"), key=lambda row: row.id)
        return Step(lists[:n], {"past the first n": max(0, len(lists) - n)})
    pairs = sorted(pairs_of(rows, "first"), key=lambda pair: pair.id)
    return Step(pairs[:n], {"past the first n": max(0, len(pairs) - n)})
