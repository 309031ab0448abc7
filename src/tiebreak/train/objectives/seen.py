"""What an objective sees of a batch, what it gives back, and what each kind of link is handed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Whole(NamedTuple):
    """The batch that a part belongs to: its rows' weight, and the weighted learned tokens of their first branches."""

    weight: float
    tokens: float


@dataclass(frozen=True)
class Seen:
    """All an objective sees of a batch of T rows with B branches in all.

    Every branch has ``lengths`` (B,), its tokens, and ``weight`` (B,), that of its row. What was read of it is
    ``logps`` and ``reference`` (B,), summed log-probabilities EOS included, under policy and reference; ``scores``, a
    reward head's, (B,) or (B, k); and what only some switches ask for, in ``readings`` and ``compared`` by name.
    ``tree`` (B,) is the row it belongs to.

    Rows come in three shapes. Those that compare name P pairs: ``chosen`` and ``rejected`` (P,) index branches, ``p``
    (P,) is P(chosen is better), ``margin`` (P,) a strength or a gap of scores, ``share`` (P,) the part of its row that
    a pair is, 1 where a row has one. A list has ``grades`` (B,), and every two branches with different ones are a pair.
    A row that stands alone has one compared branch, ``alone`` (U,), with ``label`` (U,), P(it is desirable), or
    ``ratings`` (U, k) where NaN is missing. ``beside`` (X,) by role indexes branches that are not compared, such as a
    ``rationale``, one per row that has it.

    ``past`` holds what an objective kept from earlier batches, and ``progress``, the share of steps done. ``whole`` is
    what to divide by: a batch may be computed in parts, and each part's loss is its share of the whole, so that the
    parts' gradients add up to the gradient of the batch whichever way it was split.
    """

    lengths: Tensor
    weight: Tensor
    logps: Tensor | None = None
    reference: Tensor | None = None
    scores: Tensor | None = None
    chosen: Tensor | None = None
    rejected: Tensor | None = None
    p: Tensor | None = None
    margin: Tensor | None = None
    share: Tensor | None = None
    tree: Tensor | None = None
    grades: Tensor | None = None
    alone: Tensor | None = None
    label: Tensor | None = None
    ratings: Tensor | None = None
    beside: Mapping[str, Tensor] = field(default_factory=lambda: NOTHING)
    readings: Mapping[str, Tensor] = field(default_factory=lambda: NOTHING)
    compared: Mapping[str, Tensor] = field(default_factory=lambda: NOTHING)
    past: Mapping[str, Tensor] = field(default_factory=lambda: NOTHING)
    whole: Whole | None = None


class Outcome(NamedTuple):
    """The loss to differentiate, the numbers to log (scalar tensors), named as TRL names them, and what to keep.

    ``kept`` is the next batch's :attr:`Seen.past`.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    kept: Mapping[str, Tensor] = NOTHING


class Compared(NamedTuple):
    """What a pair's link is handed, shapes (P,).

    ``chosen`` and ``rejected`` are beta x score; ``z`` is their difference (or another comparison) plus the offset; the
    chosen side should win with probability ``q``.
    """

    z: Tensor
    chosen: Tensor
    rejected: Tensor
    q: Tensor
    beta: float
    seen: Seen


class Alone(NamedTuple):
    """What the link of rows that stand alone is handed: beta x score of the U compared branches, (U,) or (U, k)."""

    values: Tensor
    beta: float
    seen: Seen


class Listed(NamedTuple):
    """What the link of lists is handed: beta x score of all branches, (B,); grades and rows are in ``seen``."""

    values: Tensor
    beta: float
    seen: Seen
