"""How good judges are: against known answers, against themselves in the other order, and against each other.

A judge is who judged and, where one used several rubrics, under which, as in the audit. Every rate carries its n and
an interval clustered by prompt, and what names no answer is counted and said.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tiebreak.audit.checks import votes
from tiebreak.audit.position import orders
from tiebreak.audit.table import Ints, view
from tiebreak.records import InputError, Judgment
from tiebreak.registry import nearest
from tiebreak.stats.agreement import Position, cohen_kappa, position
from tiebreak.stats.intervals import Estimate, bootstrap, rate
from tiebreak.store import Ledger

Ties = Literal["half", "class"]
Unanswered = Literal["wrong", "half", "left_out"]
Sides = Literal["balanced", "shown"]

UNANSWERED: dict[Unanswered, float] = {"wrong": 0.0, "half": 0.5, "left_out": math.nan}


class Answers(NamedTuple):
    """Known answers: item to a response id, ``tie`` or ``both_bad``; ``undecided`` items have votes but no answer."""

    labels: Mapping[str, str]
    undecided: int


def known_answers(judgments: Iterable[Judgment]) -> Answers:
    """Return what ``judgments`` say most often of each item; a draw between two answers decides nothing.

    Give those of a reference: a gold label, several people, a judge you trust. Each judgment is a vote, so a judge
    that contradicts itself across the orders leaves the item undecided.
    """
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for judgment in _current(judgments):
        if label := _label(judgment):
            said[judgment.item][label] += 1
    labels = {}
    for item, counts in said.items():
        (top, most), *others = counts.most_common(2)
        if not others or others[0][1] < most:
            labels[item] = top
    return Answers(labels, len(said) - len(labels))


def _current(judgments: Iterable[Judgment]) -> list[Judgment]:
    """The judgments that no other of them revises."""
    given = list(judgments)
    revised = {judgment.revises for judgment in given if judgment.revises is not None}
    return [judgment for judgment in given if judgment.id not in revised] if revised else given


def _label(judgment: Judgment) -> str | None:
    if judgment.winner is not None:
        return judgment.slots[judgment.winner]
    return judgment.verdict if judgment.verdict in ("tie", "both_bad") else None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How often a judge gives the known answer; the ``rate`` is over ``rate.n`` judgments, clustered by prompt.

    ``ties`` called a tie what is none, which ``ties_as`` counts half or takes for a wrong answer. ``invalid``,
    ``skipped`` and, where it is no class, ``both_bad`` judgments give no answer; ``unanswered`` says how they count.
    Not in the rate: ``even`` judgments, of items whose known answer is no side (where ties are not a class),
    ``unknown`` ones, of items without a known answer, and ``retried`` ones, which were
    unreadable and are made up for by another judgment of the same judge and order.
    """

    rate: Estimate
    ties: int
    invalid: int
    skipped: int
    both_bad: int
    ties_as: Ties
    unanswered: Unanswered
    even: int
    unknown: int
    retried: int

    @property
    def sentence(self) -> str:
        """One plain sentence with the rate, its interval, its n and how everything else was counted."""
        tied = f"{self.ties:,} ties count {'half' if self.ties_as == 'half' else 'as wrong'}"
        open_ = f"{self.invalid:,} unreadable, {self.skipped:,} skipped and {self.both_bad:,} both-bad ones"
        how = {"wrong": "count as wrong", "half": "count half", "left_out": "are left out"}[self.unanswered]
        out = [
            f"{count:,} {what}"
            for count, what in (
                (self.even, "on items that are even"),
                (self.unknown, "on items without a known answer"),
                (self.retried, "made up for by a retry"),
            )
            if count
        ]
        rest = f"; not among them are {', '.join(out)}" if out else ""
        return f"right in {_percent(self.rate)} of {self.rate.n:,} judgments, where {tied} and {open_} {how}{rest}"


def accuracy(
    judgments: Iterable[Judgment], answers: Answers, *, ties: Ties = "half", unanswered: Unanswered = "wrong"
) -> Accuracy:
    """Return how often one judge's ``judgments`` give the known answer.

    Every judgment counts, so both orders of an item do; their prompt is the cluster.

    Args:
        judgments: one judge's; those another one revises are left out.
        answers: what is right, by item.
        ties: ``half`` counts a tie 1/2 where one side is better and leaves out the items that are even; ``class`` takes
            tie and both bad for answers like any other, right where they are the known one and wrong elsewhere.
        unanswered: how unreadable, skipped and (unless they are a class) both-bad judgments count.
    """
    if ties not in ("half", "class") or unanswered not in UNANSWERED:
        raise InputError(
            f"accuracy: ties is {ties!r} and unanswered {unanswered!r}; expected 'half' or 'class', and "
            f"{', '.join(map(repr, UNANSWERED))}."
        )
    given = _current(judgments)
    read = {judgment.slots for judgment in given if judgment.verdict not in ("invalid", "skip")}
    count: Counter[str] = Counter()
    values, prompts = [], []
    for judgment in given:
        if judgment.verdict == "invalid" and judgment.slots in read:
            count["retried"] += 1
            continue
        right = answers.labels.get(judgment.item)
        if right is None:
            count["unknown"] += 1
            continue
        if ties == "half" and right in ("tie", "both_bad"):
            count["even"] += 1
            continue
        value = _value(judgment, right, ties, unanswered, count)
        if not math.isnan(value):
            values.append(value)
            prompts.append(judgment.prompt_id)
    return Accuracy(
        rate=rate(values, prompts),
        ties=count["tie"],
        invalid=count["invalid"],
        skipped=count["skip"],
        both_bad=count["both_bad"],
        ties_as=ties,
        unanswered=unanswered,
        even=count["even"],
        unknown=count["unknown"],
        retried=count["retried"],
    )


def _value(judgment: Judgment, right: str, ties: Ties, unanswered: Unanswered, count: Counter[str]) -> float:
    """What one judgment counts, nan where it is left out; ``count`` takes in a verdict that is no side."""
    label = _label(judgment)
    if judgment.verdict != "slot" and label != right and not (label == "both_bad" and ties == "class"):
        count[judgment.verdict] += 1
    if label is None or (label == "both_bad" and ties == "half"):
        return UNANSWERED[unanswered]
    if label == "tie" and ties == "half":
        return 0.5
    return float(label == right)


@dataclass(frozen=True, kw_only=True)
class JudgeRow:
    """One judge: its ``accuracy`` where answers are known, what swapping the order showed, and what was unreadable.

    ``position.n`` is 0 for a judge that was never readable in both orders of an item.
    """

    judge: str
    judgments: int
    items: int
    accuracy: Accuracy | None
    position: Position
    invalid: Estimate

    @property
    def sentence(self) -> str:
        """One plain sentence with everything that was measured."""
        said = (
            f"{self.judge}: {self.judgments:,} judgments of {self.items:,} items, {_percent(self.invalid)} unreadable"
        )
        if self.accuracy is not None:
            said += f"; {self.accuracy.sentence}"
        at = self.position
        if not at.n:
            return f"{said}; no item was judged readably in both orders."
        return (
            f"{said}; the same verdict in both orders for {_percent(at.consistent)} of {at.n:,} items, the first "
            f"slot both times for {_percent(at.primacy)}, the second for {_percent(at.recency)}."
        )


def judge_table(
    judgments: Iterable[Judgment],
    answers: Answers | None = None,
    *,
    ties: Ties = "half",
    unanswered: Unanswered = "wrong",
) -> list[JudgeRow]:
    """Return a row for each judge among ``judgments``, the most accurate first, without answers the most consistent."""
    given = _current(judgments)
    seen = view(given)
    matched = orders(seen)
    groups: list[list[Judgment]] = [[] for _ in seen.judges]
    for judgment, code in zip(given, seen.judge.tolist(), strict=True):
        groups[code].append(judgment)
    rows = []
    for code, (name, mine) in enumerate(zip(seen.judges, groups, strict=True)):
        at = np.flatnonzero(seen.judge[matched.one] == code)
        one, two = matched.one[at], matched.two[at]
        rows.append(
            JudgeRow(
                judge=name,
                judgments=len(mine),
                items=len(np.unique(seen.item[seen.judge == code])),
                accuracy=None if answers is None else accuracy(mine, answers, ties=ties, unanswered=unanswered),
                position=position(seen.first[one], seen.first[two], seen.prompt[one]),
                invalid=rate([j.verdict == "invalid" for j in mine], [j.prompt_id for j in mine]),
            )
        )
    return sorted(rows, key=_rank)


def _rank(row: JudgeRow) -> tuple[float, str]:
    value = row.position.consistent.value if row.accuracy is None else row.accuracy.rate.value
    return (math.inf if math.isnan(value) else -value, row.judge)


def judges_of(
    ledger: Ledger,
    reference: str | Sequence[str] = (),
    judgment_ids: Sequence[str] | None = None,
    *,
    ties: Ties = "half",
    unanswered: Unanswered = "wrong",
) -> list[JudgeRow]:
    """Return the table of the judges in ``ledger``, measured against what ``reference`` says most often.

    Args:
        ledger: where the judgments are.
        reference: names (``human:experts``) or whole kinds (``human``) whose judgments are the known answers; they get
            no row. Without any, only consistency is measured.
        judgment_ids: which judgments; all when None.
        ties: as in ``accuracy``.
        unanswered: as in ``accuracy``.
    """
    judgments = ledger.judgments(judgment_ids)
    wanted = {reference} if isinstance(reference, str) else set(reference)
    known = {judgment.by for judgment in judgments}
    for name in sorted(wanted):
        if not any(name in (by, by.partition(":")[0]) for by in known):
            raise InputError(
                f"Nobody called {name!r} judged anything in {ledger.name}; there are {', '.join(sorted(known)[:10])}."
                f"{nearest(name, sorted(known))}"
            )
    trusted = [j for j in judgments if {j.by, j.by.partition(":")[0]} & wanted]
    others = [j for j in judgments if not {j.by, j.by.partition(":")[0]} & wanted]
    if not others:
        raise InputError(f"The ledger {ledger.name} has no judgments to measure; judge or import some first.")
    return judge_table(others, known_answers(trusted) if wanted else None, ties=ties, unanswered=unanswered)


def leave_one_out(
    judgments: Iterable[Judgment], *, ties: Ties = "half", unanswered: Unanswered = "wrong"
) -> dict[str, Accuracy]:
    """Return each judge's accuracy against what the others among ``judgments`` say most often, by name.

    Of three people or more it is how well a person gives people's answer: what a model may be measured by. With an even
    number of others those that differ leave an item undecided, so the items that count are the easier ones.
    """
    given = _current(judgments)
    names = sorted({judgment.by for judgment in given})
    if len(names) < 3:
        raise InputError(f"leave_one_out: {len(names)} judges are not enough; with three or more the others can agree.")
    return {
        name: accuracy(
            [judgment for judgment in given if judgment.by == name],
            known_answers(judgment for judgment in given if judgment.by != name),
            ties=ties,
            unanswered=unanswered,
        )
        for name in names
    }


def as_markdown(rows: Sequence[JudgeRow]) -> str:
    """Return the rows as a table in per cent with 95 % intervals, for a page or a terminal."""
    lines = [
        "| judge | right | n | unreadable | same in both orders | first both times | second both times | items |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        known, at = row.accuracy, row.position
        cells = [row.judge, _cell(known.rate) if known else "-", f"{known.rate.n:,}" if known else "-"]
        cells += [_cell(row.invalid), _cell(at.consistent), _cell(at.primacy), _cell(at.recency), f"{at.n:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


class Kappa(NamedTuple):
    """Agreement of two judges over ``same.n`` items: beyond chance, and the bare share of equal votes."""

    kappa: Estimate
    same: Estimate


def kappa(
    judgments: Iterable[Judgment],
    one: str,
    other: str,
    *,
    sides: Sides = "balanced",
    draws: int = 1000,
    seed: int = 0,
) -> Kappa:
    """Return Cohen's kappa of the judges named ``one`` and ``other``, over the items that both voted on.

    A vote is the first side, the second, a tie or both bad, one for each judge and item: across orders the verdicts
    are averaged, so contradicting itself is a tie. Unreadable and skipped judgments are no votes. The interval
    resamples prompts.

    ``sides`` says which side is the first, which the expected agreement depends on a little. ``shown`` takes the slots
    of ``one``'s record, as most published figures do; it means something only where the slots do not depend on the
    verdict, which they do in files of chosen and rejected. ``balanced`` looks at each item from both sides, and needs
    no such care.
    """
    if sides not in ("balanced", "shown"):
        raise InputError(f"kappa: sides is {sides!r}; expected 'balanced' or 'shown'.")
    seen = view(_current(judgments))
    codes = []
    for name in (one, other):
        if name not in seen.judges:
            raise InputError(f"kappa: there is no judge {name!r} among these.{nearest(name, list(seen.judges))}")
        codes.append(seen.judges.index(name))
    items, judges, labels = votes(seen)
    a, b = (judges == code for code in codes)
    both, at_a, at_b = np.intersect1d(items[a], items[b], assume_unique=True, return_indices=True)
    found = np.column_stack([labels[a][at_a], labels[b][at_b]])
    rows = np.flatnonzero(seen.judge == codes[0])[::-1]
    swapped, prompt = np.zeros((2, int(seen.item.max(initial=0)) + 1), dtype=np.int64)
    swapped[seen.item[rows]], prompt[seen.item[rows]] = seen.swapped[rows], seen.prompt[rows]
    clusters = prompt[both]
    same = rate(found[:, 0] == found[:, 1], clusters)
    if sides == "shown":
        found = np.where(swapped[both][:, None] == 1, _turned(found), found)
    else:
        found, clusters = np.concatenate([found, _turned(found)]), np.concatenate([clusters, clusters])

    def beyond_chance(rows: Ints) -> float:
        return cohen_kappa(rows[:, 0], rows[:, 1], draws=0).value

    return Kappa(bootstrap(found, clusters, beyond_chance, draws=draws, seed=seed)._replace(n=len(both)), same)


def _turned(labels: Ints) -> Ints:
    """The votes seen from the other side."""
    turned: Ints = np.where(labels < 2, 1 - labels, labels)
    return turned


def _cell(estimate: Estimate) -> str:
    return _percent(estimate).replace(" %", "") if estimate.n else "-"


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "an undefined share"
    if math.isnan(estimate.low):
        return f"{100 * estimate.value:.1f} % (no interval)"
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
