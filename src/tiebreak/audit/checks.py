"""The checks besides position: each measures one thing, says it in a sentence and changes nothing."""

from __future__ import annotations

import math

import numpy as np

from tiebreak.audit.findings import amount, at_least, at_most, finding, percent, within
from tiebreak.audit.table import BOTH_BAD, INVALID, SKIP, SLOT, TIE, Bools, Ints, View
from tiebreak.records import Finding
from tiebreak.stats import agreement as coefficients
from tiebreak.stats import length as lengths
from tiebreak.stats.intervals import clustered_mean, rate, wilson

SAID = {
    SLOT: ("slot", "picks an answer in {}"),
    TIE: ("tie", "calls {} a tie"),
    BOTH_BAD: ("both_bad", "calls both answers bad in {}"),
    SKIP: ("skip", "skips {}"),
    INVALID: ("invalid", "says nothing readable in {}"),
}


def verdicts(view: View, *, max_invalid: float = 0.05, max_skip: float = 0.2) -> list[Finding]:
    """Share of each verdict per judge, clustered by prompt; unreadable ones are counted, never a side."""
    bounds = {INVALID: at_most(max_invalid), SKIP: at_most(max_skip)}
    found = []
    for judge, rows in view.by_judge():
        for code, (name, text) in SAID.items():
            here = view.verdict[rows] == code
            share = rate(here, view.prompt[rows])
            examples = view.examples(rows[here]) if code in bounds else ()
            said = f"{judge} {text.format(percent(share))}."
            found.append(finding(f"verdicts.{name}", judge, said, share, bounds.get(code), examples=examples))
    if view.superseded:
        share = wilson(view.superseded, view.superseded + len(view))
        said = f"A later judgment revises {percent(share)}; the revised ones are left out of every check."
        found.append(finding("verdicts.revised", "all", said, share))
    return found


def length(view: View, *, tau: float = 0, max_rate: float = 0.6) -> list[Finding]:
    """How often each judge prefers the longer answer, where lengths differ by more than ``tau`` words.

    At worst a notice: length may carry quality. Both orders of an item count, clustered by prompt.
    """
    found = []
    readable = ~np.isnan(view.first)
    known = readable & ~np.isnan(view.length0) & ~np.isnan(view.length1)
    kept = np.flatnonzero(known)
    for judge, at in view.by_judge(kept):
        rows = kept[at]
        share = lengths.prefers_longer(
            view.first[rows], view.length0[rows], view.length1[rows], view.prompt[rows], tau=tau
        )
        if share.n:
            apart = (
                f"judgments whose lengths differ by more than {tau:g} words" if tau else "judgments of unequal length"
            )
            said = f"{judge} prefers the longer answer in {percent(share, apart)}."
            found.append(finding("length.longer", judge, said, share, at_most(max_rate), worst="notice"))
    missing = readable & ~known
    if missing.any():
        share = wilson(int(missing.sum()), int(readable.sum()))
        said = f"The answers behind {percent(share)} are not at hand, so their lengths are unknown and left out."
        found.append(finding("length.unknown", "all", said, share, at_most(0.0), worst="notice"))
    return found


def votes(view: View) -> tuple[Ints, Ints, Ints]:
    """Return one vote per item and judge as (items, judges, labels), each (V,).

    Label 0 says the first answer by id is better, 1 the other, 2 a tie, 3 both bad. A judge's several judgments of an
    item are averaged first, so contradicting itself across orders is a tie; skipped and unreadable ones are no vote.
    """
    low = np.where(view.swapped, 1 - view.first, view.first)
    rows = np.flatnonzero(view.pair & (view.verdict <= BOTH_BAD))
    keys, code = np.unique(view.item[rows] * max(1, len(view.judges)) + view.judge[rows], return_inverse=True)
    prefers = ~np.isnan(low[rows])
    n = np.bincount(code, weights=prefers, minlength=len(keys))
    total = np.bincount(code, weights=np.where(prefers, low[rows], 0.0), minlength=len(keys))
    mean = total / np.maximum(n, 1)
    labels = np.select([n == 0, mean > 0.5, mean < 0.5], [3, 0, 1], 2)
    width = max(1, len(view.judges))
    return keys // width, keys % width, labels.astype(np.int64)


def agreement(view: View, *, min_alpha: float = 0.4, draws: int = 1000, seed: int = 0) -> list[Finding]:
    """Krippendorff's alpha and the share of agreeing pairs of votes, over all, over people and over models.

    Items with votes of several annotators count; the interval resamples items. Lists of more than two are left out.
    """
    items, judges, labels = votes(view)
    kinds = np.array(view.kind)[judges] if len(judges) else np.array([], dtype=str)
    groups = {"all annotators": np.ones(len(items), dtype=np.bool_)}
    present = sorted(set(kinds.tolist()))
    if len(present) > 1:
        named = {"human": "human annotators", "model": "model judges", "rule": "rule judges"}
        groups |= {named.get(kind, f"{kind} judges"): kinds == kind for kind in present}
    prompts = np.zeros(int(view.item.max(initial=-1)) + 1, dtype=np.int64)
    prompts[view.item] = view.prompt
    found = []
    for name, mask in groups.items():
        found += _agreement_of(name, items[mask], labels[mask], prompts, min_alpha, draws, seed)
    lists = view.slots > 2
    if lists.any():
        share = wilson(int(lists.sum()), len(view))
        said = f"Agreement is measured on pairs; {percent(share)} show more than two answers and are left out."
        found.append(finding("agreement.lists", "all annotators", said, share))
    return found


def _agreement_of(
    name: str, items: Ints, labels: Ints, prompts: Ints, min_alpha: float, draws: int, seed: int
) -> list[Finding]:
    """Alpha and pairwise agreement of one group's votes (V,); ``prompts`` maps item codes to prompt codes."""
    if not len(items):
        return []
    counts = coefficients.label_counts(items, labels)
    several = counts.sum(axis=1) >= 2
    counts, clusters = counts[several], prompts[np.unique(items)[several]]
    if not len(counts):
        return []
    m = counts.sum(axis=1)
    share = rate(((counts**2).sum(axis=1) - m) / (m * (m - 1)), clusters)
    alpha = coefficients.alpha_from_counts(counts, draws=draws, seed=seed)
    noun = "items with several votes"
    said = (
        f"Among {name}, agreement beyond chance (Krippendorff's alpha) is {amount(alpha, '', noun).replace('  ', ' ')}."
        if not math.isnan(alpha.value)
        else f"Among {name}, every vote on {alpha.n:,} {noun} is the same, so agreement beyond chance is undefined."
    )
    return [
        finding("agreement.alpha", name, said, alpha, at_least(min_alpha)),
        finding(
            "agreement.pairs", name, f"Among {name}, two votes on the same item agree in {percent(share, noun)}.", share
        ),
    ]


def repeats(view: View, *, min_rate: float = 0.8) -> list[Finding]:
    """Self-consistency: the chance that two answers of one judge to the same question in the same order agree.

    Its disagreement d also gives the label noise eps of d = 2 eps (1 - eps), and 1 - eps is the best accuracy any model
    can show against these labels. Unreadable and skipped repeats are left out, and so are those of unknown order.
    """
    rows = np.flatnonzero(view.pair & view.order_known & (view.verdict <= BOTH_BAD))
    key = (view.item[rows] * max(1, len(view.judges)) + view.judge[rows]) * 2 + view.swapped[rows]
    label = np.where(view.verdict[rows] == SLOT, view.winner[rows], view.verdict[rows] + 1)
    _, opens, code = np.unique(key, return_index=True, return_inverse=True)
    counts = np.bincount(code * 4 + label, minlength=4 * len(opens)).reshape(-1, 4)
    m = counts.sum(axis=1)
    several = np.flatnonzero(m >= 2)
    same = ((counts[several] ** 2).sum(axis=1) - m[several]) / (m[several] * (m[several] - 1))
    heads = rows[opens[several]]
    found = []
    for judge, at in view.by_judge(heads):
        share = rate(same[at], view.prompt[heads[at]])
        ceiling = 100 * (1 - coefficients.flip_rate(1 - share.value))
        said = (
            f"{judge} repeats its verdict when asked the same again in {percent(share, 'repeated questions')}; "
            f"no model can be expected to agree with it more than {ceiling:.1f} % of the time."
        )
        changed = view.examples(heads[at][same[at] < 1])
        found.append(finding("repeats.self_consistency", judge, said, share, at_least(min_rate), examples=changed))
    return found


def strength(view: View, *, strong: float = 0.75, max_lean: float = 0.15) -> list[Finding]:
    """Share of strong votes that go to the first slot, beside the weak ones.

    A two-sided confidence (1 sure of the first, 9 sure of the second) read as one-sided keeps strong votes for one slot
    only; with strength read as the distance from the middle both slots have strong votes.
    """
    rows = np.flatnonzero((view.verdict == SLOT) & view.pair & view.order_known & ~np.isnan(view.strength))
    found = []
    for judge, at in view.by_judge(rows):
        mine = rows[at]
        firm = view.strength[mine] >= strong
        share = rate(view.first[mine][firm], view.prompt[mine][firm])
        if not share.n:
            continue
        weak = rate(view.first[mine][~firm], view.prompt[mine][~firm])
        said = f"{judge} gives the first slot {percent(share, f'votes of strength {strong:g} or more')}"
        said += f", against {percent(weak, 'weaker ones')}." if weak.n else "; it has no weaker ones."
        found.append(finding("strength.first", judge, said, share, within(0.5, max_lean)))
    return found


def identical(view: View, *, max_rate: float = 0.0) -> list[Finding]:
    """Share of judgments whose answers have the same text, and of those that show an empty one.

    Such rows carry no preference: trained on they teach noise, counted they dilute every rate.
    """
    if not len(view):
        return []

    def share(name: str, mask: Bools, text: str) -> Finding:
        estimate = rate(mask, view.prompt)
        said = text.format(percent(estimate))
        return finding(f"identical.{name}", "all", said, estimate, at_most(max_rate), examples=view.examples(mask))

    decided = view.same_text & (view.verdict == SLOT)
    return [
        share("text", view.same_text, "The answers compared have the same text in {}."),
        share("decided", decided, "A winner was named between answers of the same text in {}."),
        share("empty", view.empty, "One of the answers is empty in {}."),
    ]


def cost(view: View) -> list[Finding]:
    """Mean tokens, price and latency per judgment and judge, with totals; what a source does not tell is left out."""
    columns = {
        "tokens_in": (view.tokens_in, "reads", "tokens", 1),
        "tokens_out": (view.tokens_out, "writes", "tokens", 1),
        "price": (view.price, "costs", "US dollars", 4),
        "latency": (view.latency, "takes", "seconds", 2),
    }
    found = []
    for judge, rows in view.by_judge():
        for name, (column, verb, unit, digits) in columns.items():
            known = rows[~np.isnan(column[rows])]
            if not len(known):
                continue
            mean = clustered_mean(column[known], view.prompt[known])
            if name == "latency":
                more = f"nineteen in twenty take at most {np.quantile(column[known], 0.95):,.2f} seconds"
            else:
                more = f"{column[known].sum():,.{0 if 'tokens' in name else 2}f} {unit} in all"
            said = f"{judge} {verb} {amount(mean, unit + ' a judgment', digits=digits)}; {more}."
            found.append(finding(f"cost.{name}", judge, said, mean))
    return found
