"""Pairs whose prompt asks for a score: what a pair says of quality is kept, not only which side is better."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tiebreak.curate.knobs import check_count
from tiebreak.curate.table import Rows, Step
from tiebreak.curate.words import Made, pairs_of_one_prompt, words_of_pairs
from tiebreak.data.drafts import with_goal
from tiebreak.records import InputError, Pair

EQUAL = "equal scores"
AGAINST = "the rejected side has the higher score"
"""Why :func:`goal_conditioned` drops a pair."""


def goal_conditioned(rows: Rows, *, digits: int = 2) -> Step:
    """Make two pairs of each: asked for the chosen side's score it wins, asked for the other's score the other wins.

    Zhang et al. 2024, arXiv 2410.08067. In the second copy the sides are exchanged, for there the answer with the lower
    score is the one that was asked for. Scores are rounded to ``digits`` behind the point before they are compared and
    written: equal ones would ask for both sides in the same words. Ask for the top score when the policy is used, and
    take the goal off (``without_goal``) where a prompt is compared with others.

    Raises:
        InputError: pairs without the scores of both sides.
    """
    check_count("goal_conditioned", "digits", digits, 0)
    pairs = pairs_of_one_prompt(rows, "goal_conditioned")
    if lacking := sum(pair.scores is None for pair in pairs):
        raise InputError(
            f"The curate step 'goal_conditioned' reads the scores of both sides, and {lacking} of {len(pairs)} pairs "
            "have none; begin with score_pairs, which makes them."
        )
    words, made = words_of_pairs(rows, pairs), Made()
    dropped: Counter[str] = Counter()
    found: list[Pair] = []
    for pair in pairs:
        assert pair.scores is not None
        high, low = (round(score, digits) for score in pair.scores)
        if high <= low:
            dropped[EQUAL if high == low else AGAINST] += 1
            continue
        prompt = words.prompts[pair.prompt_id]
        chosen, rejected = words.responses[pair.chosen_id], words.responses[pair.rejected_id]
        asked, other = with_goal(prompt, high), with_goal(prompt, low)
        found.append(
            replace(
                pair,
                prompt_id=asked.id,
                chosen_id=made.behind(asked, chosen),
                rejected_id=made.behind(asked, rejected),
                id="",
            )
        )
        found.append(
            replace(
                pair,
                prompt_id=other.id,
                chosen_id=made.behind(other, rejected),
                rejected_id=made.behind(other, chosen),
                scores=pair.scores[::-1],
                # What explains why the better side is better speaks against this copy.
                beside={role: beside for role, beside in pair.beside.items() if role != "rationale"},
                id="",
            )
        )
    return Step(found, dropped, made.records)
