"""Intervals and tests for rates, means and differences whose rows belong to clusters.

Rows that share a prompt move together, so every interval here can be told the clusters; one that treats them as
independent is too narrow. Arrays in, small named results out. A mistake in the arrays' shapes is a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

NORMAL = NormalDist()


class Estimate(NamedTuple):
    """A value with the ends of its interval and the number of rows behind it.

    ``value`` is nan when ``n`` is 0; ``low`` and ``high`` are nan where the data cannot tell the spread (one cluster).
    """

    value: float
    low: float
    high: float
    n: int


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)
"""What is known from no rows."""


def as_dict(estimate: Estimate) -> dict[str, float | int | None]:
    """Return the estimate as JSON-ready values; JSON has no nan, so what is undefined becomes None."""
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**{k: None if math.isnan(v) else float(v) for k, v in ends.items()}, "n": int(estimate.n)}


def z_quantile(level: float) -> float:
    """Return the two-sided standard normal quantile: 1.96 at level 0.95."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; expected a number between 0 and 1, such as 0.95")
    return NORMAL.inv_cdf(0.5 + level / 2)


@lru_cache(maxsize=4096)
def t_quantile(level: float, df: int) -> float:
    """Return the two-sided Student t quantile with ``df`` degrees of freedom: 2.262 at level 0.95 and df 9.

    Below df 60 the exact finite series of the CDF is inverted by bisection (Abramowitz & Stegun 26.7.3-4); from
    there on the expansion 26.7.5 around the normal quantile is right to 1e-7.
    """
    z = z_quantile(level)
    if df < 1:
        return math.nan
    if df >= 60:
        g1 = (z**3 + z) / 4
        g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + g1 / df + g2 / df**2 + g3 / df**3
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_central(angle: float, df: int) -> float:
    """P(|T| < sqrt(df) tan(angle)), Abramowitz & Stegun 26.7.3 (odd df) and 26.7.4 (even df)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if df == 1:
        total = 0.0
    for k in range(2 + odd, df, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def wilson(k: float, n: float, level: float = 0.95) -> Estimate:
    """Return k of n as a rate with Wilson's score interval (Wilson 1927).

    Unlike value ± 1.96 SE it stays inside [0, 1] and keeps a width at 0 of n and n of n. ``k`` may be fractional only
    where it stands for an effective count; ties need ``rate``.
    """
    if n < 0 or not -1e-9 <= k <= n + 1e-9:
        raise ValueError(f"k = {k} of n = {n}; expected 0 <= k <= n")
    if n == 0:
        return NOTHING
    z, p = z_quantile(level), k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p) / n + z * z / (4 * n * n)))
    low = 0.0 if k <= 0 else max(0.0, centre - half)
    high = 1.0 if k >= n else min(1.0, centre + half)
    return Estimate(float(p), float(low), float(high), int(n))


def cluster_codes(clusters: npt.ArrayLike | None, n: int) -> tuple[Ints, int]:
    """Return clusters as codes 0..C-1, shape (n,), and C; None makes every row its own cluster."""
    if clusters is None:
        return np.arange(n), n
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"clusters have shape {labels.shape}; expected one for each of the {n} values")
    names, codes = np.unique(labels, return_inverse=True)
    return codes.reshape(-1), len(names)


def _numbers(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values have shape {array.shape}; expected one dimension")
    if not np.isfinite(array).all():
        raise ValueError("values hold nan or infinity; leave out and count what is unknown before averaging")
    return array


def clustered_mean(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of ``values`` (n,) with a cluster-robust interval.

    SE = sqrt(C/(C-1) sum_c (sum_{t in c} w_t (y_t - mean))^2) / sum w, as in Miller 2024 (arXiv 2411.00640) with the
    small-sample factor C/(C-1); the quantile is Student t with C - 1 degrees of freedom, which keeps its promise with
    few clusters where the normal one is too narrow. One cluster gives nan ends; all values equal give a zero width.
    """
    y = _numbers(values)
    codes, c = cluster_codes(clusters, len(y))
    w = np.ones_like(y) if weights is None else _numbers(weights)
    if w.shape != y.shape or (w < 0).any():
        raise ValueError("weights must be one number of at least 0 for each value")
    total = float(w.sum())
    if total <= 0:
        return NOTHING
    mean = float(w @ y) / total
    if c < 2:
        return Estimate(mean, math.nan, math.nan, len(y))
    sums = np.bincount(codes, weights=w * (y - mean), minlength=c)
    se = math.sqrt(c / (c - 1) * float(sums @ sums)) / total
    half = t_quantile(level, c - 1) * se
    return Estimate(mean, mean - half, mean + half, len(y))


def rate(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of ``values`` (n,) in [0, 1], ties as 1/2, with an interval inside [0, 1].

    Independent wins and losses get Wilson's interval; clusters, ties or weights get ``clustered_mean`` cut to [0, 1].
    Where all values are 0 or all are 1 the cluster formula would claim certainty, so Wilson on the number of clusters
    is used instead.
    """
    y = _numbers(values)
    if ((y < 0) | (y > 1)).any():
        raise ValueError("a rate needs values from 0 to 1")
    codes, c = cluster_codes(clusters, len(y))
    binary = bool(((y == 0) | (y == 1)).all())
    if c == len(y) and weights is None and binary:
        return wilson(float(y.sum()), len(y), level)
    found = clustered_mean(y, codes, weights=weights, level=level)
    if c > 1 and found.value in (0.0, 1.0):
        return wilson(found.value * c, c, level)._replace(n=len(y))
    return found._replace(low=max(0.0, found.low), high=min(1.0, found.high)) if c > 1 else found


def paired_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, clusters: npt.ArrayLike | None = None, *, level: float = 0.95
) -> Estimate:
    """Return the mean of a - b, both (n,) on the same rows, with a cluster-robust t interval.

    Pairing removes what the rows have in common: Var = Var a + Var b - 2 Cov.
    """
    first, second = _numbers(a), _numbers(b)
    if first.shape != second.shape:
        raise ValueError(f"paired values have lengths {len(first)} and {len(second)}; expected the same rows")
    return clustered_mean(first - second, clusters, level=level)


def binomial_probabilities(n: int, p: float) -> Floats:
    """Return P(X = 0..n), shape (n + 1,), for X ~ Binomial(n, p) with 0 < p < 1.

    Ratios of neighbours are summed outward from the mode and normalised, so no factorial loses digits.
    """
    mode = min(n, int((n + 1) * p))
    k = np.arange(1, n + 1, dtype=np.float64)
    steps = np.log((n - k + 1) / k) + math.log(p / (1 - p))
    logs = np.zeros(n + 1)
    logs[mode + 1 :] = np.cumsum(steps[mode:])
    logs[:mode] = -np.cumsum(steps[:mode][::-1])[::-1]
    mass = np.exp(logs)
    shares: Floats = mass / mass.sum()
    return shares


def binomial_test(k: int, n: int, p: float = 0.5) -> float:
    """Return the exact two-sided p-value of k successes in n trials under ``p``; 1 when n is 0.

    Sums every outcome that is no likelier than k, with a relative slack of 1e-7 against rounding.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k = {k} of n = {n}; expected 0 <= k <= n")
    if not 0 < p < 1:
        raise ValueError(f"p = {p}; expected a probability strictly between 0 and 1")
    if n == 0:
        return 1.0
    mass = binomial_probabilities(n, p)
    return min(1.0, float(mass[mass <= mass[k] * (1 + 1e-7)].sum()))


def mcnemar(b: int, c: int, *, mid_p: bool = False) -> float:
    """Return McNemar's exact p-value for b and c discordant pairs; 1 when there are none.

    p = min(1, 2 sum_{k <= min(b, c)} C(b+c, k) 2^-(b+c)); ``mid_p`` counts the observed table half, which is less
    conservative (Fagerland 2013).
    """
    if min(b, c) < 0:
        raise ValueError(f"discordant counts are {b} and {c}; expected numbers of at least 0")
    if b + c == 0:
        return 1.0
    mass, low = binomial_probabilities(b + c, 0.5), min(b, c)
    p = 2 * float(mass[: low + 1].sum())
    if mid_p:
        p = 1.0 if b == c else p - float(mass[low])
    return min(1.0, p)


def bootstrap(
    values: npt.NDArray[Any],
    clusters: npt.ArrayLike | None,
    statistic: Callable[[npt.NDArray[Any]], float],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Return ``statistic(values)`` with the percentile interval of ``draws`` resamples of whole clusters.

    ``values`` is (n,) or (n, k); a resample hands ``statistic`` the rows of C clusters drawn with replacement. Draws
    on which the statistic is nan are left out. No rows give nan; one cluster gives nan ends, never a zero width.
    """
    rows = np.asarray(values)
    n = len(rows)
    if n == 0:
        return NOTHING
    value = float(statistic(rows))
    codes, c = cluster_codes(clusters, n)
    if c < 2:
        return Estimate(value, math.nan, math.nan, n)
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=c)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        picked = rng.integers(0, c, size=c)
        length = sizes[picked]
        shift = np.repeat(starts[picked] - np.concatenate([[0], np.cumsum(length)[:-1]]), length)
        found[draw] = statistic(rows[order[shift + np.arange(len(shift))]])
    return percentile(value, found, n, level)


def percentile(value: float, draws: Floats, n: int, level: float = 0.95) -> Estimate:
    """Return ``value`` with the percentile interval of bootstrap ``draws``, shape (B,), nan ones left out."""
    kept = draws[~np.isnan(draws)]
    if math.isnan(value) or len(kept) == 0:
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(kept, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high), n)
