"""The forest batch: each tree is one prompt (the trunk) with its completions (the branches), packed without padding.

Branches of one tree see the trunk and themselves, never each other, and their positions go on where the trunk ends, so
every branch is computed exactly as if it followed the prompt alone, while the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tiebreak.records import InputError


class Tree(NamedTuple):
    """Token ids of one prompt and of its completions, end-of-sequence included where it was produced."""

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Forest:
    """A packed batch of T trees with B branches, N tokens in all and M completion tokens.

    Shapes: ``ids``, ``positions`` (1, N); ``predictors``, ``targets``, ``branch`` (M,); ``lengths``, ``last``, ``tree``
    (B,); ``gather`` (T * L,), ``scatter`` (N,), ``mask`` (T, 1, L, L) with L the longest tree. ``predictors`` are the
    positions whose output predicts ``targets``; ``last`` is the position of each branch's final token.
    """

    ids: Tensor
    positions: Tensor
    predictors: Tensor
    targets: Tensor
    branch: Tensor
    lengths: Tensor
    last: Tensor
    tree: Tensor
    gather: Tensor
    scatter: Tensor
    mask: Tensor

    @cached_property
    def bias(self) -> Tensor:
        """``mask`` as numbers to add to attention scores, made once for all layers (attention itself makes it anew)."""
        return torch.zeros(self.mask.shape, device=self.mask.device).masked_fill_(~self.mask, float("-inf"))

    def to(self, device: torch.device | str) -> Forest:
        """Return the same batch on ``device``."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})

    def sums(self, values: Tensor) -> Tensor:
        """Sum per-token ``values`` (M,) over each branch, giving (B,)."""
        return torch.zeros(len(self.lengths), dtype=values.dtype, device=values.device).index_add(
            0, self.branch, values
        )


def plant(trees: Sequence[Tree]) -> Forest:
    """Pack ``trees`` into one row. Order of trees, branches and tokens is kept.

    Raises:
        InputError: a trunk or a branch is empty, so there is nothing to predict from or to predict.
    """
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    branch: list[int] = []
    lengths: list[int] = []
    last: list[int] = []
    tree_of: list[int] = []
    starts: list[tuple[int, list[int]]] = []
    for number, tree in enumerate(trees):
        if not tree.trunk or not tree.branches or not all(tree.branches):
            raise InputError(f"Tree {number} of the batch has an empty prompt or completion; drop or mend that row.")
        start, trunk = len(ids), len(tree.trunk)
        ids += tree.trunk
        positions += range(trunk)
        owners = [-1] * trunk
        for completion in tree.branches:
            first = len(ids)
            predictors += [start + trunk - 1, *range(first, first + len(completion) - 1)]
            targets += completion
            branch += [len(lengths)] * len(completion)
            owners += [len(lengths)] * len(completion)
            ids += completion
            positions += range(trunk, trunk + len(completion))
            last.append(len(ids) - 1)
            tree_of.append(number)
            lengths.append(len(completion))
        starts.append((start, owners))
    gather, scatter, mask = _regroup(starts, torch.tensor(positions))
    return Forest(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        branch=torch.tensor(branch),
        lengths=torch.tensor(lengths),
        last=torch.tensor(last),
        tree=torch.tensor(tree_of),
        gather=gather,
        scatter=scatter,
        mask=mask,
    )


def _regroup(starts: Sequence[tuple[int, list[int]]], positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the index that lays trees out as rows, its inverse, and who may attend to whom in each row.

    A padded place attends to itself alone: its output is dropped, but a row with nothing to attend to would be NaN.
    """
    longest = max(len(owners) for _, owners in starts)
    rows = torch.full((len(starts), longest), -2)
    gather = torch.zeros(len(starts), longest, dtype=torch.long)
    for row, (start, owners) in enumerate(starts):
        rows[row, : len(owners)] = torch.tensor(owners)
        gather[row, : len(owners)] = torch.arange(start, start + len(owners))
    held = rows > -2
    scatter = torch.nonzero(held.flatten()).flatten()
    place = positions[gather]
    query, key = rows[:, :, None], rows[:, None, :]
    mask = held[:, None, :] & ((key == -1) | (key == query)) & (place[:, None, :] <= place[:, :, None])
    mask |= torch.eye(longest, dtype=torch.bool)
    return gather.flatten(), scatter, mask[:, None]
