"""A model judges two responses side by side: a rationale first, if wanted, then the number of the better one.

The protocol is that of RLAIF (arXiv 2309.00267): the label is the probability of the token ``1`` against ``2``. The
words stand in prompt files, see ``rubric``; what may be answered in a table, see ``scales``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tiebreak.endpoint import Endpoint, Reply, Unanswered, together
from tiebreak.judge.calls import MOST_SAMPLES, MOST_TRIES, number_of, spent
from tiebreak.judge.rubric import Rubric, load_rubric
from tiebreak.judge.scales import TIES, Scale, scale_of
from tiebreak.judge.speaker import Speaker, speaker
from tiebreak.judge.table import WHO, Question
from tiebreak.judge.turns import Messages, plain, prefilled
from tiebreak.judge.verdict import Reading, mean_reading, read_json, read_reply
from tiebreak.records import InputError, Judgment, content_id

PROTOCOL = 1
"""Part of every rubric hash; it counts up when the order of messages or the reading of replies changes."""

JSON_ROOM = 20
"""Tokens that the JSON around a verdict takes at most."""

CUT_OFF = "the reply was cut off before its verdict"


def make(
    rubric: str = "tldr",
    rationale: bool = True,
    steps: int = 2,
    prefill: bool = False,
    scale: str = "binary",
    ties: str = "forbid",
    shots: int = 0,
    samples: int = 1,
    structured: bool = False,
    reask: int = 1,
    logprobs: bool = True,
    top_logprobs: int = 20,
    temperature: float = 0.0,
    rationale_tokens: int = 512,
    verdict_tokens: int = 5,
    **who: Any,
) -> PairwiseJudge:
    """Make the judge that asks the model of ``who`` (see ``speaker``); docs/judge.md has the table of knobs.

    ``rubric`` is the name of a prompt file or the path of your own. ``steps=1`` has rationale and verdict in one reply.
    ``prefill`` begins the model's turn and has it continued, as RLAIF does; only some servers can. ``samples`` above 1
    draws so many rationales and averages their verdicts.

    Raises:
        InputError: a knob out of range, two that exclude each other, or a rubric that lacks what the knobs use.
    """
    _assert_model(**who)
    _check(rationale, steps, prefill, samples, structured, reask, logprobs, temperature)
    words, offered = load_rubric(rubric, shots), scale_of(scale, ties)
    words.must_have(_needed(offered, rationale, steps, prefill, structured, shots > 0))
    _check_examples(words, offered)
    allowed = "allow" if offered is TIES else "forbid"
    steers = (rationale, prefill, allowed, logprobs, top_logprobs, temperature, rationale_tokens, verdict_tokens)
    window, one_step = who.get("window", WHO["window"]), rationale and steps == 1
    more = _more(words, offered, one_step, structured, samples, reask, window)
    return PairwiseJudge(
        speaker=speaker(**who),
        rubric=content_id("rubric", "pairwise", PROTOCOL, words.founding, *steers, *more),
        words=words,
        scale=offered.reversed() if words.worse else offered,
        rationale=rationale,
        steps=steps,
        prefill=prefill,
        samples=samples,
        structured=structured,
        reask=reask,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        temperature=temperature,
        rationale_tokens=rationale_tokens,
        verdict_tokens=verdict_tokens,
    )


def _assert_model(endpoint: str = "", model: str = "", **_: Any) -> None:
    for name, given in (("endpoint", endpoint or model), ("model", model)):
        if not given:
            raise InputError(
                f"judge: 'pairwise' needs {name}, for instance endpoint=http://localhost:8000/v1 model=NAME, or "
                "model=FOLDER for a local model."
            )


def _check(
    rationale: bool,
    steps: int,
    prefill: bool,
    samples: int,
    structured: bool,
    reask: int,
    logprobs: bool,
    temperature: float,
) -> None:
    for name, value, least, most in (
        ("steps", steps, 1, 2),
        ("samples", samples, 1, MOST_SAMPLES),
        ("reask", reask, 0, MOST_TRIES - 1),
    ):
        if not least <= value <= most:
            raise InputError(f"judge: {name} is {value}; expected {least} to {most}.")
    if structured and prefill:
        raise InputError("judge: structured and prefill exclude each other, for JSON has to begin the reply; take one.")
    if samples > 1 and temperature <= 0:
        raise InputError(
            f"judge: samples is {samples} at temperature {temperature:g}, where all draws are equal; set temperature "
            "above 0, for instance 0.5."
        )
    if samples > 1 and not rationale and logprobs:
        raise InputError(
            f"judge: samples is {samples} without a rationale, so each draw has the same token probabilities; set "
            "rationale=true, or logprobs=false to count drawn verdicts."
        )


def _needed(
    scale: Scale, rationale: bool, steps: int, prefill: bool, structured: bool, examples: bool
) -> Sequence[str]:
    """Return the sections that the prompt file has to have."""
    begun = prefill or examples
    wanted = {
        "rationale": rationale,
        scale.asks: True,
        scale.adds: bool(scale.adds),
        "one step": rationale and steps == 1,
        "structured": structured,
        f"prefill {scale.asks}": begun,
        "prefill rationale": begun and rationale,
    }
    return [name for name, needed in wanted.items() if needed]


def _check_examples(words: Rubric, scale: Scale) -> None:
    for number, example in enumerate(words.examples, 1):
        if (said := example.answers.get(scale.asks)) not in scale.tokens:
            raise InputError(
                f"The worked example {number} of the rubric {words.name} says {said!r} under {scale.asks}; expected "
                f"one of {', '.join(scale.tokens)}."
            )


def _more(
    words: Rubric, scale: Scale, one_step: bool, structured: bool, samples: int, reask: int, window: int
) -> list[dict[str, object]]:
    """Return what steers besides, where it is not as usual: a knob at its default leaves a rubric's hash as it is."""
    sections = words.sections
    found: dict[str, object] = {
        "scale": [scale.name, sections[scale.asks], sections[f"prefill {scale.asks}"]] * (scale.asks != "verdict"),
        "worse": words.worse,
        "examples": [[*words.examples], sections["examples"], sections["after examples"]] * bool(words.examples),
        "one step": sections["one step"] * one_step,
        "structured": sections["structured"] * structured,
        "samples": samples * (samples > 1),
        "reask": str(reask) * (reask != 1),
        "window": window * (window != WHO["window"]),
    }
    set_ones = {name: value for name, value in found.items() if value}
    return [set_ones] if set_ones else []


class _Draw(NamedTuple):
    """One rationale with its verdict; ``raw`` is the reply that holds the verdict, the last of ``replies``."""

    reading: Reading
    rationale: str
    replies: tuple[Reply, ...]
    reasked: int

    @property
    def raw(self) -> str:
        return self.replies[-1].text if self.replies else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseJudge:
    """A model with its rubric and settings; ``make`` is the door."""

    speaker: Speaker
    rubric: str
    words: Rubric
    scale: Scale
    rationale: bool
    steps: int
    prefill: bool
    samples: int
    structured: bool
    reask: int
    logprobs: bool
    top_logprobs: int
    temperature: float
    rationale_tokens: int
    verdict_tokens: int

    @property
    def by(self) -> str:
        """``model:NAME@REVISION``."""
        return self.speaker.by

    @property
    def client(self) -> Endpoint | None:
        """The connection to a server, None for a local model."""
        return self.speaker.client

    @property
    def instant(self) -> bool:
        """False: a model takes its time."""
        return False

    async def ask(self, question: Question) -> Judgment:
        """Judge the question; a verdict that is unreadable, or that nobody answered, is ``invalid`` and says why."""
        draws = await together(self._draw(question, number) for number in range(self.samples))
        reading = draws[0].reading if self.samples == 1 else mean_reading([d.reading for d in draws], self.scale)
        told = next((d for d in draws if (d.reading.verdict, d.reading.winner) == reading[:2]), draws[0])
        cost = spent([reply for draw in draws for reply in draw.replies])
        return Judgment(
            prompt_id=question.prompt.id,
            slots=(question.slots[0].id, question.slots[1].id),
            verdict=reading.verdict,
            winner=reading.winner,
            by=self.by,
            probability=reading.probability,
            strength=reading.strength,
            rationale=told.rationale,
            rubric=self.rubric,
            raw="\n".join(draw.raw for draw in draws),
            fields=_fields(reading, draws, told),
            tokens_in=cost.tokens_in,
            tokens_out=cost.tokens_out,
            price=cost.price,
            latency=cost.latency,
            attempt=question.attempt,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.speaker.close()

    async def _draw(self, question: Question, number: int) -> _Draw:
        """Have a rationale written, where one is wanted, and the verdict, which is asked for again if unreadable."""
        replies: list[Reply] = []
        why, reading, tries = "", Reading("invalid"), 0
        call = number_of(question.attempt, number)
        one_step = self.rationale and self.steps == 1
        room = self.verdict_tokens + JSON_ROOM * self.structured + self.rationale_tokens * one_step
        try:
            if self.rationale and not one_step:
                replies.append(await self._chat(self._messages(question, None), self.rationale_tokens, call))
                why = replies[0].text.strip()
            while tries <= self.reask and reading.verdict == "invalid":
                reply = await self._chat(self._messages(question, why), room, call + tries, verdict=True)
                replies.append(reply)
                reading, said = self._read(reply)
                why = said if one_step else why
                tries += 1
        except Unanswered as error:
            reading = Reading("invalid", why=error.why)
        return _Draw(reading, why, tuple(replies), max(0, tries - 1))

    def _read(self, reply: Reply) -> tuple[Reading, str]:
        """Return the verdict of a reply and, where it holds one, the rationale in front; a thought is neither."""
        one_step = self.rationale and self.steps == 1
        if self.structured:
            reading, why = read_json(reply.text, reply.tokens, scale=self.scale)
        else:
            reading = read_reply(reply.text, reply.tokens, scale=self.scale, last=one_step)
            why = reply.text.strip().rpartition("\n")[0].strip() if one_step else ""
        if reading.verdict == "invalid" and reading.mass is None and reply.finish == "length":
            reading = reading._replace(why=CUT_OFF)
        return reading, why

    def _messages(self, question: Question, why: str | None) -> Messages:
        make_messages = prefilled if self.prefill else plain
        return make_messages(
            self.words,
            question,
            why,
            scale=self.scale,
            rationale=self.rationale,
            one_step=self.rationale and self.steps == 1,
            structured=self.structured,
        )

    async def _chat(self, messages: Messages, max_tokens: int, attempt: int, *, verdict: bool = False) -> Reply:
        return await self.speaker.chat(
            messages,
            max_tokens=max_tokens,
            temperature=self.temperature,
            logprobs=self.logprobs and verdict,
            top_logprobs=self.top_logprobs,
            continue_final=self.prefill,
            schema=self._schema() if self.structured and verdict else None,
            attempt=attempt,
        )

    def _schema(self) -> dict[str, Any]:
        """Return the JSON schema of a verdict, with the rationale before it where both come in one reply."""
        kinds: dict[str, Any] = {"verdict": {"type": "string", "enum": list(self.scale.tokens)}}
        if self.rationale and self.steps == 1:
            kinds = {"rationale": {"type": "string"}, **kinds}
        return {"type": "object", "properties": kinds, "required": list(kinds), "additionalProperties": False}


def _fields(reading: Reading, draws: Sequence[_Draw], told: _Draw) -> dict[str, object]:
    """Return what a judgment keeps besides: how sure the reading is, what went wrong, how far the draws spread."""
    fields: dict[str, object] = {"finish": told.replies[-1].finish} if told.replies else {}
    if reading.mass is not None:
        fields |= {"mass": reading.mass, "bounded": reading.bounded}
    if reading.tie is not None:
        fields["tie"] = reading.tie
    if reading.strength is not None and reading.probability is not None:
        fields["shares"] = list(reading.shares)
    if reasked := sum(draw.reasked for draw in draws):
        fields["reasked"] = reasked
    if reading.verdict == "invalid":
        fields["why"] = reading.why
    if len(draws) > 1:
        found = [_p_first(draw.reading) for draw in draws]
        known = [p for p in found if p is not None]
        fields |= {"samples": found, "rationales": [draw.rationale for draw in draws]}
        if known:
            mean = sum(known) / len(known)
            fields["spread"] = math.sqrt(sum((p - mean) ** 2 for p in known) / len(known))
    return fields


def _p_first(reading: Reading) -> float | None:
    """Return what one draw adds to the mean: its probability, else 1, 0 or 1/2 as its text says, None for neither."""
    if reading.verdict == "invalid" or reading.probability is not None:
        return reading.probability
    return 0.5 if reading.winner is None else float(reading.winner == 0)
