"""The win rate of one side against another, from judgments, with what it leaves out in plain sight."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tiebreak.audit.position import orders
from tiebreak.audit.table import view
from tiebreak.records import InputError, Judgment
from tiebreak.registry import nearest
from tiebreak.stats.agreement import position
from tiebreak.stats.intervals import NOTHING, Estimate, rate
from tiebreak.stats.length import length_controlled_win_rate


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """How often ``of`` is better than ``against``, over items: one pair of responses to one prompt each.

    ``rate`` is the mean item score from verdicts (win 1, tie 1/2, loss 0, averaged over the two orders, so an order
    conflict is 1/2), clustered by prompt; ``soft`` the same from probabilities, None without any. ``wins``, ``ties``
    and ``losses`` count items above, at and below 1/2; ``conflicts`` are items with verdicts for both sides.
    ``invalid``, ``skipped`` and ``both_bad`` judgments favour nobody: they are counted here and in no rate.
    ``unjudged`` items had nothing else; ``one_order`` items count with the one order that is readable.
    ``length_controlled`` is the rate at equal length, ``consistency`` the share of same verdicts in both orders.
    ``mean_length`` is over the items that count, in the unit of the lengths given.
    """

    of: str
    against: str
    judges: tuple[str, ...]
    rate: Estimate
    soft: Estimate | None
    wins: int
    ties: int
    losses: int
    invalid: int
    skipped: int
    both_bad: int
    judgments: int
    prompts: int
    items: int
    unjudged: int
    one_order: int
    conflicts: int
    mean_length: Mapping[str, float]
    length_controlled: Estimate
    consistency: Estimate

    @property
    def sentence(self) -> str:
        """One plain sentence with the rate, its interval, its n and everything that was left out."""
        if not self.items:
            return (
                f"{self.of} against {self.against}: no readable verdict in {self.judgments:,} judgments "
                f"({self._left_out})."
            )
        return (
            f"{self.of} beats {self.against} in {_percent(self.rate)} on {self.prompts:,} prompts "
            f"({self.wins:,} wins, {self.ties:,} ties, {self.losses:,} losses; ties count half), "
            f"{_percent(self.length_controlled)} at equal length; {self._orders}; "
            f"of {self.judgments:,} judgments {self._left_out}."
        )

    @property
    def _orders(self) -> str:
        if not self.consistency.n:
            return "no item was judged in both orders"
        single = f", {self.one_order:,} items in one order only" if self.one_order else ""
        return f"the verdict is the same in both orders for {_percent(self.consistency)}{single}"

    @property
    def _left_out(self) -> str:
        said = f"{self.invalid:,} unreadable, {self.skipped:,} skipped and {self.both_bad:,} both-bad ones are left out"
        return said + (f", which leaves {self.unjudged:,} items without a verdict" if self.unjudged else "")


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "an undefined share"
    if math.isnan(estimate.low):
        return f"{100 * estimate.value:.1f} % (no interval)"
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


class Item(NamedTuple):
    """One pair of responses: prompt, the two ids, and scores from the side of ``of``; nan where there is none."""

    prompt_id: str
    of_id: str
    against_id: str
    hard: float
    soft: float
    orders: int
    conflict: bool


def win_rate(
    judgments: Iterable[Judgment],
    side: Mapping[str, str],
    *,
    of: str,
    against: str,
    lengths: Mapping[str, int],
) -> WinRate:
    """Return the win rate of side ``of`` against side ``against``.

    Args:
        judgments: of any kind; pairs that do not compare the two sides are passed over, revised ones give way to their
            revision. Give one judge's: rates of different judges are not comparable.
        side: response id to the side it stands for.
        of: the side whose rate it is; an InputError if no judgment compares it with ``against``.
        against: the other side.
        lengths: response id to its length in any one unit; an InputError names one that is missing.
    """
    asked = _asked(judgments, side, of, against)
    groups: dict[tuple[str, frozenset[str]], list[Judgment]] = defaultdict(list)
    for judgment in asked:
        groups[judgment.prompt_id, frozenset(judgment.slots)].append(judgment)
    items = [_item(group, side, of) for group in groups.values()]
    kept = [item for item in items if not math.isnan(item.hard)]
    for item in kept:
        for response_id in (item.of_id, item.against_id):
            if response_id not in lengths:
                raise InputError(f"lengths has no response {response_id}, which was judged; give every length.")
    prompts = [item.prompt_id for item in kept]
    hard = np.array([item.hard for item in kept])
    mine = np.array([lengths[item.of_id] for item in kept], dtype=np.float64)
    theirs = np.array([lengths[item.against_id] for item in kept], dtype=np.float64)
    soft = [item for item in kept if not math.isnan(item.soft)]
    said = Counter(judgment.verdict for judgment in asked)
    return WinRate(
        of=of,
        against=against,
        judges=tuple(sorted({judgment.by for judgment in asked})),
        rate=rate(hard, prompts) if kept else NOTHING,
        soft=rate([item.soft for item in soft], [item.prompt_id for item in soft]) if soft else None,
        wins=int((hard > 0.5).sum()),
        ties=int((hard == 0.5).sum()),
        losses=int((hard < 0.5).sum()),
        invalid=said["invalid"],
        skipped=said["skip"],
        both_bad=said["both_bad"],
        judgments=len(asked),
        prompts=len(set(prompts)),
        items=len(kept),
        unjudged=len(items) - len(kept),
        one_order=sum(item.orders == 1 for item in kept),
        conflicts=sum(item.conflict for item in kept),
        mean_length={
            of: float(mine.mean()) if kept else math.nan,
            against: float(theirs.mean()) if kept else math.nan,
        },
        length_controlled=length_controlled_win_rate(hard, mine, theirs, prompts) if kept else NOTHING,
        consistency=_consistency(asked),
    )


def _asked(judgments: Iterable[Judgment], side: Mapping[str, str], of: str, against: str) -> list[Judgment]:
    """The judgments of exactly the two sides that no other one revises."""
    if of == against:
        raise InputError(f"A win rate compares two sides; both are {of!r}.")
    given = list(judgments)
    revised = {judgment.revises for judgment in given if judgment.revises is not None}
    asked = [
        judgment
        for judgment in given
        if judgment.id not in revised
        and len(judgment.slots) == 2
        and {side.get(slot) for slot in judgment.slots} == {of, against}
    ]
    if not asked:
        known = sorted(set(side.values()))
        unknown = [name for name in (of, against) if name not in known]
        hint = nearest(unknown[0], known) if unknown else ""
        raise InputError(
            f"No judgment compares {of!r} with {against!r}; the sides known are {', '.join(known) or 'none'}.{hint}"
        )
    return asked


def _hard(judgment: Judgment, response_id: str) -> float:
    """Win 1, tie 1/2, loss 0 for ``response_id``; nan for verdicts that prefer nothing."""
    if judgment.winner is not None:
        return float(judgment.slots[judgment.winner] == response_id)
    return 0.5 if judgment.verdict == "tie" else math.nan


def _soft(judgment: Judgment, response_id: str) -> float:
    """P(``response_id`` better) where the judge gave one, else nan."""
    p = judgment.p_better(response_id)
    return math.nan if p is None or judgment.probability is None else p


def _by_order(values: Sequence[tuple[str, float]]) -> float:
    """Mean of the means per order, so an order asked more often weighs no more; nan where nothing is known."""
    orders: dict[str, list[float]] = defaultdict(list)
    for order, value in values:
        if not math.isnan(value):
            orders[order].append(value)
    means = [math.fsum(found) / len(found) for _, found in sorted(orders.items())]
    return math.fsum(means) / len(means) if means else math.nan


def _item(group: Sequence[Judgment], side: Mapping[str, str], of: str) -> Item:
    """Score one pair; probabilities are averaged over the orders before anything is decided."""
    mine, theirs = sorted(group[0].slots, key=lambda slot: side[slot] != of)
    hard = [(j.slots[0] if j.order_known else "", _hard(j, mine)) for j in group]
    soft = [(j.slots[0] if j.order_known else "", _soft(j, mine)) for j in group]
    decided = {value for _, value in hard if value in (0.0, 1.0)}
    readable = {order for order, value in hard if order and not math.isnan(value)}
    return Item(
        group[0].prompt_id, mine, theirs, _by_order(hard), _by_order(soft), len(readable), decided == {0.0, 1.0}
    )


def _consistency(asked: Sequence[Judgment]) -> Estimate:
    """Position consistency over the questions each judge answered readably in both orders, as the audit measures it."""
    seen = view(asked)
    matched = orders(seen)
    return position(seen.first[matched.one], seen.first[matched.two], seen.prompt[matched.one]).consistent
