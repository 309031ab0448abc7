"""Which rows belong to which optimizer step: a pure function of the rows' facts, a few settings, the seed and the step.

A run that stops in mid-epoch asks again and gets the very rows it would have got, on any machine: all chance is raw
Philox output keyed by a hash, sorted stably, so it does not even depend on numpy's own shuffle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt

from tiebreak.records import InputError, content_id
from tiebreak.registry import Row, Table, nearest

__all__ = ["ORDERS", "Cut", "Facts", "Order", "Steps", "shares"]

Ints = npt.NDArray[np.int64]
Steps = list[list[int]]
"""The rows of each optimizer step of one epoch."""
Cut = Callable[[npt.ArrayLike], Steps]
"""Cuts a sequence of rows into steps of ``batch`` rows or of at most ``batch_tokens`` tokens."""

POOL = 50
"""Steps in the random pool inside which ``similar_length`` sorts: long enough to group, short enough to stay random."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an order may look at, one entry per row, so that it needs neither texts nor tensors.

    ``tokens`` is the size of a row, ``labels`` the dataset or tag it comes from, ``difficulty`` is lower where a row is
    easier, such as 1 - |2p - 1|.
    """

    tokens: Sequence[int]
    labels: Sequence[str]
    difficulty: Sequence[float]

    def __post_init__(self) -> None:
        rows = len(self.tokens)
        for name in ("labels", "difficulty"):
            if len(getattr(self, name)) != rows:
                raise InputError(f"There are {rows} rows and {len(getattr(self, name))} {name}; give one for each row.")
        unknown = np.flatnonzero(np.isnan(np.asarray(self.difficulty, dtype=np.float64)))
        if unknown.size:
            raise InputError(f"The difficulty of row {unknown[0]} is not a number; give one or drop the row.")

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, rows: Sequence[int]) -> Facts:
        """Return the facts of ``rows``, which may name a row twice; entry i belongs to ``rows[i]``."""
        return Facts(
            tokens=[self.tokens[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            difficulty=[self.difficulty[row] for row in rows],
        )


def random(facts: Facts, *, cut: Cut, batch: int, seed: int, epoch: int) -> Steps:
    """Visit the rows in another permutation each epoch: the published setting of every offline method."""
    return cut(_shuffled(len(facts), "random", seed, epoch))


def given(facts: Facts, *, cut: Cut, batch: int, seed: int, epoch: int) -> Steps:
    """Visit the rows as they stand, for data that somebody has put in order."""
    return cut(np.arange(len(facts)))


def shortest_first(facts: Facts, *, cut: Cut, batch: int, seed: int, epoch: int) -> Steps:
    """Visit short rows first; equal ones as they stand."""
    return cut(np.argsort(np.asarray(facts.tokens, dtype=np.int64), kind="stable"))


def longest_first(facts: Facts, *, cut: Cut, batch: int, seed: int, epoch: int) -> Steps:
    """Visit long rows first, so that a lack of memory shows at the first step and not in the third hour."""
    return cut(np.argsort(-np.asarray(facts.tokens, dtype=np.int64), kind="stable"))


def similar_length(facts: Facts, *, cut: Cut, batch: int, seed: int, epoch: int) -> Steps:
    """Put rows of like length into one step, which saves padding, and the steps in random order.

    Sorting happens inside random pools of ``POOL`` steps. Every other pool is sorted downwards, so that a step which
    takes rows of two pools has like lengths too.
    """
    rows = _shuffled(len(facts), "random", seed, epoch)
    pool = np.arange(len(rows)) // (POOL * batch)
    size = np.asarray(facts.tokens, dtype=np.int64)[rows] * np.where(pool % 2, -1, 1)
    steps = cut(rows[np.lexsort((size, pool))])
    return [steps[i] for i in _shuffled(len(steps), "steps", seed, epoch)]


def easiest_first(facts: Facts, *, cut: Cut, batch: int, seed: int, epoch: int) -> Steps:
    """Visit the rows from easy to hard, the same in every epoch; a seeded hash orders equal ones.

    Without it, ties would fall in file order, which is often the order of the datasets.
    """
    rows = _shuffled(len(facts), "ties", seed)
    return cut(rows[np.argsort(np.asarray(facts.difficulty, dtype=np.float64)[rows], kind="stable")])


def _row(name: str, does: str, paper: str = "") -> Row:
    return Row(name=name, does=does, target=f"tiebreak.train.order:{name}", paper=paper)


ORDERS = Table(
    "orders",
    "order",
    [
        _row("random", "another permutation each epoch"),
        _row("given", "the rows as they stand"),
        _row("shortest_first", "short rows before long ones"),
        _row("longest_first", "long rows before short ones: a lack of memory shows at once"),
        _row("similar_length", "rows of like length in one step, the steps in random order"),
        _row(
            "easiest_first", "from low to high difficulty, the same in every epoch", "https://arxiv.org/abs/2403.07230"
        ),
    ],
)
"""Each order is a pure function ``(facts, *, cut, batch, seed, epoch) -> steps`` that names every row once."""


class Order:
    """The rows of every optimizer step; nothing is kept between calls but what could be computed again.

    Args:
        facts: one entry per row.
        batch: rows in a step; the last step of an epoch may be short. Not used where ``batch_tokens`` is given.
        seed: decides all chance.
        by: a row of ``ORDERS`` or your own as ``module:function``.
        mixture: weight of each label. An epoch still has as many rows as there are rows; each label gets its share of
            them, its rows in permutations: none comes again before all have come. That holds over the whole run for
            ``random``, and up to the end of each epoch for the orders that sort what the epoch has drawn. Every label
            needs a weight, for a label left out would drop rows in silence.
        batch_tokens: fill each step until one more row would exceed this many tokens; a row that is bigger is a step
            of its own. The number of steps may then differ between epochs.

    Raises:
        InputError: no rows, an unknown order, a mixture that does not fit the labels, or an own order that does not
            name every row once.
    """

    def __init__(
        self,
        facts: Facts,
        *,
        batch: int,
        seed: int,
        by: str = "random",
        mixture: Mapping[str, float] | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        if not len(facts):
            raise InputError("There are no rows to put in order; give at least one.")
        for name, most in (("batch", batch), ("batch_tokens", batch_tokens)):
            if most is not None and most < 1:
                raise InputError(f"{name} is {most}; it has to be at least 1.")
        self._facts, self._by, self._order = facts, by, ORDERS[by].load()
        self._seed, self._batch, self._batch_tokens = seed, batch, batch_tokens
        self._parts = _parts(facts.labels, mixture) if mixture is not None else []
        self._counts: list[int] = []
        self._latest: tuple[int, Steps] = (0, self._made(0))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; with ``batch_tokens`` those of the first, and others may have more or fewer."""
        return self._count(0)

    def steps(self, epochs: float) -> int:
        """Return the steps of ``epochs``, at least 1; without ``batch_tokens`` no epoch has to be planned for it."""
        if not 0 < epochs < math.inf:
            raise InputError(f"epochs is {epochs}; it has to be a number more than 0.")
        if self._batch_tokens is None:
            return max(1, round(self._count(0) * epochs))
        whole, part = int(epochs), epochs % 1
        total = sum(self._count(epoch) for epoch in range(whole))
        return max(1, round(total + (part * self._count(whole) if part else 0)))

    def locate(self, step: int) -> tuple[int, int]:
        """Return the epoch of ``step`` and its place in it, both from 0."""
        if step < 0:
            raise IndexError(f"There is no step {step}; steps count from 0.")
        if self._batch_tokens is None:
            return divmod(step, self._count(0))
        epoch = 0
        while step >= self._count(epoch):
            step -= self._count(epoch)
            epoch += 1
        return epoch, step

    def rows(self, step: int) -> list[int]:
        """Return the rows of the optimizer step ``step``, counted from 0 over all epochs."""
        epoch, place = self.locate(step)
        return list(self.plan(epoch)[place])

    def plan(self, epoch: int) -> Steps:
        """Return the rows of each step of ``epoch``; only the latest plan is held, for it grows with the data."""
        if self._latest[0] != epoch:
            self._latest = (epoch, self._made(epoch))
        return self._latest[1]

    def _count(self, epoch: int) -> int:
        """Return the steps of ``epoch``; under a token budget this plans it and those before, once."""
        if self._batch_tokens is None:
            return math.ceil(len(self._facts) / self._batch)
        while len(self._counts) <= epoch:
            self._counts.append(len(self.plan(len(self._counts))))
        return self._counts[epoch]

    def _made(self, epoch: int) -> Steps:
        if not self._parts:
            return self._ordered(self._facts, self._order, epoch)
        drawn = _mixed(self._parts, self._seed, epoch)
        if self._by == "random":  # it is, and a second shuffle would let a row come twice before all have come
            order: Callable[..., Steps] = given
        else:
            drawn, order = np.sort(drawn), self._order
        rows: list[int] = drawn.tolist()
        return [[rows[i] for i in step] for step in self._ordered(self._facts.at(rows), order, epoch)]

    def _ordered(self, facts: Facts, order: Callable[..., Steps], epoch: int) -> Steps:
        most, batch = self._batch_tokens, self._batch
        cut: Cut = partial(_by_rows, batch=batch)
        if most is not None:
            cut = partial(_by_tokens, tokens=facts.tokens, most=most)
            batch = max(1, most * len(facts) // max(1, sum(facts.tokens)))
        steps: Steps = order(facts, cut=cut, batch=batch, seed=self._seed, epoch=epoch)
        where = f"The order {self._by!r} in epoch {epoch}"
        _check_rows(steps, len(facts), where)
        if most is None:
            _check_sizes(steps, math.ceil(len(facts) / batch), batch, where)
        return steps


def shares(weights: Mapping[str, float], rows: int) -> dict[str, int]:
    """Split ``rows`` by ``weights`` by largest remainder, names in alphabetical order; equal remainders go by name.

    The arithmetic is exact on the weights as written, so 0.1 is a tenth.
    """
    names = sorted(weights)
    exact = [Fraction(str(weights[name])) for name in names]
    total = sum(exact)
    quotas = [rows * weight / total for weight in exact]
    out = [int(quota) for quota in quotas]
    by_rest = sorted(range(len(names)), key=lambda i: (out[i] - quotas[i], names[i]))
    for i in by_rest[: rows - sum(out)]:
        out[i] += 1
    return dict(zip(names, out, strict=True))


def _parts(labels: Sequence[str], mixture: Mapping[str, float]) -> list[tuple[str, Ints, int]]:
    """Return name, rows and rows per epoch of each label, or say what does not fit."""
    known = dict.fromkeys(sorted(set(labels)))
    for name, weight in mixture.items():
        if name not in known:
            raise InputError(
                f"The mixture names {name!r}, which no row has; rows have {_some(list(known))}.{nearest(name, known)}"
            )
        if not 0 < weight < math.inf:
            raise InputError(
                f"The mixture gives {name!r} the weight {weight}; a weight is a number more than 0, "
                "and a label nobody wants is dropped from the rows."
            )
    for name in known:
        if name not in mixture:
            raise InputError(f"The mixture has no weight for {name!r}, which rows have; give it one or drop its rows.")
    share = shares(mixture, len(labels))
    for name in known:
        if not share[name]:
            raise InputError(
                f"The mixture gives {name!r} none of the {len(labels)} rows of an epoch; raise its weight or drop "
                "its rows."
            )
    code = {name: i for i, name in enumerate(known)}
    codes = np.fromiter((code[label] for label in labels), dtype=np.int64, count=len(labels))
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return [(name, rows, share[name]) for name, rows in zip(known, groups, strict=True)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _mixed(parts: Sequence[tuple[str, Ints, int]], seed: int, epoch: int) -> Ints:
    """Draw the rows of ``epoch``: labels in random order, the rows of each label in the order of its permutations."""
    drawn = [rows[_turns(len(rows), share, epoch, "label", seed, name)] for name, rows, share in parts]
    labels = np.repeat(np.arange(len(parts)), [share for *_, share in parts])
    slots = labels[_shuffled(len(labels), "mixture", seed, epoch)]
    out = np.empty_like(slots)
    out[np.argsort(slots, kind="stable")] = np.concatenate(drawn)
    return out


def _turns(size: int, share: int, epoch: int, *key: object) -> Ints:
    """Return draws ``epoch * share`` to ``(epoch + 1) * share`` of an endless row of permutations of ``size`` things.

    Permutations are made in blocks of at least ``share`` draws: a label of one row does not cost a generator a draw.
    """
    at_once = math.ceil(share / size)
    block = at_once * size
    start = epoch * share
    first, last = start // block, (start + share - 1) // block
    made = [
        np.argsort(_raw(block, *key, place).reshape(at_once, size), axis=1, kind="stable").ravel()
        for place in range(first, last + 1)
    ]
    return np.concatenate(made)[start - first * block :][:share]


def _raw(count: int, *key: object) -> npt.NDArray[np.uint64]:
    """Return ``count`` random words that depend on ``key`` alone."""
    return np.asarray(np.random.Philox(int(content_id("order", *key), 16)).random_raw(count), dtype=np.uint64)


def _shuffled(count: int, *key: object) -> Ints:
    return np.argsort(_raw(count, *key), kind="stable")


def _by_rows(rows: npt.ArrayLike, *, batch: int) -> Steps:
    listed = np.asarray(rows, dtype=np.int64).tolist()
    return [listed[start : start + batch] for start in range(0, len(listed), batch)]


def _by_tokens(rows: npt.ArrayLike, *, tokens: Sequence[int], most: int) -> Steps:
    """Cut ``rows`` where the next one would exceed ``most`` tokens; greedy, so no row changes its place."""
    listed = np.asarray(rows, dtype=np.int64)
    sizes: Iterable[int] = np.asarray(tokens, dtype=np.int64)[listed].tolist()
    cuts, total = [0], 0
    for place, size in enumerate(sizes):
        if total + size > most and place > cuts[-1]:
            cuts.append(place)
            total = 0
        total += size
    out = listed.tolist()
    return [out[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(out)], strict=True)]


def _check_rows(steps: Steps, rows: int, where: str) -> None:
    """Refuse an order that drops or repeats rows, which nothing after it would notice."""
    counted = np.sort(np.fromiter(chain.from_iterable(steps), dtype=np.int64))
    if not np.array_equal(counted, np.arange(rows)):
        raise InputError(
            f"{where} does not name each of {rows} rows once: it names {len(counted)}, "
            f"{len(np.unique(counted))} of them different; return cut(permutation of all rows)."
        )
    if not all(steps):
        raise InputError(f"{where} has a step without rows; return cut(permutation of all rows).")


def _check_sizes(steps: Steps, expected: int, batch: int, where: str) -> None:
    if len(steps) != expected or max(map(len, steps)) > batch:
        raise InputError(
            f"{where} makes {len(steps)} steps of up to {max(map(len, steps))} rows; expected {expected} of up to "
            f"{batch}; return cut(permutation of all rows)."
        )
