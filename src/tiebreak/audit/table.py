"""The table of checks, and the view of the judgments they all read.

A check is ``check(view, **knobs) -> list[Finding]``; it changes nothing. The view holds arrays, built once, so a
check over a million judgments takes a second or so and needs no loop over records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tiebreak.records import VERDICTS, Judgment, Response
from tiebreak.registry import Row, Table

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SLOT, TIE, BOTH_BAD, SKIP, INVALID = range(len(VERDICTS))
"""The codes of the verdicts, in the order of ``VERDICTS``."""

EMPTY = 0
"""The code of an empty text."""

CROWD = 20
"""More judges of one kind than this are spoken of together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """N judgments as arrays of shape (N,); unknown codes are -1 and unknown numbers nan.

    ``judge`` codes index ``judges``, which are ``by`` and, where one judge used several rubrics, the rubric's first
    digits. ``item`` is the set of responses, whatever their order; ``swapped`` tells its two orders apart (the second
    response id sorts before the first). ``mass`` is the probability a model left to the answers offered. ``maker0``
    and ``maker1`` index ``makers``. Lengths are in words. ``same_text`` and ``empty`` speak of any of the responses
    shown. ``superseded`` judgments were revised by another one and are not among the N.
    """

    ids: Sequence[str]
    judges: tuple[str, ...]
    makers: tuple[str, ...]
    judge: Ints
    prompt: Ints
    item: Ints
    slots: Ints
    slot0: Ints
    slot1: Ints
    swapped: Bools
    order_known: Bools
    verdict: Ints
    winner: Ints
    probability: Floats
    strength: Floats
    mass: Floats
    attempt: Ints
    length0: Floats
    length1: Floats
    maker0: Ints
    maker1: Ints
    same_text: Bools
    empty: Bools
    tokens_in: Floats
    tokens_out: Floats
    price: Floats
    latency: Floats
    superseded: int

    def __len__(self) -> int:
        return len(self.judge)

    @cached_property
    def pair(self) -> Bools:
        """Which judgments compare exactly two different responses."""
        different: Bools = (self.slots == 2) & (self.slot0 != self.slot1)
        return different

    @cached_property
    def first(self) -> Floats:
        """The first slot's score: 1 won, 0 lost, 1/2 tie; nan for lists and for verdicts that prefer nothing."""
        score = np.where(self.winner == 0, 1.0, 0.0)
        score[self.verdict == TIE] = 0.5
        score[~self.pair | (self.verdict > TIE)] = math.nan
        return score

    @cached_property
    def kind(self) -> tuple[str, ...]:
        """Each judge's kind: ``human``, ``model``, ``rule`` or what else stands before the colon."""
        return tuple(name.partition(":")[0] for name in self.judges)

    def by_judge(self, rows: Ints | None = None) -> Iterator[tuple[str, Ints]]:
        """Yield each judge's name and the positions in ``rows`` (all judgments when None) that are its own.

        Judges of a kind that has more than ``CROWD`` of them come together under one name: a finding on each of a
        thousand annotators with a dozen votes says nothing about any of them.
        """
        names, voice = self._voices()
        codes = voice[self.judge if rows is None else self.judge[rows]]
        order = np.argsort(codes, kind="stable")
        edges = np.searchsorted(codes[order], np.arange(len(names) + 1))
        for code, name in enumerate(names):
            if edges[code] < edges[code + 1]:
                yield name, order[edges[code] : edges[code + 1]]

    def _voices(self) -> tuple[list[str], Ints]:
        """Return the names findings speak of, and for each judge (J,) which of them it belongs to."""
        sizes = Counter(self.kind)
        crowds = {
            kind: f"the crowd of {size:,} {'annotators' if kind == 'human' else f'{kind} judges'}"
            for kind, size in sizes.items()
            if size > CROWD
        }
        spoken = [crowds.get(kind, name) for kind, name in zip(self.kind, self.judges, strict=True)]
        names = list(dict.fromkeys(spoken))
        index = {name: code for code, name in enumerate(names)}
        return names, np.array([index[name] for name in spoken], dtype=np.int64)

    def examples(self, rows: Ints | Bools, most: int = 5) -> tuple[str, ...]:
        """Return the first few judgment ids among ``rows``."""
        where = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return tuple(self.ids[int(i)] for i in where[:most])


def _codes(names: Iterable[Any]) -> tuple[Ints, list[Any]]:
    """Code values by first appearance."""
    index: dict[Any, int] = {}
    codes = np.array([index.setdefault(name, len(index)) for name in names], dtype=np.int64)
    return codes, list(index)


def _numbers(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _mass(judgment: Judgment) -> float | None:
    """Return what the offered answers had of the probability; other sources may keep something else by that name."""
    found = judgment.fields.get("mass")
    return float(found) if isinstance(found, int | float) and 0 <= found <= 1 else None


def _judges(kept: Sequence[Judgment]) -> tuple[Ints, tuple[str, ...]]:
    """Code judges by name and rubric, in the order of their names."""
    rough, pairs = _codes((j.by, j.rubric) for j in kept)
    rubrics = {by: sum(1 for other, _ in pairs if other == by) for by in {by for by, _ in pairs}}
    order = sorted(range(len(pairs)), key=pairs.__getitem__)
    rank = np.empty(len(pairs), dtype=np.int64)
    rank[order] = np.arange(len(pairs))
    names = tuple(
        pairs[i][0] if rubrics[pairs[i][0]] == 1 else f"{pairs[i][0]} (rubric {pairs[i][1][:8] or 'none'})"
        for i in order
    )
    return rank[rough] if len(pairs) else rough, names


@dataclass(frozen=True, eq=False)
class _Shown:
    """What is known about the responses, by code; the last entry stands for a response that is not known."""

    index: dict[str, int]
    words: Floats
    text: Ints
    maker: Ints
    makers: tuple[str, ...]

    def codes(self, ids: Iterable[str]) -> Ints:
        return np.array([self.index.get(i, -1) for i in ids], dtype=np.int64)


def _shown(responses: Iterable[Response]) -> _Shown:
    index: dict[str, int] = {}
    texts: dict[str, int] = {"": EMPTY}
    makers: dict[str, int] = {}
    words, text, maker = [], [], []
    for response in responses:
        if response.id in index:
            continue
        index[response.id] = len(index)
        stripped = response.text.strip()
        words.append(float(len(stripped.split())))
        text.append(texts.setdefault(stripped, len(texts)))
        maker.append(makers.setdefault(response.maker, len(makers)) if response.maker else -1)
    return _Shown(index, np.array([*words, math.nan]), np.array([*text, -1]), np.array([*maker, -1]), tuple(makers))


def _texts(kept: Sequence[Judgment], shown: _Shown, zero: Ints, one: Ints) -> tuple[Bools, Bools]:
    """Whether any two of the texts shown are equal, and whether any is empty."""
    text0, text1 = shown.text[zero], shown.text[one]
    same = ((text0 == text1) & (text0 >= 0)) & np.array([len(j.slots) > 1 for j in kept], dtype=np.bool_)
    empty = (text0 == EMPTY) | (text1 == EMPTY)
    for i, judgment in enumerate(kept):
        if len(judgment.slots) > 2:
            known = [int(c) for c in shown.text[shown.codes(judgment.slots)] if c >= 0]
            same[i], empty[i] = len(set(known)) < len(known), EMPTY in known
        elif len(judgment.slots) == 2 and judgment.slots[0] == judgment.slots[1]:
            same[i] = True
    return same, empty


def view(judgments: Iterable[Judgment], responses: Iterable[Response] = ()) -> View:
    """Build the view; judgments that another given one revises are left out and counted.

    Responses that are not given leave lengths and makers unknown, and checks that need them say so.
    """
    given = list(judgments)
    revised = {j.revises for j in given if j.revises is not None}
    kept = [j for j in given if j.id not in revised] if revised else given
    shown = _shown(responses)
    judge, judges = _judges(kept)
    prompt, _ = _codes(j.prompt_id for j in kept)
    item, _ = _codes((j.prompt_id, *sorted(j.slots)) for j in kept)
    firsts = [j.slots[0] if j.slots else "" for j in kept]
    seconds = [j.slots[1] if len(j.slots) > 1 else "" for j in kept]
    zero, one = shown.codes(firsts), shown.codes(seconds)
    same, empty = _texts(kept, shown, zero, one)
    slot, _ = _codes([*firsts, *seconds])
    verdicts = {name: code for code, name in enumerate(VERDICTS)}
    return View(
        ids=[j.id for j in kept],
        judges=judges,
        makers=shown.makers,
        judge=judge,
        prompt=prompt,
        item=item,
        slots=np.array([len(j.slots) for j in kept], dtype=np.int64),
        slot0=slot[: len(kept)],
        slot1=slot[len(kept) :],
        swapped=np.array([a > b for a, b in zip(firsts, seconds, strict=True)], dtype=np.bool_),
        order_known=np.array([j.order_known for j in kept], dtype=np.bool_),
        verdict=np.array([verdicts[j.verdict] for j in kept], dtype=np.int64),
        winner=np.array([-1 if j.winner is None else j.winner for j in kept], dtype=np.int64),
        probability=_numbers(j.probability for j in kept),
        strength=_numbers(j.strength for j in kept),
        mass=_numbers(_mass(j) for j in kept),
        attempt=np.array([j.attempt for j in kept], dtype=np.int64),
        length0=shown.words[zero],
        length1=shown.words[one],
        maker0=shown.maker[zero],
        maker1=shown.maker[one],
        same_text=same,
        empty=empty,
        tokens_in=_numbers(j.tokens_in for j in kept),
        tokens_out=_numbers(j.tokens_out for j in kept),
        price=_numbers(j.price for j in kept),
        latency=_numbers(j.latency for j in kept),
        superseded=len(given) - len(kept),
    )


CHECKS = Table(
    "audit",
    "check",
    [
        Row(
            name="verdicts",
            does="how often each judge chose, tied, skipped or gave nothing readable",
            target="tiebreak.audit.checks:verdicts",
            knobs={"max_invalid": 0.05, "max_skip": 0.2},
        ),
        Row(
            name="position",
            does="whether the slot an answer is shown in changes the verdict",
            target="tiebreak.audit.position:position",
            knobs={"min_consistency": 0.8, "max_bias": 0.1},
            paper="arXiv:2306.05685",
        ),
        Row(
            name="mass",
            does="how much probability a model puts on answers that were not offered, and what is unreadable for it",
            target="tiebreak.audit.mass:mass",
            knobs={"max_missing": 0.1, "max_invalid": 0.02},
            paper="arXiv:2309.00267",
        ),
        Row(
            name="length",
            does="how often the longer answer is preferred",
            target="tiebreak.audit.checks:length",
            knobs={"tau": 0, "max_rate": 0.6},
            paper="arXiv:2404.04475",
        ),
        Row(
            name="agreement",
            does="whether annotators agree where an item has several",
            target="tiebreak.audit.checks:agreement",
            knobs={"min_alpha": 0.4, "draws": 1000, "seed": 0},
            paper="Krippendorff 2004",
        ),
        Row(
            name="jury",
            does="how many independent judges the judges are worth, and who adds least",
            target="tiebreak.audit.jury:jury",
            knobs={"truth": "", "least": 30, "min_size": 1.5, "draws": 500, "seed": 0},
            paper="Kish 1965; Dawid and Skene 1979",
        ),
        Row(
            name="repeats",
            does="whether a judge repeats itself when asked the same again",
            target="tiebreak.audit.checks:repeats",
            knobs={"min_rate": 0.8},
        ),
        Row(
            name="strength",
            does="whether strong votes lean to one slot, as a misread two-sided scale makes them",
            target="tiebreak.audit.checks:strength",
            knobs={"strong": 0.75, "max_lean": 0.15},
        ),
        Row(
            name="identical",
            does="whether equal or empty answers were judged",
            target="tiebreak.audit.checks:identical",
            knobs={"max_rate": 0.0},
        ),
        Row(
            name="cost",
            does="tokens, price and latency of each judge",
            target="tiebreak.audit.checks:cost",
        ),
    ],
)
