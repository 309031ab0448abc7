"""Attention over a forest, through transformers' own attention interface: model code is not touched.

The model runs on one packed row; only inside attention are trees laid out side by side, so padding costs nothing in
the projections, the feed-forward layers and the vocabulary head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from tiebreak.models.forest import Forest
from tiebreak.records import InputError

NAME = "tiebreak_forest"


class _Regroup(torch.autograd.Function):
    """Select rows by an index whose used part is a permutation, so the gradient is a selection too.

    The general gradient of a selection accumulates one row at a time; this one is parallel and repeats to the bit.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, forward_index: Tensor, backward_index: Tensor) -> Tensor:
        ctx.save_for_backward(forward_index, backward_index)
        return rows.index_select(0, forward_index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _, backward_index = ctx.saved_tensors
        return gradient.index_select(0, backward_index), None, None


class _Spread(torch.autograd.Function):
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


def forest_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    forest: Forest | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend within trees. ``query`` (1, H, N, D), ``key`` and ``value`` (1, K, N, D) with K dividing H; out (1, N, H, D).

    Raises:
        InputError: the model did not hand the forest to its attention layers, or soft-caps its attention scores.
    """
    if forest is None:
        raise InputError(
            f"{type(module).__name__} does not pass extra arguments to its attention, so it cannot run a forest; "
            "use a model whose attention goes through transformers' attention interface."
        )
    if softcap is not None:
        raise InputError(f"{type(module).__name__} soft-caps its attention scores, which the forest does not compute.")
    trees, longest = forest.mask.shape[0], forest.mask.shape[-1]

    def lay(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1)
        laid = _Regroup.apply(rows.contiguous(), forest.gather, forest.scatter)
        return laid.view(trees, longest, *rows.shape[1:]).transpose(1, 2)

    mask = forest.mask
    if sliding_window is not None:
        place = forest.positions[0][forest.gather].view(trees, 1, longest)
        mask = mask & (place[..., :, None] - place[..., None, :] < sliding_window)
    out = scaled_dot_product_attention(
        lay(query),
        lay(key),
        lay(value),
        attn_mask=mask,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    flat = out.transpose(1, 2).reshape(trees * longest, out.shape[1], out.shape[3])
    return _Spread.apply(flat, forest.scatter)[None], None


AttentionInterface.register(NAME, forest_attention)


@contextmanager
def forest_mode(*models: PreTrainedModel) -> Iterator[None]:
    """Let ``models`` attend over forests; their own attention comes back on leaving, whatever happens inside."""
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation(NAME)
            if model.config._attn_implementation != NAME:
                raise InputError(
                    f"{type(model).__name__} does not route its attention through transformers' attention interface, "
                    "so it cannot run a forest; convert it to one of the many architectures that do (Llama, Qwen, GPT-2)."
                )
        yield
    finally:
        for model, implementation in zip(models, before, strict=True):
            model.set_attn_implementation(implementation)
