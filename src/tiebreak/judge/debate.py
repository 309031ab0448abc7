"""Two advocates argue, one for each response, and a judge reads the debate and decides.

Debate lets a weaker judge decide what it could not see alone (Irving et al. 2018, arXiv 1805.00899; Khan et al. 2024,
arXiv 2402.06782). Both advocates are one model, so neither side has the better speaker, and in each round both write
without seeing the other's turn, so nobody has the last word. What is left is the place in the transcript, which the two
orders of a question balance.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from tiebreak.endpoint import Endpoint, Reply, Unanswered
from tiebreak.judge.calls import MOST_TRIES, number_of, spent
from tiebreak.judge.rubric import fill_places, join, places, read_words, shipped, texts_of
from tiebreak.judge.speaker import LOCAL, SERVED, Speaker, speaker
from tiebreak.judge.table import WHO, Question
from tiebreak.judge.verdict import Reading, read_reply
from tiebreak.records import InputError, Judgment, content_id
from tiebreak.registry import nearest

PROTOCOL = 1
"""Part of every rubric hash; it counts up when the order of turns or the reading of replies changes."""

ARGUE = ("argue first", "argue second")
QUESTION_PLACES = ("prompt", "first", "second")
SECTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "question": (QUESTION_PLACES, ()),
    "argue first": ((), QUESTION_PLACES),
    "argue second": ((), QUESTION_PLACES),
    "reply": (("debate",), (*QUESTION_PLACES, "side", "other")),
    "verdict": (("debate",), QUESTION_PLACES),
}
"""The sections of a prompt file, with the places each must have and those it may have."""

MOST_ROUNDS = 10
SILENT = "advocate {} said nothing"
CUT_OFF = "the reply was cut off before its verdict"

_HEADING = re.compile(r"^\[([a-z ]+)\][ \t]*\r?\n", re.MULTILINE)


def make(
    rubric: str = "debate",
    rounds: int = 2,
    reask: int = 1,
    logprobs: bool = True,
    top_logprobs: int = 20,
    temperature: float = 0.0,
    turn_tokens: int = 256,
    verdict_tokens: int = 5,
    judge_endpoint: str = "",
    judge_model: str = "",
    judge_revision: str = "",
    judge_key_env: str | None = None,
    judge_price_in: float | None = None,
    judge_price_out: float | None = None,
    **who: Any,
) -> DebateJudge:
    """Make the judge that hears the model of ``who`` (see ``speaker``) argue for both sides, for ``rounds`` turns each.

    ``judge_model`` decides in its place, on the same server or at ``judge_endpoint``; its key and prices are its own.
    ``rubric`` is ``debate`` or the path of a prompt file with the sections of ``SECTIONS``.

    Raises:
        InputError: a knob out of range or without effect, or a prompt file that cannot be used.
    """
    for name, value, least, most in (("rounds", rounds, 1, MOST_ROUNDS), ("reask", reask, 0, MOST_TRIES - 1)):
        if not least <= value <= most:
            raise InputError(f"judge: {name} is {value}; expected {least} to {most}.")
    sections = parse_debate(read_words(rubric, shipped("[argue first]\n")), where=rubric)
    if rounds > 1 and not sections["reply"]:
        raise InputError(f"The rubric {rubric} has no section [reply], which rounds={rounds} uses; add it.")
    debater = speaker(**who)
    given = {
        "endpoint": judge_endpoint,
        "model": judge_model,
        "revision": judge_revision,
        "key_env": judge_key_env,
        "price_in": judge_price_in,
        "price_out": judge_price_out,
    }
    other = _second(who, {name: value for name, value in given.items() if value not in ("", None)})
    window = who.get("window", WHO["window"])
    return DebateJudge(
        debater=debater,
        decider=debater if other is None else speaker(**other),
        sections=sections,
        rounds=rounds,
        reask=reask,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        temperature=temperature,
        turn_tokens=turn_tokens,
        verdict_tokens=verdict_tokens,
        steers=() if window == WHO["window"] else (window,),
    )


def _second(who: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return who decides, None where it is the debaters' model; a key goes to no other server than its own."""
    if not given:
        return None
    if not ("model" in given or "endpoint" in given):
        raise InputError(f"judge: judge_{next(iter(given))} does nothing without judge_model; name that too.")
    first = {**WHO, **who}
    endpoint = given.get("endpoint", first["endpoint"])
    alike = bool(endpoint) == bool(first["endpoint"])
    shared = [name for name in (SERVED if endpoint else LOCAL) if alike and not name.startswith("price")]
    if endpoint != first["endpoint"]:
        shared = [name for name in shared if name != "key_env"]
    own = {name: first[name] for name in shared}
    return {**own, "model": first["model"], **given, "endpoint": endpoint}


def parse_debate(text: str, *, where: str) -> dict[str, str]:
    """Split a debate's prompt file into its sections and check the places of each; only ``[reply]`` may be missing."""
    before, *parts = _HEADING.split(text)
    found = dict(zip(parts[::2], (body.strip() for body in parts[1::2]), strict=True))
    for name in found:
        if name not in SECTIONS:
            raise InputError(
                f"The rubric {where} has a section [{name}]; expected {', '.join(f'[{s}]' for s in SECTIONS)}."
                f"{nearest(name, SECTIONS)}"
            )
    missing = [name for name in SECTIONS if not found.get(name) and name != "reply"]
    if before.strip() or missing:
        lacks = f"has no section [{missing[0]}]" if missing else "has text before its first section"
        raise InputError(f"The rubric {where} {lacks}; a debate needs {', '.join(f'[{s}]' for s in SECTIONS)}.")
    for name, body in found.items():
        needed, more = SECTIONS[name]
        seen = places(body)
        if unknown := [place for place in seen if place not in (*needed, *more)]:
            raise InputError(
                f"The section [{name}] of the rubric {where} has a place {{{{{unknown[0]}}}}}; expected "
                f"{', '.join(needed + more)}.{nearest(unknown[0], needed + more)}"
            )
        if body and (absent := [place for place in needed if place not in seen]):
            raise InputError(
                f"The section [{name}] of the rubric {where} never shows {{{{{absent[0]}}}}}; put it there."
            )
    return {name: found.get(name, "") for name in SECTIONS}


class Turn(NamedTuple):
    """What the advocate of a slot said."""

    side: int
    text: str


def transcript(turns: Sequence[Turn]) -> str:
    """Return the debate as it is read: a line with the advocate's number, then every line of theirs behind a mark.

    The mark is why no advocate can write the other's turn.
    """
    said = []
    for turn in turns:
        lines = "\n".join(f"> {line}".rstrip() for line in turn.text.splitlines())
        said.append(f"Advocate {turn.side + 1}:\n{lines}")
    return "\n\n".join(said)


@dataclass(slots=True)
class _Heard:
    """One debate as it goes on: the turns, all replies, the seconds that were waited, and what came of it."""

    turns: list[Turn] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    waited: float = 0.0
    reading: Reading = field(default_factory=lambda: Reading("invalid"))
    raw: str = ""
    tries: int = 0


@dataclass(eq=False, kw_only=True)
class DebateJudge:
    """A model that debates with itself and one that decides; ``make`` is the door."""

    debater: Speaker
    decider: Speaker
    sections: Mapping[str, str]
    rounds: int
    reask: int
    logprobs: bool
    top_logprobs: int
    temperature: float
    turn_tokens: int
    verdict_tokens: int
    steers: tuple[object, ...] = ()

    @property
    def by(self) -> str:
        """``model:NAME@REVISION`` of the model that decides; the one that debates is in the rubric."""
        return self.decider.by

    @cached_property
    def rubric(self) -> str:
        """The hash of the words, the settings and who debates."""
        knobs = (self.rounds, self.reask, self.logprobs, self.top_logprobs, self.temperature)
        sizes = (self.turn_tokens, self.verdict_tokens, *self.steers)
        return content_id("rubric", "debate", PROTOCOL, dict(self.sections), *knobs, *sizes, self.debater.by)

    @property
    def instant(self) -> bool:
        """False: models take their time."""
        return False

    @property
    def clients(self) -> tuple[Endpoint, ...]:
        """The connections to servers, the debaters' first."""
        speakers = (self.debater,) if self.decider is self.debater else (self.debater, self.decider)
        return tuple(one.client for one in speakers if one.client is not None)

    async def ask(self, question: Question) -> Judgment:
        """Hold the debate and have it decided, two calls a round and one more; without a verdict it is ``invalid``."""
        heard = _Heard()
        try:
            await self._debate(question, heard)
            await self._decide(question, heard)
        except Unanswered as error:
            heard.reading = Reading("invalid", why=str(error))
        reading, cost = heard.reading, spent(heard.replies)
        return Judgment(
            prompt_id=question.prompt.id,
            slots=(question.slots[0].id, question.slots[1].id),
            verdict=reading.verdict,
            winner=reading.winner,
            by=self.by,
            probability=reading.probability,
            rationale=transcript(heard.turns),
            rubric=self.rubric,
            raw=heard.raw,
            fields=self._fields(heard),
            tokens_in=cost.tokens_in,
            tokens_out=cost.tokens_out,
            price=cost.price,
            latency=heard.waited,
            attempt=question.attempt,
        )

    async def close(self) -> None:
        """Close the connections of both models."""
        await self.debater.close()
        if self.decider is not self.debater:
            await self.decider.close()

    async def _debate(self, question: Question, heard: _Heard) -> None:
        """Have both advocates write their turns of each round at the same time; one who says nothing ends it."""
        for number in range(self.rounds):
            calls = [self._argue(question, heard.turns, side, number) for side in (0, 1)]
            said = await asyncio.gather(*calls, return_exceptions=True)
            answered = [one for one in said if isinstance(one, Reply)]
            heard.replies += answered
            heard.waited += max((reply.latency for reply in answered), default=0.0)
            for one in said:
                if isinstance(one, BaseException):
                    raise one
            heard.turns += [Turn(side, reply.text.strip()) for side, reply in enumerate(answered)]
            if silent := [turn.side for turn in heard.turns[-2:] if not turn.text]:
                heard.reading = Reading("invalid", why=SILENT.format(silent[0] + 1))
                return

    async def _argue(self, question: Question, turns: Sequence[Turn], side: int, number: int) -> Reply:
        section = self.sections["reply"] if number else self.sections[ARGUE[side]]
        more = {"debate": transcript(turns), "side": str(side + 1), "other": str(2 - side)}
        return await self.debater.chat(
            self._asked(question, section, more),
            max_tokens=self.turn_tokens,
            temperature=self.temperature,
            attempt=number_of(question.attempt),
        )

    async def _decide(self, question: Question, heard: _Heard) -> None:
        """Have the debate decided; an unreadable verdict is asked for again, ``reask`` times."""
        if heard.reading.why:
            return
        messages = self._asked(question, self.sections["verdict"], {"debate": transcript(heard.turns)})
        while heard.tries <= self.reask and heard.reading.verdict == "invalid":
            reply = await self.decider.chat(
                messages,
                max_tokens=self.verdict_tokens,
                temperature=self.temperature,
                logprobs=self.logprobs,
                top_logprobs=self.top_logprobs,
                attempt=number_of(question.attempt) + heard.tries,
            )
            heard.replies.append(reply)
            heard.waited += reply.latency
            heard.raw = reply.text
            heard.tries += 1
            heard.reading = read_reply(reply.text, reply.tokens)
        if heard.reading.verdict == "invalid" and heard.reading.mass is None and reply.finish == "length":
            heard.reading = heard.reading._replace(why=CUT_OFF)

    def _asked(self, question: Question, section: str, more: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the one turn that any chat server takes; what advocates wrote is a text like the others."""
        template = join(self.sections["question"], section)
        return [{"role": "user", "content": fill_places(template, {**texts_of(question), **more})}]

    def _fields(self, heard: _Heard) -> dict[str, object]:
        """Return what a judgment keeps besides."""
        turns, reading = len(heard.turns), heard.reading
        fields: dict[str, object] = {"turns": turns, "debater": self.debater.by}
        if heard.tries:
            fields["finish"] = heard.replies[-1].finish
        if reading.mass is not None:
            fields |= {"mass": reading.mass, "bounded": reading.bounded}
        if cut := sum(reply.finish == "length" for reply in heard.replies[:turns]):
            fields["cut"] = cut
        if heard.tries > 1:
            fields["reasked"] = heard.tries - 1
        if reading.verdict == "invalid":
            fields["why"] = reading.why
        return fields
