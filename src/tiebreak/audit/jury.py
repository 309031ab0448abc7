"""How many independent judges a set of judges is worth: whether they agree, err together, and who could be spared.

Any judges that share items are a jury here, whether a panel asked them or not. A panel's own verdicts are left out, for
they are its jurors' once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tiebreak.audit.checks import votes
from tiebreak.audit.findings import amount, at_least, finding, percent
from tiebreak.audit.table import CROWD, Bools, Floats, Ints, View
from tiebreak.judge.panel import is_panel
from tiebreak.records import Finding, InputError
from tiebreak.registry import nearest
from tiebreak.stats.intervals import Estimate, paired_difference, rate, wilson
from tiebreak.stats.jury import Jury, against_truth, against_votes, majority

SIDES = np.array([1.0, 0.0, 0.5, math.nan])
"""What the labels of :func:`tiebreak.audit.checks.votes` say of the item's first answer; both bad prefers neither."""

MATRIX = 10
"""Judges whose every two are reported; of more, the ten pairs that agree most."""

MAJORITY, LATENT = "the majority of the others", "a latent truth"
UNSEEN = "what all of them get wrong together cannot be seen without a truth"
CAVEATS = {
    MAJORITY: f"; this errs low where judges are few or weak, and {UNSEEN}",
    LATENT: f"; this errs high where some judges are copies, and {UNSEEN}",
}
"""What the interval, which is about the items alone, does not cover."""


class _Table(NamedTuple):
    """Votes (I, m) on the items with two votes or more, the truth (I,) with nan where it is not known, and prompts."""

    names: tuple[str, ...]
    votes: Floats
    truth: Floats
    prompt: Ints
    judged_by: str


def jury(
    view: View, *, truth: str = "", least: int = 30, min_size: float = 1.5, draws: int = 500, seed: int = 0
) -> list[Finding]:
    """Effective number of judges, their error correlation, the agreement of every two, and who adds least.

    Errors are held against ``truth``: a judge's name, ``people`` for the majority of human annotators, ``none``, or
    empty for people where they judged ``least`` of the items. Without a truth they are held against the majority of the
    other judges and against a latent truth, which cannot see what all get wrong together, so at worst a notice comes of
    it. Judges that share fewer than ``least`` items with another one are left out and counted. One vote per judge and
    item, both orders averaged; intervals resample prompts.
    """
    speak = np.array([not is_panel(name) for name in view.judges], dtype=np.bool_)
    if speak.sum() < 2:
        return []
    items, judges, labels = votes(view)
    known = _truth_of(view, truth)
    table, left_out = _table(view, (items, judges, SIDES[labels]), speak, known, least)
    if not truth and table.judged_by and (~np.isnan(table.truth) & (table.truth != 0.5)).sum() < least:
        table, left_out = _table(view, (items, judges, SIDES[labels]), speak, None, least)
    found = []
    if len(table.names) > 1:
        found = _measures(table, least, min_size, draws, seed)
    if left_out:
        share = wilson(len(left_out), len(left_out) + len(table.names))
        said = f"{percent(share, 'judges')} share fewer than {least:,} items with another judge, or are beyond the "
        found.append(finding("jury.left_out", "all", f"{said}{CROWD} with the most votes, and are left out.", share))
    return found


def _truth_of(view: View, truth: str) -> tuple[str, Bools] | None:
    """Return what the truth is called and which judges (J,) tell it."""
    people = np.array([kind == "human" for kind in view.kind], dtype=np.bool_)
    if truth in ("", "people"):
        if not people.any() and truth:
            raise InputError("audit: jury has truth: people, and no person judged; name a judge, or leave it out.")
        # People held against themselves would be no truth.
        spared = (~people & ~np.array([is_panel(name) for name in view.judges])).sum() > 1
        return ("people", people) if people.any() and (spared or truth) else None
    if truth == "none":
        return None
    chosen = np.array([truth in (name, name.partition(" (rubric ")[0]) for name in view.judges], dtype=np.bool_)
    if not chosen.any():
        raise InputError(
            f"audit: jury has truth: {truth!r}, who judged nothing here; there are {', '.join(view.judges[:CROWD])}, "
            f"people and none.{nearest(truth, view.judges)}"
        )
    return truth, chosen


def _table(
    view: View, cast: tuple[Ints, Ints, Floats], speak: Bools, truth: tuple[str, Bools] | None, least: int
) -> tuple[_Table, list[int]]:
    """Lay out the votes by item and judge; returns the table and the judges with too few shared items."""
    items, judges, sides = cast
    jurors = speak if truth is None else speak & ~truth[1]
    mine = jurors[judges] & ~np.isnan(sides)
    counts = np.bincount(judges[mine], minlength=len(view.judges))
    present = np.flatnonzero(counts)
    most = np.sort(present[np.argsort(-counts[present], kind="stable")][:CROWD])
    column = np.full(len(view.judges), -1)
    column[most] = np.arange(len(most))
    mine &= column[judges] >= 0
    rows, row = np.unique(items[mine], return_inverse=True)
    laid = np.full((len(rows), len(most)), math.nan)
    laid[row, column[judges[mine]]] = sides[mine]
    here = (~np.isnan(laid)).astype(np.float64)
    shared = here.T @ here
    np.fill_diagonal(shared, 0)
    kept = shared.max(axis=1, initial=0) >= least
    laid, several = laid[:, kept], (here[:, kept].sum(axis=1) >= 2)
    known = np.full(len(rows), math.nan)
    if truth is not None:
        known = _told(items, judges, sides, truth[1], rows)
    prompts = np.zeros(int(view.item.max(initial=-1)) + 1, dtype=np.int64)
    prompts[view.item] = view.prompt
    names = tuple(view.judges[int(j)] for j in most[kept])
    table = _Table(names, laid[several], known[several], prompts[rows[several]], truth[0] if truth else "")
    return table, sorted({int(j) for j in present} - {int(j) for j in most[kept]})


def _told(items: Ints, judges: Ints, sides: Floats, tell: Bools, rows: Ints) -> Floats:
    """Return the majority of those who tell the truth for each item of ``rows`` (I,), nan where none of them voted."""
    mine = tell[judges] & ~np.isnan(sides) & np.isin(items, rows)
    at = np.searchsorted(rows, items[mine])
    lean = np.bincount(at, weights=sides[mine] - 0.5, minlength=len(rows))
    n = np.bincount(at, minlength=len(rows))
    verdict = np.where(np.abs(lean) < 1e-9, 0.5, (lean > 0).astype(np.float64))
    told: Floats = np.where(n > 0, verdict, math.nan)
    return told


def _measures(table: _Table, least: int, min_size: float, draws: int, seed: int) -> list[Finding]:
    """Return all findings of a table with two judges or more."""
    said, prompt, who = table.votes, table.prompt, f"{len(table.names)} judges"
    found: list[Finding] = []
    if table.judged_by:
        known = against_truth(said, table.truth, prompt, least=least, draws=draws, seed=seed)
        juries = {table.judged_by: known}
    else:
        juries = {
            MAJORITY: against_votes(said, prompt, against="majority", least=least, draws=draws, seed=seed),
            LATENT: against_votes(said, prompt, against="latent", least=least, draws=draws, seed=seed),
        }
    for reference, measured in juries.items():
        found += _size(who, table, reference, measured, min_size)
    best = next(iter(juries.values()))
    if len(table.names) > 2 and not math.isnan(best.size.value):
        found.append(_least(table, next(iter(juries)), best))
    if table.judged_by:
        found += _gain(who, table)
    return found + _matrix(table, best, next(iter(juries)))


def _size(who: str, table: _Table, reference: str, measured: Jury, min_size: float) -> list[Finding]:
    """Effective size and error correlation against one reference."""
    subject = f"{who} against {reference}"
    if math.isnan(measured.size.value):
        text = f"How many independent judges the {who} are worth, held against {reference}, is undefined "
        text += f"(n = {measured.size.n:,} items): {measured.why}."
        return [finding("jury.size", subject, text, measured.size)]
    size, rho = _around(measured.size), _around(measured.rho)
    text = f"The {who} are worth {amount(size, 'independent ones', 'items')}, their errors held against {reference}"
    if measured.constant:
        never = " and ".join(table.names[j] for j in measured.constant)
        text += f"; never or always wrong, and so counted as uncorrelated: {never}"
    text += CAVEATS.get(reference, "")
    together = f"The errors of the {who} correlate by {amount(rho, 'on average', 'items')}, held against {reference}"
    if measured.unpaired:
        together += f"; {measured.unpaired:,} pairs of judges are undefined and left out"
    bound = at_least(min_size)
    return [
        finding("jury.size", subject, f"{text}.", size, bound, worst="problem" if table.judged_by else "notice"),
        finding("jury.correlation", subject, f"{together}.", rho),
    ]


def _least(table: _Table, reference: str, measured: Jury) -> Finding:
    """The judge without whom the others are worth most."""
    j = min(range(len(table.names)), key=lambda i: measured.added[i].value)
    added, name = _around(measured.added[j]), table.names[j]
    text = f"{name} adds least, {amount(added, 'independent judges', 'items')}, held against {reference}"
    if added.value < 0:
        text += "; it is a voice too many, for the others are worth more without it"
    return finding("jury.least", name, f"{text}.", added)


def _gain(who: str, table: _Table) -> list[Finding]:
    """How often the majority is right, and how much more often than the best judge alone, on items all judged."""
    full = ~np.isnan(table.votes).any(axis=1) & ~np.isnan(table.truth) & (table.truth != 0.5)
    if not full.any():
        return []
    said, truth, prompt = table.votes[full], table.truth[full], table.prompt[full]
    right = 1 - np.abs(said - truth[:, None])
    joint = 1 - np.abs(majority(said) - truth)
    best = int(np.argmax(right.mean(axis=0)))
    share = rate(joint, prompt)
    gain = paired_difference(joint, right[:, best], prompt)
    text = f"The majority of the {who} is right in {percent(share, 'items')}, a tie as a half, held against "
    more = f"That is {amount(gain, 'more', 'items')} than {table.names[best]} alone, the best of them with "
    more += f"{100 * right[:, best].mean():.1f} %, which was picked on the same items."
    return [
        finding("jury.majority", who, f"{text}{table.judged_by}.", share),
        finding("jury.gain", who, more, gain),
    ]


def _matrix(table: _Table, measured: Jury, reference: str) -> list[Finding]:
    """Agreement of every two judges that share items, with the correlation of their errors."""
    shares: list[tuple[int, int, Estimate]] = []
    for a in range(len(table.names)):
        for b in range(a + 1, len(table.names)):
            one, two = table.votes[:, a], table.votes[:, b]
            both = ~np.isnan(one) & ~np.isnan(two)
            if both.any():
                shares.append((a, b, rate(one[both] == two[both], table.prompt[both])))
    if len(table.names) > MATRIX:
        shares = sorted(shares, key=lambda found: -found[2].value)[:MATRIX]
    found = []
    for a, b, share in shares:
        rho, names = measured.pairs[a, b], _pair(table.names, a, b)
        text = f"{names} agree on {percent(share, 'items')}"
        if not math.isnan(rho):
            text += f"; their errors, against {reference}, correlate by {round(float(rho), 2) + 0.0:.2f}"
        found.append(finding("jury.pair", names, f"{text}.", share))
    return found


def _pair(names: Sequence[str], a: int, b: int) -> str:
    return f"{names[a]} and {names[b]}"


def _around(estimate: Estimate) -> Estimate:
    """Return the estimate with ends that hold its value, and undefined where errors cancel altogether."""
    if not math.isfinite(estimate.value):
        return Estimate(math.nan, math.nan, math.nan, estimate.n)
    low, high = (end if math.isfinite(end) else math.nan for end in (estimate.low, estimate.high))
    return Estimate(estimate.value, min(low, estimate.value), max(high, estimate.value), estimate.n)
