"""Pairs with the reason for them beside: what a judge wrote, as a response that explains which answer is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tiebreak.curate.table import Rows, Step
from tiebreak.curate.words import Made, judgments_of, pairs_of_one_prompt, words_of_pairs
from tiebreak.data.drafts import explaining
from tiebreak.records import InputError, Judgment, Pair, Response
from tiebreak.registry import nearest

NONE = "no rationale supports the chosen side"
"""Why :func:`rationale` drops a pair."""

WHICH: Mapping[str, Callable[[Judgment], tuple[object, ...]]] = {
    "first": lambda judgment: (judgment.id,),
    "longest": lambda judgment: (-len(judgment.rationale.strip()), judgment.id),
    "shortest": lambda judgment: (len(judgment.rationale.strip()), judgment.id),
}


def rationale(rows: Rows, *, which: str = "first", keep: bool = False) -> Step:
    """Put beside each pair the rationale of a judgment behind it that favours the chosen side.

    Just et al. 2024, arXiv 2407.14477. The rationale is a response of the judge to a prompt of its own: the question,
    both answers in the order in which that judgment showed them, for "Response 1" means the first slot, and the request
    to explain. Of several, ``which`` takes the ``first`` by id, which is chance and the same every time, the
    ``longest`` or the ``shortest``. A rationale for the other side or for a tie is never taken. With ``keep`` pairs
    without one stay as they are; an objective with a rationale term then has nothing to learn there from it.

    Raises:
        InputError: a ``which`` it does not know.
    """
    if which not in tuple(WHICH):
        raise InputError(f"rationale takes which = {which!r}; expected {', '.join(WHICH)}.{nearest(str(which), WHICH)}")
    pairs = pairs_of_one_prompt(rows, "rationale")
    words, made, known = words_of_pairs(rows, pairs), Made(), judgments_of(rows)
    found: list[Pair] = []
    for pair in pairs:
        reasons = [known[key] for key in pair.judgment_ids if key in known and _supports(known[key], pair)]
        if not reasons:
            found += [pair] * keep
            continue
        judgment = min(reasons, key=WHICH[which])
        first, second = (words.responses[slot].text for slot in judgment.slots)
        asked = explaining(words.prompts[pair.prompt_id], first, second)
        made.prompt(asked)
        said = made.response(Response(prompt_id=asked.id, text=judgment.rationale.strip(), maker=judgment.by))
        found.append(replace(pair, beside={**pair.beside, "rationale": said}))
    return Step(found, {NONE: len(pairs) - len(found)}, made.records)


def _supports(judgment: Judgment, pair: Pair) -> bool:
    """Whether it says why the chosen one is better: a probability alone is not enough, its verdict has to be that."""
    sides: Sequence[str] = (pair.chosen_id, pair.rejected_id)
    return (
        judgment.winner is not None
        and judgment.slots[judgment.winner] == pair.chosen_id
        and sorted(judgment.slots) == sorted(sides)
        and bool(judgment.rationale.strip())
    )
