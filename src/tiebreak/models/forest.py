"""The forest batch: each tree is one prompt (the trunk) with its completions (the branches), packed without padding.

Branches of one tree see the trunk and themselves, never each other, and their positions go on where the trunk ends, so
every branch is computed exactly as if it followed the prompt alone, while the prompt is computed once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiebreak.records import InputError


class Tree(NamedTuple):
    """Token ids of one prompt and of its completions, end-of-sequence included where it was produced.

    ``taught`` says of each branch which of its tokens are learned, for a dialogue whose branch holds the user's turns
    too, or where a score is learned at the end of each step; empty, all of them are.
    """

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    taught: tuple[tuple[bool, ...], ...] = ()

    @property
    def size(self) -> int:
        """Tokens of the trunk and of all branches, which is what a forest computes of this tree."""
        return len(self.trunk) + sum(map(len, self.branches))


class Span(NamedTuple):
    """Where a tree lies in its row: the first place, the trunk's length and the branches' lengths."""

    start: int
    trunk: int
    branches: tuple[int, ...]

    @property
    def size(self) -> int:
        """Places of the whole tree."""
        return self.trunk + sum(self.branches)

    @property
    def depth(self) -> int:
        """Tokens from the root to the end of the longest branch, the reach of attention."""
        return self.trunk + max(self.branches)


class Laid(NamedTuple):
    """Trees as padded rows: ``gather`` (T * L,) lays them out, ``scatter`` (N,) takes them back, ``mask`` (T, 1, L, L).

    ``bias`` is the mask as numbers to add to attention scores, made once for all layers.
    """

    gather: Tensor
    scatter: Tensor
    mask: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Forest:
    """A packed batch of T trees with B branches, N tokens in all and M completion tokens that are learned.

    Shapes: ``ids``, ``positions`` (1, N); ``owner`` (N,), the branch of each token or -1 - tree in a trunk;
    ``predictors``, ``targets``, ``learned``, ``branch`` (M,); ``lengths``, ``last``, ``tree`` (B,). ``predictors`` are
    the positions whose output predicts ``targets``, and ``learned`` those where the targets stand themselves;
    ``lengths`` counts the learned tokens of each branch; ``last`` is the position of its final token. ``spans`` says
    where each tree lies.
    """

    ids: Tensor
    positions: Tensor
    owner: Tensor
    predictors: Tensor
    targets: Tensor
    learned: Tensor
    branch: Tensor
    lengths: Tensor
    last: Tensor
    tree: Tensor
    spans: tuple[Span, ...]

    @cached_property
    def laid(self) -> Laid:
        """The trees as padded rows. A padded place attends to itself alone: with nothing to see it would be NaN."""
        device, longest = self.ids.device, max(span.size for span in self.spans)
        starts = torch.tensor([span.start for span in self.spans], device=device)[:, None]
        sizes = torch.tensor([span.size for span in self.spans], device=device)[:, None]
        place = torch.arange(longest, device=device)[None]
        held = place < sizes
        gather = torch.where(held, starts + place, 0)
        owner = torch.where(held, self.owner[gather], -1 - len(self.spans))
        depth = self.positions[0][gather]
        query, key = owner[:, :, None], owner[:, None, :]
        mask = held[:, None, :] & ((key < 0) | (key == query)) & (depth[:, None, :] <= depth[:, :, None])
        mask |= torch.eye(longest, dtype=torch.bool, device=device)
        bias = torch.zeros(mask.shape, device=device).masked_fill_(~mask, float("-inf"))
        return Laid(gather.flatten(), torch.nonzero(held.flatten()).flatten(), mask[:, None], bias[:, None])

    @cached_property
    def notes(self) -> dict[Hashable, Any]:
        """What a kernel makes of the batch once and all layers share, such as a block mask of each window."""
        return {}

    def to(self, device: torch.device | str) -> Forest:
        """Return the same batch on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in self.__dataclass_fields__ if name != "spans"}
        return replace(self, **moved)

    def sums(self, values: Tensor) -> Tensor:
        """Sum per-token ``values`` (M,) over each branch, giving (B,)."""
        return torch.zeros(len(self.lengths), dtype=values.dtype, device=values.device).index_add(
            0, self.branch, values
        )


def plant(trees: Sequence[Tree]) -> Forest:
    """Pack ``trees`` into one row. Order of trees, branches and tokens is kept.

    Raises:
        InputError: a branch is empty, or a trunk is and a branch begins with a learned token, so there is nothing to
            predict or to predict from. Where branches hold prompts of their own, a trunk may be empty.
    """
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    own: list[int] = []
    branch: list[int] = []
    lengths: list[int] = []
    last: list[int] = []
    tree_of: list[int] = []
    spans: list[Span] = []
    for number, tree in enumerate(trees):
        rooted = tree.trunk or (tree.taught and not any(taught[0] for taught in tree.taught if taught))
        if not rooted or not tree.branches or not all(tree.branches):
            raise InputError(f"Tree {number} of the batch has an empty prompt or completion; drop or mend that row.")
        start, trunk = len(ids), len(tree.trunk)
        spans.append(Span(start, trunk, tuple(map(len, tree.branches))))
        ids += tree.trunk
        positions += range(trunk)
        owner += [-1 - number] * trunk
        for place, completion in enumerate(tree.branches):
            first, size = len(ids), len(completion)
            before = [start + trunk - 1, *range(first, first + size - 1)]
            taught = tree.taught[place] if tree.taught else (True,) * size
            predictors += [b for b, learned in zip(before, taught, strict=True) if learned]
            targets += [token for token, learned in zip(completion, taught, strict=True) if learned]
            own += [first + i for i, learned in enumerate(taught) if learned]
            branch += [len(lengths)] * sum(taught)
            owner += [len(lengths)] * size
            ids += completion
            positions += range(trunk, trunk + size)
            last.append(len(ids) - 1)
            tree_of.append(number)
            lengths.append(sum(taught))
    return Forest(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        owner=torch.tensor(owner),
        predictors=torch.tensor(predictors, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        learned=torch.tensor(own, dtype=torch.long),
        branch=torch.tensor(branch, dtype=torch.long),
        lengths=torch.tensor(lengths),
        last=torch.tensor(last),
        tree=torch.tensor(tree_of),
        spans=tuple(spans),
    )


def roots(prompts: Sequence[tuple[int, ...]]) -> Forest:
    """Pack bare ``prompts``, nothing to predict in them. ``last`` is each one's final token, where its answers start.

    Raises:
        InputError: a prompt is empty.
    """
    if not all(prompts):
        raise InputError("A prompt of the batch has no tokens; give it text or drop it.")
    sizes = torch.tensor([len(prompt) for prompt in prompts])
    number, none = torch.arange(len(prompts)), torch.zeros(0, dtype=torch.long)
    ends = sizes.cumsum(0)
    tree = number.repeat_interleave(sizes)
    return Forest(
        ids=torch.tensor([[token for prompt in prompts for token in prompt]]),
        positions=(torch.arange(len(tree)) - (ends - sizes)[tree])[None],
        owner=-1 - tree,
        predictors=none,
        targets=none,
        learned=none,
        branch=none,
        lengths=torch.zeros_like(sizes),
        last=ends - 1,
        tree=number,
        spans=tuple(Span(int(end) - len(prompt), len(prompt), (0,)) for prompt, end in zip(prompts, ends, strict=True)),
    )
