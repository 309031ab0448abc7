"""Rows of graded answers: all answers to a prompt in one list, or each answer alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tiebreak.curate.knobs import Lacking
from tiebreak.curate.marks import EXACT, TELLING, Of, aspects_of, check_of, mean, overall, rated
from tiebreak.curate.pairing import ABROAD, ALONE, best_first, wins
from tiebreak.curate.pairs import UNHEARD, UNREADABLE, soft_label
from tiebreak.curate.scored import UNRATED
from tiebreak.curate.table import Rows, Step, at_first, pairs_of
from tiebreak.curate.voices import By, by_prompt, heard, ids_of
from tiebreak.records import Graded, InputError, Judgment, Pair, content_id
from tiebreak.registry import nearest

NO_RATINGS = "no ratings"
"""Why an item gives no answer with marks."""


def ranked_list(rows: Rows, *, grade: Of = "wins", by: By = None) -> Step:
    """One list per prompt: all its answers with a grade each, the best first and equal ones by id.

    Args:
        rows: judgments, or pairs, which are graded by wins.
        grade: ``wins`` is an answer's mean P(better) over the answers it was compared with; else one number of its
            ratings, each a mean over the prompt's judgments: ``mean`` of the aspects that all answers are rated on,
            ``fine_grained`` (each answer's own mean), an aspect's name, or weights such as ``{helpfulness: 0.65}``.
        by: whose judgments count, such as ``model:*``.

    Raises:
        InputError: a grade that the judgments do not give, or one by ratings, or ``by``, of pairs.
    """
    if rows.rows is not None:
        pairs = pairs_of(rows, "ranked_list")
        if grade != "wins" or by is not None:
            raise InputError("ranked_list reads ratings and names of judges off judgments: make it the first step.")
        return _of_pairs(pairs)
    items = heard(at_first(rows, "ranked_list"), by, "ranked_list")
    if grade == "wins":
        compared = soft_label(replace(rows, items=items))
        lists = _of_pairs([row for row in compared.rows if isinstance(row, Pair)])
        return lists._replace(dropped=compared.dropped)
    every = [judgment for judgments in items.values() for judgment in judgments]
    check_of(grade, every, "ranked_list", "grade")
    return _of_ratings(items, grade)


def choice_of_n(rows: Rows, *, by: By = None) -> Step:
    """One list per item: its answers, each graded by the share of judgments that chose it, the best first.

    It is for judgments that name the best of n answers and say nothing of the others; two are a pair. A tie among the n
    is a share for each of them. ``by`` names whose judgments count.
    """
    lists: list[Graded] = []
    dropped: Counter[str] = Counter()
    for judgments in heard(at_first(rows, "choice_of_n"), by, "choice_of_n").values():
        telling = [judgment for judgment in judgments if judgment.verdict in TELLING]
        answers = sorted(set(judgments[0].slots)) if judgments else []
        if not telling:
            dropped[UNREADABLE if judgments else UNHEARD] += 1
        elif len(answers) < 2:
            dropped[ALONE] += 1
        else:
            shares = {
                answer: mean([1 / len(answers) if one.winner is None else _chose(one, answer) for one in telling])
                for answer in answers
            }
            lists.append(_list(telling[0].prompt_id, shares, ids_of(telling)))
    return Step(lists, dropped)


def attributes(rows: Rows, *, aspects: Sequence[str] | None = None, by: By = None) -> Step:
    """One row per answer with its ``ratings``: by aspect the mean over the judgments that rated it, None without any.

    Every row names the same aspects, so that they can be the outputs of one model; those of HelpSteer2 are learned so
    (Wang et al. 2024, arXiv 2406.08673). A rating counts whatever the verdict was: which answer is better is not asked.

    Args:
        rows: judgments; it is a first step.
        aspects: those that are kept; None keeps all.
        by: whose ratings count.

    Raises:
        InputError: no ratings, or an aspect that nothing rates.
    """
    items = heard(at_first(rows, "attributes"), by, "attributes")
    every = [judgment for judgments in items.values() for judgment in judgments]
    wanted = _wanted(aspects, aspects_of(every))
    found: list[Graded] = []
    for prompt, judgments in by_prompt(every).items():
        for answer, marks in rated(judgments).items():
            kept = {aspect: marks.get(aspect) for aspect in wanted}
            if any(value is not None for value in kept.values()):
                ids = ids_of(one for one in judgments if answer in one.slots and set(wanted) & set(one.ratings))
                found.append(Graded(prompt_id=prompt, response_ids=(answer,), ratings=(kept,), judgment_ids=ids))
    silent = [judgments for judgments in items.values() if not _rates(judgments, wanted)]
    return Step(found, Counter(NO_RATINGS if judgments else UNHEARD for judgments in silent))


def unpair(rows: Rows, *, soft: bool = False) -> Step:
    """Two rows per pair, each an answer that stands alone with P(it is desirable): 1 if it was chosen, 0 if rejected.

    That is how KTO learns from pairs (Ethayarajh et al. 2024, arXiv 2402.01306). ``soft`` gives p and 1 - p instead,
    and keeps ties; without it they are dropped, for neither side was chosen. The two sides of a pair stand as many rows
    apart as there are pairs, in an order that hangs on their ids: side by side, one would be the other's baseline.
    """
    if not isinstance(soft, bool):
        raise InputError(f"unpair has soft = {soft!r}; expected true or false.")
    pairs = pairs_of(rows, "unpair")
    kept = [(content_id("unpair", pair.id), pair) for pair in pairs if soft or pair.p != 0.5]
    halves: tuple[list[Graded], list[Graded]] = ([], [])
    for key, pair in sorted(kept, key=lambda keyed: keyed[0]):
        chosen = _alone(pair, pair.prompt_id, pair.chosen_id, pair.p if soft else 1.0)
        other = pair.rejected_prompt_id or pair.prompt_id
        rejected = _alone(pair, other, pair.rejected_id, round(1.0 - pair.p, EXACT) if soft else 0.0)
        # Which side comes early hangs on the id too, so that either half has some of both.
        turn = int(key[-1], 16) % 2
        halves[turn].append(chosen)
        halves[1 - turn].append(rejected)
    return Step([*halves[0], *halves[1]], {"ties": sum(not soft and pair.p == 0.5 for pair in pairs)})


def _of_pairs(pairs: Sequence[Pair]) -> Step:
    """Return one list per prompt and user, graded by wins."""
    prompts: dict[tuple[str, str], list[Pair]] = {}
    abroad = 0
    for pair in pairs:
        if pair.rejected_prompt_id in ("", pair.prompt_id):
            prompts.setdefault((pair.prompt_id, pair.user), []).append(pair)
        else:
            abroad += 1
    lists = [
        _list(prompt, wins(own), tuple(sorted({key for pair in own for key in pair.judgment_ids})), user)
        for (prompt, user), own in prompts.items()
    ]
    return Step(lists, {ABROAD: abroad})


def _of_ratings(items: Mapping[str, Sequence[Judgment]], grade: Of) -> Step:
    """Return one list per prompt, graded by ratings; the items of a prompt that has none go together."""
    lists: list[Graded] = []
    dropped: Counter[str] = Counter()
    prompts: dict[str, list[list[Judgment]]] = {}
    for judgments in items.values():
        telling = [judgment for judgment in judgments if judgment.verdict in TELLING]
        if not telling:
            dropped[UNREADABLE if judgments else UNHEARD] += 1
        elif not _rates(telling, aspects_of(telling)):
            dropped[NO_RATINGS] += 1
        else:
            prompts.setdefault(telling[0].prompt_id, []).append(telling)
    for prompt, groups in prompts.items():
        telling = [judgment for group in groups for judgment in group]
        marks = rated(telling)
        known = {answer for answer, of_one in marks.items() if any(value is not None for value in of_one.values())}
        grades = overall({answer: marks[answer] for answer in sorted(known)}, grade)
        if grades is None or len(grades) < 2:
            dropped[UNRATED if grades is None else ALONE] += len(groups)
        else:
            lists.append(_list(prompt, grades, ids_of(telling)))
    return Step(lists, dropped)


def _list(prompt: str, grades: Mapping[str, float], judgment_ids: tuple[str, ...], user: str = "") -> Graded:
    order = best_first(grades)
    return Graded(
        prompt_id=prompt,
        response_ids=tuple(order),
        grades=tuple(grades[answer] for answer in order),
        user=user,
        judgment_ids=judgment_ids,
    )


def _rates(judgments: Sequence[Judgment], aspects: Sequence[str]) -> bool:
    """Whether any of ``judgments`` gives any answer a rating on one of ``aspects``."""
    marks = rated(judgments)
    return any(of_one.get(aspect) is not None for of_one in marks.values() for aspect in aspects)


def _wanted(aspects: object, known: Sequence[str]) -> list[str]:
    """Return the aspects that are kept of those ``known``."""
    named = [aspects] if isinstance(aspects, str) else known if aspects is None else aspects
    if not isinstance(named, list | tuple) or aspects == [] or not all(isinstance(name, str) for name in named):
        raise InputError(f"attributes has aspects = {aspects!r}; expected the name of an aspect, or a list of them.")
    if not known:
        raise Lacking("attributes reads ratings, and no judgment has any; judge with aspects or score first.")
    for name in named:
        if name not in known:
            raise Lacking(
                f"attributes has the aspect {name!r}, which nothing rates; there are {', '.join(known)}."
                f"{nearest(name, known)}"
            )
    return list(named)


def _chose(judgment: Judgment, answer: str) -> float:
    return float(judgment.winner is not None and judgment.slots[judgment.winner] == answer)


def _alone(pair: Pair, prompt: str, answer: str, grade: float) -> Graded:
    return Graded(
        prompt_id=prompt,
        response_ids=(answer,),
        grades=(grade,),
        weight=pair.weight,
        user=pair.user,
        judgment_ids=pair.judgment_ids,
    )
