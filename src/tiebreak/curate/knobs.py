"""The knobs of a step checked at its door, so that a mistake is told in one sentence before anything is computed."""

from __future__ import annotations

import math
from typing import TypeGuard

from tiebreak.records import InputError


class Lacking(InputError):
    """What a step asks for is not in these judgments; nobody can know before they are there."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_number(step: str, knob: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Return ``value`` where it is a finite number from ``low`` to ``high``.

    Raises:
        InputError: it is none.
    """
    if is_number(value) and low <= value <= high:
        return float(value)
    if high < math.inf:
        expected = f"a number from {low:g} to {high:g}"
    else:
        expected = "a number" if low == -math.inf else f"a number of at least {low:g}"
    raise InputError(f"{step} has {knob} = {value!r}; expected {expected}.")


def check_count(step: str, knob: str, value: object, low: int) -> int:
    """Return ``value`` where it is a whole number of at least ``low``.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise InputError(f"{step} has {knob} = {value!r}; expected a whole number of at least {low}.")


def check_bands(step: str, knob: str, value: object) -> frozenset[int]:
    """Return the numbers of bands that ``value`` names, one or a list of them.

    Raises:
        InputError: it is neither.
    """
    named = value if isinstance(value, list | tuple) else [value]
    if named and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in named):
        return frozenset(named)
    raise InputError(f"{step} has {knob} = {value!r}; expected the number of a band, from 0, or a list of them.")
