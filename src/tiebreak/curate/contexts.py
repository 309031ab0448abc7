"""Pairs judged under a stated criterion or scenario: which have one, and which turn round under another one."""

from __future__ import annotations

from collections import Counter

from tiebreak.curate.table import Rows, Step
from tiebreak.curate.words import pairs_of_one_prompt, words_of_pairs
from tiebreak.records import Message, Pair

NONE = "no context"
UNTURNED = "no other context reverses it"
"""Why :func:`in_context` drops a pair."""

Key = tuple[str | tuple[Message, ...], frozenset[str]]


def in_context(rows: Rows, *, reversal: bool = False) -> Step:
    """Keep pairs whose prompt has a context, which a reward model reads in front of the question.

    With ``reversal`` only those stay for which the same question has another context that prefers the same two answers
    the other way round: the pairs of RPR (Pitis et al. 2024, arXiv 2407.14916), on which a model that is blind to the
    context is right half of the time and never for both contexts at once. What remains counts them. Questions and
    answers are compared by their words, for behind two contexts the same answer is two responses; ties reverse nothing.
    """
    pairs = pairs_of_one_prompt(rows, "in_context")
    words = words_of_pairs(rows, pairs)
    kept = [pair for pair in pairs if words.prompts[pair.prompt_id].context.strip()]
    dropped = Counter({NONE: len(pairs) - len(kept)})
    if not reversal:
        return Step(kept, dropped)

    def sides(pair: Pair) -> tuple[str, str]:
        return words.responses[pair.chosen_id].text, words.responses[pair.rejected_id].text

    def key(pair: Pair) -> Key:
        return words.prompts[pair.prompt_id].text, frozenset(sides(pair))

    preferred: dict[Key, dict[str, set[str]]] = {}
    for pair in kept:
        if pair.p > 0.5:
            contexts = preferred.setdefault(key(pair), {})
            contexts.setdefault(sides(pair)[0], set()).add(words.prompts[pair.prompt_id].context)
    turned = [
        pair
        for pair in kept
        if pair.p > 0.5 and preferred[key(pair)].get(sides(pair)[1], set()) - {words.prompts[pair.prompt_id].context}
    ]
    dropped[UNTURNED] = len(kept) - len(turned)
    return Step(turned, dropped)
