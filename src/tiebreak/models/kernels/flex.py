"""FlexAttention over a packed row: the kernel of CUDA devices, which skips blocks of places that do not see each other.

Eager FlexAttention, which any device runs, computes the same numbers from the whole matrix: it is for tests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tiebreak.models.forest import Forest

BLOCK = 128
"""Places of one block of the mask; rows are filled up to a multiple of it."""


def block_mask(forest: Forest, window: int | None = None) -> BlockMask:
    """Return which places see which: a token sees its trunk and its own branch, back to the root or ``window`` tokens.

    The row's tail, up to a whole block, belongs to no tree and sees itself alone.
    """
    places, device = forest.ids.shape[1], forest.ids.device
    whole = -(-places // BLOCK) * BLOCK
    tail = torch.arange(whole - places, device=device)
    trees = torch.repeat_interleave(
        torch.arange(len(forest.spans), device=device),
        torch.tensor([span.size for span in forest.spans], device=device),
    )
    tree = torch.cat((trees, -1 - tail))
    owner = torch.cat((forest.owner, tail.new_full((len(tail),), -1)))
    depth = torch.cat((forest.positions[0], tail.new_zeros(len(tail))))
    reach = whole if window is None else window

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        back = depth[query] - depth[key]
        kin = (tree[query] == tree[key]) & ((owner[key] < 0) | (owner[key] == owner[query]))
        return kin & (back >= 0) & (back < reach)

    return create_block_mask(
        sees, None, None, whole, whole, device=device, BLOCK_SIZE=BLOCK, _compile=device.type != "cpu"
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: Forest,
    *,
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend within trees. ``query`` (H, N, D), ``key`` and ``value`` (K, N, D), K divides H; returns (N, H, D)."""
    places = query.shape[1]
    fill = -places % BLOCK
    if ("flex", window) not in forest.notes:
        forest.notes["flex", window] = block_mask(forest, window)

    def whole(states: Tensor) -> Tensor:
        return torch.nn.functional.pad(states, (0, 0, 0, fill))[None]

    out = _kernel(query.device.type)(
        whole(query),
        whole(key),
        whole(value),
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=forest.notes["flex", window],
        scale=scale,
        enable_gqa=len(query) != len(key),
    )
    attended: Tensor = out[0, :, :places].transpose(0, 1)
    return attended


@lru_cache(maxsize=8)
def _capped(bound: float) -> Any:
    """Return the score's change under soft-capping, one object a bound, so that it is compiled once."""

    def cap(score: Tensor, *_place: Tensor) -> Tensor:
        return bound * torch.tanh(score / bound)

    return cap


@lru_cache(maxsize=2)
def _kernel(device: str) -> Any:
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)
