"""A judge that is a formula, with a planted temper: sharpness, persistent error and slot bias.

It needs no model and no network, and every property of it is known, so whatever measures judges can be held against
it. Every draw is a hash of what is judged, so the same question has the same answer on every machine.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from tiebreak.judge.table import Question
from tiebreak.records import InputError, Judgment, Prompt, content_id
from tiebreak.registry import Row, Table

Quality = Callable[[Prompt, str], float]

RULES = Table(
    "rule",
    "rule",
    [
        Row(
            name="world",
            does="the true quality in the small world of posts and summaries",
            target="tiebreak.data.world:quality",
        ),
        Row(
            name="arithmetic",
            does="1 for the exact answer of a sum in the made-up arithmetic, else 0",
            target="tiebreak.data.arithmetic:exact",
        ),
        Row(
            name="overlap",
            does="mean unigram and bigram F1 with the prompt's reference",
            target="tiebreak.judge.rule:overlap",
        ),
        Row(
            name="plain",
            does="how it is written, for want of a reward model: says something, on topic, fresh, in words, ended",
            target="tiebreak.judge.plain:quality",
        ),
        Row(name="shorter", does="fewer characters are better", target="tiebreak.judge.rule:shorter"),
        Row(name="longer", does="more characters are better", target="tiebreak.judge.rule:longer"),
    ],
)

_NORMAL = NormalDist()


def shorter(prompt: Prompt, text: str) -> float:
    """Return minus the number of characters: the shorter, the better."""
    return -float(len(text))


def longer(prompt: Prompt, text: str) -> float:
    """Return the number of characters: the longer, the better."""
    return float(len(text))


def overlap(prompt: Prompt, text: str) -> float:
    """Return the mean of unigram and bigram F1 between ``text`` and the prompt's reference, from 0 to 1.

    Words are runs of letters and digits in lower case. A prompt without a reference is an InputError.
    """
    if prompt.reference is None:
        raise InputError(
            f"The rule 'overlap' compares with a reference and prompt {prompt.id} has none; "
            "judge prompts that have one, or use another rule."
        )
    said, wanted = (re.findall(r"\w+", words.lower()) for words in (text, prompt.reference))
    return (_f1(said, wanted, 1) + _f1(said, wanted, 2)) / 2


def _f1(said: list[str], wanted: list[str], n: int) -> float:
    ours, theirs = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (said, wanted))
    if not ours or not theirs:
        return 0.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def make(
    rule: str = "", sharpness: float = 1.0, noise: float = 0.0, slot_bias: float = 0.0, seed: int = 0
) -> RuleJudge:
    """Make the judge that follows ``rule``; see ``first_probability`` for what the numbers do.

    ``noise`` is the standard deviation of an error drawn once per pair of responses and kept in both orders; ``seed``
    chooses the errors and the draws. An unknown rule or a number out of range is an InputError.
    """
    if not rule:
        raise InputError(f"judge: 'rule' needs a rule; there are {', '.join(row.name for row in RULES)}.")
    for name, value, low, high in (
        ("sharpness", sharpness, 0.0, math.inf),
        ("noise", noise, 0.0, math.nextafter(math.inf, 0)),
        ("slot_bias", slot_bias, -1.0, 1.0),
    ):
        if not low <= value <= high:
            raise InputError(f"judge: {name} is {value}; expected a number from {low:g} to {high:g}.")
    quality: Quality = RULES[rule].load()
    rubric = content_id("rubric", "rule", rule, _source(quality), sharpness, noise, slot_bias, seed)
    return RuleJudge(rule, quality, float(sharpness), float(noise), float(slot_bias), seed, rubric)


@dataclass(frozen=True, slots=True)
class RuleJudge:
    """A rule with its temper; ``make`` is the door."""

    rule: str
    quality: Quality
    sharpness: float
    noise: float
    slot_bias: float
    seed: int
    rubric: str

    @property
    def by(self) -> str:
        """``rule:`` and the rule's name."""
        return f"rule:{self.rule}"

    @property
    def instant(self) -> bool:
        """True: a formula never waits."""
        return True

    async def ask(self, question: Question) -> Judgment:
        """Judge the question; ``probability`` is P(first slot) from which the verdict was drawn."""
        prompt, (first, second), attempt = question
        opinion = self._quality(prompt, first.text) - self._quality(prompt, second.text)
        if self.noise:
            low, high = sorted((first.id, second.id))
            error = self.noise * _NORMAL.inv_cdf(_uniform("error", str(self.seed), prompt.id, low, high))
            opinion += error if first.id == low else -error
        p = first_probability(opinion, sharpness=self.sharpness, slot_bias=self.slot_bias)
        tie = p == 0.5 and math.isinf(self.sharpness) and self.slot_bias == 0
        drawn = _uniform("verdict", str(self.seed), first.id, second.id, str(attempt))
        return Judgment(
            prompt_id=prompt.id,
            slots=(first.id, second.id),
            verdict="tie" if tie else "slot",
            winner=None if tie else int(drawn >= p),
            probability=p,
            by=self.by,
            rubric=self.rubric,
            attempt=attempt,
        )

    async def close(self) -> None:
        """Nothing is open."""

    def _quality(self, prompt: Prompt, text: str) -> float:
        value = float(self.quality(prompt, text))
        if not math.isfinite(value):
            raise InputError(
                f"The rule {self.rule!r} gave {value} for a response to prompt {prompt.id}; "
                "a quality is a finite number."
            )
        return value


def first_probability(opinion: float, *, sharpness: float, slot_bias: float) -> float:
    """Return P(the first slot wins): content with probability 1 - abs(slot_bias), otherwise the favoured slot.

    The content says the first with probability sigmoid(sharpness * opinion); infinite sharpness decides outright and
    is 1/2 at a tie. Content cancels over both orders, so (first wins - second wins) / presentations has exactly the
    expectation ``slot_bias``: positive favours the first slot.
    """
    if sharpness == 0 or opinion == 0:
        content = 0.5
    else:
        lean = sharpness * opinion
        content = 1 / (1 + math.exp(-lean)) if lean > -700 else 0.0
    return (1 - abs(slot_bias)) * content + max(slot_bias, 0.0)


def _uniform(*parts: str) -> float:
    """Return a number strictly between 0 and 1 that depends on ``parts`` alone; 52 bits keep it below 1."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float(((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52)


def _source(quality: Quality) -> str:
    """Return the rule's own source text where Python can find it: an edited rule is another judge."""
    try:
        return inspect.getsource(quality)
    except (OSError, TypeError):
        return ""
