"""All knobs of a method: what is given over the defaults, of the right kind, and together of some sense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tiebreak.records import InputError
from tiebreak.registry import nearest
from tiebreak.train.policy_gradient.presets import PLAIN
from tiebreak.train.policy_gradient.shape import check_missing_eos
from tiebreak.train.policy_gradient.switches import check


def settle(knobs: Mapping[str, Any], *, draws: int) -> dict[str, Any]:
    """Return all knobs of a method that draws so many completions a prompt.

    Raises:
        InputError: an unknown knob, with the nearest name, one of the wrong kind, or knobs that do not go together.
    """
    for name, value in knobs.items():
        if name not in PLAIN:
            raise InputError(f"Policy gradient has no knob {name!r}; it has {', '.join(PLAIN)}.{nearest(name, PLAIN)}")
        if expected := _misfit(PLAIN[name], value):
            raise InputError(f"{name} is {value!r}; expected {expected}.")
    whole = {**PLAIN, **knobs}
    check(**whole, draws=draws)
    check_missing_eos(whole["missing_eos"])
    if whole["truncated"] not in ("keep", "mask"):
        raise InputError(f"truncated is {whole['truncated']!r}; expected keep or mask.")
    if not 0 <= whole["overlong"] < 1:
        raise InputError(f"overlong is {whole['overlong']}; expected a share of max_new_tokens, 0 or more and below 1.")
    return whole


def _misfit(default: Any, value: Any) -> str:
    """Return what was expected where ``value`` is not of the kind of the knob's default."""
    if isinstance(default, bool) or isinstance(value, bool):
        return "" if isinstance(default, bool) and isinstance(value, bool) else "true or false"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "text"
    if isinstance(default, int):
        return "" if isinstance(value, int) else "a whole number"
    return "" if isinstance(value, int | float) and math.isfinite(value) else "a finite number"
