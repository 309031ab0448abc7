"""Trees laid out as padded rows, one call of the library's attention for all: best where trees are small.

Padding is paid inside attention alone; the projections, the feed-forward layers and the head never see it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tiebreak.models.forest import Forest


class _Regroup(torch.autograd.Function):  # type: ignore[misc]
    """Select rows by an index whose used part is a permutation, so the gradient is a selection too.

    The general gradient of a selection accumulates one row at a time; this one is parallel and repeats to the bit.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, forward_index: Tensor, backward_index: Tensor) -> Tensor:
        ctx.save_for_backward(backward_index)
        return rows.index_select(0, forward_index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (backward_index,) = ctx.saved_tensors
        return gradient.index_select(0, backward_index), None, None


class _Spread(torch.autograd.Function):  # type: ignore[misc]
    """Undo :class:`_Regroup`: pick the used places back; the gradient puts zeros on the unused ones."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        ctx.size = rows.shape
        return rows.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scatter,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.size).index_copy_(0, scatter, gradient), None


def attend(query: Tensor, key: Tensor, value: Tensor, forest: Forest, *, scale: float | None) -> Tensor:
    """Attend within trees. ``query`` (H, N, D), ``key`` and ``value`` (K, N, D), K divides H; returns (N, H, D)."""
    gather, scatter, mask, bias = forest.laid
    trees, longest = mask.shape[0], mask.shape[-1]

    def lay(states: Tensor) -> Tensor:
        rows = states.transpose(0, 1)
        laid: Tensor = _Regroup.apply(rows.contiguous(), gather, scatter)
        return laid.view(trees, longest, *rows.shape[1:]).transpose(1, 2)

    out = scaled_dot_product_attention(
        lay(query),
        lay(key),
        lay(value),
        attn_mask=bias.to(query.dtype),
        scale=scale,
        enable_gqa=key.shape[0] != query.shape[0],
    )
    spread: Tensor = _Spread.apply(out.transpose(1, 2).reshape(trees * longest, *out.shape[1::2]), scatter)
    return spread
