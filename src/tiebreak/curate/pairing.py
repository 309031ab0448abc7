"""Which answers to a prompt become pairs, by how good each of them is.

A rule ranks the answers of a prompt and names couples, the better one first. From lists the couples are made into
pairs; from pairs those that were judged are kept as they were judged: no verdict is made up for two that never met.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from tiebreak.curate.knobs import check_count
from tiebreak.curate.marks import EXACT, mean
from tiebreak.curate.table import Rows, Step, graded_of, pairs_of
from tiebreak.records import Graded, Pair, content_id

NEITHER = "neither best nor worst"
TIE = "best and worst tie"
APART = "best and worst were not judged together"
CROSSED = "the worst beat the best"
"""Why :func:`best_worst` drops a pair."""

ALONE = "no two answers"
ALIKE = "equal grades"
ABROAD = "answers to different prompts"
"""Why a list gives no pair."""

Rule = Callable[[Sequence[str], str], Iterable[tuple[str, str]]]
"""``rule(answers, prompt)``: the couples of a prompt's answers, which stand best first and among equals by id."""


class Reasons(NamedTuple):
    """Why a rule drops a judged pair: it is no couple, the couple ties, never met, or was judged the other way."""

    outside: str
    tie: str
    apart: str
    crossed: str


def best_worst(rows: Rows) -> Step:
    """Of each prompt one pair: the best answer against the worst (``max_min`` of Dong et al. 2024, arXiv 2405.07863).

    In pairs, how good an answer is is its mean P(better) over all pairs it is in, so an answer met more often wins no
    more by that; in lists it is its grade. Among equals the best is the first by id and the worst the last. A pair is
    kept as it was judged: where the two tie or never met, or where the worst won when they met, the prompt goes, and
    one of its pairs is counted under that reason.
    """
    return _paired(rows, "best_worst", _ends, Reasons(NEITHER, TIE, APART, CROSSED))


def best_second(rows: Rows) -> Step:
    """Of each prompt one pair: the best answer against the second best, the smallest difference that is still an order.

    It is ``max_max`` of Dong et al. 2024 (arXiv 2405.07863); what counts as good is said at :func:`best_worst`.
    """
    why = Reasons(
        "not the best two", "the best two tie", "the best two were not judged together", "the second beat the best"
    )
    return _paired(rows, "best_second", lambda answers, _: [(answers[0], answers[1])], why)


def best_random(rows: Rows, *, seed: int = 0) -> Step:
    """Of each prompt one pair: the best answer against one of the others, each as likely.

    It is what ``max_random`` of Dong et al. 2024 (arXiv 2405.07863) says; chance hangs on the seed and on ids alone, so
    that the same answer is drawn in any order of rows.
    """
    check_count("best_random", "seed", seed, 0)

    def rule(answers: Sequence[str], prompt: str) -> list[tuple[str, str]]:
        drawn = min(answers[1:], key=lambda answer: content_id("best_random", seed, prompt, answer))
        return [(answers[0], drawn)]

    why = Reasons(
        "not the pair that was drawn", "the drawn pair ties", "the drawn pair never met", "the drawn one beat the best"
    )
    return _paired(rows, "best_random", rule, why)


def best_against_rest(rows: Rows) -> Step:
    """Of each prompt the best answer against each of the others, the widest gap first.

    So Curri-DPO makes its pairs, (R1, R4), (R1, R3) and (R1, R2) of four (Pattnaik et al. 2024, arXiv 2403.07230); let
    ``curriculum`` follow. What counts as good is said at :func:`best_worst`.
    """

    def rule(answers: Sequence[str], prompt: str) -> list[tuple[str, str]]:
        return [(answers[0], other) for other in answers[:0:-1]]

    why = Reasons("without the best answer", "the best answer tied", "the best answer met none", "the best answer lost")
    return _paired(rows, "best_against_rest", rule, why)


def ranked(rows: Rows) -> Step:
    """Keep the pairs that agree with the ranking of their prompt's answers by mean P(better), each with its p.

    This is our reading of the ranked pairing of online self-preferring models (Zhai et al. 2024, arXiv 2405.14103),
    whose details we have not seen: judgments that go round in a circle cannot all be learned, and those against the
    ranking are left out. Answers of equal rank give no pair.
    """
    pairs_of(rows, "ranked")
    why = Reasons("a couple that stands twice", "equal rank", "never met", "judged against the ranking")
    return _paired(rows, "ranked", _every, why)


def all_pairs(rows: Rows) -> Step:
    """Of each list every two answers whose grades differ, p = 1 and the margin their difference.

    UltraFeedback's strict orders (Cui et al. 2023, arXiv 2310.01377). A list of n answers gives up to n (n - 1) / 2
    pairs, and each of them counts as much as the only pair of another prompt: a list in training weighs them together
    as one row.
    """
    return _of_lists(graded_of(rows, "all_pairs"), _every)


def _ends(answers: Sequence[str], prompt: str) -> list[tuple[str, str]]:
    return [(answers[0], answers[-1])]


def _every(answers: Sequence[str], prompt: str) -> Iterable[tuple[str, str]]:
    return combinations(answers, 2)


def _paired(rows: Rows, step: str, rule: Rule, why: Reasons) -> Step:
    """Apply ``rule`` to each prompt, for each user apart; ``why`` is said of judged pairs."""
    if rows.rows and isinstance(rows.rows[0], Graded):
        return _of_lists(graded_of(rows, step), rule)
    prompts: dict[tuple[str, str], list[Pair]] = {}
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for pair in pairs_of(rows, step):
        if pair.rejected_prompt_id in ("", pair.prompt_id):
            prompts.setdefault((pair.prompt_id, pair.user), []).append(pair)
        else:
            dropped[ABROAD] += 1
    for (prompt, _), pairs in prompts.items():
        found, lost = _of_pairs(prompt, pairs, rule, why)
        kept += found
        dropped += lost
    return Step(kept, dropped)


def wins(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the mean P(better) of each answer over the pairs it is in, by id."""
    won: dict[str, list[float]] = {}
    for pair in pairs:
        won.setdefault(pair.chosen_id, []).append(pair.p)
        won.setdefault(pair.rejected_id, []).append(1.0 - pair.p)
    return {answer: mean(values) for answer, values in sorted(won.items())}


def best_first(grades: Mapping[str, float]) -> list[str]:
    """Return the answers by their grades, the best first and equal ones by id."""
    return sorted(grades, key=lambda answer: (-grades[answer], answer))


def _of_pairs(prompt: str, pairs: Sequence[Pair], rule: Rule, why: Reasons) -> tuple[list[Pair], Counter[str]]:
    """Return the judged pairs that are couples of ``rule``, and why the others are not.

    Where none of the couples was judged, one pair says so, and the rest that they are no couple.
    """
    grades = wins(pairs)
    couples = list(rule(best_first(grades), prompt))
    judged: dict[frozenset[str], Pair] = {}
    for pair in sorted(pairs, key=lambda pair: pair.id):
        judged.setdefault(frozenset((pair.chosen_id, pair.rejected_id)), pair)
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for better, worse in couples:
        found = judged.get(frozenset((better, worse)))
        if found is None:
            continue
        if grades[better] == grades[worse] or found.p == 0.5:
            dropped[why.tie] += 1
        elif found.chosen_id != better:
            dropped[why.crossed] += 1
        else:
            kept.append(found)
    if not kept and not dropped:
        equal = all(grades[better] == grades[worse] for better, worse in couples)
        dropped[why.tie if equal else why.apart] += 1
    dropped[why.outside] += len(pairs) - len(kept) - dropped.total()
    return kept, dropped


def _of_lists(lists: Sequence[Graded], rule: Rule) -> Step:
    """Return the pairs of couples whose grades differ; a list without any is dropped."""
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for row in lists:
        if len(row.response_ids) < 2 or not row.grades:
            dropped[ALONE] += 1
            continue
        if row.prompt_ids and set(row.prompt_ids) != {row.prompt_id}:
            dropped[ABROAD] += 1
            continue
        grades = dict(zip(row.response_ids, row.grades, strict=True))
        couples = rule(best_first(grades), row.prompt_id)
        found = [_pair(row, grades, couple) for couple in couples if grades[couple[0]] > grades[couple[1]]]
        pairs += found
        dropped[ALIKE] += not found
    return Step(pairs, dropped)


def _pair(row: Graded, grades: Mapping[str, float], couple: tuple[str, str]) -> Pair:
    chosen, rejected = couple
    return Pair(
        prompt_id=row.prompt_id,
        chosen_id=chosen,
        rejected_id=rejected,
        margin=round(grades[chosen] - grades[rejected], EXACT),
        scores=(grades[chosen], grades[rejected]),
        weight=row.weight,
        n=len(row.judgment_ids),
        user=row.user,
        judgment_ids=row.judgment_ids,
    )
