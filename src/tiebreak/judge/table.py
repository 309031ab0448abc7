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


@runtime_checkable
class Hears(Protocol):
    """What a judge made of several has besides: its answer together with the answers it rests on.

    Whoever asks records both, so that agreement between ``jurors`` is a query over the ledger. ``ask`` gives the
    answer alone.
    """

    @property
    def jurors(self) -> Sequence[Judge]:
        """Those who are asked."""
        ...

    async def hear(self, question: Question) -> tuple[Judgment, Sequence[Judgment]]:
        """Answer ``question`` and hand out what each juror said."""
        ...


WHO: dict[str, Any] = {
    "endpoint": "",
    "model": "",
    "revision": "",
    "key_env": "OPENAI_API_KEY",
    "timeout": 120.0,
    "retries": 6,
    "price_in": None,
    "price_out": None,
    "rpm": None,
    "tpm": None,
    "device": "cpu",
    "batch": 8,
    "window": 4096,
}
"""The knobs of every judge that is a model, on a server or here, with their defaults: whom to ask, and how."""

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
                **WHO,
                "rubric": "tldr",
                "rationale": True,
                "steps": 2,
                "prefill": False,
                "scale": "binary",
                "ties": "forbid",
                "shots": 0,
                "samples": 1,
                "structured": False,
                "reask": 1,
                "logprobs": True,
                "top_logprobs": 20,
                "temperature": 0.0,
                "rationale_tokens": 512,
                "verdict_tokens": 5,
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
        Row(
            name="score",
            does="a model marks each response alone from 1 to 10; the higher expected mark wins",
            target="tiebreak.judge.score:make",
            knobs={
                **WHO,
                "rubric": "tldr",
                "points": 1.0,
                "logprobs": True,
                "top_logprobs": 20,
                "ten": "auto",
                "reask": 1,
            },
            paper="https://arxiv.org/abs/2309.00267",
        ),
        Row(
            name="aspects",
            does="a model rates two responses on several aspects; a stated rule with vetoes makes the verdict",
            target="tiebreak.judge.aspects:make",
            knobs={
                **WHO,
                "rubric": "ultrafeedback",
                "together": True,
                "shape": "auto",
                "overall": "",
                "margin": 0.0,
                "most_missing": 1,
                "reask": 1,
                "logprobs": False,
                "top_logprobs": 20,
                "temperature": 0.0,
                "answer_tokens": 1024,
            },
            paper="https://arxiv.org/abs/2310.01377",
        ),
        Row(
            name="panel",
            does="several judges as one: the weighted mean of their probabilities or votes",
            target="tiebreak.judge.panel:make",
            knobs={"jurors": (), "weights": (), "count": "probability"},
            paper="https://arxiv.org/abs/2404.18796",
        ),
        Row(
            name="debate",
            does="a model argues for each of two responses in turns, then it or another model decides",
            target="tiebreak.judge.debate:make",
            knobs={
                **WHO,
                "rubric": "debate",
                "rounds": 2,
                "reask": 1,
                "logprobs": True,
                "top_logprobs": 20,
                "temperature": 0.0,
                "turn_tokens": 256,
                "verdict_tokens": 5,
                "judge_endpoint": "",
                "judge_model": "",
                "judge_revision": "",
                "judge_key_env": None,
                "judge_price_in": None,
                "judge_price_out": None,
            },
            paper="https://arxiv.org/abs/2402.06782",
        ),
    ],
)


def make_judge(by: str, **knobs: Any) -> Judge:
    """Return the judge that ``by`` names, a row or your own ``module:function``; ``knobs`` override its defaults."""
    row = JUDGES[by]
    judge: Judge = row.load()(**row.settle(knobs, where="judge"))
    return judge
