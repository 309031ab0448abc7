"""Trees attended to block by block: nothing above the diagonal, between branches or of padding is ever computed.

A piece is a run of queries that ends its keys: a block of a trunk behind the trunk so far, or of a branch behind the
trunk and the branch so far. So one mask, causal from the lower right corner, serves every piece, and sliding windows
and soft-capped scores are two lines. Scores are computed again in the backward pass, so memory is linear in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiebreak.models.forest import Forest

BLOCK = 128
"""Queries of one piece: enough for a matrix product to run at full speed, few enough to skip most of the upper half."""


class Piece(NamedTuple):
    """Queries [first, last) against the trunk [root, stem) and then the branch [twig, last).

    Inside a trunk the second run is empty and the first ends with the queries.
    """

    first: int
    last: int
    root: int
    stem: int
    twig: int


class _Scores(NamedTuple):
    """Attention weights of a piece, (K, G, n, m) in float32, and the slope of soft-capping where there is one."""

    weights: Tensor
    slope: Tensor | None


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
    """Attend within trees. ``query`` (H, N, D), ``key`` and ``value`` (K, N, D), K divides H; returns (N, H, D).

    ``window`` is how many tokens back, itself included, a token sees; ``softcap`` bounds scores as c tanh(s / c).
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if "blocks" not in forest.notes:
        forest.notes["blocks"] = tuple(pieces(forest))
    out: Tensor = _Blocks.apply(query, key, value, forest.notes["blocks"], factor, window, softcap)
    return out


def pieces(forest: Forest) -> Iterator[Piece]:
    """Cut every tree into pieces. A tree of one branch is a single run, as if all of it were trunk."""
    for start, trunk, branches in forest.spans:
        stem = start + trunk + (branches[0] if len(branches) == 1 else 0)
        for first in range(start, stem, BLOCK):
            last = min(stem, first + BLOCK)
            yield Piece(first, last, start, last, last)
        if len(branches) == 1:
            continue
        twig = stem
        for size in branches:
            for first in range(twig, twig + size, BLOCK):
                yield Piece(first, min(twig + size, first + BLOCK), start, stem, twig)
            twig += size


class _Blocks(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cut: tuple[Piece, ...],
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.settings = cut, scale, window, softcap
        heads, places, _ = query.shape
        out = query.new_empty(places, heads, value.shape[-1])
        for piece in cut:
            grouped, keys = _grouped(query, piece, len(key)), _run(key, piece)
            weights = _scores(grouped, keys, piece, scale, window, softcap).weights.to(value.dtype)
            mixed = torch.bmm(weights.flatten(1, 2), _run(value, piece))
            out[piece.first : piece.last] = mixed.view(heads, -1, out.shape[-1]).transpose(0, 1)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        cut, scale, window, softcap = ctx.settings
        of_query = query.new_empty(query.shape[1], query.shape[0], query.shape[2]).transpose(0, 1)
        of_key, of_value = (
            torch.zeros(x.shape[1], x.shape[0], x.shape[2], device=x.device, dtype=torch.float32).transpose(0, 1)
            if x.dtype == torch.bfloat16
            else torch.zeros_like(x)
            for x in (key, value)
        )
        flow = gradient.transpose(0, 1)
        for piece in cut:
            grouped, keys, values = _grouped(query, piece, len(key)), _run(key, piece), _run(value, piece)
            weights, slope = _scores(grouped, keys, piece, scale, window, softcap)
            above = _grouped(flow, piece, len(key))
            pull = torch.bmm(above, values.transpose(1, 2)).float().view_as(weights)
            pull = torch._softmax_backward_data(pull, weights, -1, torch.float32).mul_(scale)
            if slope is not None:
                pull.mul_(slope)
            steps = pull.to(query.dtype).flatten(1, 2)
            of_query[:, piece.first : piece.last] = torch.bmm(steps, keys).view(len(query), -1, query.shape[-1])
            _add(of_key, piece, torch.bmm(steps.transpose(1, 2), grouped))
            _add(of_value, piece, torch.bmm(weights.to(value.dtype).flatten(1, 2).transpose(1, 2), above))
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None, None, None


def _grouped(states: Tensor, piece: Piece, groups: int) -> Tensor:
    """Return the queries of ``piece`` as (K, G * n, D): those that share a key head stand in one matrix."""
    some = states[:, piece.first : piece.last]
    return some if len(states) == groups else some.reshape(groups, -1, some.shape[-1])


def _run(states: Tensor, piece: Piece) -> Tensor:
    """Return the keys or values of ``piece``, (K, m, D): the trunk and what follows it up to the last query."""
    trunk = states[:, piece.root : piece.stem]
    return trunk if piece.twig == piece.last else torch.cat((trunk, states[:, piece.twig : piece.last]), 1)


def _add(total: Tensor, piece: Piece, some: Tensor) -> None:
    """Add gradients of :func:`_run`'s rows to the places they came from."""
    trunk = piece.stem - piece.root
    total[:, piece.root : piece.stem] += some[:, :trunk]
    if piece.twig != piece.last:
        total[:, piece.twig : piece.last] += some[:, trunk:]


def _scores(
    queries: Tensor, keys: Tensor, piece: Piece, scale: float, window: int | None, softcap: float | None
) -> _Scores:
    count = piece.last - piece.first
    raw = torch.bmm(queries, keys.transpose(1, 2)).float().mul_(scale)
    slope = None
    if softcap is not None:
        raw = raw.div_(softcap).tanh_()
        slope = 1 - raw.square()
        raw = raw.mul_(softcap)
    raw = raw.view(len(keys), -1, count, keys.shape[1])
    if window is None:
        raw[..., -count:].add_(_later(count, raw.device))
    else:
        raw.masked_fill_(_unseen(count, keys.shape[1], window, raw.device), float("-inf"))
    return _Scores(raw.softmax(-1), None if slope is None else slope.view(raw.shape))


@lru_cache(maxsize=2 * BLOCK)
def _later(queries: int, device: torch.device) -> Tensor:
    """Return what to add to scores of the last ``queries`` places among themselves, (n, n): -inf where a key is later.

    All keys before them are seen, so no mask as long as the row is ever made.
    """
    return torch.full((queries, queries), float("-inf"), device=device).triu_(1)


def _unseen(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Return where the last ``queries`` of ``keys`` places do not look, (n, m): at later ones, or behind the window."""
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None]
    return (back < 0) | (back >= window)
