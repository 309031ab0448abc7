"""A model rates two responses on several aspects, and a stated rule makes a verdict of the ratings.

The way of UltraFeedback (arXiv 2310.01377): each aspect has a scale whose levels are told apart in words, and all
responses stand side by side. A prompt file declares the scheme; what cannot be read is no rating and is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiebreak.endpoint import Endpoint, Reply, Unanswered
from tiebreak.judge.calls import MOST_TRIES, number_of, spent
from tiebreak.judge.overall import Decision, Rule, check_margin, decide, rule_of, source_of
from tiebreak.judge.ratings import Form, Mark, Marks, all_lost, form_text, read_ratings, schema
from tiebreak.judge.rubric import fill_places, join, read_words, shipped, texts_of
from tiebreak.judge.scheme import Aspect, Scheme, parse_scheme
from tiebreak.judge.speaker import Speaker, speaker
from tiebreak.judge.table import Question
from tiebreak.records import InputError, Judgment, content_id
from tiebreak.registry import nearest

PROTOCOL = 1
"""Part of every rubric hash; it counts up when the forms, the order of messages or the reading of replies changes."""

SHAPES = ("auto", "json", "lines")
WIDEST_TOKEN = 9
"""The highest rating that every tokenizer writes as one token; an expectation needs that."""

Messages = list[dict[str, str]]


def make(
    *,
    rubric: str = "ultrafeedback",
    together: bool = True,
    shape: str = "auto",
    overall: str = "",
    margin: float = 0.0,
    most_missing: int = 1,
    reask: int = 1,
    logprobs: bool = False,
    top_logprobs: int = 20,
    temperature: float = 0.0,
    answer_tokens: int = 1024,
    **who: Any,
) -> AspectsJudge:
    """Make the judge that has a model rate both responses; docs/aspects.md has the table of knobs.

    Args:
        rubric: ``ultrafeedback``, ``helpsteer``, ``codeultrafeedback``, ``psychocounsel`` or the path of a prompt file.
        together: all aspects in one call; else one call for each.
        shape: ``json`` by a schema, ``lines``, or ``auto``: json on a server and lines with a local model.
        overall: a rule other than the prompt file's.
        margin: a smaller difference of the overalls is a tie.
        most_missing: aspects without a rating that a verdict can bear.
        reask: how often a reply with something unreadable is followed by a request for all of it again.
        logprobs: take the expectation over the rating's tokens; needs ``together=False``, and there are no reasons.
        top_logprobs: tokens to ask for at each place.
        temperature: of all calls.
        answer_tokens: most tokens of one reply.
        **who: who is asked, the knobs of ``speaker``.

    Raises:
        InputError: a knob, a prompt file or a model that does not fit, in one sentence.
    """
    _check(shape, most_missing, reask, together, logprobs)
    check_margin(margin)
    text = read_words(rubric, shipped("[scheme]\n"))
    scheme = parse_scheme(text, where=rubric)
    rule_name = overall or scheme.rule
    rule = rule_of(rule_name, scheme, where=rubric)
    if logprobs:
        _check_digits(scheme, rubric)
    model = speaker(**who)
    form = _form(shape, logprobs, served=model.client is not None)
    steers = (together, form, margin, most_missing, reask, top_logprobs, temperature, answer_tokens)
    return AspectsJudge(
        speaker=model,
        rubric=content_id("rubric", "aspects", PROTOCOL, text, rule_name, source_of(rule_name, rule), *steers),
        scheme=scheme,
        rule_name=rule_name,
        rule=rule,
        together=together,
        form=form,
        margin=margin,
        most_missing=most_missing,
        reask=reask,
        top_logprobs=top_logprobs,
        temperature=temperature,
        answer_tokens=answer_tokens,
    )


def _check(shape: str, most_missing: int, reask: int, together: bool, logprobs: bool) -> None:
    if shape not in SHAPES:
        raise InputError(f"judge: shape is {shape!r}; expected {', '.join(SHAPES)}.{nearest(shape, SHAPES)}")
    if most_missing < 0:
        raise InputError(f"judge: most_missing is {most_missing}; expected 0 or more.")
    if not 0 <= reask < MOST_TRIES:
        raise InputError(f"judge: reask is {reask}; expected 0 to {MOST_TRIES - 1}.")
    if logprobs and (together or shape != "auto"):
        raise InputError(
            "judge: logprobs needs an answer of bare numbers, one call for each aspect; write together=false beside "
            "it and leave shape out."
        )


def _check_digits(scheme: Scheme, rubric: str) -> None:
    if wide := [aspect.name for aspect in scheme.aspects if aspect.high > WIDEST_TOKEN]:
        raise InputError(
            f"judge: logprobs needs ratings of one digit, and {wide[0]} of the rubric {rubric} has higher ones; take a "
            f"scale up to {WIDEST_TOKEN} or logprobs=false."
        )


def _form(shape: str, logprobs: bool, *, served: bool) -> Form:
    """Return the form of the answers: a schema holds a server's model to json, a local one can be held to none."""
    if logprobs:
        return "bare"
    if shape == "json" and not served:
        raise InputError("judge: shape=json needs a server, and there is no endpoint; leave shape out or write lines.")
    return "json" if served and shape != "lines" else "lines"


@dataclass(frozen=True, slots=True, kw_only=True)
class AspectsJudge:
    """A model with its scheme and settings; ``make`` is the door."""

    speaker: Speaker
    rubric: str
    scheme: Scheme
    rule_name: str
    rule: Rule
    together: bool
    form: Form
    margin: float
    most_missing: int
    reask: int
    top_logprobs: int
    temperature: float
    answer_tokens: int

    @property
    def by(self) -> str:
        """Who judges, as judgments record it."""
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
        """Have both responses rated and decide; too many ratings that cannot be read are ``invalid``."""
        aspects = self.scheme.aspects
        marks: Marks = {}
        replies: list[Reply] = []
        for part in [aspects] if self.together else [(aspect,) for aspect in aspects]:
            found, said = await self._rate(question, part)
            marks |= found
            replies += said
        lost, cost = _lost(marks), spent(replies)
        decision = decide(
            self.scheme,
            self.rule,
            {name: (first.rating, second.rating) for name, (first, second) in marks.items() if name not in lost},
            lost=lost,
            margin=self.margin,
            most_missing=self.most_missing,
        )
        return Judgment(
            prompt_id=question.prompt.id,
            slots=(question.slots[0].id, question.slots[1].id),
            verdict=decision.verdict,
            winner=decision.winner,
            by=self.by,
            strength=decision.strength,
            ratings={name: [first.rating, second.rating] for name, (first, second) in marks.items()},
            rationale=_rationale(marks),
            rubric=self.rubric,
            raw="\n\n".join(reply.text for reply in replies),
            fields=self._fields(decision, lost, marks, replies),
            tokens_in=cost.tokens_in,
            tokens_out=cost.tokens_out,
            price=cost.price,
            latency=cost.latency,
            attempt=question.attempt,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.speaker.close()

    async def _rate(self, question: Question, aspects: Sequence[Aspect]) -> tuple[Marks, list[Reply]]:
        """Ask for these aspects, and again for all of them while some are lost; return the reply with the fewest."""
        messages: Messages = [_turn("user", asking(self.scheme, aspects, question, self.form))]
        replies: list[Reply] = []
        readings: list[Marks] = []
        for tries in range(1 + self.reask):
            try:
                reply = await self._chat(messages, aspects, number_of(question.attempt) + tries)
            except Unanswered as error:
                readings.append(all_lost(aspects, error.why))
                break
            replies.append(reply)
            readings.append(read_ratings(reply, aspects, self.form))
            if not _lost(readings[-1]):
                break
            messages = [*messages[:1], _turn("assistant", reply.text), _turn("user", again(readings[-1]))]
        return min(readings, key=lambda marks: len(_lost(marks))), replies

    async def _chat(self, messages: Messages, aspects: Sequence[Aspect], number: int) -> Reply:
        return await self.speaker.chat(
            messages,
            max_tokens=self.answer_tokens,
            temperature=self.temperature,
            logprobs=self.form == "bare",
            top_logprobs=self.top_logprobs,
            schema=schema(aspects) if self.form == "json" else None,
            attempt=number,
        )

    def _fields(
        self, decision: Decision, lost: Mapping[str, str], marks: Marks, replies: Sequence[Reply]
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "overall": None if decision.overall is None else list(decision.overall),
            "rule": self.rule_name,
            "calls": len(replies),
        }
        if self.scheme.vetoes:
            fields["vetoed"] = list(decision.vetoed)
        if lost:
            fields["missing"] = dict(lost)
        if decision.why:
            reasons = set(lost.values())
            fields["why"] = f"{decision.why}: {reasons.pop()}" if len(reasons) == 1 else decision.why
        mass = [mark.mass for pair in marks.values() for mark in pair if mark.mass is not None]
        if mass:
            fields["mass"] = min(mass)
        return fields


def asking(scheme: Scheme, aspects: Sequence[Aspect], question: Question, form: Form) -> str:
    """Return the request to rate both responses on ``aspects``; texts are inserted whole, whatever they contain."""
    texts = texts_of(question) | {"aspects": "\n\n".join(aspect.shown for aspect in aspects)}
    known = (question.prompt.reference or "").strip()
    # An answer that is the reference itself would be given away by it.
    showing = known not in ("", texts["first"], texts["second"])
    return join(
        fill_places(scheme.question, texts),
        fill_places(scheme.reference, {"reference": known}) if showing else "",
        form_text(aspects, form),
    )


def again(marks: Marks) -> str:
    """Return the request for another answer, with what was wrong in this one."""
    wrong = "; ".join(f"{name}: {why}" for name, why in _lost(marks).items())
    return (
        f"That could not be read ({wrong}). Give all the ratings again, in exactly the form that was asked for, and "
        "nothing else."
    )


def _lost(marks: Marks) -> dict[str, str]:
    return {name: why for name, pair in marks.items() if (why := _why_lost(pair))}


def _why_lost(pair: tuple[Mark, Mark]) -> str:
    first, second = (mark.lost for mark in pair)
    if first == second:
        return first
    return "; ".join(f"Response {slot} {why}" for slot, why in ((1, first), (2, second)) if why)


def _rationale(marks: Marks) -> str:
    return "\n".join(
        f"{name}, Response {slot}: {mark.why}"
        for name, pair in marks.items()
        for slot, mark in enumerate(pair, 1)
        if mark.why
    )


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
