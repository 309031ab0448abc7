"""A judge as a reward: a mark from 1 to 10 for a completion alone, or P(better than the known answer).

Nothing here guesses: what cannot be read has no score. Words stand in prompt files; texts are inserted whole.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tiebreak.endpoint import Endpoint, Reply, finish, together
from tiebreak.judge.table import Judge, Question, make_judge
from tiebreak.judge.verdict import SPACES, Token, soft_label
from tiebreak.records import InputError, Prompt, Response
from tiebreak.registry import nearest
from tiebreak.rewards.table import Answered, Marks, Reward, Unscored
from tiebreak.rewards.verify import known

Mark = float | Unscored
Result = TypeVar("Result")

PLACES = ("prompt", "completion")
TEN = ("auto", "one", "two")
FAINT = 1e-3
"""Probability of "1" below which it does not matter whether a "0" would follow: less than 0.002 of the reward."""
WHOLE_TEN = "Write the number 10 and nothing else."

_AS_SPACE = str.maketrans(dict.fromkeys(SPACES, " "))
_PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
# The reply begins with the number; "7 to 9", "85", "8.5" and "-3" are no marks, "8/10" and "Score: 8" are.
_MARK = re.compile(
    r"[\s*_\"'`]*(?:(?:the\s+)?(?:mark|score|rating|answer)(?:\s+is)?[\s*_]*[:=]?[\s*_\"'`]*)?"
    r"(10|[1-9])(?![0-9A-Za-z])(?![.,][0-9])(?!\s*(?:-|\u2013|to|or)\s*[0-9])",
    re.IGNORECASE,
)


class Reading(NamedTuple):
    """What a reply says: P(i) of the marks 1 to 10, where 1 still holds what a "0" behind it would make a 10.

    ``zero`` is P("0" follows "1"), None where the reply does not tell.
    """

    chances: tuple[float, ...]
    zero: float | None


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
    Where the server gives no probabilities, the number in the text counts. Many tokenizers write 10 as "1" and "0", so
    that "1" may be the beginning of a 10. Then the model is asked again with its turn begun by "1", unless the first
    reply tells. ``ten`` says which kind the tokenizer is; ``auto`` finds out by having a 10 written, when it matters.

    ``rubric`` is ``tldr``, ``helpful`` or the path of a prompt file with the places ``{{prompt}}`` and
    ``{{completion}}``. Equal completions of a prompt are asked about once.
    """
    for name, value in (("endpoint", endpoint), ("model", model)):
        if not value:
            raise InputError(
                f"judge_score: {name} is missing; write for example endpoint: http://localhost:8000/v1, model: NAME."
            )
    if ten not in TEN:
        raise InputError(f"judge_score: ten is {ten!r}; expected {', '.join(TEN)}.")
    client = Endpoint(
        endpoint,
        model,
        # Unseeded: waits enter no result, and two processes must not wait in step.
        rng=random.Random(),
        key_env=key_env,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
    )
    template = read_prompt(rubric)
    scorer = Scorer(client, template, top_logprobs if logprobs else 0, {"auto": None, "one": False, "two": True}[ten])
    return lambda answered: finish(scorer.score(answered))


@dataclass(eq=False)
class Scorer:
    """A model that gives marks; ``split`` says whether its tokenizer writes 10 as two tokens, None: not known yet."""

    client: Endpoint
    template: str
    top: int
    split: bool | None

    async def score(self, answered: Sequence[Answered]) -> Marks:
        """Return the marks of a batch on the scale from -1 to 1."""
        try:
            texts = list(dict.fromkeys((fill(self.template, one.prompt, t)) for one in answered for t in one.texts))
            replies = await together(self._chat(text) for text in texts)
            readings = dict(zip(texts, map(read, replies), strict=True))
            await self._settle(readings)
        finally:
            await self.client.close()
        marks = {text: _mark(reading) for text, reading in readings.items()}
        return [[marks[fill(self.template, one.prompt, text)] for text in one.texts] for one in answered]

    async def _settle(self, readings: dict[str, Reading | Unscored]) -> None:
        """Find out how much of each "1" is the beginning of a 10, where the reply does not tell."""
        texts = [text for text, found in readings.items() if isinstance(found, Reading) and found.zero is None]
        if texts and self.split is None:
            self.split = await self._splits()
        zeros = await together(self._zero(text) for text in texts) if self.split else [0.0] * len(texts)
        for text, zero in zip(texts, zeros, strict=True):
            found = readings[text]
            readings[text] = found._replace(zero=zero) if isinstance(found, Reading) else found

    async def _splits(self) -> bool:
        reply = await self._chat(WHOLE_TEN)
        said = [label for token, _ in reply.tokens or () if (label := _label(token))]
        if said[:1] == ["10"] or said[:2] == ["1", "0"]:
            return said[0] == "1"
        raise InputError(
            f"judge_score: {self.client.model!r} was asked to write 10 and wrote {_short(reply.text)}, so its tokens "
            "cannot be told; set ten: one or ten: two."
        )

    async def _zero(self, text: str) -> float:
        reply = await self._chat(text, begun="1")
        return _zero(reply.tokens[0][1]) if reply.tokens else 0.0

    async def _chat(self, text: str, begun: str = "") -> Reply:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": begun}]
        return await self.client.chat(
            turns if begun else turns[:1],
            max_tokens=1 if begun else 5,
            temperature=0.0,
            logprobs=self.top > 0,
            top_logprobs=self.top,
            continue_final=bool(begun),
        )


def read(reply: Reply) -> Reading | Unscored:
    """Read a mark: from the probabilities of the tokens where it stands, else from the text alone."""
    found = _MARK.match(reply.text.translate(_AS_SPACE))
    if found is None:
        return Unscored("the mark cannot be read", _short(reply.text), "ask a model that keeps to one number")
    said = int(found[1])
    decided = Reading(tuple(float(i == said) for i in range(1, 11)), 0.0)
    place = _token_at(reply.text, reply.tokens or (), found.start(1), found[1])
    if place is None or reply.tokens is None:
        return decided
    seen: dict[str, float] = {}
    for token, logprob in reply.tokens[place][1].items():
        label = _label(token)
        seen[label] = seen.get(label, 0.0) + math.exp(logprob)
    chances = tuple(seen.get(str(i), 0.0) for i in range(1, 11))
    total = sum(chances)
    if not total:
        return decided
    zero: float | None = None
    if chances[9] or chances[0] <= FAINT * total:
        zero = 0.0
    elif _label(reply.tokens[place][0]) == "1" and place + 1 < len(reply.tokens):
        zero = _zero(reply.tokens[place + 1][1])
    return Reading(tuple(chance / total for chance in chances), zero)


def _mark(reading: Reading | Unscored) -> Mark:
    if isinstance(reading, Unscored):
        return reading
    mean = sum(i * chance for i, chance in enumerate(reading.chances, 1))
    mean += 9 * reading.chances[0] * (reading.zero or 0.0)  # what of the 1 is a 10
    return 2 * (mean - 1) / 9 - 1


def _token_at(text: str, tokens: Sequence[Token], where: int, said: str) -> int | None:
    """Return which token is the number, or its first digit, at ``where``; None where it is fused with other text."""
    start = 0
    whole = "".join(token for token, _ in tokens) == text
    for place, (token, _) in enumerate(tokens):
        fits = _label(token) in (said, said[0])
        if fits and (not whole or start <= where < start + len(token)):
            return place
        start += len(token)
    return None


def _zero(top: Mapping[str, float]) -> float:
    return sum(math.exp(logprob) for token, logprob in top.items() if token == "0")


def _label(token: str) -> str:
    return token.translate(_AS_SPACE).strip()


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")


def fill(template: str, prompt: Prompt, completion: str) -> str:
    """Put prompt and completion into the template in one pass, so that a marker inside a text is just text."""
    asked = f"{prompt.context}\n\n{prompt.plain}" if prompt.context else prompt.plain
    texts = {"prompt": asked.strip(), "completion": completion.strip()}
    return _PLACE.sub(lambda place: texts[place[1]], template)


def read_prompt(rubric: str) -> str:
    """Return the text of a prompt file that ships with tiebreak, or of the user's file at that path, once checked."""
    shipped = resources.files("tiebreak.rewards") / "prompts"
    names = sorted(entry.name.removesuffix(".txt") for entry in shipped.iterdir() if entry.name.endswith(".txt"))
    try:
        path = shipped / f"{rubric}.txt" if rubric in names else Path(rubric)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"judge_score: there is no rubric {rubric!r}; there are {', '.join(names)}, or the path of your own prompt "
            f"file.{nearest(rubric, names)}"
        ) from error
    if set(found := _PLACE.findall(text)) != set(PLACES):
        raise InputError(
            f"judge_score: the rubric {rubric} has the places {', '.join(found) or 'of nothing'}; expected "
            "{{prompt}} and {{completion}}, and no others."
        )
    return text.strip()


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
            return Unscored("the verdict cannot be read", _short(raw), "ask a model that keeps to the answers offered")
        return label.p

    texts = list(dict.fromkeys((a.prompt.id, text) for a in answered for text in a.texts))
    prompts = {a.prompt.id: a.prompt for a in answered}
    try:
        marks = dict(zip(texts, await together(one(prompts[i], t) for i, t in texts), strict=True))
    finally:
        await judge.close()
    return [[marks[a.prompt.id, text] for text in a.texts] for a in answered]
