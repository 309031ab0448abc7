"""Fused twins of pieces that transformers writes out in Python: the same numbers in one pass over memory.

A twin stands in while a forest runs and leaves with it, so the model stays as it was. The unfused tanh-GELU of GPT-2
costs a fifth of a training step by itself; the gradient of an embedding as a table of its own costs as much memory as
the table, and the time to fill it with zeros, though a batch touches a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu
from transformers.activations import FastGELUActivation, NewGELUActivation

_in_place: ContextVar[bool] = ContextVar("gradients in place", default=False)


class _Embed(torch.autograd.Function):  # type: ignore[misc]
    """Look rows up; the gradient is added to the rows that were looked up, where the table already has one."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, table)
        ctx.padding = padding
        return embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None]:
        ids, table = ctx.saved_tensors
        total = gradient_of(table)
        place = torch.zeros_like(table) if total is None else total
        flat = gradient.reshape(-1, gradient.shape[-1])
        if ctx.padding is not None:
            flat = flat * (ids.flatten() != ctx.padding)[:, None]
        place.index_add_(0, ids.flatten(), flat.to(place.dtype))
        return None, place if total is None else None, None


def _embed(module: nn.Embedding) -> Callable[[Tensor], Tensor]:
    def forward(ids: Tensor) -> Tensor:
        found: Tensor = _Embed.apply(ids, module.weight, module.padding_idx)
        return found

    return forward


TWINS: Mapping[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    NewGELUActivation: lambda _: partial(gelu, approximate="tanh"),
    FastGELUActivation: lambda _: partial(gelu, approximate="tanh"),
    nn.Embedding: _embed,
}


@contextmanager
def fused(*models: nn.Module) -> Iterator[None]:
    """Let fused twins stand in for the pieces of ``models`` that have one; they leave whatever happens inside."""
    changed = [module for model in models for module in model.modules() if type(module) in TWINS and _plain(module)]
    for module in changed:
        module.forward = TWINS[type(module)](module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _plain(module: nn.Module) -> bool:
    """Whether nobody has put another forward in place already, and the module is on a processor if it is a table."""
    table = getattr(module, "weight", None)
    return "forward" not in vars(module) and (table is None or (table.device.type == "cpu" and module.max_norm is None))


@contextmanager
def gradients_in_place() -> Iterator[None]:
    """Add gradients of embeddings and of the vocabulary head to ``.grad`` directly during a backward pass.

    ``torch.autograd.grad`` and hooks see nothing of those weights then, so only a loop that owns its step asks for it.
    """
    before = _in_place.set(True)
    try:
        yield
    finally:
        _in_place.reset(before)


def gradient_of(weight: Tensor) -> Tensor | None:
    """Return the gradient to add to, made of zeros where there is none; None where autograd has to carry it."""
    if not _in_place.get() or not weight.is_leaf or weight._backward_hooks:
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
