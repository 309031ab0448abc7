"""Links of lists: all completions of a prompt with a grade each, to one loss a row; shapes (T,)."""

from __future__ import annotations

from collections.abc import Mapping

from tiebreak.train.objectives.part import Part

LISTS: Mapping[str, Part] = {}
