"""Links of rows that stand alone: one completion and whether it is desirable, or what it is rated; shapes (U,)."""

from __future__ import annotations

from collections.abc import Mapping

from tiebreak.train.objectives.part import Part

ALONE: Mapping[str, Part] = {}
