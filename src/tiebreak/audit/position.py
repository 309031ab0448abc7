"""The position check: does the slot an answer is shown in change the verdict."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tiebreak.audit.findings import Bound, amount, at_least, chance, finding, percent, within
from tiebreak.audit.table import SLOT, TIE, Floats, Ints, View
from tiebreak.judge.verdict import EDGE
from tiebreak.records import Finding
from tiebreak.stats import agreement
from tiebreak.stats.intervals import Estimate, clustered_mean, rate, wilson


class Orders(NamedTuple):
    """Rows of the view: ``one`` and ``two`` (P,) are the same question in its two orders, ``single`` (S,) in one."""

    one: Ints
    two: Ints
    single: Ints


def orders(view: View) -> Orders:
    """Match each judge's judgments of a pair in one order with those in the other, by turn.

    Readable verdicts are matched first, so a retry after an unreadable reply takes its place. Rows whose order is not
    known take no part.
    """
    rows = np.flatnonzero(view.pair & view.order_known)
    key = view.item[rows] * max(1, len(view.judges)) + view.judge[rows]
    swapped, unreadable = view.swapped[rows], np.isnan(view.first[rows])
    sort = np.lexsort((view.attempt[rows], unreadable, swapped, key))
    rows, key, swapped, unreadable = rows[sort], key[sort], swapped[sort], unreadable[sort]
    group = key * 2 + swapped
    opens = np.flatnonzero(np.diff(group, prepend=-1)) if len(rows) else rows
    turn = np.arange(len(rows)) - np.repeat(opens, np.diff(opens, append=len(rows)))
    place = key * (int(turn.max(initial=0)) + 1) + turn
    a, b = np.flatnonzero(~swapped), np.flatnonzero(swapped)
    _, in_a, in_b = np.intersect1d(place[a], place[b], assume_unique=True, return_indices=True)

    _, code = np.unique(key, return_inverse=True)
    asked = np.bincount(code * 2 + swapped, weights=~unreadable, minlength=2 * (int(code.max(initial=-1)) + 1))
    single = ~unreadable & (asked[code * 2 + ~swapped] == 0)
    return Orders(rows[a[in_a]], rows[b[in_b]], rows[single])


def position(view: View, *, min_consistency: float = 0.8, max_bias: float = 0.1) -> list[Finding]:
    """Measure consistency, primacy, recency and bias per judge from both orders, first-slot preference from one.

    Shares are over items readable in both orders, intervals by prompt. Where both orders have probabilities, ``delta``
    is what the first slot adds to the log-odds, whatever it holds. ``max_bias`` bounds |primacy - recency| and,
    halved, the distance of the first-slot preference from 1/2.
    """
    found = []
    matched = orders(view)
    for judge, at in view.by_judge(matched.one):
        one, two = matched.one[at], matched.two[at]
        found += _swapped(view, judge, one, two, min_consistency, max_bias) + _delta(view, judge, one, two)
    for judge, at in view.by_judge(matched.single):
        found.append(_single(view, judge, matched.single[at], max_bias))
    unknown = view.pair & ~view.order_known
    if unknown.any():
        share = wilson(int(unknown.sum()), int(view.pair.sum()))
        text = f"The order shown is not known for {percent(share)}; they say nothing about position and are left out."
        found.append(finding("position.unknown", "all", text, share, examples=view.examples(unknown)))
    return found


def _swapped(view: View, judge: str, one: Ints, two: Ints, min_consistency: float, max_bias: float) -> list[Finding]:
    """The findings of one judge from ``one`` (P,) and the same questions swapped, ``two`` (P,)."""
    at = agreement.position(view.first[one], view.first[two], view.prompt[one])
    if at.n == 0:
        return [_rates(view, judge, one, two)]
    items = f"items, {at.unreadable:,} more unreadable in an order" if at.unreadable else "items"
    conflicts = view.examples(one[np.isin(view.first[one] + view.first[two], (0.0, 0.5, 1.5, 2.0))])

    def share(what: str, estimate: Estimate, text: str, bound: Bound | None = None) -> Finding:
        said = f"{judge} {text.format(percent(estimate, items))}."
        shown = conflicts if what == "consistency" else ()
        return finding(f"position.{what}", judge, said, estimate, bound, examples=shown)

    side = "neither slot" if at.bias.value == 0 else "the first slot" if at.bias.value > 0 else "the second slot"
    lean = f"leans to {side}: first-slot minus second-slot conflicts are {{}}, exact test {chance(at.p)}"
    return [
        share("consistency", at.consistent, "gives the same verdict in both orders for {}", at_least(min_consistency)),
        share("lenient", at.lenient, "never picks opposite answers in the two orders, ties allowed, for {}"),
        share("primacy", at.primacy, "prefers whatever is shown first in both orders for {}"),
        share("recency", at.recency, "prefers whatever is shown second in both orders for {}"),
        share("bias", at.bias, lean, within(0.0, max_bias)),
        share("first", at.first, "prefers the first slot, over both orders and ties as a half, in {}"),
        _rates(view, judge, one, two),
    ]


def _delta(view: View, judge: str, one: Ints, two: Ints) -> list[Finding]:
    """The slot bias of one judge in log-odds, from items with a probability in both orders.

    With l1 and l2 the log-odds of the first slot in the two orders, delta = (l1 + l2) / 2 is what the slot adds, and
    (l1 - l2) / 2 is the preference without it: a bias that is additive in log-odds cancels exactly there.
    """
    decided = (view.verdict == SLOT) | (view.verdict == TIE)
    known = decided & ~np.isnan(view.probability)
    both = known[one] & known[two]
    if not both.any():
        return []
    l1, l2 = (_log_odds(view.probability[at[both]]) for at in (one, two))
    delta = clustered_mean((l1 + l2) / 2, view.prompt[one[both]])
    noun = f"items with probabilities in both orders, {int((~both).sum()):,} without" if not both.all() else "items"
    text = (
        f"{judge} adds {amount(delta, 'to the log-odds of the first slot', noun)}; "
        "averaging log-odds over the two orders takes that away."
    )
    return [finding("position.delta", judge, text, delta)]


def _log_odds(p: Floats) -> Floats:
    """Return log(p / (1 - p)), with p as far from 0 and 1 as a soft label keeps it."""
    inside = np.clip(p, EDGE, 1 - EDGE)
    odds: Floats = np.log(inside) - np.log1p(-inside)
    return odds


def _rates(view: View, judge: str, one: Ints, two: Ints) -> Finding:
    """The four rates of the RLAIF positional-bias report; an unreadable or even verdict leaves a row unanswered."""
    one_first, two_first = (
        np.where((view.verdict[at] == SLOT) & (view.probability[at] != 0.5), view.first[at], 0.5) for at in (one, two)
    )
    at = agreement.order_rates(one_first, two_first)
    matched = rate(((one_first == 1) & (two_first == 0)) | ((one_first == 0) & (two_first == 1)), view.prompt[one])
    text = (
        f"{judge}: the same answer won in both orders for {percent(matched, 'items')}, the first slot both times "
        f"for {100 * at.first:.1f} %, the second for {100 * at.second:.1f} %, and {100 * at.unanswered:.1f} % are open."
    )
    return finding("position.orders", judge, text, matched)


def _single(view: View, judge: str, rows: Ints, max_bias: float) -> Finding:
    """First-slot preference where each item was shown in one order only."""
    seen = agreement.first_slot(view.first[rows], view.prompt[rows])
    text = f"{judge} prefers the first slot in {percent(seen.rate, 'items shown in one order')}, "
    fixed = _fixed_order(view, rows)
    if fixed is None:
        text += f"exact test of one half {chance(seen.p)}."
    else:
        text += f"but {fixed} was always shown first, so this does not tell slot from quality."
    bound = within(0.5, max_bias / 2)
    return finding("position.single", judge, text, seen.rate, bound, worst="problem" if fixed is None else "notice")


def _fixed_order(view: View, rows: Ints, least: int = 10) -> str | None:
    """The maker that is always in the first slot against others, if there is one in at least ``least`` rows."""
    zero, one = view.maker0[rows], view.maker1[rows]
    apart = (zero >= 0) & (one >= 0) & (zero != one)
    if int(apart.sum()) < least:
        return None
    same_first, same_second = np.unique(zero[apart]), np.unique(one[apart])
    if len(np.intersect1d(same_first, same_second)):
        return None
    return " or ".join(view.makers[int(code)] for code in same_first[:3])
