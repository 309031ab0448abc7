"""Rows on features: what an objective sees of a data set, cut into batches, where each branch is a row of a matrix.

The backbone is frozen, so a branch is its features and nothing else. Rows come from examples, as the trainer of whole
models takes them, or from a matrix that somebody has measured, such as grades of a summary by aspect.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiebreak.models.features import Features
from tiebreak.records import InputError
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import Kind
from tiebreak.train.rows import Example, see

OF_PAIRS = ("p", "margin", "share")
OF_ALONE = ("label", "ratings")
OF_BRANCHES = ("lengths", "weight", "grades")


class Batch(NamedTuple):
    """The rows of one step: features (B, width), the row of each branch (B,), and its prompt's features (B, width).

    ``seen`` is what an objective sees of them, still without scores. ``prompts`` is None where there are none.
    """

    values: Tensor
    row: Tensor
    prompts: Tensor | None
    seen: Seen


class Shifted(NamedTuple):
    """Responses of the policy, without labels: features (S, width) and the prompt that each belongs to, (S,)."""

    values: Tensor
    tree: Tensor


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """T rows with B branches in all; branch i has the features ``values[branch[i]]``.

    ``seen`` is what an objective sees of all rows, but for the scores. ``users`` says whose row each is, ``groups``
    which rows belong together in a split, ``labels`` which data set a row is from; all three may be empty. Row t has
    the prompt ``prompts[prompt[t]]``, for heads that look at it.

    Raises:
        InputError: a number of users, groups or labels that is not that of the rows, or rows of steps.
    """

    values: Tensor
    branch: Tensor
    seen: Seen
    users: tuple[str, ...] = ()
    groups: tuple[Hashable, ...] = ()
    labels: tuple[str, ...] = ()
    prompts: Tensor | None = None
    prompt: Tensor | None = None
    _starts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("users", "groups", "labels"):
            if getattr(self, name) and len(getattr(self, name)) != len(self):
                raise InputError(
                    f"There are {len(self)} rows and {len(getattr(self, name))} {name}; give each row one."
                )
        if len(self.branch) and not 0 <= int(self.branch.min()) <= int(self.branch.max()) < len(self.values):
            raise InputError(f"A row names completion {int(self.branch.max())} of {len(self.values)}.")

    def __len__(self) -> int:
        return 0 if self._tree.numel() == 0 else int(self._tree[-1]) + 1

    @cached_property
    def _tree(self) -> Tensor:
        assert self.seen.tree is not None
        return self.seen.tree

    @property
    def width(self) -> int:
        """How many features there are."""
        return int(self.values.shape[1])

    @property
    def own(self) -> Tensor:
        """The features of the completions that the rows name, each of them once."""
        return self.values[self.branch.unique()]

    @property
    def tokens(self) -> list[int]:
        """Learned tokens of each row."""
        found = torch.zeros(len(self), dtype=torch.long).index_add(0, self._tree, self.seen.lengths.long())
        return [int(tokens) for tokens in found]

    @property
    def difficulty(self) -> list[float]:
        """1 - |2p - 1| of each row, 0 of rows that are no pairs."""
        if self.seen.chosen is None or self.seen.p is None:
            return [0.0] * len(self)
        unsure = 1 - (2 * self.seen.p - 1).abs()
        found = [0.0] * len(self)
        for row, hard in zip(self._tree[self.seen.chosen].tolist(), unsure.tolist(), strict=True):
            found[row] = max(found[row], hard)
        return found

    def take(self, rows: Sequence[int]) -> Batch:
        """Return ``rows`` with their features, in that order."""
        at = torch.as_tensor(rows, dtype=torch.long)
        branches, seen = self._cut(at)
        assert seen.tree is not None
        row = at[seen.tree]
        prompts = None
        if self.prompts is not None and self.prompt is not None:
            prompts = self.prompts[self.prompt[row]]
        return Batch(self.values[self.branch[branches]], row, prompts, seen)

    def part(self, rows: Sequence[int]) -> FeatureRows:
        """Return ``rows`` as rows of their own, on the same features."""
        at = torch.as_tensor(rows, dtype=torch.long)
        branches, seen = self._cut(at)
        prompt = None if self.prompt is None else self.prompt[at]
        named = {name: getattr(self, name) for name in ("users", "groups", "labels")}
        some: dict[str, Any] = {name: tuple(known[i] for i in rows) if known else () for name, known in named.items()}
        return replace(self, branch=self.branch[branches], seen=seen, prompt=prompt, **some)

    def _cut(self, rows: Tensor) -> tuple[Tensor, Seen]:
        """Return the branches of ``rows``, and what an objective sees of them, counted anew."""
        branches, sizes = self._runs("tree", torch.arange(len(self._tree)), rows)
        old = self._start("tree", torch.arange(len(self._tree)))[rows]
        moved = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]]) - old

        def index(name: str, places: Tensor) -> tuple[Tensor, Tensor]:
            some, counts = self._runs(name, places, rows)
            return some, places[some] + moved.repeat_interleave(counts)

        seen = self.seen
        made: dict[str, Any] = {name: _at(getattr(seen, name), branches) for name in OF_BRANCHES}
        made["tree"] = torch.arange(len(rows)).repeat_interleave(sizes)
        if seen.chosen is not None and seen.rejected is not None:
            some, made["chosen"] = index("chosen", seen.chosen)
            made["rejected"] = seen.rejected[some] + (made["chosen"] - seen.chosen[some])
            made |= {name: _at(getattr(seen, name), some) for name in OF_PAIRS}
        if seen.alone is not None:
            some, made["alone"] = index("alone", seen.alone)
            made |= {name: _at(getattr(seen, name), some) for name in OF_ALONE}
        made["beside"] = {role: index(role, places)[1] for role, places in seen.beside.items()}
        return branches, Seen(**made)

    def _start(self, name: str, places: Tensor) -> Tensor:
        """Return where each row's entries of ``places``, which are in order of rows, begin; and where the last end."""
        if name not in self._starts:
            counts = torch.bincount(self._tree[places], minlength=len(self))
            self._starts[name] = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return self._starts[name]

    def _runs(self, name: str, places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return which entries of ``places`` belong to ``rows``, one row after the other, and how many to each."""
        starts = self._start(name, places)
        counts = starts[rows + 1] - starts[rows]
        first = starts[rows] - (counts.cumsum(0) - counts)
        return torch.arange(int(counts.sum())) + first.repeat_interleave(counts), counts


def rows_on(
    examples: Sequence[Example],
    found: Features,
    *,
    kind: Kind,
    users: Sequence[str] = (),
    prompts: Features | None = None,
) -> FeatureRows:
    """Put examples on the features of their trees; rows of one prompt belong together in a split.

    Args:
        examples: as the trainer of whole models takes them.
        found: what ``features`` gave for their trees, in their order.
        kind: the shape of row that the objective takes, as ``kind_of`` says.
        users: whose row each is.
        prompts: what ``prompt_features`` gave for their trees.

    Raises:
        InputError: rows of steps, whose scores are read inside the answer and not at its end.
    """
    if any(row.steps for row in examples):
        raise InputError("Features are of whole answers, so steps cannot be learned on them; train the whole model.")
    if len(found.place) != sum(len(row.tree.branches) for row in examples):
        raise InputError("The features are of other rows; compute them for the trees of these examples, in order.")
    return FeatureRows(
        found.values,
        found.place,
        see(examples, torch.zeros(len(found.place)), head=True, kind=kind, reference=None),
        users=tuple(users),
        groups=tuple(row.tree.trunk for row in examples),
        labels=tuple(row.label for row in examples),
        prompts=None if prompts is None else prompts.values,
        prompt=None if prompts is None else prompts.place,
    )


def pairs_on(
    values: Tensor,
    chosen: Sequence[int] | Tensor,
    rejected: Sequence[int] | Tensor,
    *,
    p: Sequence[float] | Tensor | None = None,
    margin: Sequence[float] | Tensor | None = None,
    weight: Sequence[float] | Tensor | None = None,
    users: Sequence[str] = (),
    groups: Sequence[Hashable] = (),
    prompts: Tensor | None = None,
    prompt: Sequence[int] | Tensor | None = None,
) -> FeatureRows:
    """Return pairs of completions whose features are the rows of ``values`` (N, width), NaN where one is missing.

    Args:
        values: the features.
        chosen: the better side of each pair, a row of ``values``.
        rejected: the other side.
        p: P(chosen is better), 1 if not given.
        margin: strength of each pair.
        weight: how often each pair counts.
        users: whose pair it is.
        groups: pairs that stay together in a split.
        prompts: features of prompts, (M, width).
        prompt: the prompt of each pair, a row of ``prompts``.
    """
    first, second = _long(chosen), _long(rejected)
    if len(first) != len(second):
        raise InputError(f"There are {len(first)} chosen sides and {len(second)} rejected ones; give as many of each.")
    count = len(first)
    places = torch.arange(count) * 2
    seen = Seen(
        lengths=torch.ones(2 * count, dtype=torch.long),
        weight=_float(weight, count, "weight", 1.0).repeat_interleave(2),
        chosen=places,
        rejected=places + 1,
        p=_float(p, count, "p", 1.0),
        margin=None if margin is None else _float(margin, count, "margin", 0.0),
        tree=torch.arange(count).repeat_interleave(2),
    )
    return FeatureRows(
        values.float(),
        torch.stack([first, second], 1).flatten(),
        seen,
        users=tuple(users),
        groups=tuple(groups),
        prompts=prompts,
        prompt=None if prompt is None else _long(prompt),
    )


def alone_on(
    values: Tensor,
    which: Sequence[int] | Tensor,
    *,
    label: Sequence[float] | Tensor | None = None,
    ratings: Tensor | None = None,
    weight: Sequence[float] | Tensor | None = None,
    users: Sequence[str] = (),
    groups: Sequence[Hashable] = (),
) -> FeatureRows:
    """Return completions that stand alone, with P(desirable) or ratings (T, k), NaN where one is missing."""
    branch = _long(which)
    count = len(branch)
    seen = Seen(
        lengths=torch.ones(count, dtype=torch.long),
        weight=_float(weight, count, "weight", 1.0),
        alone=torch.arange(count),
        label=None if label is None else _float(label, count, "label", 0.0),
        ratings=None if ratings is None else ratings.float(),
        tree=torch.arange(count),
    )
    return FeatureRows(values.float(), branch, seen, users=tuple(users), groups=tuple(groups))


def evenly(users: Sequence[str]) -> Tensor:
    """Return a weight for each row that lets every user count the same, whoever voted most; their mean is 1."""
    counts: Mapping[str, int] = {name: users.count(name) for name in set(users)}
    return torch.tensor([len(users) / (len(counts) * counts[name]) for name in users])


def _at(values: Tensor | None, places: Tensor) -> Tensor | None:
    return None if values is None else values[places]


def _long(values: Sequence[int] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.long)


def _float(values: Sequence[float] | Tensor | None, count: int, name: str, default: float) -> Tensor:
    found = torch.full((count,), default) if values is None else torch.as_tensor(values, dtype=torch.float32)
    if len(found) != count:
        raise InputError(f"There are {count} rows and {len(found)} values of {name}; give each row one.")
    return found
