"""Rejected answers without a second model: what a model says when the sentence that holds the answer is hidden.

A step cannot sample, so this is two steps around a sampler. ``mask_context`` makes the prompts to sample from;
``corrupted_negatives`` takes the answers that came of them, once they are in judgments, and puts them behind the true
prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from tiebreak.curate.knobs import check_number
from tiebreak.curate.table import Rows, Step
from tiebreak.curate.words import Made, pairs_of_one_prompt, words_of, words_of_pairs
from tiebreak.records import InputError, Pair, Prompt, Response
from tiebreak.registry import nearest

MASKED = "masked"
"""The field in which a prompt names the one whose context it hides parts of, and an answer the prompt it came of."""

CORRUPTED = "answers to a prompt with hidden context"
NO_CONTEXT = "no context to hide"
NO_ANSWER = "no answer to look for in the context"
NOWHERE = "no sentence of the context holds the answer"
"""Why :func:`mask_context` drops a pair."""

AGAIN = "the chosen answer has its pair already"
UNSAMPLED = "no answer to its prompt with hidden context"
SIMILAR = "every such answer is too similar to the chosen one"
"""Why :func:`corrupted_negatives` drops a pair, besides ``CORRUPTED``."""

BY = ("reference", "answer")

_SENTENCE = re.compile(r".*?(?:[.!?]+(?=\s)|\n|\Z)\s*", re.DOTALL)
_TOKEN = re.compile(r"\w+")


def mask_context(rows: Rows, *, by: str = "reference") -> Step:
    """Make of each prompt one whose context lacks the sentences that hold the answer, to sample wrong answers from.

    The text form of bias-driven hallucination sampling (Amirloo et al. 2024, arXiv 2407.02477), which hides parts of an
    image. ``by`` says what the answer is: ``reference`` hides every sentence in which the prompt's reference stands,
    whatever the case; ``answer`` hides those with the most words that the chosen answer has and the question has not.
    The pairs stay as they are; those whose prompt cannot be masked are dropped. The prompts made keep all but their
    context and name the true prompt in the field ``masked``.

    Raises:
        InputError: a ``by`` it does not know.
    """
    if by not in BY:
        raise InputError(f"mask_context has by = {by!r}; expected {' or '.join(BY)}.{nearest(str(by), BY)}")
    pairs = pairs_of_one_prompt(rows, "mask_context")
    words, made = words_of_pairs(rows, pairs), Made()
    dropped: Counter[str] = Counter()
    kept: list[Pair] = []
    for pair in pairs:
        prompt = words.prompts[pair.prompt_id]
        answer = prompt.reference if by == "reference" else words.responses[pair.chosen_id].text
        found = CORRUPTED if MASKED in prompt.fields else _masked(prompt, answer, whole=by == "reference")
        if isinstance(found, Prompt):
            made.prompt(found)
            kept.append(pair)
        else:
            dropped[found] += 1
    return Step(kept, dropped, made.records)


def _masked(prompt: Prompt, answer: str | None, *, whole: bool) -> Prompt | str:
    """Return the prompt without the sentences that hold ``answer``, or why there is none."""
    if not prompt.context.strip():
        return NO_CONTEXT
    if answer is None or not tokens(answer):
        return NO_ANSWER
    sentences = [sentence for sentence in _SENTENCE.findall(prompt.context) if sentence]
    if whole:
        held = [int(_stands_in(tokens(answer), tokens(sentence))) for sentence in sentences]
    else:
        wanted = {*tokens(answer)} - {*tokens(prompt.plain)}
        held = [len(wanted & {*tokens(sentence)}) for sentence in sentences]
    most = max(held)
    if not most:
        return NOWHERE
    left = "".join(sentence for sentence, count in zip(sentences, held, strict=True) if count < most).strip()
    return replace(prompt, context=left, fields={**prompt.fields, MASKED: prompt.id}, id="")


def corrupted_negatives(rows: Rows, *, below: float = 0.6) -> Step:
    """Pair the chosen answer of each pair with one that a model gave when the answer was hidden from it.

    Amirloo et al. 2024, arXiv 2407.02477. Such answers are those in the judgments given whose prompt ``mask_context``
    made (judging them with a rule is enough; what was said of them is not read). In the order they were drawn, the
    first whose similarity to the chosen answer (:func:`similarity`) is under ``below`` becomes the rejected one: a copy
    behind the true prompt, with the hidden one in its settings. Where nothing was hidden that matters, all are too
    similar and the pair goes. No judgment is behind the new pairs, and p is 1.

    Raises:
        InputError: a ``below`` that is no number from 0 to 1.
    """
    check_number("corrupted_negatives", "below", below, 0.0, 1.0)
    pairs = pairs_of_one_prompt(rows, "corrupted_negatives")
    words, made, answers = words_of_pairs(rows, pairs), Made(), _answers(rows)
    dropped: Counter[str] = Counter()
    found: dict[str, Pair] = {}
    for pair in pairs:
        prompt, chosen = words.prompts[pair.prompt_id], words.responses[pair.chosen_id]
        candidates = answers.get(prompt.id, [])
        wrong = next((one for one in candidates if similarity(one.text, chosen.text) < below), None)
        if MASKED in prompt.fields:
            dropped[CORRUPTED] += 1
        elif chosen.id in found:
            dropped[AGAIN] += 1
        elif wrong is None:
            dropped[SIMILAR if candidates else UNSAMPLED] += 1
        else:
            settings = {**wrong.settings, MASKED: wrong.prompt_id}
            moved = made.response(replace(wrong, prompt_id=prompt.id, settings=settings, id=""))
            found[chosen.id] = Pair(prompt_id=prompt.id, chosen_id=chosen.id, rejected_id=moved)
    return Step(list(found.values()), dropped, made.records)


def _answers(rows: Rows) -> Mapping[str, list[Response]]:
    """Return by true prompt the judged answers to its prompts with hidden context, in the order they were drawn."""
    judged: dict[str, None] = {}
    asked: set[str] = set()
    for judgments in rows.items.values():
        asked.add(judgments[0].prompt_id)
        judged.update(dict.fromkeys(judgments[0].slots))
    words = words_of(rows, sorted(asked), judged)
    found: dict[str, list[Response]] = {}
    for response in words.responses.values():
        prompt = words.prompts.get(response.prompt_id)
        if prompt is not None and MASKED in prompt.fields:
            found.setdefault(str(prompt.fields[MASKED]), []).append(response)
    return {key: sorted(some, key=lambda response: (response.draw, response.id)) for key, some in found.items()}


def similarity(one: str, other: str) -> float:
    """Return the F1 of the words that two texts share, 1 for the same words however ordered and 0 for none in common.

    Words are compared without case and counted as often as they occur. It stands in for the embeddings of the
    publication, so a paraphrase counts as different.
    """
    left, right = Counter(tokens(one)), Counter(tokens(other))
    if not left or not right:
        return float(left == right)
    return 2 * (left & right).total() / (left.total() + right.total())


def tokens(text: str) -> list[str]:
    """Return the words and numbers of ``text`` without case."""
    return [token.casefold() for token in _TOKEN.findall(text)]


def _stands_in(part: list[str], whole: list[str]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))
