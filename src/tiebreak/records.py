"""The nouns: prompts, responses, judgments, pairs and findings.

Every record is frozen, and its id is a hash of what it says. So the same text imported twice, sampled twice or judged
twice is one row, and a killed run can ask the ledger what is already there. Records know no file and no tensor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar

Verdict = Literal["slot", "tie", "both_bad", "skip", "invalid"]
VERDICTS: tuple[Verdict, ...] = ("slot", "tie", "both_bad", "skip", "invalid")

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called as ``progress(done, total, shown)`` from long work; ``shown`` holds the few numbers worth a glance."""


def quiet(done: int, total: int, shown: Mapping[str, float]) -> None:
    """The progress callback that shows nothing."""


class InputError(Exception):
    """A mistake in what the user gave, told in one sentence: what, where, what was expected, what to do."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def content_id(kind: str, *parts: object) -> str:
    """Return the 32 hex digits that name a record of ``kind`` with this content.

    Parts are written as canonical JSON, so the id does not depend on key order, process or machine.
    """
    text = json.dumps([kind, *parts], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked: plain text or the turns of a conversation, with what belongs to the question.

    ``reference`` is a known good answer; ``fields`` are facts about the prompt (a subreddit, a ground truth);
    ``group`` names what must stay on one side of a split and defaults to the text itself.
    """

    text: str | tuple[Message, ...]
    context: str = ""
    reference: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    group: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(Message(*turn) for turn in self.text))
        object.__setattr__(self, "tags", tuple(self.tags))
        if not self.id:
            object.__setattr__(
                self, "id", content_id("prompt", self.text, self.context, self.reference, dict(self.fields))
            )
        if not self.group:
            object.__setattr__(self, "group", content_id("group", self.text, self.context))

    @property
    def conversational(self) -> bool:
        """Whether the prompt is a list of turns rather than one string."""
        return not isinstance(self.text, str)

    @property
    def plain(self) -> str:
        """The prompt as one string; turns are joined by blank lines with their role in front."""
        if isinstance(self.text, str):
            return self.text
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer to a prompt, with who made it and how.

    ``maker`` is ``model@revision`` or ``human:name``; ``settings`` are the sampling settings, seed included; ``draw``
    numbers the samples of one prompt, so two equal samples stay two rows. ``finish`` is ``stop``, ``length`` or empty.
    """

    prompt_id: str
    text: str
    maker: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    draw: int = 0
    finish: str = ""
    tokens: int | None = None
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(
                self,
                "id",
                content_id("response", self.prompt_id, self.text, self.maker, dict(self.settings), self.draw),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One immutable event: somebody looked at responses in an order and said something.

    ``slots`` are response ids as shown, first slot first; ``order_known`` is False where a source does not tell in
    which order they were shown, and such a judgment says nothing about position bias. ``winner`` is a slot index and is
    set exactly when ``verdict`` is ``slot``. ``probability`` is P(first slot is better) where the judge gives one,
    ``strength`` lies in [0, 1].
    ``by`` is ``human:name``, ``model:name@revision`` or ``rule:name``; ``rubric`` is a hash of all that steered the
    judge. ``attempt`` tells repeats of the same question apart; a change of mind is a new event that ``revises`` the
    old one. ``price`` is in US dollars, ``latency`` in seconds. Time of creation does not enter the id.
    """

    prompt_id: str
    slots: tuple[str, ...]
    verdict: Verdict
    by: str
    winner: int | None = None
    order_known: bool = True
    probability: float | None = None
    strength: float | None = None
    ratings: Mapping[str, Any] = field(default_factory=dict)
    rationale: str = ""
    rubric: str = ""
    raw: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    tokens_in: int | None = None
    tokens_out: int | None = None
    price: float | None = None
    latency: float | None = None
    attempt: int = 0
    revises: str | None = None
    created_at: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        if self.verdict not in VERDICTS:
            raise InputError(f"A judgment has the verdict {self.verdict!r}; expected one of {', '.join(VERDICTS)}.")
        if (self.verdict == "slot") != (self.winner is not None):
            raise InputError(
                f"A judgment with verdict {self.verdict!r} has winner {self.winner!r}; only 'slot' has one."
            )
        if self.winner is not None and not 0 <= self.winner < len(self.slots):
            raise InputError(f"A judgment names slot {self.winner} of {len(self.slots)}; slots count from 0.")
        for name in ("probability", "strength"):
            value = getattr(self, name)
            if value is not None:
                if not 0.0 <= value <= 1.0:
                    raise InputError(f"A judgment has {name} {value}; expected a number from 0 to 1.")
                object.__setattr__(self, name, float(value))
        if not self.id:
            object.__setattr__(self, "id", content_id("judgment", *self._said()))

    def _said(self) -> tuple[object, ...]:
        return (
            self.prompt_id,
            self.slots,
            self.verdict,
            self.winner,
            self.order_known,
            self.probability,
            self.strength,
            dict(self.ratings),
            self.rationale,
            self.by,
            self.rubric,
            self.raw,
            dict(self.fields),
            self.attempt,
            self.revises,
        )

    @property
    def item(self) -> str:
        """The unordered set of responses that was judged; both orders of one pair share it."""
        return content_id("item", self.prompt_id, sorted(self.slots))

    def p_better(self, response_id: str) -> float | None:
        """P(``response_id`` is the better one), in (0, 1) where the judge gave a probability, else 1, 0 or 1/2.

        None for skipped, unreadable and both-bad verdicts: they say nothing about which is better.
        """
        if self.verdict in ("skip", "invalid", "both_bad"):
            return None
        first = self.slots[0] == response_id
        if self.probability is not None and len(self.slots) == 2:
            return self.probability if first else 1.0 - self.probability
        if self.winner is None:
            return 0.5
        return float(self.slots[self.winner] == response_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A training row, derived from judgments and never typed in.

    ``p`` is P(chosen is better), at least 1/2; 1/2 is a tie and trains only where the objective has soft targets.
    ``n`` counts the judgments behind it and ``conflict`` says that they disagree. ``margin`` is a strength or a gap of
    scores and ``spread`` its standard deviation; ``scores`` are those of both sides where there are any. ``flipped``
    says that the sides were exchanged against the judgments. ``band`` numbers the part of a curriculum or of an order
    by strength that it belongs to, from 0. ``user`` is whose preference it is. ``beside`` names further responses by
    role, such as a ``rationale``. ``rejected_prompt_id`` is set where the rejected side answers another prompt.
    """

    prompt_id: str
    chosen_id: str
    rejected_id: str
    p: float = 1.0
    margin: float | None = None
    weight: float = 1.0
    n: int = 0
    conflict: bool = False
    judgment_ids: tuple[str, ...] = ()
    scores: tuple[float, float] | None = None
    spread: float | None = None
    flipped: bool = False
    band: int | None = None
    user: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)
    rejected_prompt_id: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "judgment_ids", tuple(self.judgment_ids))
        object.__setattr__(self, "p", float(self.p))
        if not 0.5 <= self.p <= 1.0:
            raise InputError(f"A pair has p = {self.p}; P(chosen is better) lies between 0.5 and 1.")
        if self.scores is not None:
            object.__setattr__(self, "scores", tuple(self.scores))
        if self.chosen_id == self.rejected_id and self.rejected_prompt_id in ("", self.prompt_id):
            raise InputError(
                "A pair has the same response on both sides; ties are kept as p = 0.5 between two responses."
            )
        if not self.id:
            said = (self.prompt_id, self.chosen_id, self.rejected_id, self.p, self.judgment_ids)
            more = (self.rejected_prompt_id, self.user, dict(self.beside))
            object.__setattr__(self, "id", content_id("pair", *said, *(more if any(more) else ())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A training row of any number of responses with a grade each: a list, or a response that stands alone.

    ``grades`` say which response is better than which, by their order alone or by their size, as an objective likes;
    that of a response that stands alone is P(it is desirable). ``ratings`` are its marks by aspect, None where an
    aspect was not rated. ``steps`` are, of each response, the places in its text where a step ends and P(the step is
    right). ``prompt_ids`` are set where the responses answer different prompts, and ``user`` is whose grades they are.
    """

    prompt_id: str
    response_ids: tuple[str, ...]
    grades: tuple[float, ...] = ()
    ratings: tuple[Mapping[str, float | None], ...] = ()
    steps: tuple[tuple[tuple[int, float], ...], ...] = ()
    prompt_ids: tuple[str, ...] = ()
    weight: float = 1.0
    user: str = ""
    judgment_ids: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        for name in ("response_ids", "grades", "ratings", "prompt_ids", "judgment_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        steps = tuple(tuple((int(end), float(p)) for end, p in of_one) for of_one in self.steps)
        object.__setattr__(self, "steps", steps)
        if not self.response_ids:
            raise InputError("A graded row has no responses; it needs one or more.")
        for name in ("grades", "ratings", "steps", "prompt_ids"):
            found = len(getattr(self, name))
            if found not in (0, len(self.response_ids)):
                raise InputError(
                    f"A graded row has {len(self.response_ids)} responses and {found} {name}; expected one for each."
                )
        if not self.id:
            object.__setattr__(
                self,
                "id",
                content_id(
                    "graded",
                    self.prompt_id,
                    self.response_ids,
                    self.grades,
                    [dict(of_one) for of_one in self.ratings],
                    self.steps,
                    self.prompt_ids,
                    self.user,
                    self.judgment_ids,
                ),
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one audit check measured: a value with its n and 95 % interval, a verdict and examples.

    ``verdict`` is ``fine``, ``notice`` or ``problem``; ``threshold`` is the bound that decided it, if there is one.
    """

    check: str
    subject: str
    sentence: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    threshold: float | None = None
    verdict: Literal["fine", "notice", "problem"] = "fine"
    examples: tuple[str, ...] = ()


Record = TypeVar("Record", Prompt, Response, Judgment, Pair, Graded, Finding)


def to_dict(record: Prompt | Response | Judgment | Pair | Graded | Finding) -> dict[str, Any]:
    """Return the record as JSON-ready values; ``from_dict`` reads it back to an equal record."""
    row = asdict(record)
    if isinstance(record, Prompt) and record.conversational:
        row["text"] = [
            {"role": turn.role, "content": turn.content} for turn in record.text if isinstance(turn, Message)
        ]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}


def from_dict(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """Read a record of ``kind`` from ``row``; a key the record does not have is an InputError."""
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(row) - known):
        raise InputError(f"A {kind.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}.")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in row]:
        raise InputError(f"A {kind.__name__} needs {', '.join(needed)}; {missing[0]!r} is missing.")
    values = dict(row)
    if kind is Prompt and not isinstance(values.get("text"), str):
        values["text"] = tuple(
            Message(t["role"], t["content"]) if isinstance(t, Mapping) else Message(*t) for t in values["text"]
        )
    for key in ("slots", "tags", "judgment_ids", "examples"):
        if key in values:
            values[key] = tuple(values[key])
    return kind(**values)
