"""The rewards by name, and what a reward is: a batch of answered prompts becomes numbers.

The target of a row is one of two kinds. A verifier looks at one completion, as does a function of the user's own:
``(prompt, completion, fields, **knobs) -> float | None``. What needs a model, a judge or what sampling knows about a
completion works on the whole batch and is made of its knobs, ``make(**knobs) -> Reward``; :data:`BATCHED` names those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tiebreak.records import InputError, Prompt
from tiebreak.registry import Row, Table

if TYPE_CHECKING:
    from tiebreak.models.forest import Tree


class Answered(NamedTuple):
    """A prompt with its completions.

    ``finishes`` says of each completion whether it ended by itself, ``stop``, or at its ``length`` limit. ``lengths``
    counts the tokens of each where that is known. ``trees`` holds the token ids as the policy drew them: the trunk is
    the prompt, branch i is completion i.
    """

    prompt: Prompt
    texts: tuple[str, ...]
    finishes: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    trees: Tree | None = None


class NothingScored(InputError):
    """No completion of a batch could be scored."""


class Unscored(NamedTuple):
    """Why a completion has no number. It counts as None; ``kind`` is what is counted, ``detail`` is shown of the first.

    ``cure`` is what to do about it, used when nothing at all could be scored.
    """

    kind: str
    detail: str = ""
    cure: str = ""


Scores = list[list[float | None]]
"""Per prompt and completion; None where a completion cannot be scored."""

Marks = Sequence[Sequence["float | Unscored | None"]]
"""What a reward may return: scores, with reasons in place of None where it knows them."""

Reward = Callable[[Sequence[Answered]], Marks]
"""Scores a whole batch at once."""

BATCHED = frozenset({"model", "judge_score", "judge_against", "length", "ends"})
"""The rows whose target makes a :data:`Reward` of its knobs; every other target scores one completion."""

_ANSWER = {"answer": ""}

REWARDS = Table(
    "rewards",
    "reward",
    [
        Row(
            name="model",
            does="the score of a reward model",
            target="tiebreak.rewards.model:make",
            knobs={"model": "", "window": 1024, "cut": "start", "batch": 32},
            paper="Stiennon et al. 2020, arXiv 2009.01325",
        ),
        Row(
            name="rule",
            does="the quality that a rule of `tiebreak ls rule` gives",
            target="tiebreak.rewards.verify:rule",
            knobs={"rule": ""},
        ),
        Row(
            name="judge_score",
            does="a model's mark from 1 to 10, averaged over its token probabilities, on a scale from -1 to 1",
            target="tiebreak.rewards.judged:make_score",
            knobs={
                "endpoint": "",
                "model": "",
                "rubric": "tldr",
                "logprobs": True,
                "top_logprobs": 20,
                "ten": "auto",
                "concurrency": 32,
                "key_env": "OPENAI_API_KEY",
                "timeout": 120.0,
                "retries": 6,
            },
            paper="Lee et al. 2023 (direct RLAIF), arXiv 2309.00267",
        ),
        Row(
            name="judge_against",
            does="P(better than the known answer) by any judge of `tiebreak ls judge`, over both orders",
            target="tiebreak.rewards.judged:make_against",
            knobs={"by": "pairwise", **_ANSWER, "concurrency": 32},
            paper="Lee et al. 2023, arXiv 2309.00267",
        ),
        Row(
            name="math",
            does="1 where the final answer equals the known one, else 0",
            target="tiebreak.rewards.maths:equal",
            knobs={**_ANSWER, "marked": False, "library": "auto"},
            paper="Lambert et al. 2024 (Tulu 3), arXiv 2411.15124",
        ),
        Row(
            name="choice",
            does="1 where the letter chosen is the known one, else 0",
            target="tiebreak.rewards.verify:choice",
            knobs={**_ANSWER, "letters": "ABCDE"},
        ),
        Row(
            name="exact",
            does="1 where the completion is the known answer up to case, punctuation and articles, else 0",
            target="tiebreak.rewards.verify:exact",
            knobs={**_ANSWER, "literal": False},
            paper="Rajpurkar et al. 2016, arXiv 1606.05250",
        ),
        Row(
            name="f1",
            does="F1 of the words shared with the known answer, from 0 to 1",
            target="tiebreak.rewards.verify:f1",
            knobs=_ANSWER,
            paper="Rajpurkar et al. 2016, arXiv 1606.05250",
        ),
        Row(
            name="rouge",
            does="F1 of the longest common subsequence of words with the known answer (ROUGE-L), from 0 to 1",
            target="tiebreak.rewards.verify:rouge",
            knobs=_ANSWER,
            paper="Lin 2004, aclanthology.org/W04-1013",
        ),
        Row(
            name="regex",
            does="1 where a regular expression is found, or matches the whole completion, else 0",
            target="tiebreak.rewards.verify:regex",
            knobs={"pattern": "", "whole": False},
        ),
        Row(
            name="json",
            does="1 where the completion is JSON and its keys have the wanted types, else 0",
            target="tiebreak.rewards.verify:parses",
            knobs={"keys": {}, "fence": False},
        ),
        Row(
            name="length",
            does="minus the distance of the length from a band, or a soft punishment near a limit",
            target="tiebreak.rewards.verify:make_length",
            knobs={"unit": "words", "least": None, "most": None, "buffer": None},
            paper="Yu et al. 2025 (DAPO, eq. 13), arXiv 2503.14476",
        ),
        Row(
            name="ends",
            does="1 where the completion ended by itself, 0 where it ran into the limit",
            target="tiebreak.rewards.verify:make_ends",
            paper="Huang et al. 2024, arXiv 2403.17031",
        ),
    ],
)
