"""Several judges as one: a jury asks each of its jurors the same question and goes by the mean of what they say.

A jury of small models from different families can stand in for one large judge and favours its own family less
(Verga et al. 2024, arXiv 2404.18796). How many independent judges it is worth, the check ``jury`` measures from the
jurors' own judgments; ``hear`` hands them out, and they belong in the ledger.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tiebreak.endpoint.client import clients_of
from tiebreak.judge.table import JUDGES, Judge, Prepares, Question
from tiebreak.records import InputError, Judgment, Progress, content_id, quiet

if TYPE_CHECKING:
    from tiebreak.endpoint import Endpoint

PROTOCOL = 1
"""Part of every rubric hash; it counts up when the way from the jurors to the verdict changes."""

EVEN = 1e-9
"""A mean this close to 1/2 is a tie: weights such as 0.1 do not add up to the last bit."""

OUT = ("both_bad", "skip", "invalid")
"""Verdicts that prefer nothing, so they stay out of the mean."""

COUNTS = ("probability", "vote")

_PANEL = re.compile(r"(?:model|rule):panel\(\d+\)@[0-9a-f]+")


def is_panel(by: str) -> bool:
    """Whether ``by``, or a name that begins with it, is a panel: no further voice beside its jurors."""
    return _PANEL.match(by) is not None


def make(
    jurors: Sequence[Mapping[str, Any]] = (),
    weights: Sequence[float] = (),
    count: Literal["probability", "vote"] = "probability",
) -> PanelJudge:
    """Make the jury of ``jurors``, each a judge as a recipe writes it: ``{by: rule, rule: plain}``.

    ``weights`` has one number above 0 for each juror; none weighs all the same. ``count`` says what is averaged: the
    jurors' probabilities, or their votes, 1, 0 or 1/2, where a single sure juror should not outvote two that are not.

    Raises:
        InputError: fewer than two jurors, a panel among them, one named twice, or weights that do not fit.
    """
    if count not in COUNTS:
        raise InputError(f"judge: count is {count!r}; expected 'probability' or 'vote'.")
    if isinstance(jurors, str | Mapping) or len(jurors) < 2:
        raise InputError(
            "judge: 'panel' needs a list of two jurors or more, each as a recipe writes a judge, such as "
            "jurors: [{by: rule, rule: plain}, {by: pairwise, endpoint: URL, model: NAME}]."
        )
    fits = len(weights) == len(jurors) and all(
        isinstance(w, int | float) and not isinstance(w, bool) and 0 < w < math.inf for w in weights
    )
    if len(weights) and not fits:
        raise InputError(
            f"judge: weights is {list(weights)} for {len(jurors)} jurors; expected a number above 0 for each of them."
        )
    made = [_juror(spec, number) for number, spec in enumerate(jurors, 1)]
    # All twos weigh as all ones do, and are the same panel.
    worth = [float(w) for w in weights] if len(set(weights)) > 1 else [1.0] * len(made)
    seats = [Seat(judge, weight) for judge, weight in zip(made, worth, strict=True)]
    kind = PreparingPanel if any(isinstance(judge, Prepares) for judge in made) else PanelJudge
    return kind(tuple(seats), count)


def _juror(spec: Mapping[str, Any], number: int) -> Judge:
    """Make one juror; what is wrong with it is told with its number."""
    where = f"juror {number} of the panel"
    if not isinstance(spec, Mapping) or not isinstance(spec.get("by"), str):
        raise InputError(f"judge: {where} is {spec!r}; expected a judge such as {{by: rule, rule: plain}}.")
    by, knobs = str(spec["by"]), {name: value for name, value in spec.items() if name != "by"}
    judge: Judge | None = None
    try:
        if by != "panel":
            row = JUDGES[by]
            judge = row.load()(**row.settle(knobs, where="judge"))
    except InputError as error:
        raise InputError(f"{where[0].upper()}{where[1:]}: {error}") from error
    if judge is None or isinstance(judge, PanelJudge):
        raise InputError(f"judge: {where} is a panel itself; name its jurors here instead, with weights where needed.")
    return judge


class Seat(NamedTuple):
    """A juror and what its word weighs."""

    judge: Judge
    weight: float


@dataclass(eq=False)
class PanelJudge:
    """A jury; ``make`` is the door. ``named`` are the seats as they were named, ``seats`` in an order of their own."""

    named: tuple[Seat, ...]
    count: str = "probability"

    @cached_property
    def seats(self) -> tuple[Seat, ...]:
        """The jurors in the order of their names and rubrics, so that a list turned round is the same panel."""
        seats = sorted(self.named, key=lambda seat: (seat.judge.by, seat.judge.rubric))
        twice = Counter((seat.judge.by, seat.judge.rubric) for seat in seats).most_common(1)[0]
        if twice[1] > 1:
            raise InputError(
                f"judge: the panel has the juror {twice[0][0]} more than once with the same settings, and it would say "
                "the same; leave it out, or give it a weight."
            )
        return tuple(seats)

    @property
    def jurors(self) -> tuple[Judge, ...]:
        """The judges that are asked."""
        return tuple(seat.judge for seat in self.seats)

    @cached_property
    def by(self) -> str:
        """``model:panel(NUMBER)@HASH`` of the jurors' names; ``rule:`` where all of them are rules."""
        names = [judge.by for judge in self.jurors]
        kind = "rule" if all(name.startswith("rule:") for name in names) else "model"
        return f"{kind}:panel({len(names)})@{content_id('panel', names)[:8]}"

    @cached_property
    def rubric(self) -> str:
        """The hash of who the jurors are, their own rubrics, what they weigh and what is counted."""
        jurors = [(seat.judge.by, seat.judge.rubric, seat.weight) for seat in self.seats]
        return content_id("rubric", "panel", PROTOCOL, self.count, jurors)

    @property
    def instant(self) -> bool:
        """Whether every juror computes on the spot."""
        return all(seat.judge.instant for seat in self.named)

    @property
    def clients(self) -> tuple[Endpoint, ...]:
        """The jurors' connections to servers."""
        return tuple(client for seat in self.named for client in clients_of(seat.judge))

    async def ask(self, question: Question) -> Judgment:
        """Return the panel's judgment alone; see :meth:`hear`."""
        return (await self.hear(question))[0]

    async def hear(self, question: Question) -> tuple[Judgment, tuple[Judgment, ...]]:
        """Ask all jurors at once; return the panel's judgment and the jurors' own.

        Where one fails the others finish first, so that what they cost is kept where replies are.
        """
        said = await asyncio.gather(*(judge.ask(question) for judge in self.jurors), return_exceptions=True)
        for one in said:
            if isinstance(one, BaseException):
                raise one
        own = tuple(one for one in said if isinstance(one, Judgment))
        return self._weighed(question, own), own

    async def close(self) -> None:
        """Close every juror, also where closing one fails."""
        closed = await asyncio.gather(*(seat.judge.close() for seat in self.named), return_exceptions=True)
        for one in closed:
            if isinstance(one, BaseException):
                raise one

    def _weighed(self, question: Question, own: Sequence[Judgment]) -> Judgment:
        """Return the weighted mean of the jurors' judgments, with what they said in ``fields``."""
        first, weights = question.slots[0].id, [seat.weight for seat in self.seats]
        heard = [(w, _p_first(j, first, self.count)) for w, j in zip(weights, own, strict=True)]
        voices = [(w, p) for w, p in heard if p is not None]
        p = _mean(voices)
        out = Counter(judgment.verdict for judgment in own if judgment.verdict in OUT)
        fields: dict[str, Any] = {"jurors": [_shown(seat, j, weights) for seat, j in zip(self.seats, own, strict=True)]}
        if out:
            fields["out"] = dict(sorted(out.items()))
        verdict: Literal["slot", "tie", "both_bad", "invalid"] = "slot"
        if p is None:
            verdict = "both_bad" if out["both_bad"] else "invalid"
        elif p == 0.5:
            verdict = "tie"
        if verdict == "invalid":
            fields["why"] = "no juror prefers anything: " + ", ".join(f"{n} {name}" for name, n in sorted(out.items()))
        return Judgment(
            prompt_id=question.prompt.id,
            slots=(first, question.slots[1].id),
            verdict=verdict,
            winner=None if p is None or p == 0.5 else int(p < 0.5),
            probability=p,
            by=self.by,
            ratings=_ratings(self.seats, own),
            rubric=self.rubric,
            fields=fields,
            tokens_in=_total([judgment.tokens_in for judgment in own]),
            tokens_out=_total([judgment.tokens_out for judgment in own]),
            price=_total([judgment.price for judgment in own]),
            latency=max((j.latency for j in own if j.latency is not None), default=None),
            attempt=question.attempt,
        )


class PreparingPanel(PanelJudge):
    """A jury with jurors that look at many questions at once before they are asked."""

    def prepare(self, questions: Sequence[Question], progress: Progress = quiet) -> None:
        """Have every juror that prepares do so, one after the other."""
        for seat in self.named:
            if isinstance(seat.judge, Prepares):
                seat.judge.prepare(questions, progress)


def _p_first(judgment: Judgment, first: str, count: str) -> float | None:
    """P(the first slot), or 1, 0 or 1/2 for a vote; None for a juror that prefers nothing."""
    p = judgment.p_better(first)
    if p is None or count == "probability":
        return p
    if judgment.winner is None:
        return 0.5
    return float(judgment.slots[judgment.winner] == first)


def _mean(voices: Sequence[tuple[float, float]]) -> float | None:
    """Return the weighted mean of (weight, p), exactly 1/2 where it balances; None of nobody."""
    if not voices:
        return None
    p = math.fsum(w * p for w, p in voices) / math.fsum(w for w, _ in voices)
    return 0.5 if abs(p - 0.5) < EVEN else min(1.0, max(0.0, p))


def _shown(seat: Seat, judgment: Judgment, weights: Sequence[float]) -> dict[str, Any]:
    """Return what a judgment of the panel keeps of a juror's; with ``rubric`` it is found in the ledger."""
    weight = {} if len(set(weights)) == 1 else {"weight": seat.weight}
    return {
        "by": judgment.by,
        "rubric": judgment.rubric,
        "verdict": judgment.verdict,
        "winner": judgment.winner,
        "probability": judgment.probability,
        **weight,
    }


def _ratings(seats: Sequence[Seat], own: Sequence[Judgment]) -> dict[str, list[float | None]]:
    """Return the weighted mean of each aspect's ratings, what is missing left out.

    Nothing where the jurors that rate have different rubrics, for then a 4 of one need not be a 4 of another.
    """
    rated = [(seat.weight, judgment) for seat, judgment in zip(seats, own, strict=True) if judgment.ratings]
    if len({judgment.rubric for _, judgment in rated}) != 1:
        return {}
    means: dict[str, list[float | None]] = {}
    for aspect in dict.fromkeys(name for _, judgment in rated for name in judgment.ratings):
        given = [(w, j.ratings[aspect]) for w, j in rated if isinstance(j.ratings.get(aspect), list | tuple)]
        columns = [[(w, marks[slot]) for w, marks in given if marks[slot] is not None] for slot in (0, 1)]
        means[aspect] = [
            math.fsum(w * mark for w, mark in column) / math.fsum(w for w, _ in column) if column else None
            for column in columns
        ]
    return means


def _total(parts: Sequence[float | None]) -> Any:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None
