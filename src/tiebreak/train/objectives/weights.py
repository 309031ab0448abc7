"""Weights: how much a pair counts besides its row's own weight, (P,); no gradient flows through them."""

from __future__ import annotations

from collections.abc import Mapping

from tiebreak.train.objectives.part import Part

WEIGHTS: Mapping[str, Part] = {}
