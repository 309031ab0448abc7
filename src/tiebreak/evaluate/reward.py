"""How good a reward model is: accuracy on pairs, calibration, and the length it must beat.

Margins are score(chosen) - score(rejected). Rows that could not be scored must be left out and counted by the caller:
nan is a ValueError here, so that no missing score becomes a win or a loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tiebreak.stats.intervals import Estimate, Floats, cluster_codes, rate

Ties = Literal["half", "exclude", "right", "wrong"]
TIES: dict[Ties, float] = {"half": 0.5, "right": 1.0, "wrong": 0.0, "exclude": 0.5}


class PairAccuracy(NamedTuple):
    """The share of pairs ranked right with its interval; ``ties`` pairs of the ``n`` scored exactly equal."""

    value: float
    low: float
    high: float
    n: int
    ties: int


def pair_accuracy(
    margins: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    *,
    ties: Ties = "half",
) -> PairAccuracy:
    """Return the share of ``margins`` (n,) above 0; exactly equal scores count 1/2.

    ``clusters`` are the prompts. ``ties`` reproduces other tools: TRL 0.12 counts equal scores ``right``, TRL 0.13
    leaves them out (``exclude``); a constant model gets 1/2, 1 and nan from these three.
    """
    if ties not in TIES:
        raise ValueError(f"ties is {ties!r}; expected one of {', '.join(TIES)}")
    margin = _finite(margins, "margins")
    codes, _ = cluster_codes(clusters, len(margin))
    weight = None if weights is None else np.asarray(weights, dtype=np.float64)
    equal = margin == 0
    score = np.where(equal, TIES[ties], margin > 0)
    kept = ~equal if ties == "exclude" else np.ones_like(equal)
    found = rate(score[kept], codes[kept], weights=None if weight is None else weight[kept])
    return PairAccuracy(*found, int(equal.sum()))


def attribute_accuracies(
    margins: npt.ArrayLike,
    names: Sequence[str],
    clusters: npt.ArrayLike | None = None,
    *,
    ties: Ties = "half",
) -> dict[str, PairAccuracy]:
    """Return what :func:`pair_accuracy` finds for each attribute by itself, by name.

    ``margins`` (n, k) are mark(chosen) - mark(rejected), a column for each of ``names``. An attribute that is not
    wanted, such as verbosity, counts as right where it ranks the chosen side higher too, so well below 1/2 it tells as
    much as well above. The accuracy of the score, which weighs attributes with their sign, is that of its own margins.
    """
    table = np.asarray(margins, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(names) or len(set(names)) != len(names):
        raise ValueError(f"margins have shape {table.shape}; expected a column for each of {', '.join(names)}")
    return {name: pair_accuracy(table[:, k], clusters, ties=ties) for k, name in enumerate(names)}


class LengthBaseline(NamedTuple):
    """The accuracy of choosing by length alone in one ``direction``; ``ties`` pairs are of equal length."""

    value: float
    low: float
    high: float
    n: int
    ties: int
    direction: Literal["longer", "shorter"]


def length_baseline(
    chosen_len: npt.ArrayLike,
    rejected_len: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    train: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> LengthBaseline:
    """Return how often the longer answer is the chosen one, equal lengths 1/2.

    With ``train`` = (chosen lengths, rejected lengths) of other pairs the direction is the one that does better there;
    choosing it on the pairs that are reported would flatter the baseline.
    """
    gap = _finite(chosen_len, "lengths") - _finite(rejected_len, "lengths")
    direction: Literal["longer", "shorter"] = "longer"
    if train is not None:
        seen = np.sign(_finite(train[0], "lengths") - _finite(train[1], "lengths"))
        direction = "shorter" if float(seen.sum()) < 0 else "longer"
    found = pair_accuracy(gap if direction == "longer" else -gap, clusters)
    return LengthBaseline(*found, direction)


class Bin(NamedTuple):
    """Rows of similar confidence: mean ``confidence``, ``accuracy`` with its interval in ``rate``, and ``n``."""

    confidence: float
    rate: Estimate
    n: int


class Calibration(NamedTuple):
    """Expected calibration error, Brier score, NLL in nats per row, the temperature that minimises it, and the bins."""

    ece: float
    brier: float
    nll: float
    temperature: float
    n: int
    bins: list[Bin]


def calibration(
    margins: npt.ArrayLike, y: npt.ArrayLike, clusters: npt.ArrayLike | None = None, *, bins: int = 10
) -> Calibration:
    """Compare sigma(margin), the model's P(first better), with ``y`` in [0, 1], both (n,).

    conf = sigma(|margin|), correct = y on the model's side (1/2 at margin 0); ECE = sum_b n_b/n |acc_b - conf_b| over
    bins of equal mass (Guo et al. 2017, arXiv 1706.04599). Equal confidences share a bin, so the order of rows has no
    effect. Brier = mean (sigma(margin) - y)^2. ``y`` of 1 throughout (chosen first) is fine. ``clusters`` (the prompts)
    widen the bins' intervals; the ECE has none, because resampling an absolute value only moves it up.
    """
    margin, target = _finite(margins, "margins"), _finite(y, "y")
    if margin.shape != target.shape or ((target < 0) | (target > 1)).any():
        raise ValueError("y must hold P(first better), from 0 to 1, one for each margin")
    n = len(margin)
    codes, _ = cluster_codes(clusters, n)
    if n == 0:
        return Calibration(math.nan, math.nan, math.nan, math.nan, 0, [])
    conf = _sigmoid(np.abs(margin))
    correct = np.select([margin > 0, margin < 0], [target, 1 - target], 0.5)
    _, level, count = np.unique(conf, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2
    which = np.minimum((middle * bins / n).astype(np.int64), bins - 1)[level]
    found = []
    for b in np.unique(which):
        rows = which == b
        found.append(Bin(float(conf[rows].mean()), rate(correct[rows], codes[rows]), int(rows.sum())))
    ece = sum(b.n / n * abs(b.rate.value - b.confidence) for b in found)
    brier = float(((_sigmoid(margin) - target) ** 2).mean())
    nll = float((np.logaddexp(0.0, margin) - target * margin).mean())
    return Calibration(ece, brier, nll, temperature(margin, target), n, found)


def temperature(margins: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return T > 0 that minimises the NLL of sigma(margin / T) against ``y``; above 1 the model is too sure.

    Infinity where the margins say nothing or the opposite, 0 where every pair is right and the scale has no end.
    """
    margin, target = _finite(margins, "margins"), _finite(y, "y")
    wrong = np.where(margin > 0, 1 - target, target) * np.abs(margin)

    def slope(a: float) -> float:
        return float(((_sigmoid(a * margin) - target) * margin).sum())

    if not margin.any() or slope(0.0) >= 0:
        return math.inf
    if not wrong.any():
        return 0.0
    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


class TruthAgreement(NamedTuple):
    """The share of judgments on the true side with its interval; ``ties`` had p = 1/2, ``excluded`` no true gap."""

    value: float
    low: float
    high: float
    n: int
    ties: int
    excluded: int


def agreement_with_truth(
    p: npt.ArrayLike, truth_gap: npt.ArrayLike, clusters: npt.ArrayLike | None = None
) -> TruthAgreement:
    """Return how often p - 1/2 has the sign of the true gap, both (n,); p of 1/2 counts 1/2.

    Rows whose true gap is 0 have no right answer: they are left out and counted.
    """
    given, gap = _finite(p, "p"), _finite(truth_gap, "truth_gap")
    if given.shape != gap.shape:
        raise ValueError(f"p has {len(given)} rows and truth_gap {len(gap)}; expected the same rows")
    codes, _ = cluster_codes(clusters, len(given))
    kept = gap != 0
    side = np.sign(given - 0.5)[kept]
    found = rate(np.where(side == 0, 0.5, side == np.sign(gap[kept])), codes[kept])
    return TruthAgreement(*found, int((side == 0).sum()), int((~kept).sum()))


def _finite(values: npt.ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be one row of finite numbers; leave out and count what could not be scored")
    return array


def _sigmoid(t: Floats) -> Floats:
    value: Floats = np.exp(-np.logaddexp(0.0, -t))
    return value
