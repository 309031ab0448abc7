"""Ratings to pairs: of two answers that were rated together, the one with the better marks is the chosen one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import fsum

from tiebreak.curate.knobs import check_number
from tiebreak.curate.marks import EXACT, TELLING, Of, check_of, overall, rated, ratings_of
from tiebreak.curate.pairs import NO_PAIR, UNHEARD, UNREADABLE
from tiebreak.curate.table import Rows, Step, at_first
from tiebreak.curate.voices import By, heard, ids_of
from tiebreak.records import Judgment, Pair

UNRATED = "no ratings that compare the answers"
EQUAL = "equal scores"
CONTRADICTED = "the scores contradict the verdict"
"""Why answers that were rated together give no pair; a gap that is too small says its bound."""


def score_pairs(rows: Rows, *, of: Of = "mean", gap: float = 0.0, agree: bool = False, by: By = None) -> Step:
    """Pairs by score: the answers of an item are compared by their ratings, two by two, and the verdicts are not asked.

    UltraFeedback makes its pairs so (Cui et al. 2023, arXiv 2310.01377). The score of an answer is one number of its
    ratings, each of them a mean over the item's judgments; ``scores`` of the pair are those of both sides and
    ``margin`` is their difference. The order is taken to be sure, p = 1; ``soft_by_strength`` makes it as sure as the
    margin.
    Ratings of verdicts that were unreadable, skipped or both-bad order nothing.

    Args:
        rows: judgments; it is a first step.
        of: ``mean`` of the aspects that both are rated on, ``fine_grained`` (each answer's own mean), an aspect's name,
            or weights such as ``{helpfulness: 0.65, verbosity: -0.4}``. Aspects with different scales want weights.
        gap: the least margin. Equal scores give no pair whatever it is.
        agree: drop pairs whose verdicts favour the other side, as reward-augmented DPO does (Zhang et al. 2024, arXiv
            2410.08067).
        by: whose judgments count, such as ``model:*``.

    Raises:
        InputError: no ratings, an aspect that nothing rates, or a gap below 0.
    """
    bound = check_number("score_pairs", "gap", gap, 0.0)
    items = heard(at_first(rows, "score_pairs"), by, "score_pairs")
    check_of(of, [one for judgments in items.values() for one in judgments], "score_pairs", "of")
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for judgments in items.values():
        found, why = _pairs_of(judgments, of, bound, agree)
        pairs += found
        dropped[why] += not found
    return Step(pairs, dropped)


def _pairs_of(judgments: Sequence[Judgment], of: Of, bound: float, agree: bool) -> tuple[list[Pair], str]:
    """Return the pairs of one item, and what kept most of its answers from being one."""
    telling = [judgment for judgment in judgments if judgment.verdict in TELLING]
    if not telling:
        return [], UNREADABLE if judgments else UNHEARD
    marks = rated(telling)
    if len(marks) < 2:
        return [], NO_PAIR
    pairs: list[Pair] = []
    why: Counter[str] = Counter()
    for first, second in combinations(marks, 2):
        values = overall({first: marks[first], second: marks[second]}, of)
        if values is None:
            why[UNRATED] += 1
            continue
        chosen, rejected = (first, second) if values[first] >= values[second] else (second, first)
        margin = round(values[chosen] - values[rejected], EXACT)
        if margin == 0:
            why[EQUAL] += 1
        elif margin < round(bound, EXACT):
            why[f"gap below {bound:g}"] += 1
        elif agree and _contradicts(telling, chosen, rejected):
            why[CONTRADICTED] += 1
        else:
            pairs.append(_pair(telling, of, (chosen, rejected), (values[chosen], values[rejected]), margin))
    return pairs, why.most_common(1)[0][0] if why else ""


def _pair(
    telling: Sequence[Judgment], of: Of, sides: tuple[str, str], scores: tuple[float, float], margin: float
) -> Pair:
    """Return the pair; it is in conflict where one judgment's own ratings order the sides the other way."""
    own = [overall({side: marks[side] for side in sides}, of) for marks in map(ratings_of, telling)]
    return Pair(
        prompt_id=telling[0].prompt_id,
        chosen_id=sides[0],
        rejected_id=sides[1],
        scores=scores,
        margin=margin,
        n=sum(values is not None for values in own),
        conflict=any(values is not None and values[sides[0]] < values[sides[1]] for values in own),
        judgment_ids=ids_of(telling),
    )


def _contradicts(judgments: Sequence[Judgment], chosen: str, rejected: str) -> bool:
    """Whether the verdicts favour the side with the lower score."""
    said = [(one.p_better(chosen), one.p_better(rejected)) for one in judgments]
    return fsum(high for high, _ in said if high is not None) < fsum(low for _, low in said if low is not None)
