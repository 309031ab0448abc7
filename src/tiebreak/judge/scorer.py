"""A reward model as a judge: it scores each answer alone, so no order is ever shown to it and none can sway it.

P(first is better) = sigmoid((r(first) - r(second)) / temperature), the Bradley-Terry model that reward models are
trained by (Ouyang et al. 2022, arXiv 2203.02155, eq. 1). A reward model that only compares answers sees both, and the
difference is the logit it gives, which changes sign and nothing else where they are exchanged. Torch is imported when
there is something to score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tiebreak.judge.table import Question
from tiebreak.records import InputError, Judgment, Progress, Response, content_id, quiet

if TYPE_CHECKING:
    from tiebreak.models.load import Loaded

PROTOCOL = 1
"""Part of every rubric hash; it counts up when the way from scores to a judgment changes."""

CUTS = ("start", "end")

_WHICH = ("first", "second")


def make(
    model: str = "",
    temperature: float = 1.0,
    window: int = 1024,
    cut: Literal["start", "end"] = "start",
    batch: int = 32,
    revision: str = "",
    device: str = "cpu",
) -> RewardJudge:
    """Make the judge that scores with the reward model at ``model``, a folder or a hub name.

    ``temperature`` divides the difference of scores: above 1 the judge is less sure. ``window`` and ``cut`` are those
    of training, see docs/judge.md. ``revision`` is the branch, tag or commit of a hub name.

    Raises:
        InputError: no model, one without a reward head, a revision of a folder, or a number out of range.
    """
    if not model:
        raise InputError("judge: 'reward' needs model, the folder or hub name of a reward model.")
    if not 0 < temperature < math.inf:
        raise InputError(f"judge: temperature is {temperature}; expected a number above 0.")
    for name, value in (("window", window), ("batch", batch)):
        if value < 1:
            raise InputError(f"judge: {name} is {value}; expected 1 or more.")
    if cut not in CUTS:
        raise InputError(f"judge: cut is {cut!r}; expected {' or '.join(map(repr, CUTS))}.")
    if revision and Path(model).is_dir():
        raise InputError(f"judge: revision is {revision!r}, and {model} is a folder, which has none; leave it out.")
    from tiebreak.models.load import form_at

    form = form_at(model, revision=revision or None)
    if form is None:
        raise InputError(
            f"judge: the model {model} has no reward head (it is not a sequence classifier with one label, nor a "
            "classifier with head.json); train one, for example with method: bradley_terry."
        )
    means = () if form.kind == "scalar" else (asdict(form),)
    rubric = content_id("rubric", "reward", PROTOCOL, float(temperature), window, cut, *means)
    return RewardJudge(model, float(temperature), window, cut, batch, revision or None, device, rubric, form.relative)


@dataclass(eq=False)
class RewardJudge:
    """A reward model with its settings; ``make`` is the door.

    ``scores`` holds what is known of an answer, by response id; ``pairs``, of a model that only ``compares``, what is
    known of two, by their sorted ids, as a score for each.
    """

    model: str
    temperature: float
    window: int
    cut: Literal["start", "end"]
    batch: int
    revision: str | None
    device: str
    rubric: str
    compares: bool = False
    scores: dict[str, float | None] = field(default_factory=dict)
    pairs: dict[tuple[str, str], tuple[float, float] | None] = field(default_factory=dict)

    @cached_property
    def by(self) -> str:
        """``model:NAME@REVISION``; of a folder, the revision is a hash of its weights and tokenizer."""
        from tiebreak.models.maker import called, maker_of

        return f"model:{maker_of(called(self.model), self.model, revision=self.revision)}"

    @property
    def instant(self) -> bool:
        """True: there is nothing to wait for."""
        return True

    def prepare(self, questions: Sequence[Question], progress: Progress = quiet) -> None:
        """Score the answers of ``questions`` that have no score yet, in batches, or two at once if it compares."""
        if self.compares:
            self._prepare_pairs({_key(q.slots): q for q in questions if _key(q.slots) not in self.pairs}, progress)
            return
        lacking = {
            slot.id: (question.prompt, slot)
            for question in questions
            for slot in question.slots
            if slot.id not in self.scores
        }
        if not lacking:
            return
        from tiebreak.models.score import score_each

        told = _counted(progress, "answers scored", len(self.scores), len(lacking))
        found = score_each(self._loaded, list(lacking.values()), progress=told, **self._how)
        for key, value in zip(lacking, found, strict=True):
            self.scores[key] = None if value is None else self._finite(value, key)

    def _prepare_pairs(self, lacking: Mapping[tuple[str, str], Question], progress: Progress) -> None:
        if not lacking:
            return
        from tiebreak.models.score import score

        asked = [(question.prompt, sorted(question.slots, key=lambda slot: slot.id)) for question in lacking.values()]
        told = _counted(progress, "pairs scored", len(self.pairs), len(lacking))
        for key, values in zip(lacking, score(self._loaded, asked, progress=told, **self._how), strict=True):
            self.pairs[key] = None if values is None else (self._finite(values[0], *key), self._finite(values[1], *key))

    async def ask(self, question: Question) -> Judgment:
        """Judge the question; an answer without a score makes it ``invalid``, equal scores are a tie."""
        self.prepare([question])
        prompt, slots, attempt = question
        scores = self._scores(slots)
        if scores is None:
            p, raw = None, self._why(slots)
        else:
            p, raw = first_probability((scores[0] - scores[1]) / self.temperature), ""
        return Judgment(
            prompt_id=prompt.id,
            slots=(slots[0].id, slots[1].id),
            verdict="invalid" if p is None else "tie" if p == 0.5 else "slot",
            winner=None if p is None or p == 0.5 else int(p < 0.5),
            probability=p,
            by=self.by,
            rubric=self.rubric,
            raw=raw,
            fields={} if scores is None else {"scores": list(scores)},
            attempt=attempt,
        )

    async def close(self) -> None:
        """Nothing is open: model and scores stay as long as the judge does."""

    @cached_property
    def _loaded(self) -> Loaded:
        from tiebreak.models.load import load_reward

        return load_reward(self.model, device=self.device, revision=self.revision)

    def _scores(self, slots: Sequence[Response]) -> tuple[float, float] | None:
        """Return the scores of both slots in their order, None where there are none."""
        if self.compares:
            found = self.pairs[_key(slots)]
            return found if found is None or slots[0].id <= slots[1].id else found[::-1]
        first, second = (self.scores[slot.id] for slot in slots)
        return None if first is None or second is None else (first, second)

    @property
    def _how(self) -> dict[str, Any]:
        return {"window": self.window, "cut": self.cut, "batch": self.batch}

    def _finite(self, value: float, *keys: str) -> float:
        if not math.isfinite(value):
            raise InputError(
                f"The reward model {self.model} gave {value} for response {' and '.join(keys)}; it cannot judge."
            )
        return value

    def _why(self, slots: Sequence[Response]) -> str:
        """Say of each answer that has no score what is wrong with it."""
        from tiebreak.models.score import room_of

        room = room_of(self._loaded, self.window)
        if self.compares:
            return f"the answers are too long for a window of {room} tokens"
        return "; ".join(
            f"the {which} answer is too long for a window of {room} tokens"
            if slot.text
            else f"the {which} answer is empty and unfinished"
            for which, slot in zip(_WHICH, slots, strict=True)
            if self.scores[slot.id] is None
        )


def _key(slots: Sequence[Response]) -> tuple[str, str]:
    first, second = sorted(slot.id for slot in slots)
    return first, second


def _counted(progress: Progress, what: str, known: int, lacking: int) -> Progress:
    """Show progress in scores made, whatever is counted below."""

    def told(done: int, total: int, shown: object) -> None:
        progress(done, total, {what: known + lacking * done / total})

    return told


def first_probability(gap: float) -> float:
    """Return sigmoid(``gap``), such that both orders agree to the last bit.

    The probability p of the favoured side is at least 1/2, so 1 - p is exact, and so is 1 - (1 - p): what one order
    says of an answer is what the other says of it.
    """
    favoured = 1 / (1 + math.exp(-abs(gap)))
    return favoured if gap >= 0 else 1 - favoured
