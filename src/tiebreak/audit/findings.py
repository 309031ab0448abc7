"""How a finding is worded and when it is a problem: one rule for all checks."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from tiebreak.records import Finding
from tiebreak.stats.intervals import Estimate

Severity = Literal["fine", "notice", "problem"]


class Bound(NamedTuple):
    """What a value should keep to: from ``low`` to ``high``; ``threshold`` is the figure shown for it."""

    low: float
    high: float
    threshold: float


def at_least(bound: float) -> Bound:
    """Ask for a value of ``bound`` or more."""
    return Bound(bound, math.inf, bound)


def at_most(bound: float) -> Bound:
    """Ask for a value of ``bound`` or less."""
    return Bound(-math.inf, bound, bound)


def within(centre: float, distance: float) -> Bound:
    """Ask for a value no further than ``distance`` from ``centre``."""
    return Bound(centre - distance, centre + distance, distance)


def severity(estimate: Estimate, bound: Bound | None) -> Severity:
    """Return ``problem`` where the whole interval is beyond the bound, ``notice`` where only the value is.

    So a few judgments can raise a notice but not a problem. An undefined value or no bound is ``fine``.
    """
    if bound is None or math.isnan(estimate.value) or bound.low <= estimate.value <= bound.high:
        return "fine"
    return "problem" if estimate.high < bound.low or estimate.low > bound.high else "notice"


def percent(estimate: Estimate, noun: str = "judgments") -> str:
    """Word a share: ``81.3 % (95 % interval 78.9 to 83.5 %, n = 1,000 items)``."""
    return f"{_figure(100 * estimate.value)} % ({_interval(estimate, 100, ' %')}n = {estimate.n:,} {noun})"


def amount(estimate: Estimate, unit: str, noun: str = "judgments", digits: int = 2) -> str:
    """Word a mean with its unit: ``0.41 seconds (95 % interval 0.39 to 0.43, n = 1,000 judgments)``."""
    return f"{_figure(estimate.value, digits)} {unit} ({_interval(estimate, 1, '', digits)}n = {estimate.n:,} {noun})"


def chance(p: float) -> str:
    """Word a p-value: ``p = 0.031``, and ``p < 0.0001`` below that."""
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _figure(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return "undefined"
    return f"{value:,.{digits}f}" if value == 0 or abs(value) >= 10.0**-digits else f"{value:.2g}"


def _interval(estimate: Estimate, scale: float, unit: str, digits: int = 1) -> str:
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "no interval, "
    low, high = _figure(scale * estimate.low, digits), _figure(scale * estimate.high, digits)
    return f"95 % interval {low} to {high}{unit}, "


def finding(
    check: str,
    subject: str,
    sentence: str,
    estimate: Estimate,
    bound: Bound | None = None,
    *,
    worst: Severity = "problem",
    examples: tuple[str, ...] = (),
) -> Finding:
    """Make a finding; ``check`` is the row's name, a dot and what was measured. Nan becomes None.

    ``worst`` caps the verdict where the bound alone does not prove a fault.
    """
    value, low, high = (None if math.isnan(x) else float(x) for x in estimate[:3])
    verdict = severity(estimate, bound)
    return Finding(
        check=check,
        subject=subject,
        sentence=sentence,
        value=value,
        low=low,
        high=high,
        n=int(estimate.n),
        threshold=bound.threshold if bound else None,
        verdict="notice" if verdict == "problem" and worst == "notice" else verdict,
        examples=examples,
    )
