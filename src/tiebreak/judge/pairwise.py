"""A model judges two responses side by side: a rationale first, if wanted, then the number of the better one.

The protocol is that of RLAIF (arXiv 2309.00267): the label is the probability of the token ``1`` against ``2``. The
words stand in prompt files; post and responses are inserted whole, whatever they contain.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tiebreak.endpoint import Endpoint, Reply
from tiebreak.judge.table import Question
from tiebreak.judge.verdict import read_reply
from tiebreak.records import InputError, Judgment, content_id
from tiebreak.registry import nearest

PROTOCOL = 1
"""Part of every rubric hash; it counts up when the order of messages or the reading of replies changes."""

PLACES = ("prompt", "first", "second")
SECTIONS = ("question", "rationale", "verdict", "ties", "prefill rationale", "prefill verdict")

_PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_HEADING = re.compile(r"^\[([a-z ]+)\][ \t]*\r?\n", re.MULTILINE)

Messages = list[dict[str, str]]


def make(
    endpoint: str = "",
    model: str = "",
    revision: str = "",
    rubric: str = "tldr",
    rationale: bool = True,
    prefill: bool = False,
    ties: str = "forbid",
    logprobs: bool = True,
    top_logprobs: int = 20,
    temperature: float = 0.0,
    rationale_tokens: int = 512,
    verdict_tokens: int = 5,
    price_in: float | None = None,
    price_out: float | None = None,
    key_env: str | None = "OPENAI_API_KEY",
    timeout: float = 120.0,
    retries: int = 6,
) -> PairwiseJudge:
    """Make the judge that asks ``model`` at ``endpoint``; docs/judge.md has the table of knobs.

    ``rubric`` is ``tldr``, ``helpful`` or the path of a prompt file. ``prefill`` begins the model's turn and has the
    server continue it, as RLAIF does; only some servers can. Prices are US dollars per million tokens.
    """
    _check(endpoint, model, ties)
    sections = parse_rubric(read_rubric(rubric), where=rubric)
    needed = ["rationale"] * rationale + ["ties"] * (ties == "allow")
    needed += ["prefill verdict"] * prefill + ["prefill rationale"] * (prefill and rationale)
    _must_have(sections, needed, rubric)
    steers = (rationale, prefill, ties, logprobs, top_logprobs, temperature, rationale_tokens, verdict_tokens)
    client = Endpoint(
        endpoint,
        model,
        # Unseeded: waits enter no result, and two processes must not wait in step.
        rng=random.Random(),
        key_env=key_env,
        timeout=timeout,
        retries=retries,
    )
    return PairwiseJudge(
        client=client,
        by=f"model:{model}@{revision or client.host}",
        rubric=content_id("rubric", "pairwise", PROTOCOL, sections, *steers),
        sections=sections,
        rationale=rationale,
        prefill=prefill,
        ties=ties == "allow",
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        temperature=temperature,
        rationale_tokens=rationale_tokens,
        verdict_tokens=verdict_tokens,
        price_in=price_in,
        price_out=price_out,
    )


def _check(endpoint: str, model: str, ties: str) -> None:
    for name, value in (("endpoint", endpoint), ("model", model)):
        if not value:
            raise InputError(
                f"judge: 'pairwise' needs {name}, for instance endpoint=http://localhost:8000/v1 model=NAME."
            )
    if ties not in ("forbid", "allow"):
        raise InputError(f"judge: ties is {ties!r}; expected 'forbid' or 'allow'.")


def _must_have(sections: Mapping[str, str], needed: Sequence[str], rubric: str) -> None:
    if missing := [name for name in needed if not sections[name]]:
        raise InputError(f"The rubric {rubric} has no section [{missing[0]}], which these knobs use; add it.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseJudge:
    """A model with its rubric and settings; ``make`` is the door."""

    client: Endpoint
    by: str
    rubric: str
    sections: Mapping[str, str]
    rationale: bool
    prefill: bool
    ties: bool
    logprobs: bool
    top_logprobs: int
    temperature: float
    rationale_tokens: int
    verdict_tokens: int
    price_in: float | None
    price_out: float | None

    @property
    def instant(self) -> bool:
        """False: a model takes its time."""
        return False

    async def ask(self, question: Question) -> Judgment:
        """Judge the question in one call, or two with a rationale; an unreadable verdict is ``invalid``."""
        replies: list[Reply] = []
        why = ""
        if self.rationale:
            replies.append(await self._chat(self._messages(question, None), self.rationale_tokens, logprobs=False))
            why = replies[0].text.strip()
        messages = self._messages(question, why)
        replies.append(await self._chat(messages, self.verdict_tokens, logprobs=self.logprobs))
        reply = replies[-1]
        reading = read_reply(reply.text, reply.tokens, ties=self.ties)
        fields: dict[str, object] = {"finish": reply.finish}
        if reading.mass is not None:
            fields |= {"mass": reading.mass, "bounded": reading.bounded}
        if reading.tie is not None:
            fields["tie"] = reading.tie
        tokens_in, tokens_out = _sum(r.tokens_in for r in replies), _sum(r.tokens_out for r in replies)
        return Judgment(
            prompt_id=question.prompt.id,
            slots=(question.slots[0].id, question.slots[1].id),
            verdict=reading.verdict,
            winner=reading.winner,
            by=self.by,
            probability=reading.probability,
            rationale=why,
            rubric=self.rubric,
            raw=reply.text,
            fields=fields,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            price=_price(tokens_in, tokens_out, self.price_in, self.price_out),
            latency=sum(r.latency for r in replies),
            attempt=question.attempt,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    def _messages(self, question: Question, why: str | None) -> Messages:
        make_messages = prefilled if self.prefill else plain
        return make_messages(self.sections, question, why, rationale=self.rationale, ties=self.ties)

    async def _chat(self, messages: Messages, max_tokens: int, *, logprobs: bool) -> Reply:
        return await self.client.chat(
            messages,
            max_tokens=max_tokens,
            temperature=self.temperature,
            logprobs=logprobs,
            top_logprobs=self.top_logprobs,
            continue_final=self.prefill,
        )


def plain(sections: Mapping[str, str], question: Question, why: str | None, *, rationale: bool, ties: bool) -> Messages:
    """Return the turns any chat server takes; ``why`` is the rationale given, None while it is asked for."""
    asked = fill(sections["question"], question)
    verdict = _join(sections["verdict"], ties and sections["ties"])
    if why is None:
        return [_turn("user", _join(asked, sections["rationale"]))]
    if not rationale:
        return [_turn("user", _join(asked, verdict))]
    return [
        _turn("user", _join(asked, sections["rationale"])),
        _turn("assistant", why),
        _turn("user", verdict),
    ]


def prefilled(
    sections: Mapping[str, str], question: Question, why: str | None, *, rationale: bool, ties: bool
) -> Messages:
    """Return one user turn and a begun assistant turn which the server continues, RLAIF's own shape."""
    ending = sections["rationale" if rationale else "verdict"]
    user = _turn("user", _join(fill(sections["question"], question), ending, ties and sections["ties"]))
    if why is None:
        return [user, _turn("assistant", sections["prefill rationale"])]
    begun = f"{sections['prefill rationale']} {why}\n" if rationale else ""
    return [user, _turn("assistant", begun + sections["prefill verdict"])]


def fill(template: str, question: Question) -> str:
    """Put the texts into the template in one pass, so that a marker inside a text is just text."""
    prompt, (first, second), _ = question
    asked = f"{prompt.context}\n\n{prompt.plain}" if prompt.context else prompt.plain
    texts = {"prompt": asked.strip(), "first": first.text.strip(), "second": second.text.strip()}
    return _PLACE.sub(lambda place: texts[place[1]], template)


def read_rubric(rubric: str) -> str:
    """Return the text of a rubric that ships with tiebreak, or of the user's file at that path."""
    shipped = resources.files("tiebreak.judge") / "prompts"
    names = sorted(entry.name.removesuffix(".txt") for entry in shipped.iterdir() if entry.name.endswith(".txt"))
    if rubric in names:
        return (shipped / f"{rubric}.txt").read_text(encoding="utf-8")
    try:
        return Path(rubric).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"There is no rubric {rubric!r}; there are {', '.join(names)}, or the path of your own prompt file."
            f"{nearest(rubric, names)}"
        ) from error


def parse_rubric(text: str, *, where: str) -> dict[str, str]:
    """Split a prompt file into its sections and check its places; a section that is missing is empty.

    Sections begin with a line like ``[question]``; places are ``{{prompt}}``, ``{{first}}`` and ``{{second}}``.
    """
    before, *parts = _HEADING.split(text)
    sections = dict.fromkeys(SECTIONS, "")
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name not in sections:
            raise InputError(
                f"The rubric {where} has a section [{name}]; expected {', '.join(f'[{s}]' for s in SECTIONS)}."
                f"{nearest(name, SECTIONS)}"
            )
        sections[name] = body.strip()
    if before.strip() or not (sections["question"] and sections["verdict"]):
        raise InputError(
            f"The rubric {where} needs a line [question] with the question below it and a line [verdict] with what to "
            "answer; text before the first of these lines belongs to neither."
        )
    found = _PLACE.findall(sections["question"])
    if unknown := [place for place in found if place not in PLACES]:
        raise InputError(
            f"The rubric {where} has a place {{{{{unknown[0]}}}}}; expected {{{{prompt}}}}, {{{{first}}}} and "
            f"{{{{second}}}}.{nearest(unknown[0], PLACES)}"
        )
    if missing := [place for place in PLACES if place not in found]:
        raise InputError(f"The rubric {where} never shows {{{{{missing[0]}}}}}; put it into [question].")
    return sections


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _join(*parts: str | bool) -> str:
    return "\n\n".join(part for part in parts if isinstance(part, str) and part)


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _price(tokens_in: int | None, tokens_out: int | None, per_in: float | None, per_out: float | None) -> float | None:
    """Return US dollars from prices per million tokens; None where no price or no count is known."""
    if (per_in is None and per_out is None) or (tokens_in is None and tokens_out is None):
        return None
    return ((tokens_in or 0) * (per_in or 0.0) + (tokens_out or 0) * (per_out or 0.0)) / 1e6
