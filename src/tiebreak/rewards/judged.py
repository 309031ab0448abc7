"""A judge as a reward: a mark from 1 to 10 for a completion alone, or P(better than the known answer).

Nothing here guesses: what cannot be read has no score. How a mark is asked for and read stands with the judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tiebreak.endpoint import finish, together
from tiebreak.judge.score import Marker, Unread, fill, read_template, scaled, short, split_of
from tiebreak.judge.speaker import speaker
from tiebreak.judge.table import Judge, Question, make_judge
from tiebreak.judge.verdict import soft_label
from tiebreak.records import InputError, Prompt, Response
from tiebreak.rewards.table import Answered, Marks, Reward, Unscored
from tiebreak.rewards.verify import known

Mark = float | Unscored


def make_score(
    endpoint: str = "",
    model: str = "",
    rubric: str = "tldr",
    logprobs: bool = True,
    top_logprobs: int = 20,
    ten: str = "auto",
    concurrency: int = 32,
    key_env: str | None = "OPENAI_API_KEY",
    timeout: float = 120.0,
    retries: int = 6,
) -> Reward:
    """Make the reward of direct RLAIF: ``model`` marks each completion from 1 to 10, without a reward model between.

    The mark is the mean over the probabilities of the ten numbers, renormalised, and goes to [-1, 1] by 2(s - 1)/9 - 1.
    Where there are no probabilities, the number in the text counts. ``ten`` says whether the model writes 10 as one
    token or two, see :class:`tiebreak.judge.score.Marker`. Without ``endpoint`` the model is a local one.

    ``rubric`` is ``tldr``, ``helpful`` or the path of a prompt file with the places ``{{prompt}}`` and
    ``{{completion}}``. Equal completions of a prompt are asked about once.
    """
    if not model:
        raise InputError(
            f"judge_score: {'model' if endpoint else 'endpoint'} is missing; write for example "
            "endpoint: http://localhost:8000/v1, model: NAME."
        )
    split, template = split_of(ten, "judge_score"), read_template(rubric, "judge_score")
    who = speaker(endpoint=endpoint, model=model, key_env=key_env, timeout=timeout, retries=retries)
    marker = Marker(who, template, top_logprobs if logprobs else 0, split, where="judge_score")
    return lambda answered: finish(_score(marker, answered, concurrency))


async def _score(marker: Marker, answered: Sequence[Answered], concurrency: int) -> Marks:
    """Return the marks of a batch on the scale from -1 to 1."""
    free = asyncio.Semaphore(concurrency)

    async def one(text: str) -> Mark:
        async with free:
            found = (await marker.mark(text)).found
        return Unscored(*found) if isinstance(found, Unread) else scaled(found)

    asked = [[fill(marker.template, each.prompt, text) for text in each.texts] for each in answered]
    texts = list(dict.fromkeys(text for row in asked for text in row))
    try:
        marks = dict(zip(texts, await together(map(one, texts)), strict=True))
    finally:
        await marker.close()
    return [[marks[text] for text in row] for row in asked]


def make_against(by: str = "pairwise", answer: str = "", concurrency: int = 32, **knobs: Any) -> Reward:
    """Make the reward that is P(the completion is better than the known answer), from 0 to 1, as the judge ``by`` sees.

    Each completion is judged in both orders and the two probabilities are averaged, so a taste for one slot cancels;
    where either order is unreadable there is no score. A completion equal to the known answer has 1/2 without asking.
    The known answer is the field ``answer`` or the prompt's reference, the first of several. ``knobs`` are the judge's.
    """
    judge = make_judge(by, **knobs)
    return lambda answered: finish(_against(judge, answered, answer, concurrency))


async def _against(judge: Judge, answered: Sequence[Answered], answer: str, concurrency: int) -> Marks:
    free = asyncio.Semaphore(concurrency)
    cure = "name the field with it as answer, or take prompts with references"
    unknown = Unscored("there is no known answer to compare with", cure=cure)

    async def one(prompt: Prompt, text: str) -> Mark:
        references = known(prompt, prompt.fields, answer)
        if not references:
            return unknown
        if text.strip() == references[0]:
            return 0.5
        ours = Response(prompt_id=prompt.id, text=text)
        theirs = Response(prompt_id=prompt.id, text=references[0], maker="reference")
        judgments = []
        for slots in ((ours, theirs), (theirs, ours)):
            async with free:
                judgments.append(await judge.ask(Question(prompt, slots)))
        label = soft_label(judgments, ours.id, theirs.id)
        if label is None or label.orders < 2:
            raw = next((j.raw for j in judgments if j.p_better(ours.id) is None), "")
            return Unscored("the verdict cannot be read", short(raw), "ask a model that keeps to the answers offered")
        return label.p

    texts = list(dict.fromkeys((a.prompt.id, text) for a in answered for text in a.texts))
    prompts = {a.prompt.id: a.prompt for a in answered}
    try:
        marks = dict(zip(texts, await together(one(prompts[i], t) for i, t in texts), strict=True))
    finally:
        await judge.close()
    return [[marks[a.prompt.id, text] for text in a.texts] for a in answered]
