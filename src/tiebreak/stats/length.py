"""How much of a preference is length.

A longer answer may be better, so the controlled rate is a counterfactual (what if both were equally long), shown beside
the plain one and never instead of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiebreak.stats.intervals import NOTHING, Estimate, Floats, cluster_codes, rate, t_quantile

RIDGE = 1e-3
"""Penalty on both coefficients, in units of one row's log-likelihood: enough to keep a one-sided fit finite."""


class LengthGlm(NamedTuple):
    """The fit of logit P(a better) = theta + phi tanh(dlen / sd(dlen)).

    ``theta`` is quality at equal length, ``phi`` the pull of length; ``covariance`` is (2, 2), cluster-robust.
    """

    theta: float
    phi: float
    covariance: Floats


def length_term(length_a: npt.ArrayLike, length_b: npt.ArrayLike) -> Floats:
    """Return tanh(dlen / sd(dlen)), shape (n,), with dlen = a - b (Dubois et al. 2024, arXiv 2404.04475, eq. 2).

    All zero where the two are always equally long, all nan where they always differ by the same amount: then length
    and quality cannot be told apart.
    """
    gap = np.asarray(length_a, dtype=np.float64) - np.asarray(length_b, dtype=np.float64)
    if len(gap) == 0 or not gap.any():
        return np.zeros_like(gap)
    sd = float(gap.std())
    if sd <= 1e-12 * float(np.abs(gap).max()):
        return np.full_like(gap, math.nan)
    term: Floats = np.tanh(gap / sd)
    return term


def fit_length_glm(y: Floats, x: Floats, codes: npt.NDArray[np.intp], clusters: int) -> LengthGlm:
    """Fit the logistic model of soft ``y`` (n,) on [1, x (n,)] by Newton steps with a small ridge.

    Covariance is the sandwich H^-1 G H^-1 with G summed over clusters and the factor C/(C-1).
    """
    design = np.column_stack([np.ones_like(x), x])
    beta = np.zeros(2)
    ridge = RIDGE * np.eye(2)

    def loss(at: Floats) -> float:
        eta = design @ at
        return float(np.logaddexp(0.0, eta).sum() - y @ eta + at @ ridge @ at / 2)

    for _ in range(100):
        s = 1 / (1 + np.exp(-np.clip(design @ beta, -500, 500)))
        gradient = design.T @ (s - y) + ridge @ beta
        hessian = (design * (s * (1 - s))[:, None]).T @ design + ridge
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(beta - size * step) > loss(beta) + 1e-12 and size > 1e-6:
            size /= 2
        beta = beta - size * step
        if float(np.abs(step).max()) < 1e-10:
            break
    s = 1 / (1 + np.exp(-np.clip(design @ beta, -500, 500)))
    hessian = (design * (s * (1 - s))[:, None]).T @ design + ridge
    rows = design * (y - s)[:, None]
    score = np.column_stack([np.bincount(codes, weights=rows[:, j], minlength=clusters) for j in range(2)])
    bread = np.linalg.inv(hessian)
    factor = clusters / (clusters - 1) if clusters > 1 else math.nan
    return LengthGlm(float(beta[0]), float(beta[1]), factor * bread @ (score.T @ score) @ bread)


def _sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t)) if t >= 0 else math.exp(t) / (1 + math.exp(t))


def length_controlled_win_rate(
    y: npt.ArrayLike,
    length_a: npt.ArrayLike,
    length_b: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """Return the win rate of a over b at equal length: sigma(theta) of ``LengthGlm``.

    ``y`` (n,) is P(a better) in [0, 1], ties 1/2; lengths (n,) in any unit. The AlpacaEval GLM without its per-prompt
    difficulty, so it works on any set. Swapping a and b gives 1 - value. The interval is the delta method on the logit
    scale, sigma(theta +- t SE(theta)), cluster-robust with t of C - 1 degrees of freedom, so it stays in [0, 1].
    Unanimous y get the plain ``rate``; a constant non-zero length difference gives nan.
    """
    target = np.asarray(y, dtype=np.float64)
    if ((target < 0) | (target > 1) | np.isnan(target)).any():
        raise ValueError("y must be P(a better), from 0 to 1")
    codes, c = cluster_codes(clusters, len(target))
    x = length_term(length_a, length_b)
    if x.shape != target.shape:
        raise ValueError(f"y has {len(target)} rows and the lengths {len(x)}; expected the same rows")
    if len(target) == 0:
        return NOTHING
    if np.isnan(x).any():
        return Estimate(math.nan, math.nan, math.nan, len(target))
    if (target == target[0]).all():
        return rate(target, codes, level=level)
    fit = fit_length_glm(target, x, codes, c)
    half = t_quantile(level, c - 1) * math.sqrt(float(fit.covariance[0, 0]))
    low, high = (_sigmoid(fit.theta - half), _sigmoid(fit.theta + half)) if c > 1 else (math.nan, math.nan)
    return Estimate(_sigmoid(fit.theta), low, high, len(target))


def prefers_longer(
    y: npt.ArrayLike,
    length_a: npt.ArrayLike,
    length_b: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    tau: float = 0.0,
    level: float = 0.95,
) -> Estimate:
    """Return P(the longer one is preferred | |dlen| > tau), ties 1/2; ``n`` counts the rows that differ enough.

    ``y`` (n,) is 1 where a won, 0 where b won. AlpacaEval uses tau = 30 characters. It holds for a judge that likes
    length and for a set where the longer answers are better; the controlled rate does not tell the two apart either.
    """
    target = np.asarray(y, dtype=np.float64)
    gap = np.asarray(length_a, dtype=np.float64) - np.asarray(length_b, dtype=np.float64)
    codes, _ = cluster_codes(clusters, len(target))
    apart = np.abs(gap) > tau
    score = np.where(gap > 0, target, 1 - target)
    return rate(score[apart], codes[apart], level=level)
