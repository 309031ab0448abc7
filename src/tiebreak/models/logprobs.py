"""Log-probabilities of completions: only positions that predict a learned token reach the vocabulary head.

The head runs in tiles, and again in the backward pass, so the logits of a batch never exist as a whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.fused import gradient_of
from tiebreak.models.heads import states

_tried: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
TILE = 2**24
"""Logits computed at once: 64 MiB in float32."""


class Words(NamedTuple):
    """What the policy says of the M learned tokens of a forest.

    ``logps`` (M,) are their log-probabilities in float32, ``states`` (M, width) the body's states that predict them,
    ``entropy`` (M,) that of the whole distribution in nats where it was asked for, and ``collision`` (M,) log sum of
    squares of its probabilities, without a gradient.
    """

    logps: Tensor
    states: Tensor
    entropy: Tensor | None = None
    collision: Tensor | None = None


class Head(NamedTuple):
    """The vocabulary head as the architecture's configuration describes it.

    ``factor`` multiplies logits (Cohere, Granite) and ``softcap`` bounds them as c tanh(l / c) (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None
    factor: float
    softcap: float | None


def head_of(model: PreTrainedModel) -> Head | None:
    """Return the vocabulary head where it is a plain matrix, None where something else stands there (an adapter)."""
    layer = model.get_output_embeddings()
    if type(layer) is not torch.nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    config = model.config.get_text_config()
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, layer.bias, factor, getattr(config, "final_logit_softcapping", None))


def token_logps(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return log p of every learned completion token of ``forest``, shape (M,), in float32. Run in ``forest_mode``."""
    return words(model, forest).logps


def words(
    model: PreTrainedModel,
    forest: Forest,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    collision: bool = False,
) -> Words:
    """Return log p of the learned tokens of ``forest`` under softmax(logits / ``temperature``). Run in ``forest_mode``.

    A policy that samples at a temperature is the tempered one, so its ratios and its distance to a reference are those
    of tempered log-probabilities too. With ``entropy`` that of each token's distribution comes along, differentiable.
    """
    asked: dict[str, Any] = {"temperature": temperature, "entropy": entropy, "collision": collision}
    head = plain_head(model)
    return _plain_words(model, forest, **asked) if head is None else _tiled_words(model, head, forest, **asked)


def plain_head(model: PreTrainedModel) -> Head | None:
    """Return the vocabulary head where its matrix and its description are all there is to it."""
    head = head_of(model)
    return head if head is not None and _as_described(model) else None


def _as_described(model: PreTrainedModel) -> bool:
    """Whether the head is what :class:`Head` says, found by trying it once on a small tree.

    No list of architectures is complete: one with another step behind its matrix keeps its own head.
    """
    if model not in _tried:
        size, small = model.get_input_embeddings().num_embeddings, Tree((1, 2, 3), ((7, 11, 13), (4, 6)))
        small = Tree(tuple(t % size for t in small.trunk), tuple(tuple(t % size for t in b) for b in small.branches))
        head = head_of(model)
        assert head is not None
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            forest = plant([small]).to(model.device)
            ours, own = _tiled_words(model, head, forest).logps, plain_logps(model, forest)
        near = 1e-4 if head.weight.dtype == torch.float32 else 5e-2
        _tried[model] = bool((ours - own).abs().max() < near)
    return _tried[model]


def _tiled_words(
    model: PreTrainedModel,
    head: Head,
    forest: Forest,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    collision: bool = False,
) -> Words:
    before = states(model, forest).index_select(0, forest.predictors)
    shape = Shape(head.factor, head.softcap, temperature)
    squares = torch.empty(len(before), device=before.device) if collision else None
    logps, spread = _Tiled.apply(before, head.weight, head.bias, forest.targets, shape, entropy, squares)
    return Words(logps, before, spread if entropy else None, squares)


def plain_logps(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the same numbers through the model's own head, all learned positions at once."""
    return _plain_words(model, forest).logps


def _plain_words(
    model: PreTrainedModel,
    forest: Forest,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    collision: bool = False,
) -> Words:
    given: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _layer, inputs: given.append(inputs[0]))
    try:
        logits = _at_predictors(model, forest) / temperature
    finally:
        hook.remove()
    logps = -cross_entropy(logits, forest.targets, reduction="none")
    spread = entropies(logits.log_softmax(-1)) if entropy else None
    squares = (2 * logits.detach().log_softmax(-1)).logsumexp(-1) if collision else None
    return Words(logps, given[0][0], spread, squares)


def _at_predictors(model: PreTrainedModel, forest: Forest) -> Tensor:
    out = model(
        input_ids=forest.ids,
        position_ids=forest.positions,
        logits_to_keep=forest.predictors,
        use_cache=False,
        forest=forest,
    )
    logits: Tensor = out.logits[0].float()
    return logits


def distributions(model: PreTrainedModel, forest: Forest, *, temperature: float = 1.0) -> Tensor:
    """Return the log-probabilities of the whole vocabulary at every learned position, (M, V). Run in ``forest_mode``.

    Large: what takes this bounds the tokens of its forests.
    """
    return (_at_predictors(model, forest) / temperature).log_softmax(-1)


def entropies(logps: Tensor) -> Tensor:
    """Return -sum p log p of each row of log-probabilities, (M, V) -> (M,), in nats."""
    return -(logps.exp() * logps).sum(-1)


class Shape(NamedTuple):
    """What stands between the head's product l and the logits: softcap tanh(factor l / softcap) / temperature."""

    factor: float
    softcap: float | None
    temperature: float


class _Tiled(torch.autograd.Function):  # type: ignore[misc]
    """Log-probs and entropies of ``targets`` (M,) under ``states`` (M, d) and ``weight`` (V, d), both (M,)."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shape: Shape,
        entropy: bool,
        squares: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        kind = states.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        inputs, matrix = states.to(ctx.dtype), weight.to(ctx.dtype)
        total = torch.empty(len(states), device=states.device)
        found, spread = torch.empty_like(total), torch.zeros_like(total)
        for rows in tiles(len(states), len(weight)):
            logits, _ = _logits(inputs[rows], matrix, bias, shape)
            found[rows] = logits.gather(1, targets[rows, None])[:, 0]
            total[rows] = logits.logsumexp(1) if entropy else _logsumexp_in_place(logits)
            if entropy:  # H = log Z - E[logit]
                spread[rows] = total[rows] - ((logits - total[rows, None]).exp_().mul_(logits)).sum(1)
                if squares is not None:
                    squares[rows] = (2 * (logits - total[rows, None])).exp_().sum(1).log_()
            elif squares is not None:  # what was in place is exp(logit - most), so the sum's square stands below
                squares[rows] = logits.square().sum(1).log_() - 2 * logits.sum(1).log_()
        ctx.save_for_backward(states, weight, bias, targets, total, spread if entropy else None)
        return found - total, spread

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, total, spread = ctx.saved_tensors
        gradient = torch.zeros_like(total) if gradient is None else gradient
        shape: Shape = ctx.shape
        with torch.autocast(states.device.type, enabled=False):
            inputs, matrix = states.to(ctx.dtype), weight.to(ctx.dtype)
            of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
            held = gradient_of(weight) if ctx.needs_input_grad[1] else None
            of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] and held is None else held
            of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
            for rows in tiles(len(states), len(weight)):
                logits, slope = _logits(inputs[rows], matrix, bias, shape)
                logits.sub_(total[rows, None])
                if of_entropy is None:
                    pull = logits.exp_().mul_(-gradient[rows, None])
                else:  # dH/dlogit = -p (log p + H)
                    lean = (logits + spread[rows, None]).mul_(of_entropy[rows, None]).add_(gradient[rows, None])
                    pull = logits.exp_().mul_(lean.neg_())
                pull.scatter_add_(1, targets[rows, None], gradient[rows, None])
                if slope is not None:
                    pull.mul_(slope)
                pull = pull.mul_(shape.factor / shape.temperature)
                if of_bias is not None:
                    of_bias += pull.sum(0).to(of_bias.dtype)
                pull = pull.to(ctx.dtype)
                if of_states is not None:
                    of_states[rows] = (pull @ matrix).to(of_states.dtype)
                if of_weight is not None:
                    of_weight += pull.T @ inputs[rows]
        return of_states, of_weight if held is None else None, of_bias, None, None, None, None


def _logsumexp_in_place(logits: Tensor) -> Tensor:
    """Return log sum exp of each row and destroy ``logits``, which saves a tile of memory."""
    most = logits.amax(1, keepdim=True)
    return logits.sub_(most).exp_().sum(1).log_().add_(most[:, 0])


def tiles(positions: int, vocabulary: int) -> list[slice]:
    """Return slices of places whose logits are computed at once."""
    rows = max(1, TILE // vocabulary)
    return [slice(first, first + rows) for first in range(0, positions, rows)]


def _logits(states: Tensor, matrix: Tensor, bias: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor | None]:
    """Return logits in float32 and, under soft-capping, the slope of the cap."""
    logits = (states @ matrix.T).float()
    if bias is not None:
        logits += bias.float()
    if shape.factor != 1.0:
        logits *= shape.factor
    slope = None
    if shape.softcap is not None:
        bent = logits.div_(shape.softcap).tanh_()
        slope = 1 - bent.square()
        logits = bent.mul_(shape.softcap)
    return logits if shape.temperature == 1.0 else logits.div_(shape.temperature), slope


def padded_logps(model: PreTrainedModel, trees: Sequence[Tree], *, pad: int) -> Tensor:
    """Return the same numbers as :func:`token_logps` by the plain route: each branch behind its own copy of the prompt.

    Right-padded, one row a branch, the whole vocabulary at every position: the yardstick of the forest, gradients
    included.
    """
    rows = [(tree.trunk, branch) for tree in trees for branch in tree.branches]
    longest = max(len(trunk) + len(branch) for trunk, branch in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for i, (trunk, branch) in enumerate(rows):
        size = len(trunk) + len(branch)
        ids[i, :size] = torch.tensor(trunk + branch)
        mask[i, :size] = 1
    logps = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    return torch.cat(
        [
            logps[i, len(trunk) - 1 : len(trunk) + len(branch) - 1].gather(1, torch.tensor(branch)[:, None])[:, 0]
            for i, (trunk, branch) in enumerate(rows)
        ]
    )
