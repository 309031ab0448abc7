"""The judges by name, and what a judge is: something that answers one question with one judgment.

A row's target is ``make(**knobs) -> Judge``; nothing is loaded until a row is used, so listing judges stays light.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tiebreak.records import Judgment, Progress, Prompt, Response
from tiebreak.registry import Row, Table


class Question(NamedTuple):
    """Two responses to one prompt in the order in which they are shown; ``attempt`` tells repeats apart."""

    prompt: Prompt
    slots: tuple[Response, Response]
    attempt: int = 0


class Judge(Protocol):
    """Whoever answers questions.

    ``by`` names the judge (``rule:world``, ``model:name@host``). ``rubric`` is a hash of all that steers it, so that a
    changed prompt or setting is never taken for an answer that is known. ``instant`` is True for a judge that computes
    and never waits: such a judge gains nothing from a window of calls in flight.
    """

    @property
    def by(self) -> str:
        """Who judges, as judgments record it."""
        ...

    @property
    def rubric(self) -> str:
        """The hash of all that steers the judge."""
        ...

    @property
    def instant(self) -> bool:
        """Whether an answer is computed on the spot."""
        ...

    async def ask(self, question: Question) -> Judgment:
        """Answer ``question``; an unreadable answer is the verdict ``invalid``, a broken judge raises."""
        ...

    async def close(self) -> None:
        """Let go of connections; a later ``ask`` may open them again."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """What a judge may have besides: a look at many questions at once, before each of them is asked.

    So a judge that computes in batches does that, and ``ask`` looks up what it found. ``ask`` has to answer without it
    too. ``progress`` takes the judge's own numbers; how far the questions are is shown by whoever asks.
    """

    def prepare(self, questions: Sequence[Question], progress: Progress) -> None:
        """Do now what is cheaper for all of ``questions`` together."""
        ...


JUDGES = Table(
    "judge",
    "judge",
    [
        Row(
            name="rule",
            does="a formula with planted sharpness, noise and slot bias: free, instant, the truth is known",
            target="tiebreak.judge.rule:make",
            knobs={"rule": "", "sharpness": 1.0, "noise": 0.0, "slot_bias": 0.0, "seed": 0},
        ),
        Row(
            name="pairwise",
            does="a model reads two responses side by side and names the better one, after a rationale if wanted",
            target="tiebreak.judge.pairwise:make",
            knobs={
                "endpoint": "",
                "model": "",
                "revision": "",
                "rubric": "tldr",
                "rationale": True,
                "prefill": False,
                "ties": "forbid",
                "logprobs": True,
                "top_logprobs": 20,
                "temperature": 0.0,
                "rationale_tokens": 512,
                "verdict_tokens": 5,
                "price_in": None,
                "price_out": None,
                "key_env": "OPENAI_API_KEY",
                "timeout": 120.0,
                "retries": 6,
            },
            paper="https://arxiv.org/abs/2309.00267",
        ),
        Row(
            name="reward",
            does="a reward model scores both answers; P(first is better) is the sigmoid of the difference",
            target="tiebreak.judge.scorer:make",
            knobs={
                "model": "",
                "temperature": 1.0,
                "window": 1024,
                "cut": "start",
                "batch": 32,
                "revision": "",
                "device": "cpu",
            },
            paper="Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155",
        ),
    ],
)


def make_judge(by: str, **knobs: Any) -> Judge:
    """Return the judge that ``by`` names, a row or your own ``module:function``; ``knobs`` override its defaults."""
    row = JUDGES[by]
    judge: Judge = row.load()(**row.settle(knobs, where="judge"))
    return judge
