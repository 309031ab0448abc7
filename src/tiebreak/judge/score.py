"""A model marks each answer alone, from 1 to 10, and the better mark wins: the direct score of RLAIF.

The mark is the mean of the ten numbers under the probabilities of their tokens (Lee et al. 2023, arXiv 2309.00267,
d-RLAIF). An answer is marked once whatever pairs it is in, and no order is ever shown. Rewards use the same marker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tiebreak.endpoint import Endpoint, Reply, Unanswered, together
from tiebreak.judge.calls import MOST_TRIES, Once, number_of, spent
from tiebreak.judge.rubric import asked, fill_places, places, read_words, shipped
from tiebreak.judge.scorer import first_probability
from tiebreak.judge.speaker import Speaker, speaker
from tiebreak.judge.table import WHO, Question
from tiebreak.judge.verdict import SPACES, Token
from tiebreak.records import InputError, Judgment, Prompt, Response, content_id

PROTOCOL = 1
"""Part of every rubric hash; it counts up when the way from a reply to a mark changes."""

PLACES = ("prompt", "completion")
TEN = {"auto": None, "one": False, "two": True}
FAINT = 1e-3
"""Probability of "1" below which it does not matter whether a "0" would follow: less than 0.01 of the mark."""
WHOLE_TEN = "Write the number 10 and nothing else."

_WHICH = ("first", "second")
_AS_SPACE = str.maketrans(dict.fromkeys(SPACES, " "))
# The reply begins with the number; "7 to 9", "85", "8.5" and "-3" are no marks, "8/10" and "Score: 8" are.
_MARK = re.compile(
    r"[\s*_\"'`]*(?:(?:the\s+)?(?:mark|score|rating|answer)(?:\s+is)?[\s*_]*[:=]?[\s*_\"'`]*)?"
    r"(10|[1-9])(?![0-9A-Za-z])(?![.,][0-9])(?!\s*(?:-|\u2013|to|or)\s*[0-9])",
    re.IGNORECASE,
)


class Reading(NamedTuple):
    """What a reply says: P(i) of the marks 1 to 10, where 1 still holds what a "0" behind it would make a 10.

    ``zero`` is P("0" follows "1"), None where the reply does not tell. ``mass`` is what the ten had before they were
    renormalised, None where only text was given.
    """

    chances: tuple[float, ...]
    zero: float | None
    mass: float | None = None


class Unread(NamedTuple):
    """A reply without a mark: what is wrong, what was said, what to do."""

    problem: str
    said: str = ""
    cure: str = ""


class Mark(NamedTuple):
    """The mark of one answer, from 1 to 10 or why there is none, with the replies it was read from."""

    found: float | Unread
    mass: float | None
    replies: tuple[Reply, ...]

    @property
    def mean(self) -> float | None:
        """The mark, None where there is none."""
        return None if isinstance(self.found, Unread) else self.found


def scaled(mark: float) -> float:
    """Return a mark from 1 to 10 on the scale from -1 to 1."""
    return 2 * (mark - 1) / 9 - 1


def make(
    rubric: str = "tldr",
    points: float = 1.0,
    logprobs: bool = True,
    top_logprobs: int = 20,
    ten: str = "auto",
    reask: int = 1,
    **who: Any,
) -> ScoreJudge:
    """Make the judge that has the model of ``who`` (see ``speaker``) mark each answer from 1 to 10.

    P(first is better) = sigmoid((mark of the first - mark of the second) / ``points``): a lead of so many points is
    odds of e to 1. ``ten`` says whether the model writes 10 as one token or two, see :class:`Marker`.

    Raises:
        InputError: a knob out of range, or a rubric that is none.
    """
    if not 0 < points < math.inf:
        raise InputError(f"judge: points is {points}; expected a number above 0.")
    if not 0 <= reask < MOST_TRIES:
        raise InputError(f"judge: reask is {reask}; expected 0 to {MOST_TRIES - 1}.")
    split, template = split_of(ten, "judge"), read_template(rubric, "judge")
    steers: list[object] = [template, float(points), logprobs, top_logprobs, ten, reask]
    if (window := who.get("window", WHO["window"])) != WHO["window"]:
        steers.append({"window": window})
    marker = Marker(speaker(**who), template, top_logprobs if logprobs else 0, split, reask, "judge")
    return ScoreJudge(marker, float(points), content_id("rubric", "score", PROTOCOL, *steers))


@dataclass(eq=False)
class ScoreJudge:
    """A marker that compares; ``make`` is the door. Marks are kept by response and attempt."""

    marker: Marker
    points: float
    rubric: str
    marks: Once[Mark] = field(default_factory=Once)

    @property
    def by(self) -> str:
        """``model:NAME@REVISION``."""
        return self.marker.speaker.by

    @property
    def client(self) -> Endpoint | None:
        """The connection to a server, None for a local model."""
        return self.marker.speaker.client

    @property
    def instant(self) -> bool:
        """False: a model takes its time."""
        return False

    async def ask(self, question: Question) -> Judgment:
        """Judge by the marks of the two answers; equal ones are a tie, and without both the verdict is ``invalid``.

        The judgment that had an answer marked bears its cost; others that use the mark bear none.
        """
        found = await together(self._mark(question.prompt, slot, question.attempt) for slot in question.slots)
        (first, _), (second, _) = found
        cost = spent([reply for mark, mine in found if mine for reply in mark.replies])
        scores = [first.mean, second.mean]
        p = strength = None
        if first.mean is not None and second.mean is not None:
            p = first_probability((first.mean - second.mean) / self.points)
            strength = abs(first.mean - second.mean) / 9
        return Judgment(
            prompt_id=question.prompt.id,
            slots=(question.slots[0].id, question.slots[1].id),
            verdict="invalid" if p is None else "tie" if p == 0.5 else "slot",
            winner=None if p is None or p == 0.5 else int(p < 0.5),
            probability=p,
            strength=strength,
            ratings={"score": scores},
            by=self.by,
            rubric=self.rubric,
            raw="\n".join(mark.replies[0].text if mark.replies else "" for mark, _ in found),
            fields=_fields(first, second),
            tokens_in=cost.tokens_in,
            tokens_out=cost.tokens_out,
            price=cost.price,
            latency=cost.latency,
            attempt=question.attempt,
        )

    async def _mark(self, prompt: Prompt, response: Response, attempt: int) -> tuple[Mark, bool]:
        text = fill(self.marker.template, prompt, response.text)
        return await self.marks.get((response.id, attempt), lambda: self.marker.mark(text, attempt))

    async def close(self) -> None:
        """Call off what runs and close the connections; what could not be marked may be tried in another run."""
        await self.marks.close()
        self.marks.forget(lambda mark: mark.mean is None)
        await self.marker.close()


def _fields(first: Mark, second: Mark) -> dict[str, object]:
    """Return what a judgment keeps besides; ``mass`` is that of the mark which has less."""
    masses = [mark.mass for mark in (first, second) if mark.mass is not None]
    fields: dict[str, object] = {"mass": min(masses)} if masses else {}
    missing = [(which, mark.found) for which, mark in zip(_WHICH, (first, second), strict=True)]
    why = [f"the {which} answer: {found.problem}" for which, found in missing if isinstance(found, Unread)]
    return fields | ({"why": "; ".join(why)} if why else {})


@dataclass(eq=False)
class Marker:
    """A model that gives marks.

    Many tokenizers write 10 as "1" and "0", so that "1" may be the beginning of a 10. Then the model is asked again
    with its turn begun by "1", unless the first reply tells. ``split`` says whether the tokenizer is of that kind; None
    finds out by having a 10 written, once and when it matters. ``top`` is how many token probabilities are asked for,
    0 for none: then the number in the text counts. ``where`` begins what the user is told.
    """

    speaker: Speaker
    template: str
    top: int
    split: bool | None
    reask: int = 0
    where: str = "judge"
    probe: Once[bool] = field(default_factory=Once)

    async def mark(self, text: str, attempt: int = 0) -> Mark:
        """Return the mark for ``text``, the template with an answer in it; an unreadable one is asked for again."""
        replies: list[Reply] = []
        call = number_of(attempt)
        found: Reading | Unread = Unread("not asked")
        try:
            for again in range(self.reask + 1):
                replies.append(await self._chat(text, call + again))
                if isinstance(found := read(replies[-1]), Reading):
                    break
            if isinstance(found, Unread):
                return Mark(found, None, tuple(replies))
            zero = found.zero
            if zero is None and await self._splits():
                replies.append(await self._chat(text, call, begun="1"))
                tokens = replies[-1].tokens
                zero = _zero(tokens[0][1]) if tokens else None
        except Unanswered as error:
            return Mark(Unread(error.why), None, tuple(replies))
        mean = sum(i * chance for i, chance in enumerate(found.chances, 1))
        mean += 9 * found.chances[0] * (zero or 0.0)  # what of the 1 is a 10
        return Mark(mean, found.mass, tuple(replies))

    async def close(self) -> None:
        """Call off the question for a 10 and close the connections."""
        await self.probe.close()
        await self.speaker.close()

    async def _splits(self) -> bool:
        if self.split is None:
            self.split, _ = await self.probe.get("ten", self._write_ten)
        return self.split

    async def _write_ten(self) -> bool:
        reply = await self._chat(WHOLE_TEN, 0)
        said = [label for token, _ in reply.tokens or () if (label := _label(token))]
        if said[:1] == ["10"] or said[:2] == ["1", "0"]:
            return said[0] == "1"
        raise InputError(
            f"{self.where}: {self.speaker.by} was asked to write 10 and wrote {short(reply.text)}, so its tokens "
            "cannot be told; set ten: one or ten: two."
        )

    async def _chat(self, text: str, attempt: int, begun: str = "") -> Reply:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": begun}]
        return await self.speaker.chat(
            turns if begun else turns[:1],
            max_tokens=1 if begun else 5,
            temperature=0.0,
            logprobs=self.top > 0,
            top_logprobs=self.top,
            continue_final=bool(begun),
            attempt=attempt,
        )


def read(reply: Reply) -> Reading | Unread:
    """Read a mark: from the probabilities of the tokens where it stands, else from the text alone."""
    found = _MARK.match(reply.text.translate(_AS_SPACE))
    if found is None:
        return Unread("the mark cannot be read", short(reply.text), "ask a model that keeps to one number")
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
    return Reading(tuple(chance / total for chance in chances), zero, min(1.0, total))


def _token_at(text: str, tokens: Sequence[Token], where: int, said: str) -> int | None:
    """Return which token is the number, or its first digit, at ``where``; None where it is fused with other text."""
    start = 0
    offset = "".join(token for token, _ in tokens).rfind(text)
    for place, (token, _) in enumerate(tokens):
        fits = _label(token) in (said, said[0])
        if fits and (offset < 0 or start <= where + offset < start + len(token)):
            return place
        start += len(token)
    return None


def _zero(top: Mapping[str, float]) -> float:
    return sum(math.exp(logprob) for token, logprob in top.items() if token == "0")


def _label(token: str) -> str:
    return token.translate(_AS_SPACE).strip()


def short(text: str) -> str:
    """Return the text in quotes, on one line and cut after 60 characters."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")


def split_of(ten: str, where: str) -> bool | None:
    """Return whether 10 is two tokens by the knob ``ten``, None for what has to be found out."""
    if ten not in TEN:
        raise InputError(f"{where}: ten is {ten!r}; expected {', '.join(TEN)}.")
    return TEN[ten]


def fill(template: str, prompt: Prompt, completion: str) -> str:
    """Put prompt and completion into the template in one pass, so that a marker inside a text is just text."""
    return fill_places(template, {"prompt": asked(prompt), "completion": completion.strip()})


def read_template(rubric: str, where: str) -> str:
    """Return the text of a prompt file that ships with tiebreak, or of the user's file at that path, once checked."""
    text = read_words(rubric, shipped("{{completion}}", prefix="score_"), f"{where}: ")
    if set(found := places(text)) != set(PLACES):
        raise InputError(
            f"{where}: the rubric {rubric} has the places {', '.join(found) or 'of nothing'}; expected "
            "{{prompt}} and {{completion}}, and no others."
        )
    return text.strip()
