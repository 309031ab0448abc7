"""How strongly an ensemble prefers the chosen side of a pair, and labels that are as sure as that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import fsum

from tiebreak.curate.flips import FLIPPED, exchange
from tiebreak.curate.gaps import NO_GAP, gaps
from tiebreak.curate.knobs import check_bands, check_count, check_number, is_number
from tiebreak.curate.marks import EXACT, TELLING, Of, check_of, overall, ratings_of
from tiebreak.curate.order import bands_of
from tiebreak.curate.table import Rows, Step, pairs_of
from tiebreak.curate.voices import By, by_prompt, heard
from tiebreak.judge.verdict import EDGE
from tiebreak.records import InputError, Judgment, Pair

SMOOTHED = "labels smoothed"
"""What :func:`smooth` changes."""

Difference = Callable[[Judgment, Pair], float | None]
"""How much better a judgment finds the chosen side, None where it does not say."""


def strength(rows: Rows, *, of: Of = "reward", by: By = None, least: int = 1) -> Step:
    """Fill ``margin`` and ``spread``: the mean and the standard deviation of the judges' score differences.

    u = sum_m d_m / M and s = sqrt(sum_m (d_m - u)^2 / M) over M judges, d_m = score of the chosen side - score of the
    rejected one (Wang et al. 2024, arXiv 2401.06080, with M = 10 reward models). Below 0 the ensemble favours the
    rejected side. What one judge said of a pair in both orders or in several attempts is averaged first; of one judge
    alone the spread is 0. Judges that were trained on these very labels have to be held out from the pairs they judge,
    or they hide the errors they learned by heart.

    Args:
        rows: pairs, and the judgments of their items.
        of: ``reward`` for the scores that reward models wrote down, ``logit`` for log-odds of probabilities, which end
            at 14 where a probability is 0 or 1, or a number of the ratings as in ``score_pairs``.
        by: who the ensemble is, such as ``model:*``; None is everybody that gives such a number.
        least: how many judges a pair needs; one with fewer is dropped and counted.

    Raises:
        InputError: nobody gives such a number, or nobody has that name.
    """
    check_count("strength", "least", least, 1)
    pairs = pairs_of(rows, "strength")
    items = heard(rows, by, "strength")
    every = [judgment for judgments in items.values() for judgment in judgments]
    known = by_prompt(every)
    difference = _difference(of, every)
    kept: list[Pair] = []
    most = 0
    for pair in pairs:
        found = _by_judge(known.get(pair.prompt_id, ()), pair, difference)
        most = max(most, len(found))
        if len(found) >= least:
            mean = fsum(found) / len(found)
            spread = math.sqrt(fsum((one - mean) ** 2 for one in found) / len(found))
            kept.append(replace(pair, margin=round(mean, EXACT), spread=round(spread, EXACT)))
    if pairs and not most:
        raise InputError(
            f"strength reads {of!r}, and no judgment of these pairs gives it; expected reward (of the judge reward), "
            "logit (of probabilities), or the name of a rating."
        )
    reason = "no judge's score of it" if least == 1 else f"fewer than {least} judges' scores"
    return Step(kept, {reason: len(pairs) - len(kept)})


def soft_by_strength(rows: Rows, *, eta: float = 1.0) -> Step:
    """Make each label as sure as its margin: P(chosen is better) = sigmoid(eta margin).

    Reward models are trained to mean that by a difference (Bradley-Terry). Where the margin is below 0 the other side
    is the likelier one, and the sides are exchanged; a margin of 0 is a tie. A pair without a margin is dropped and
    counted.

    Raises:
        InputError: an ``eta`` below 0, or pairs of which not one has a margin.
    """
    check_number("soft_by_strength", "eta", eta, 0.0)
    pairs = pairs_of(rows, "soft_by_strength")
    found = gaps(pairs, "margin", "soft_by_strength")
    kept = []
    flipped = 0
    for pair, gap in zip(pairs, found, strict=True):
        if gap is not None:
            flipped += gap < 0
            sure = exchange(pair) if gap < 0 else pair
            kept.append(replace(sure, p=round(1 / (1 + math.exp(-eta * abs(gap))), EXACT), id=""))
    return Step(kept, {NO_GAP["margin"]: len(pairs) - len(kept)}, changed={FLIPPED: flipped})


def smooth(rows: Rows, *, band: int | Sequence[int] = (1, 3), alpha: float = 0.1) -> Step:
    """Make the labels of some bands less sure: p becomes (1 - alpha) p + alpha (1 - p), 1 - alpha where p was 1.

    It is label smoothing for the ambiguous and for the strongest pairs (Wang et al. 2024, arXiv 2401.06080), bands 1
    and 3 of ``bands``; the default alpha is ours. The other bands stay as they are.

    Raises:
        InputError: an alpha that is not between 0 and 1/2, or pairs without a band.
    """
    share = check_number("smooth", "alpha", alpha, 0.0, 0.5)
    wanted = check_bands("smooth", "band", band)
    pairs = pairs_of(rows, "smooth")
    kept = [
        replace(pair, p=round(pair.p + share * (1 - 2 * pair.p), EXACT), id="") if number in wanted else pair
        for pair, number in zip(pairs, bands_of(pairs, "smooth"), strict=True)
    ]
    return Step(kept, {}, changed={SMOOTHED: sum(new.p != old.p for new, old in zip(kept, pairs, strict=True))})


def _by_judge(judgments: Sequence[Judgment], pair: Pair, difference: Difference) -> list[float]:
    """Return the difference that each judge sees, in the order of their names; a judge is a name with a rubric."""
    voices: dict[tuple[str, str], list[float]] = {}
    for judgment in judgments:
        if pair.chosen_id in judgment.slots and pair.rejected_id in judgment.slots:
            found = difference(judgment, pair)
            if found is not None:
                voices.setdefault((judgment.by, judgment.rubric), []).append(found)
    return [fsum(values) / len(values) for _, values in sorted(voices.items())]


def _difference(of: Of, judgments: Sequence[Judgment]) -> Difference:
    if of == "reward":
        return _of_rewards
    if of == "logit":
        return _of_logits
    check_of(of, judgments, "strength", "of", also=("reward", "logit"))

    def of_ratings(judgment: Judgment, pair: Pair) -> float | None:
        if judgment.verdict not in TELLING:
            return None
        marks = ratings_of(judgment)
        values = overall({side: marks[side] for side in (pair.chosen_id, pair.rejected_id)}, of)
        return None if values is None else values[pair.chosen_id] - values[pair.rejected_id]

    return of_ratings


def _of_rewards(judgment: Judgment, pair: Pair) -> float | None:
    scores = judgment.fields.get("scores")
    if not isinstance(scores, list | tuple) or len(scores) != len(judgment.slots) or not all(map(is_number, scores)):
        return None
    of_side = dict(zip(judgment.slots, scores, strict=True))
    return float(of_side[pair.chosen_id] - of_side[pair.rejected_id])


def _of_logits(judgment: Judgment, pair: Pair) -> float | None:
    if judgment.probability is None or len(judgment.slots) != 2 or judgment.verdict not in TELLING:
        return None
    first = min(max(judgment.probability, EDGE), 1 - EDGE)
    logit = math.log(first / (1 - first))
    return logit if judgment.slots[0] == pair.chosen_id else -logit
