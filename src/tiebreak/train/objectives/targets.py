"""Targets: with which probability the chosen side should win, (P,)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen


def hard(seen: Seen) -> Tensor:
    """The chosen side is right, whatever the probability."""
    assert seen.p is not None
    return torch.ones_like(seen.p)


def soft(seen: Seen) -> Tensor:
    """The chosen side is right with the probability the judgments give."""
    assert seen.p is not None
    return seen.p


TARGETS: Mapping[str, Part] = {"hard": Part(hard), "soft": Part(soft)}
