"""Sums, means and scans over the tokens of each completion, which lie flat one after the other."""

from __future__ import annotations

import torch
from torch import Tensor


def sums(values: Tensor, branch: Tensor, count: int) -> Tensor:
    """Sum per-token ``values`` (M,) over each completion, (B,); ``branch`` (M,) says whose a token is."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, branch, values)


def means(values: Tensor, branch: Tensor, lengths: Tensor) -> Tensor:
    """Average ``values`` (M,) over each completion, (B,); a completion without tokens has the mean 0."""
    return sums(values, branch, len(lengths)) / lengths.clamp_min(1)


def discounted(values: Tensor, lengths: Tensor, factor: float) -> Tensor:
    """Return sum over later tokens of factor^distance x value, each token's own included, (M,) -> (M,).

    With rewards and the discount it is the return; with temporal-difference errors and gamma lambda it is GAE.
    """
    if not len(values):
        return values
    rows = _rows(values, lengths)
    out = torch.empty_like(rows)
    running = torch.zeros_like(rows[:, 0])
    for step in range(rows.shape[1] - 1, -1, -1):
        running = rows[:, step] + factor * running
        out[:, step] = running
    return out[_held(lengths, rows.shape[1])]


def shifted(values: Tensor, lengths: Tensor) -> Tensor:
    """Return each token's next value within its completion, (M,) -> (M,); 0 behind the last token."""
    later = torch.cat([values[1:], values.new_zeros(1)]) if len(values) else values
    ends = lengths.cumsum(0)[lengths > 0] - 1
    return later.index_fill(0, ends, 0.0)


def _held(lengths: Tensor, longest: int) -> Tensor:
    return torch.arange(longest, device=lengths.device)[None] < lengths[:, None]


def _rows(values: Tensor, lengths: Tensor) -> Tensor:
    """Lay completions out as rows padded on the right with zeros, (B, L)."""
    held = _held(lengths, int(lengths.max()))
    return torch.zeros(held.shape, dtype=values.dtype, device=values.device).masked_scatter(held, values)
