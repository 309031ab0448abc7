"""Auxiliary terms: what is added to a pair's loss, a scalar that is the batch's share of a mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen


def nll(seen: Seen) -> Tensor:
    """Negative log-likelihood of the first branch of each row, a mean over all their tokens."""
    assert seen.logps is not None
    first = first_of(seen)
    tokens = (seen.weight * seen.lengths)[first].sum() if seen.whole is None else seen.whole.tokens
    return -(seen.weight * seen.logps)[first].sum() / tokens


def first_of(seen: Seen) -> Tensor:
    """Return the first branch of each row, the one to imitate; without pairs or lists each branch is one."""
    if seen.tree is not None:
        fresh = torch.ones_like(seen.tree, dtype=torch.bool)
        fresh[1:] = seen.tree[1:] != seen.tree[:-1]
        return torch.nonzero(fresh).flatten()
    if seen.chosen is not None:
        return seen.chosen
    return torch.arange(len(seen.lengths), device=seen.lengths.device)


TERMS: Mapping[str, Part] = {"nll": Part(nll)}
