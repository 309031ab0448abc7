"""Attention over a forest, through transformers' own attention interface: model code is not touched.

The model runs on one packed row; only inside attention are trees told apart, by the kernel that suits the device and
their sizes. A model that mixes tokens in any other way than this
(recurrent or convolutional layers, ALiBi, attention sinks) would let branches see each other without a word, so each
model is tried on a small forest before it runs its first one, and refused where the answer is not the plain one.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.fused import fused
from tiebreak.models.heads import is_encoder
from tiebreak.models.kernels import blocks, flex, laid
from tiebreak.records import InputError

NAME = "tiebreak_forest"
LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})
"""Kinds of layers a forest can run, as configurations name them."""

CURE = "use a model with plain or sliding attention, such as Llama, Qwen, Mistral or GPT-2."
_tried: weakref.WeakSet[Any] = weakref.WeakSet()


KERNELS: Mapping[str, Callable[..., Tensor]] = {"laid": laid.attend, "blocks": blocks.attend, "flex": flex.attend}
SMALL = 160
"""Tokens of the largest tree of a row up to which padded rows beat blocks on a processor."""


def choose(forest: Forest, *, device: str, window: int | None, softcap: float | None) -> str:
    """Return the name of the kernel for this row on this device."""
    if device == "cuda":
        return "flex"
    if window is None and softcap is None and max(span.size for span in forest.spans) <= SMALL:
        return "laid"
    return "blocks"


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
        InputError: the model did not hand the forest to its attention layers, or has attention sinks.
    """
    name = type(module).__name__
    if forest is None:
        raise InputError(f"{name} does not pass extra arguments to its attention, so it cannot run a forest; {CURE}")
    if s_aux is not None:
        raise InputError(f"{name} has attention sinks, which a forest does not compute; {CURE}")
    deepest = max(span.depth for span in forest.spans)
    bounds: dict[str, Any] = {"window": sliding_window, "softcap": softcap}
    if sliding_window is not None and sliding_window >= deepest:
        bounds["window"] = None
    kernel = choose(forest, device=query.device.type, **bounds)
    if kernel == "laid":
        bounds = {}
    attended = KERNELS[kernel](
        query[0].to(value.dtype), key[0].to(value.dtype), value[0], forest, scale=scaling, **bounds
    )
    return attended[None], None


AttentionInterface.register(NAME, forest_attention)


@contextmanager
def forest_mode(*models: PreTrainedModel) -> Iterator[None]:
    """Let ``models`` attend over forests; their own attention comes back on leaving, whatever happens inside.

    Encoders keep theirs: they read each branch behind its own copy of the prompt.

    Raises:
        InputError: a model cannot run a forest, or not to the same numbers as without one.
    """
    forests = [model for model in models if not is_encoder(model)]
    before = [model.config._attn_implementation for model in forests]
    try:
        for model in forests:
            if model not in _tried:
                _try(model)
                _tried.add(model)
            model.set_attn_implementation(NAME)
        with fused(*models):
            yield
    finally:
        for model, implementation in zip(forests, before, strict=True):
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
    if not math.isfinite(gap):
        raise InputError(f"{name} has weights that are not finite numbers (NaN or infinity); load other weights.")
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
