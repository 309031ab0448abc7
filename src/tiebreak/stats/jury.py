"""How many independent judges a jury is worth: m judges that err alike see less than m pairs of eyes.

Votes are (n, m): one row an item, one column a judge, 1 where it prefers the one answer, 0 the other, 1/2 for a tie,
nan for no vote. Errors are |vote - truth|, so a tie errs by half.

What votes alone can and cannot tell: two votes differ exactly where one of the two errs, so P(both err) = (q_j + q_k -
P(they differ)) / 2 whatever the truth is, and all that a truth adds is how often each judge errs, q. Without one, q
has to be assumed from the votes. An error that all judges make together then looks like agreement, so it cannot be
seen, and the size is too large by what they share. A few labels of people tell; votes never do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tiebreak.stats.intervals import NOTHING, Estimate, Floats, Ints, cluster_codes, percentile

Against = Literal["truth", "majority", "latent"]

ROOM = 4_000_000
"""Numbers held at once while resampling."""

ROUNDS, CLOSE = 200, 1e-7
"""Rounds of the latent truth's fit at most, and the change of a probability that ends it."""

HALF_AN_ERROR = 0.5
"""Expected errors of a judge below which it never errs, as far as can be seen."""

Correlations = Callable[[Floats], Floats]
"""From how often each distinct row occurs, (B, U), to the error correlation of each two judges, (B, P)."""

Rates = Callable[[Floats], Floats]
"""The same to the error rate of each judge, (B, m)."""


class Jury(NamedTuple):
    """What a jury of m judges is worth over ``size.n`` items with two votes or more.

    ``rho`` is the mean error correlation of its pairs, ``size`` = m / (1 + (m - 1) rho). ``pairs`` (m, m) has the
    correlation of each two. ``errors`` (m,) are the error rates; ``constant`` judges never err or always do: they share
    no error with one that does, so that correlation counts as 0, and between two of them it is undefined. ``unpaired``
    of the m (m - 1) / 2 pairs are nan and stay out of the mean, such two or those that share no items. ``added`` is
    what each judge adds to the size of the others, below 0 for a voice too many; ``why`` says why a size is nan.
    """

    size: Estimate
    rho: Estimate
    pairs: Floats
    unpaired: int
    errors: Floats
    constant: tuple[int, ...]
    added: tuple[Estimate, ...]
    against: Against
    why: str = ""


def effective_size(judges: int, rho: float) -> float:
    """Return m / (1 + (m - 1) rho), the number of independent judges with the same variance of their mean error.

    The design effect of Kish 1965 for m equally correlated values. 1 for rho 1, m for rho 0, more than m for errors
    that cancel, infinite where they cancel altogether; nan where rho is. One judge is one, whatever rho.
    """
    if judges < 1:
        raise ValueError(f"a jury has {judges} judges; expected 1 or more")
    if judges == 1:
        return 1.0
    spread = 1 + (judges - 1) * rho
    return math.inf if spread <= 0 else judges / spread


def condorcet(accuracies: npt.ArrayLike) -> float:
    """Return P(the majority is right) of independent judges with these accuracies (m,), a tie counted half.

    The jury theorem of Condorcet 1785; the distribution of the number of right judges is convolved exactly.
    """
    p = np.asarray(accuracies, dtype=np.float64)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("accuracies must be a row of at least one number from 0 to 1")
    right = np.ones(1)
    for chance in p:
        right = np.convolve(right, [1 - chance, chance])
    k = np.arange(len(right))
    return float(right[2 * k > len(p)].sum() + right[2 * k == len(p)].sum() / 2)


def majority(votes: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """Return each item's majority (n,) of the votes (n, m): 1, 0, 1/2 where they balance, nan where there are none."""
    table, here = _table(votes)
    w = np.ones(table.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    lean = np.where(here, table - 0.5, 0.0) @ w
    verdict = np.where(np.abs(lean) < 1e-9, 0.5, (lean > 0).astype(np.float64))
    return np.where(here.any(axis=1), verdict, math.nan)


def against_truth(
    votes: npt.ArrayLike,
    truth: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    least: int = 2,
    draws: int = 1000,
    seed: int = 0,
) -> Jury:
    """Measure a jury where the right answer is known: ``truth`` (n,) is 1, 0, or nan where it is not.

    rho is the plain correlation of errors over the items on which both voted; nothing is assumed. A truth of 1/2 says
    nothing is right or wrong, and such items are left out. Two judges that share fewer than ``least`` items have no
    correlation. The interval resamples ``clusters``, each item its own where there are none.
    """
    table = _table(votes)[0]
    known = np.asarray(truth, dtype=np.float64)
    if known.shape != (len(table),):
        raise ValueError(f"truth has shape {known.shape}; expected one value for each of {len(table)} items")
    errors = np.abs(table - known[:, None])
    errors[np.isnan(known) | (known == 0.5)] = math.nan

    def correlations(rows: Floats) -> tuple[Correlations, Rates]:
        return _of_errors(rows), lambda weights: _means(weights, rows)

    return _measured(errors, clusters, correlations, "truth", least, draws, seed)


def against_votes(
    votes: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    against: Literal["majority", "latent"] = "majority",
    least: int = 2,
    draws: int = 1000,
    seed: int = 0,
) -> Jury:
    """Measure a jury without a truth, with error rates assumed from the votes.

    ``majority``: a judge errs where it differs from the majority of the *others* (leave one out), where they have one.
    This takes the others for right, and their own errors count against it: few or weak independent judges look alike,
    the size errs low. Two judges have no majority.

    ``latent``: one error rate a judge and a truth that is either answer with equal chance (Dawid and Skene 1979 with
    one coin a judge), fitted by EM from the majority on. This takes errors for independent, and what is left over is
    their correlation: a copied judge is first taken for an accurate one, the size errs high. Any votes of three judges
    can be had from independent errors, so it takes four.
    """
    table, here = _table(votes)
    m, n = table.shape[1], int((here.sum(axis=1) >= 2).sum())
    if m == 2 and (np.abs(table[:, 0] - table[:, 1]) > 0).any():
        return _undefined(m, n, against, "of two judges that differ nothing tells which one errs")
    if m == 3 and against == "latent":
        return _undefined(m, n, against, "independent errors explain any votes of three judges")

    def correlations(rows: Floats) -> tuple[Correlations, Rates]:
        rates = _majority_rates(rows) if against == "majority" else _latent_rates(rows)
        return _of_rates(rows, rates), rates

    return _measured(table, clusters, correlations, against, least, draws, seed)


def _measured(
    table: Floats,
    clusters: npt.ArrayLike | None,
    make: Callable[[Floats], tuple[Correlations, Rates]],
    against: Against,
    least: int,
    draws: int,
    seed: int,
) -> Jury:
    """Measure from ``table`` (n, m), whose rows with fewer than two entries are left out.

    ``make`` takes the distinct rows and returns what gives their correlations and their error rates.
    """
    codes, _ = cluster_codes(clusters, len(table))
    m = table.shape[1]
    if m == 1:
        n = int((~np.isnan(table)).sum())
        rate = _means(np.ones((1, len(table))), table)[0] if against == "truth" else np.full(1, math.nan)
        one = Estimate(1.0, 1.0, 1.0, n)
        return Jury(one, Estimate(math.nan, math.nan, math.nan, n), np.ones((1, 1)), 0, rate, (), (one,), against)
    several = (~np.isnan(table)).sum(axis=1) >= 2
    if not several.any():
        return _undefined(m, 0, against, "no item has two votes")
    kept, (codes, c) = table[several], cluster_codes(codes[several], int(several.sum()))
    filled = np.where(np.isnan(kept), -1.0, kept)
    distinct, row, counts = np.unique(filled, axis=0, return_inverse=True, return_counts=True)
    distinct[distinct < 0] = math.nan
    correlations, rates = make(distinct)
    whole = counts.astype(np.float64)[None, :]
    found, errors = correlations(whole)[0], rates(whole)[0]
    resampled = np.empty((0, len(found)))
    if c > 1 and draws:
        parts = _resampled(row.reshape(-1), codes, draws, seed)
        resampled = np.concatenate([correlations(part) for part in parts])
    a, b = np.triu_indices(m, 1)
    few = counts @ (~np.isnan(distinct[:, a]) & ~np.isnan(distinct[:, b])) < least
    found[few], resampled[:, few] = math.nan, math.nan
    return _jury(found, resampled, errors, distinct, counts, against)


def _jury(
    found: Floats, resampled: Floats, errors: Floats, rows: Floats, counts: npt.NDArray[np.int64], against: Against
) -> Jury:
    """Put together the correlations (P,), their resamples (B, P) and the error rates (m,)."""
    m, n = rows.shape[1], int(counts.sum())
    a, b = np.triu_indices(m, 1)
    pairs = np.eye(m)
    pairs[a, b] = pairs[b, a] = found
    voted = counts @ ~np.isnan(rows)
    off = np.minimum(errors, 1 - errors) * voted
    constant = tuple(int(j) for j in np.flatnonzero(off < HALF_AN_ERROR))
    rho = percentile(_mean(found), _mean_rows(resampled), n)
    if math.isnan(rho.value):
        why = "no two judges can be compared: none of them is seen to err, or they share too few items"
        return _undefined(m, n, against, why)._replace(errors=errors, constant=constant, pairs=pairs)
    size = Estimate(effective_size(m, rho.value), effective_size(m, rho.high), effective_size(m, rho.low), n)
    sizes, added = _sizes(m, _mean_rows(resampled)), []
    for j in range(m):
        others = (a != j) & (b != j)
        alone = _sizes(m - 1, _mean_rows(resampled[:, others])) if m > 2 else np.ones(len(resampled))
        without = effective_size(m - 1, _mean(found[others]))
        added.append(percentile(size.value - without, sizes - alone, n))
    return Jury(size, rho, pairs, int(np.isnan(found).sum()), errors, constant, tuple(added), against)


def _undefined(m: int, n: int, against: Against, why: str) -> Jury:
    nothing = NOTHING._replace(n=n)
    pairs = np.full((m, m), math.nan)
    np.fill_diagonal(pairs, 1.0)
    return Jury(nothing, nothing, pairs, m * (m - 1) // 2, np.full(m, math.nan), (), (nothing,) * m, against, why)


def _table(votes: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    table = np.asarray(votes, dtype=np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"votes have shape {table.shape}; expected (items, judges)")
    here = ~np.isnan(table)
    if not np.isin(table[here], (0.0, 0.5, 1.0)).all():
        raise ValueError("votes must be 1, 0, 1/2 for a tie, or nan for none")
    return table, here


def _resampled(rows: Ints, clusters: Ints, draws: int, seed: int) -> Iterator[Floats]:
    """Yield how often each distinct row occurs, (b, U), when whole clusters are drawn with replacement."""
    counts = np.bincount(rows)
    n, c = len(rows), int(clusters.max()) + 1
    rng = np.random.default_rng(seed)
    order = np.argsort(rows, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    size = max(1, ROOM // (len(counts) if c == n else n))
    for start in range(0, draws, size):
        b = min(size, draws - start)
        if c == n:
            yield rng.multinomial(n, counts / n, size=b).astype(np.float64)
        else:
            times = rng.multinomial(c, np.full(c, 1 / c), size=b)
            yield np.add.reduceat(times[:, clusters[order]], starts, axis=1).astype(np.float64)


def _of_errors(errors: Floats) -> Correlations:
    """Correlate errors (U, m) over the rows that both judges have; integers times 1/4, so nothing is rounded."""
    a, b = np.triu_indices(errors.shape[1], 1)
    both = ~np.isnan(errors[:, a]) & ~np.isnan(errors[:, b])
    x, y = np.where(both, errors[:, a], 0.0), np.where(both, errors[:, b], 0.0)
    features = (both.astype(np.float64), x, y, x * x, y * y, x * y)

    def correlations(weights: Floats) -> Floats:
        n, sx, sy, sxx, syy, sxy = (weights @ feature for feature in features)
        return _ratio(n * sxy - sx * sy, n * sxx - sx * sx, n * syy - sy * sy)

    return correlations


def _of_rates(rows: Floats, rates: Rates) -> Correlations:
    """Correlate from error rates and from how often votes (U, m) differ.

    For votes without ties E[e_j e_k] = (q_j + q_k - E|v_j - v_k|) / 2 and E[e_j^2] = q_j; a tie is half an error whose
    square is a quarter, which takes a quarter off each for every tie (of both). Two judges that never differ err
    together whenever they err, so theirs is 1.
    """
    a, b = np.triu_indices(rows.shape[1], 1)
    tie = np.where(np.isnan(rows), math.nan, rows == 0.5)
    differ, tied = np.abs(rows[:, a] - rows[:, b]), tie[:, a] * tie[:, b]

    def correlations(weights: Floats) -> Floats:
        q = rates(weights)
        square = q - _means(weights, tie) / 4
        spread, voted = square - q * q, weights @ ~np.isnan(rows)
        seen = (square * voted >= HALF_AN_ERROR) & (spread * voted >= HALF_AN_ERROR / 2)
        spread = np.where(seen, spread, 0.0)
        apart = _means(weights, differ)
        together = (q[:, a] + q[:, b] - apart) / 2 - _means(weights, tied) / 4 - q[:, a] * q[:, b]
        found = np.clip(_ratio(together, spread[:, a], spread[:, b]), -1.0, 1.0)
        found[np.isnan(together)] = math.nan
        found[apart == 0] = 1.0
        return found

    return correlations


def _ratio(together: Floats, spread_a: Floats, spread_b: Floats) -> Floats:
    """Return covariance over the root of the variances; 0 where one of these is 0, nan where both are."""
    one, other = spread_a > 0, spread_b > 0
    root = np.sqrt(np.where(one & other, spread_a * spread_b, 1.0))
    value: Floats = np.where(one & other, together / root, np.where(one | other, 0.0, math.nan))
    return value


def _means(weights: Floats, rows: Floats) -> Floats:
    """Return the column means of ``rows`` (U, K) under ``weights`` (B, U), nan entries left out; nan of nothing."""
    here = ~np.isnan(rows)
    n = weights @ here
    mean: Floats = np.where(n > 0, (weights @ np.where(here, rows, 0.0)) / np.maximum(n, 1), math.nan)
    return mean


def _majority_rates(rows: Floats) -> Rates:
    here = ~np.isnan(rows)
    lean = np.where(here, rows - 0.5, 0.0)
    others = lean.sum(axis=1, keepdims=True) - lean
    wrong = np.where(here & (np.abs(others) > 1e-9), np.abs(rows - (others > 0)), math.nan)
    return lambda weights: _means(weights, wrong)


def _latent_rates(rows: Floats) -> Rates:
    """Fit P(the truth of a row is 1) and one error rate a judge by turns; ties and gaps say nothing of the truth."""
    one, zero = (rows == 1).astype(np.float64), (rows == 0).astype(np.float64)
    decided = one + zero
    tie = np.where(np.isnan(rows), math.nan, rows == 0.5)
    start = np.clip(0.5 + (one - zero).sum(axis=1) / np.maximum(1, decided.sum(axis=1)) / 2, 0.01, 0.99)

    def rates(weights: Floats) -> Floats:
        truth = np.broadcast_to(start, weights.shape)
        total = np.maximum(weights @ decided, 1.0)
        wrong = np.zeros_like(total)
        for _ in range(ROUNDS):
            before = wrong
            wrong = ((weights * truth) @ zero + (weights * (1 - truth)) @ one) / total
            if np.abs(wrong - before).max() < CLOSE:
                break
            kept = np.clip(wrong, 1e-6, 1 - 1e-6)
            belief = np.log((1 - kept) / kept) @ (one - zero).T
            truth = 1 / (1 + np.exp(-np.clip(belief, -500, 500)))
        ties = _means(weights, tie)
        value: Floats = (1 - ties) * wrong + ties / 2
        return value

    return rates


def _mean(values: Floats) -> float:
    return float(_mean_rows(values[None, :])[0])


def _mean_rows(values: Floats) -> Floats:
    """Return the mean of each row (B, P) over what is not nan, nan where nothing is."""
    known = ~np.isnan(values)
    n = known.sum(axis=1)
    mean: Floats = np.where(n > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(n, 1), math.nan)
    return mean


def _sizes(judges: int, rho: Floats) -> Floats:
    found = np.array([effective_size(judges, r) for r in rho])
    found[np.isinf(found)] = math.nan  # one resample in which errors cancel altogether says nothing
    return found
