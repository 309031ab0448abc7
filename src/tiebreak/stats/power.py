"""How many judgments a comparison needs, and what a given number can show.

All sizes are for independent prompts; multiply by ``design_effect`` when a prompt is judged several times.
"""

from __future__ import annotations

import math

from tiebreak.stats.intervals import NORMAL, z_quantile


def _check(p: float, power: float) -> None:
    if not 0 < p < 1 or not 0 < power < 1:
        raise ValueError(f"p = {p} and power = {power}; expected numbers strictly between 0 and 1")


def n_for(p1: float, p0: float = 0.5, power: float = 0.8, level: float = 0.95) -> int:
    """Return how many prompts show that the true rate ``p1`` is not ``p0``, two-sided, with ``power``.

    n = [(z_{1-a/2} sqrt(p0 q0) + z_{power} sqrt(p1 q1)) / (p1 - p0)]^2, rounded up: 783 for 0.55 against 0.50.
    """
    _check(p1, power)
    _check(p0, power)
    if p1 == p0:
        raise ValueError(f"p1 and p0 are both {p0}; no number of prompts tells equal rates apart")
    spread = z_quantile(level) * math.sqrt(p0 * (1 - p0)) + NORMAL.inv_cdf(power) * math.sqrt(p1 * (1 - p1))
    return math.ceil((spread / (p1 - p0)) ** 2)


def detectable(n: int, p0: float = 0.5, power: float = 0.8, level: float = 0.95) -> float:
    """Return the smallest distance from ``p0`` that ``n`` prompts show with ``power``, as a share.

    (z_{1-a/2} + z_{power}) sqrt(p0 q0 / n): the variance at p0 stands for both, so for few prompts it is a little
    larger than the exact inverse of ``n_for``. 0.049 at n = 805.
    """
    _check(p0, power)
    if n < 1:
        return math.nan
    return (z_quantile(level) + NORMAL.inv_cdf(power)) * math.sqrt(p0 * (1 - p0) / n)


def half_width(n: int, p: float = 0.5, level: float = 0.95) -> float:
    """Return half the width of the interval around a rate near ``p`` from ``n`` prompts, as a share."""
    return z_quantile(level) * math.sqrt(p * (1 - p) / n) if n > 0 else math.nan


def n_for_paired(difference: float, discordant: float, power: float = 0.8, level: float = 0.95) -> int:
    """Return how many pairs show a ``difference`` of two systems judged on the same prompts (McNemar).

    n = [z_{1-a/2} sqrt(psi) + z_{power} sqrt(psi - D^2)]^2 / D^2 with psi the share of discordant pairs: 940 for
    D = 0.05, psi = 0.3.
    """
    _check(discordant, power)
    if difference == 0 or abs(difference) > discordant:
        raise ValueError(f"a difference of {difference} needs 0 < |difference| <= discordant = {discordant}")
    spread = z_quantile(level) * math.sqrt(discordant)
    spread += NORMAL.inv_cdf(power) * math.sqrt(discordant - difference**2)
    return math.ceil((spread / difference) ** 2)


def design_effect(per_prompt: float, correlation: float) -> float:
    """Return the factor 1 + (m - 1) rho by which m correlated judgments per prompt inflate the needed number."""
    return 1 + (per_prompt - 1) * correlation
