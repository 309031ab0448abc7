"""Pairs as rows that compare two answers at once: a draft with what improves it, and one order with the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tiebreak.curate.table import Rows, Step
from tiebreak.curate.words import Made, pairs_of_one_prompt, words_of_pairs
from tiebreak.data.drafts import versus as versus_text
from tiebreak.data.drafts import with_draft
from tiebreak.records import Graded, Pair, Response

TIES = "ties"
EQUAL = "equal texts"
"""Why :func:`drafts` drops a pair; :func:`versus` has the second reason too."""


def drafts(rows: Rows) -> Step:
    """Make of each pair a list of four: both answers, each behind a prompt with either of them as the draft.

    Grade 2 has the chosen answer behind the rejected draft, 0 the other way round, and 1 each answer behind itself, so
    the pairs of different grade are the five orderings of PIT's gap reward (Wang et al. 2023, arXiv 2310.00898). An
    answer behind itself is no better than the other behind itself: those two are no pair. Ties and equal texts improve
    nothing and are dropped.
    """
    pairs = pairs_of_one_prompt(rows, "drafts")
    words, made = words_of_pairs(rows, pairs), Made()
    dropped: Counter[str] = Counter()
    found: list[Graded] = []
    for pair in pairs:
        prompt = words.prompts[pair.prompt_id]
        better, worse = words.responses[pair.chosen_id], words.responses[pair.rejected_id]
        if pair.p == 0.5 or better.text == worse.text:
            dropped[TIES if pair.p == 0.5 else EQUAL] += 1
            continue
        poor, good = with_draft(prompt, worse.text), with_draft(prompt, better.text)
        branches = [(poor, better, 2.0), (good, better, 1.0), (poor, worse, 1.0), (good, worse, 0.0)]
        found.append(
            Graded(
                prompt_id=pair.prompt_id,
                response_ids=tuple(made.behind(behind, response) for behind, response, _ in branches),
                grades=tuple(grade for *_, grade in branches),
                prompt_ids=tuple(behind.id for behind, *_ in branches),
                weight=pair.weight,
                user=pair.user,
                judgment_ids=pair.judgment_ids,
            )
        )
    return Step(found, dropped, made.records)


def versus(rows: Rows) -> Step:
    """Make the two sides of each pair the two orders of both answers, the one with the better answer first chosen.

    The rows of a pairwise preference model (Dong et al. 2024, arXiv 2405.07863), which sees both answers at once. It
    gives each order a score, and a Bradley-Terry loss on their difference averages over slots by construction: what
    favours a slot favours both sides alike. p, margin and judgments are the pair's. Equal texts are dropped.
    """
    pairs = pairs_of_one_prompt(rows, "versus")
    words, made = words_of_pairs(rows, pairs), Made()
    found: list[Pair] = []
    for pair in pairs:
        first, second = words.responses[pair.chosen_id].text, words.responses[pair.rejected_id].text
        if first == second:
            continue
        orders = [
            made.response(Response(prompt_id=pair.prompt_id, text=versus_text(*texts)))
            for texts in ((first, second), (second, first))
        ]
        found.append(replace(pair, chosen_id=orders[0], rejected_id=orders[1], beside={}, id=""))
    return Step(found, {EQUAL: len(pairs) - len(found)}, made.records)
