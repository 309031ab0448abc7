"""Bradley-Terry ratings of several sides from comparisons of two, with intervals that know the clusters.

P(i beats j) = sigma(theta_i - theta_j) (Bradley & Terry 1952). Ratings are log-odds with mean 0: only their differences
mean anything. Arrays in, a small named result out; a mistake in the arrays is a ValueError.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiebreak.stats.intervals import Estimate, Floats, Ints, cluster_codes, t_quantile

STEPS = 200
"""Newton steps at most; a handful is enough wherever the ratings are finite."""


class Ratings(NamedTuple):
    """Ratings ``theta`` (K,) in log-odds with mean 0, and their cluster-robust ``covariance`` (K, K).

    ``rows`` (K,) counts the comparisons of each side, ``n`` all of them. With one cluster the covariance is nan.
    """

    theta: Floats
    covariance: Floats
    rows: Ints
    n: int
    clusters: int

    def rating(self, i: int, level: float = 0.95) -> Estimate:
        """Return the rating of side ``i`` with its interval, over its own comparisons.

        It says how far the side is from the mean of all; whether two sides differ is for ``gap``.
        """
        return self._interval(float(self.theta[i]), float(self.covariance[i, i]), int(self.rows[i]), level)

    def gap(self, i: int, j: int, level: float = 0.95) -> Estimate:
        """Return theta_i - theta_j with its interval, over all comparisons, since indirect ones tell too.

        Var = V_ii + V_jj - 2 V_ij. sigma of value, low and high is P(i beats j) with its interval.
        """
        v = self.covariance
        return self._interval(
            float(self.theta[i] - self.theta[j]), float(v[i, i] + v[j, j] - 2 * v[i, j]), self.n, level
        )

    def _interval(self, value: float, variance: float, n: int, level: float) -> Estimate:
        half = t_quantile(level, self.clusters - 1) * math.sqrt(max(0.0, variance)) if self.clusters > 1 else math.nan
        return Estimate(value, value - half, value + half, n)


def components(first: npt.ArrayLike, second: npt.ArrayLike, score: npt.ArrayLike, k: int) -> Ints:
    """Return for each of ``k`` sides (k,) the group it belongs to, numbered by its lowest member.

    Two sides share a group where each has a chain of wins or ties to the other. Ratings are finite exactly where there
    is one group (Ford 1957); of two groups, one never lost to the other, or they never met.
    """
    one, two, y = np.asarray(first, np.intp), np.asarray(second, np.intp), np.asarray(score, np.float64)
    reach = np.eye(k, dtype=np.bool_)
    reach[one[y > 0], two[y > 0]] = True
    reach[two[y < 1], one[y < 1]] = True
    for _ in range(max(1, k.bit_length())):
        reach = reach @ reach
    found: Ints = (reach & reach.T).argmax(axis=1)
    return found


def bradley_terry(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    score: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    k: int | None = None,
) -> Ratings:
    """Return the ratings that maximise sum_t y_t log sigma(d_t) + (1 - y_t) log sigma(-d_t), d_t = theta_i - theta_j.

    Sides are codes 0..k-1: ``first`` and ``second``, each (n,), and ``score`` y (n,) in [0, 1] is what the first one
    got, a tie 1/2. The covariance is the sandwich H^+ G H^+ C/(C-1) with G = sum_c u_c u_c' over the scores u_c of the
    C ``clusters`` (the prompts), which also makes up for ties not being Bernoulli; intervals are Student's with C - 1
    degrees of freedom. Of two sides it is the interval of their win rate, carried to log-odds by the delta method.

    Raises:
        ValueError: arrays that do not fit, a side against itself, or ratings without end (see ``components``).
    """
    one, two, y = np.asarray(first, np.intp), np.asarray(second, np.intp), np.asarray(score, np.float64)
    if not one.shape == two.shape == y.shape or one.ndim != 1 or not len(y):
        raise ValueError("first, second and score must be rows of one length, at least 1")
    k = int(max(one.max(), two.max())) + 1 if k is None else k
    if min(one.min(), two.min()) < 0 or max(one.max(), two.max()) >= k or (one == two).any():
        raise ValueError(f"sides must be codes from 0 to {k - 1}, and no side meets itself")
    if not ((y >= 0) & (y <= 1)).all():
        raise ValueError("scores must lie between 0 and 1")
    if (components(one, two, y, k) > 0).any():
        raise ValueError("the ratings have no end: some sides never lost to the others, or never met them")
    theta, inverse = _newton(one, two, y, k)
    codes, c = cluster_codes(clusters, len(y))
    rest = y - _sigmoid(theta[one] - theta[two])
    scores = np.bincount(codes * k + one, rest, c * k) - np.bincount(codes * k + two, rest, c * k)
    per_cluster = scores.reshape(c, k)
    scale = c / (c - 1) if c > 1 else math.nan
    covariance = scale * inverse @ (per_cluster.T @ per_cluster) @ inverse
    return Ratings(theta, covariance, np.bincount(one, minlength=k) + np.bincount(two, minlength=k), len(y), c)


def _newton(one: Ints, two: Ints, y: Floats, k: int) -> tuple[Floats, Floats]:
    """Return theta (k,) with mean 0 and the pseudo-inverse of the information (k, k) there.

    The information sum s(1-s) x x' is blind to a shift of all sides; adding 1/k everywhere makes it invertible and
    leaves steps of sum 0 as they are. A step that does not help is halved.
    """
    theta = np.zeros(k)

    def fit(at: Floats) -> float:
        gap = at[one] - at[two]
        return -float((y * np.logaddexp(0, -gap) + (1 - y) * np.logaddexp(0, gap)).sum())

    def curvature(at: Floats) -> tuple[Floats, Floats]:
        s = _sigmoid(at[one] - at[two])
        w = np.bincount(one * k + two, s * (1 - s), k * k).reshape(k, k)
        w = w + w.T
        information = np.diag(w.sum(axis=1)) - w
        return np.linalg.inv(information + 1 / k) - 1 / k, s

    for _ in range(STEPS):
        inverse, s = curvature(theta)
        step = inverse @ (np.bincount(one, y - s, k) - np.bincount(two, y - s, k))
        size, before = 1.0, fit(theta)
        while size > 1e-9 and fit(theta + size * step) < before - 1e-12 * abs(before):
            size /= 2
        theta = theta + size * step
        if np.abs(step).max() < 1e-10:
            break
    return theta - theta.mean(), curvature(theta)[0]


def _sigmoid(t: Floats) -> Floats:
    value: Floats = np.exp(-np.logaddexp(0.0, -t))
    return value
