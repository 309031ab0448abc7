"""Prompts that tell more than the question: a target score, a draft, a user's choices, demands, two answers to compare.

Training rows and whoever asks the trained model use these same forms, so that both read the same words. What is added
stands in front of a plain prompt, whose last line is the cue to answer, and opens the last user turn of a conversation;
a prompt's context stands before it. A plain prompt that is cut at its start loses what was added first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tiebreak.records import InputError, Message, Prompt

GOAL, DRAFT, SHOTS, DEMANDS, EXPLAIN = "goal", "draft", "shots", "demands", "explain"
"""The fields in which a prompt says what was added to it."""


class Shot(NamedTuple):
    """One choice of a user: the question, the answer they preferred, the other one or "", and the pair it is."""

    question: str
    preferred: str
    other: str = ""
    pair: str = ""


class Demand(NamedTuple):
    """One rule for an answer: its kind, its value (JSON) and its sentence."""

    kind: str
    value: Any
    says: str


def with_goal(prompt: Prompt, goal: float) -> Prompt:
    """Ask for an answer that scores ``goal`` (Zhang et al. 2024, arXiv 2410.08067).

    The sentence ends the system turn of a conversation, or is one, and stands in front of a plain prompt.

    Raises:
        InputError: a goal that is no finite number, or a prompt that has one already.
    """
    sentence = goal_sentence(goal)
    if isinstance(prompt.text, str):
        return _told(prompt, GOAL, float(goal), f"{sentence}\n\n{prompt.text}")
    turns = _turns(prompt)
    if turns and turns[0].role == "system":
        turns[0] = turns[0]._replace(content=f"{turns[0].content}\n\n{sentence}")
    else:
        turns.insert(0, Message("system", sentence))
    return _told(prompt, GOAL, float(goal), tuple(turns))


def without_goal(prompt: Prompt) -> Prompt:
    """Return the prompt that :func:`with_goal` was given, id and all; one without a goal comes back as it is.

    Raises:
        InputError: the prompt names a goal in its fields and does not ask for it in its words.
    """
    if GOAL not in prompt.fields:
        return prompt
    sentence = goal_sentence(prompt.fields[GOAL])
    fields = {name: value for name, value in prompt.fields.items() if name != GOAL}
    text: str | tuple[Message, ...] | None = None
    if isinstance(prompt.text, str):
        if prompt.text.startswith(f"{sentence}\n\n"):
            text = prompt.text.removeprefix(f"{sentence}\n\n")
    else:
        system, *rest = _turns(prompt) or [Message("", "")]
        if system == Message("system", sentence):
            text = tuple(rest)
        elif system.role == "system" and system.content.endswith(f"\n\n{sentence}"):
            text = (system._replace(content=system.content.removesuffix(f"\n\n{sentence}")), *rest)
    if text is None:
        raise InputError(f"Prompt {prompt.id} has the field 'goal' and does not ask for it; rename the field.")
    return replace(prompt, text=text, fields=fields, id="")


def goal_sentence(goal: float) -> str:
    """Return the sentence that asks for ``goal``; different goals have different sentences."""
    if isinstance(goal, bool) or not isinstance(goal, int | float) or not math.isfinite(goal):
        raise InputError(f"The goal is {goal!r}; expected a number, the score that the answer shall have.")
    return f"Write an answer that scores {int(goal) if goal == int(goal) else repr(float(goal))}."


def with_draft(prompt: Prompt, draft: str) -> Prompt:
    """Ask for a better answer than ``draft`` (PIT's policy and gap reward, Wang et al. 2023, arXiv 2310.00898)."""
    block = f"Improve on this draft of an answer.\n\nDraft:\n{draft}\n\nWhat is to be answered:"
    return _told(prompt, DRAFT, draft, _opened(prompt, block))


def versus(first: str, second: str) -> str:
    """Return two answers as one text that a pairwise preference model scores behind their prompt.

    P(first is better) = sigmoid(score(versus(first, second)) - score(versus(second, first))) has no slot bias, whatever
    the scores are: exchanging the answers exchanges the two scores (both orders averaged, as in Dong et al. 2024, arXiv
    2405.07863).
    """
    return f"[RESPONSE A]\n{first}\n\n[RESPONSE B]\n{second}"


def with_shots(prompt: Prompt, shots: Sequence[Shot]) -> Prompt:
    """Show choices of a user before the question (FSPO, Singh et al. 2025, arXiv 2502.19312); none change nothing."""
    if not shots:
        return prompt
    examples = [
        f"## Example {number}\n\n### Question\n\n{shot.question}\n\n### Preferred answer\n\n{shot.preferred}"
        + (f"\n\n### Other answer\n\n{shot.other}" if shot.other else "")
        for number, shot in enumerate(shots, 1)
    ]
    block = "\n\n".join(
        ["# What the user preferred", *examples, "# Question\n\nAnswer this one as the user would prefer."]
    )
    return _told(prompt, SHOTS, [shot.pair for shot in shots], _opened(prompt, block))


def with_demands(prompt: Prompt, demands: Sequence[Demand]) -> Prompt:
    """Ask for an answer that keeps to ``demands`` (MAPL's added instructions, Sun et al. 2025, arXiv 2505.12845)."""
    block = "\n".join(["Keep to these rules.", *(f"- {demand.says}" for demand in demands)])
    return _told(prompt, DEMANDS, [[demand.kind, demand.value] for demand in demands], _opened(prompt, block))


def explaining(prompt: Prompt, first: str, second: str) -> Prompt:
    """Ask which of two answers is better and why, as in Just et al. 2024, arXiv 2407.14477.

    The answers are called by number, as a judge is shown them, so ``first`` is the one that the explanation calls the
    first. A conversation becomes one user turn that quotes it.
    """
    shown = f"{prompt.plain}\n\nResponse 1:\n{first}\n\nResponse 2:\n{second}"
    ask = f"{shown}\n\nExplain which of the two responses is better, and why."
    text = (Message("user", ask),) if prompt.conversational else f"{ask}\n\nExplanation:"
    return _told(prompt, EXPLAIN, True, text)


def _opened(prompt: Prompt, block: str) -> str | tuple[Message, ...]:
    """Return the prompt's text with ``block`` in front, or at the beginning of its last user turn."""
    if isinstance(prompt.text, str):
        return f"{block}\n\n{prompt.text}"
    turns = _turns(prompt)
    if not turns:
        raise InputError(f"Prompt {prompt.id} is a conversation without turns; give it one or drop it.")
    asked = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    turns[asked] = turns[asked]._replace(content=f"{block}\n\n{turns[asked].content}")
    return tuple(turns)


def _turns(prompt: Prompt) -> list[Message]:
    return [turn for turn in prompt.text if isinstance(turn, Message)]


def _told(prompt: Prompt, name: str, value: Any, text: str | tuple[Message, ...]) -> Prompt:
    """Return a prompt of this text that says in the field ``name`` what was added; all else, its group too, is kept."""
    if name in prompt.fields:
        raise InputError(
            f"Prompt {prompt.id} has a field {name!r} already, and what is added to a prompt is kept there; rename "
            "the field, or add it only once."
        )
    fields: Mapping[str, Any] = {**prompt.fields, name: value}
    return replace(prompt, text=text, fields=fields, id="")
