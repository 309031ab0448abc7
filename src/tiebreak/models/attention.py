"""Attention over a forest, through transformers' own attention interface: model code is not touched.

The model runs on one packed row; only inside attention are trees laid out side by side, so padding costs nothing in
the projections, the feed-forward layers and the vocabulary head. A model that mixes tokens in any other way than this
(recurrent or convolutional layers, ALiBi, attention sinks) would let branches see each other without a word, so each
model is tried on a small forest before it runs its first one, and refused where the answer is not the plain one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.records import InputError

NAME = "tiebreak_forest"
LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers a forest can run, as configurations name them."""

CURE = "use a model with plain or sliding attention, such as Llama, Qwen, Mistral or GPT-2."
_tried: weakref.WeakSet[Any] = weakref.WeakSet()


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
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend within trees. ``query`` (1, H, N, D), ``key`` and ``value`` (1, K, N, D), K divides H; out (1, N, H, D).

    Raises:
        InputError: the model did not hand the forest to its attention layers, soft-caps its attention scores or has
            attention sinks.
    """
    name = type(module).__name__
    if forest is None:
        raise InputError(f"{name} does not pass extra arguments to its attention, so it cannot run a forest; {CURE}")
    if softcap is not None:
        raise InputError(f"{name} soft-caps its attention scores, which a forest does not compute; {CURE}")
    if s_aux is not None:
        raise InputError(f"{name} has attention sinks, which a forest does not compute; {CURE}")
    trees, longest = forest.mask.shape[0], forest.mask.shape[-1]

    def lay(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1)
        laid: Tensor = _Regroup.apply(rows.contiguous(), forest.gather, forest.scatter)
        return laid.view(trees, longest, *rows.shape[1:]).transpose(1, 2)

    bias = forest.bias
    if sliding_window is not None and sliding_window < longest:
        place = forest.positions[0][forest.gather].view(trees, 1, longest)
        bias = bias.masked_fill(place[..., :, None] - place[..., None, :] >= sliding_window, float("-inf"))
    out = scaled_dot_product_attention(
        lay(query),
        lay(key),
        lay(value),
        attn_mask=bias.to(query.dtype),
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    flat = out.transpose(1, 2).reshape(trees * longest, out.shape[1], out.shape[3])
    return _Spread.apply(flat, forest.scatter)[None], None


AttentionInterface.register(NAME, forest_attention)


@contextmanager
def forest_mode(*models: PreTrainedModel) -> Iterator[None]:
    """Let ``models`` attend over forests; their own attention comes back on leaving, whatever happens inside.

    Raises:
        InputError: a model cannot run a forest, or not to the same numbers as without one.
    """
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            if model not in _tried:
                _try(model)
                _tried.add(model)
            model.set_attn_implementation(NAME)
        yield
    finally:
        for model, implementation in zip(models, before, strict=True):
            model.set_attn_implementation(implementation)


def _try(model: PreTrainedModel) -> None:
    """Run a small tree both ways, leaving the model as it was; an InputError says why a model cannot run forests."""
    name = type(model).__name__
    kinds = set(getattr(model.config, "layer_types", None) or ()) - LAYERS
    if kinds or getattr(model, "_is_stateful", False):
        what = f"layers of the kind {sorted(kinds)[0]}" if kinds else "recurrent layers"
        raise InputError(f"{name} has {what}, which let the answers of a tree see each other; {CURE}")
    if not model._can_set_attn_implementation():
        raise InputError(
            f"{name} does not route its attention through transformers' attention interface, so it cannot run a "
            f"forest; {CURE}"
        )
    training = model.training
    model.eval()
    try:
        gap = _gap(model)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{name} cannot run a forest ({type(error).__name__}: {error}); {CURE}") from error
    finally:
        model.train(training)
    exact = next(model.parameters()).dtype == torch.float32
    if not gap < (1e-4 if exact else 5e-2):
        raise InputError(f"{name} computes something else on a forest (off by {gap:.0e} of a state's size); {CURE}")


def _gap(model: PreTrainedModel) -> float:
    """Return the largest difference of final states between a tree of two branches and its branches run plainly."""
    body = getattr(model, model.base_model_prefix)
    size = model.get_input_embeddings().num_embeddings
    trunk, branches = (1, 2, 3, 5), ((7, 11, 13), (4, 6, 9, 10, 8))
    forest = plant([Tree(tuple(t % size for t in trunk), tuple(tuple(t % size for t in b) for b in branches))])
    forest = forest.to(model.device)
    own = model.config._attn_implementation
    with torch.no_grad():
        plain = []
        for branch in branches:
            ids = torch.tensor([[t % size for t in trunk + branch]], device=model.device)
            plain.append(body(input_ids=ids, use_cache=False).last_hidden_state[0, len(trunk) :])
        try:
            model.set_attn_implementation(NAME)
            out = body(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, forest=forest)
        finally:
            model.set_attn_implementation(own)
    expected = torch.cat(plain)
    return float((out.last_hidden_state[0, len(trunk) :] - expected).abs().max() / expected.abs().max())
