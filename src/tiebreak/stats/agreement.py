"""Do judges agree: with themselves when the order is swapped, and with each other.

Scores are seen from the first slot: 1 it won, 0 the second won, 1/2 a tie, nan nothing readable. Agreement
coefficients take integer codes. Where agreement by chance is certain a coefficient is undefined: nan, never 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiebreak.stats.intervals import (
    NOTHING,
    Estimate,
    Floats,
    binomial_test,
    cluster_codes,
    clustered_mean,
    percentile,
    rate,
)


class Position(NamedTuple):
    """What swapping the order showed, over ``n`` items asked in both orders and readable in both.

    ``consistent`` counts the same verdict on the candidates, a tie equal only to a tie; ``lenient`` lets a tie go with
    anything. ``primacy`` is the share where the first slot won both times, ``recency`` the second; ``bias`` is their
    difference. ``first`` is the first-slot preference, ties 1/2. ``p`` tests primacy against recency exactly.
    ``unreadable`` items had a verdict missing in an order and are left out.
    """

    consistent: Estimate
    lenient: Estimate
    primacy: Estimate
    recency: Estimate
    bias: Estimate
    first: Estimate
    p: float
    n: int
    unreadable: int


def position(first_1: npt.ArrayLike, first_2: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> Position:
    """Compare the first slot's score in one order, (n,), with its score in the swapped order, (n,).

    The candidate shown first changes, so an order-blind judge has first_1 + first_2 = 1. Rates after Zheng et al. 2023
    (arXiv 2306.05685, section 3.3) and Shi et al. 2024 (arXiv 2406.07791).
    """
    one, two = np.asarray(first_1, dtype=np.float64), np.asarray(first_2, dtype=np.float64)
    codes, _ = cluster_codes(clusters, len(one))
    known = ~(np.isnan(one) | np.isnan(two))
    one, two, codes = one[known], two[known], codes[known]
    always_first = (one == 1) & (two == 1)
    always_second = (one == 0) & (two == 0)
    bias = clustered_mean(always_first.astype(float) - always_second, codes)
    f, s = int(always_first.sum()), int(always_second.sum())
    return Position(
        consistent=rate(one + two == 1, codes),
        lenient=rate(~(always_first | always_second), codes),
        primacy=rate(always_first, codes),
        recency=rate(always_second, codes),
        bias=bias if math.isnan(bias.low) else bias._replace(low=max(-1.0, bias.low), high=min(1.0, bias.high)),
        first=rate((one + two) / 2, codes),
        p=binomial_test(f, f + s),
        n=len(one),
        unreadable=int((~known).sum()),
    )


class OrderRates(NamedTuple):
    """Shares of all rows: same candidate won both times, first slot both times, second both times, an order open."""

    matched: float
    first: float
    second: float
    unanswered: float


def order_rates(p_first_1: npt.ArrayLike, p_first_2: npt.ArrayLike) -> OrderRates:
    """Return the four rates of the RLAIF positional-bias report from P(first slot) in both orders, each (n,).

    A row is unanswered where either order is exactly 1/2 or nan; otherwise the preferred slots are compared: different
    slots mean the same candidate. Every row is in the denominator, so the four add up to 1. The RLAIF paper's "same
    position preferred" is first + second (Lee et al. 2023, arXiv 2309.00267).
    """
    one, two = np.asarray(p_first_1, dtype=np.float64), np.asarray(p_first_2, dtype=np.float64)
    n = len(one)
    if n == 0:
        return OrderRates(math.nan, math.nan, math.nan, math.nan)
    matched = ((one > 0.5) & (two < 0.5)) | ((one < 0.5) & (two > 0.5))
    first, second = (one > 0.5) & (two > 0.5), (one < 0.5) & (two < 0.5)
    counts = [int(matched.sum()), int(first.sum()), int(second.sum())]
    return OrderRates(counts[0] / n, counts[1] / n, counts[2] / n, (n - sum(counts)) / n)


class FirstSlot(NamedTuple):
    """First-slot preference from single presentations: the rate, ties 1/2, and the exact test of 1/2 without ties."""

    rate: Estimate
    p: float


def first_slot(first: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> FirstSlot:
    """Return how often the first slot is preferred when each item was shown in one order, scores (n,).

    It measures bias only where the order was drawn at random; under a fixed order it also measures quality.
    """
    score = np.asarray(first, dtype=np.float64)
    codes, _ = cluster_codes(clusters, len(score))
    known = ~np.isnan(score)
    wins, losses = int((score == 1).sum()), int((score == 0).sum())
    return FirstSlot(rate(score[known], codes[known]), binomial_test(wins, wins + losses))


def flip_rate(disagreement: float) -> float:
    """Return eps of symmetric label noise from the share d of repeats that disagree: d = 2 eps (1 - eps).

    1 - eps bounds the accuracy any model can show against these labels; d of 1/2 or more is pure noise, 1/2.
    """
    return (1 - math.sqrt(max(0.0, 1 - 2 * disagreement))) / 2


Coefficient = Callable[[Floats], Floats]


def _bootstrapped(patterns: Floats, weights: Floats, coefficient: Coefficient, draws: int, seed: int) -> Estimate:
    """Resample items by drawing how often each distinct pattern occurs: exact, and as cheap for a million items.

    ``patterns`` (P, F) are the per-item summaries, ``weights`` (P,) their counts; ``coefficient`` maps sums (B, F)
    to values (B,).
    """
    n = int(weights.sum())
    if n == 0:
        return NOTHING
    value = float(coefficient((weights @ patterns)[None, :])[0])
    if n < 2:
        return Estimate(value, math.nan, math.nan, n)
    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // len(weights))
    found = [
        coefficient(rng.multinomial(n, weights / n, size=min(chunk, draws - start)) @ patterns)
        for start in range(0, draws, chunk)
    ]
    return percentile(value, np.concatenate(found) if found else np.empty(0), n)


def _ratio(observed: Floats, expected: Floats) -> Floats:
    """1 - observed / expected disagreement, nan where no disagreement is expected."""
    certain = expected <= 1e-12
    value: Floats = np.where(certain, math.nan, 1 - observed / np.where(certain, 1.0, expected))
    return value


def _disagreement(k: int, weights: str | None) -> Floats:
    if weights is None:
        return 1 - np.eye(k)
    gap: Floats = np.abs(np.subtract.outer(np.arange(k), np.arange(k))) / max(1, k - 1)
    if weights == "linear":
        return gap
    if weights == "quadratic":
        return gap**2
    raise ValueError(f"weights are {weights!r}; expected None, 'linear' or 'quadratic'")


def cohen_kappa(
    a: npt.ArrayLike, b: npt.ArrayLike, *, weights: str | None = None, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Return Cohen's kappa of two raters' labels (n,) with a bootstrap interval over items.

    1 - sum w o / sum w e, the weighted form (Cohen 1968); without ``weights`` w is 1 off the diagonal, which is
    (po - pe) / (1 - pe). Labels for weighted forms must sort in their order of meaning. Two raters who both always say
    the same have nothing to agree on beyond chance: nan.
    """
    one, two = np.asarray(a), np.asarray(b)
    if one.shape != two.shape or one.ndim != 1:
        raise ValueError(f"labels have shapes {one.shape} and {two.shape}; expected two equal rows")
    names, codes = np.unique(np.concatenate([one, two]), return_inverse=True)
    k, n = len(names), len(one)
    if n == 0:
        return NOTHING
    cells = np.bincount(codes[:n] * k + codes[n:], minlength=k * k).astype(float)
    w = _disagreement(k, weights)

    def kappa(tables: Floats) -> Floats:
        share = (tables / tables.sum(axis=1, keepdims=True)).reshape(-1, k, k)
        expected = np.einsum("bi,bj,ij->b", share.sum(axis=2), share.sum(axis=1), w)
        return _ratio(np.einsum("bij,ij->b", share, w), expected)

    return _bootstrapped(np.eye(k * k), cells, kappa, draws, seed)


def label_counts(units: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return how often each unit got each label, shape (units, labels), from two rows (n,)."""
    unit_codes, n_units = cluster_codes(units, len(np.asarray(labels)))
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    k = max(1, len(names))
    counts = np.bincount(unit_codes * k + codes, minlength=n_units * k)
    return counts.reshape(n_units, k).astype(np.int64)


def _patterns(counts: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    base = int(counts.max(initial=0)) + 1
    k = counts.shape[1]
    if k * math.log2(base) < 62:
        powers = base ** np.arange(k, dtype=np.int64)
        _, rows, times = np.unique(counts @ powers, return_index=True, return_counts=True)
        return counts[rows].astype(float), times.astype(float)
    found, times = np.unique(counts, axis=0, return_counts=True)
    return found.astype(float), times.astype(float)


def krippendorff_alpha(units: npt.ArrayLike, labels: npt.ArrayLike, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Return Krippendorff's nominal alpha from one row per vote, ``units`` (n,) and ``labels`` (n,).

    1 - Do/De with coincidences weighted 1/(m_u - 1) (Krippendorff 2004, section 11.3). Any number of raters, missing
    votes allowed; units with a single vote say nothing and are left out, ``n`` counts the units used. Interval by
    bootstrap over units. One label in all votes: nan.
    """
    counts = label_counts(units, labels)
    return alpha_from_counts(counts, draws=draws, seed=seed)


def alpha_from_counts(counts: npt.NDArray[np.int64], *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Return nominal alpha from how often each unit got each label, shape (units, labels)."""
    several = counts[counts.sum(axis=1) >= 2]
    found, times = _patterns(several)
    m = found.sum(axis=1)
    differ = (m**2 - (found**2).sum(axis=1)) / np.maximum(m - 1, 1)

    def alpha(sums: Floats) -> Floats:
        label, observed = sums[:, :-1], sums[:, -1]
        n = label.sum(axis=1)
        expected = (n**2 - (label**2).sum(axis=1)) / (n * (n - 1))
        return _ratio(observed / n, expected)

    return _bootstrapped(np.column_stack([found, differ]), times, alpha, draws, seed)


def fleiss_kappa(counts: npt.ArrayLike, *, draws: int = 1000, seed: int = 0) -> Estimate:
    """Return Fleiss' kappa from how often each item got each label, shape (N, K), m votes on every item.

    (mean P_i - sum p_k^2) / (1 - sum p_k^2), P_i = (sum_k n_ik^2 - m) / (m (m - 1)) (Fleiss 1971). Unequal numbers of
    votes are a ValueError: use alpha. One label in all votes: nan.
    """
    table = np.asarray(counts, dtype=np.int64)
    if table.ndim != 2:
        raise ValueError(f"counts have shape {table.shape}; expected (items, labels)")
    if len(table) == 0:
        return NOTHING
    votes = table.sum(axis=1)
    m = int(votes[0])
    if m < 2 or (votes != m).any():
        raise ValueError("Fleiss' kappa needs the same number of votes, at least 2, on every item; use alpha")
    found, times = _patterns(table)
    differ = 1 - ((found**2).sum(axis=1) - m) / (m * (m - 1))

    def kappa(sums: Floats) -> Floats:
        share = sums[:, :-1] / sums[:, :-1].sum(axis=1, keepdims=True)
        items = sums[:, :-1].sum(axis=1) / m
        return _ratio(sums[:, -1] / items, 1 - (share**2).sum(axis=1))

    return _bootstrapped(np.column_stack([found, differ]), times, kappa, draws, seed)
