"""Scores of completions, and the centring of a reward model.

A causal model's classifier is read at the final token of each completion, in a forest. An encoder attends in both
directions, so branches cannot share a trunk: each is read behind its own copy of the prompt, by the model's own head.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import LayerNorm, Linear
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.records import InputError

CURE = "use another encoder, such as BERT, RoBERTa, DeBERTa or ModernBERT."
_tried: weakref.WeakSet[Any] = weakref.WeakSet()


def is_encoder(model: PreTrainedModel | PreTrainedConfig) -> bool:
    """Whether ``model``, or the one a configuration describes, attends in both directions, as BERT does.

    Those are the models transformers fills masks with. BERT and its like can be causal too, and say so in
    ``is_decoder``; a model with a decoder of its own, such as BART, is no encoder.
    """
    config = getattr(model, "config", model)
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    kinds = (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    return not decodes and all(type(config) in kind for kind in kinds)


def head_of(model: PreTrainedModel) -> Linear:
    """Return the layer whose output is the score: the last one outside the body with one output, whatever its name.

    Raises:
        InputError: there is none.
    """
    body = f"{model.base_model_prefix}."
    outside = [module for name, module in model.named_modules() if not name.startswith(body)]
    found = [module for module in outside if isinstance(module, Linear) and module.out_features == 1]
    if not found:
        raise InputError(f"{type(model).__name__} has no last layer with one output to be a reward head; {CURE}")
    return found[-1]


def draw_head(model: PreTrainedModel) -> None:
    """Draw the last layer of the head from N(0, 1/(d+1)) by the global generator, d being its width; its bias is 0."""
    head = head_of(model)
    torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)


def hidden_last(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the last hidden state at each branch's final token, shape (B, width). Run inside ``forest_mode``.

    The place is explicit: a search for the last non-padding token would read one token early where pad equals EOS.
    """
    return states(model, forest)[forest.last]


def states(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the body's last hidden state at every place of ``forest``, (N, width). Run inside ``forest_mode``."""
    body = getattr(model, model.base_model_prefix)
    out = body(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, forest=forest)
    found: Tensor = out.last_hidden_state[0]
    return found


def value_head(model: PreTrainedModel) -> Linear:
    """Return a layer that reads values off the states of ``model``, 0 everywhere before it has learned."""
    head = Linear(model.get_output_embeddings().weight.shape[1], 1, device=model.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head


def token_values(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return a value net's estimate before each learned token, shape (M,), in float32. Run inside ``forest_mode``.

    The net is a classifier with one label, read where a token is about to be chosen and not at the answer's end.
    """
    values: Tensor = model.score(states(model, forest).index_select(0, forest.predictors))
    return values[:, 0].float()


def scores(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the reward of each branch, shape (B,), in float32. Run inside ``forest_mode``, which an encoder ignores.

    Raises:
        InputError: an encoder whose scores depend on padding, so on what else is in the batch.
    """
    if is_encoder(model):
        if model not in _tried:
            _try_padding(model)
            _tried.add(model)
        return _read(model, forest)
    values: Tensor = model.score(hidden_last(model, forest))
    return values[:, 0].float()


def unpacked(forest: Forest, *, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both (B, L): each branch behind its own copy of the trunk, padded on the right."""
    ids = forest.ids[0]
    rows = []
    for span in forest.spans:
        trunk, *branches = ids[span.start : span.start + span.size].split([span.trunk, *span.branches])
        rows += [torch.cat([trunk, branch]) for branch in branches]
    masks = [torch.ones_like(row) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=pad), pad_sequence(masks, batch_first=True)


def _read(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return what an encoder's classifier gives, (B,); token types are left out, which every model takes for zeros."""
    ids, mask = unpacked(forest, pad=model.config.pad_token_id or 0)
    values: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return values[:, 0].float()


def _try_padding(model: PreTrainedModel) -> None:
    """Score small trees together and alone, leaving the model as it was; some encoders mix padding into what they read.

    Raises:
        InputError: the numbers differ, or the model cannot be run this way.
    """
    name, training = type(model).__name__, model.training
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise InputError(f"{name} attends to short rows in another way; set attention_type to original_full.")
    model.eval()
    try:
        size = len(model.get_input_embeddings().weight)
        trees = [Tree((2 % size, 5 % size), (tuple(t % size for t in range(3, 3 + more)),)) for more in (1, 4, 9)]
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            together = _read(model, plant(trees).to(model.device))
            alone = torch.cat([_read(model, plant([tree]).to(model.device)) for tree in trees])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{name} cannot score padded rows ({type(error).__name__}: {error}); {CURE}") from error
    finally:
        model.train(training)
    gap = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-12))
    exact = next(model.parameters()).dtype == torch.float32
    if not gap < (1e-3 if exact else 5e-2):
        raise InputError(f"The scores of {name} depend on padding (by {gap:.0e} of their size); {CURE}")


class Centred(NamedTuple):
    """What centring did: the mean reference score before and after, and how far it moved score differences of pairs.

    ``moved`` is the largest move and ``typical`` its root mean square; ``spread`` is the root mean square of the
    differences themselves, to compare with. ``exact`` says that no difference moved at all (beyond rounding).
    """

    before: float
    after: float
    moved: float
    typical: float = 0.0
    spread: float = 0.0
    exact: bool = False


def final_norm(model: PreTrainedModel, forest: Forest) -> LayerNorm | None:
    """Return the layer norm with a bias whose output is what the head reads, if there is one. Run in ``forest_mode``.

    It is found by what it gives, not by its name, which differs from one architecture to the next.
    """
    given: dict[int, LayerNorm] = {}

    def keep(module: LayerNorm, _inputs: object, output: Tensor) -> None:
        given[output.data_ptr()] = module

    norms = [m for m in model.modules() if isinstance(m, LayerNorm) and m.bias is not None]
    hooks = [norm.register_forward_hook(keep) for norm in norms]
    try:
        with torch.no_grad():
            found = states(model, forest)
    finally:
        for hook in hooks:
            hook.remove()
    return given.get(found.data_ptr())


def centre(
    model: PreTrainedModel, references: Tensor, differences: Tensor, *, norm: LayerNorm | None = None
) -> Centred:
    """Shift the head so that reference answers average 0, in a folder plain transformers reads back to the same scores.

    A sequence classifier's head has no bias, so the shift goes where the architecture allows. ``norm``, a final layer
    norm with a bias, takes it exactly. Otherwise (RMSNorm has no bias) the head moves by the multiple of C^-1 m that
    makes its product with the mean reference state m vanish, C being the second moment of the state differences of
    pairs, lightly shrunk: of all moves of the head that centre it, this one disturbs score differences least in the
    mean square. The mean is then 0 up to float32; how far differences moved is returned.

    Args:
        model: a sequence classifier with one label.
        references: final states of reference answers, shape (R, width).
        differences: chosen minus rejected final states of pairs, shape (P, width).
        norm: what :func:`final_norm` found.
    """
    head = model.score.weight.detach()
    weight = head[0].double().cpu()
    states, gaps = references.detach().double().cpu(), differences.detach().double().cpu()
    mean = states.mean(0)
    before = float(mean @ weight)
    spread = float((gaps @ weight).square().mean().sqrt()) if len(gaps) else 0.0
    if norm is not None:
        old = norm.bias.detach().double().cpu()
        norm.bias.data.copy_(old - before * weight / weight.square().sum())
        shift = norm.bias.detach().double().cpu() - old
        return Centred(before, float((mean + shift) @ weight), 0.0, spread=spread, exact=True)
    direction = _least_disturbing(gaps, mean)
    if not float(mean @ direction) > 0.0:
        raise InputError("The reference answers have no state to centre on (all zero or not finite); check the model.")
    for _ in range(2):  # the second time takes back what rounding to float32 left
        now = head[0].double().cpu()
        head[0] = (now - direction * (mean @ now) / (mean @ direction)).to(head.device, head.dtype)
    moves = gaps @ (head[0].double().cpu() - weight) if len(gaps) else torch.zeros(1)
    after = float(mean @ head[0].double().cpu())
    return Centred(before, after, float(moves.abs().max()), float(moves.square().mean().sqrt()), spread)


def centre_bias(model: PreTrainedModel, references: Tensor, differences: Tensor) -> Centred:
    """Shift the bias of an encoder's head so that reference answers average 0; no score difference moves.

    Args:
        model: an encoder classifier with one label.
        references: scores of reference answers, shape (R,).
        differences: chosen minus rejected scores of pairs, shape (P,).
    """
    bias = head_of(model).bias
    if bias is None:
        raise InputError(f"The head of {type(model).__name__} has no bias to centre with; {CURE}")
    old, before = bias.detach().double().cpu(), float(references.double().mean())
    spread = float(differences.double().square().mean().sqrt()) if len(differences) else 0.0
    bias.data.copy_(old - before)
    shift = float(bias.detach().double().cpu() - old)
    return Centred(before, before + shift, 0.0, spread=spread, exact=True)


def _least_disturbing(gaps: Tensor, mean: Tensor) -> Tensor:
    """Return C^-1 m; C is shrunk towards its mean variance by width / pairs x 1e-4, so it is positive definite."""
    width = len(mean)
    second = gaps.T @ gaps / max(len(gaps), 1)
    ridge = second.diagonal().mean().clamp_min(1e-12) * 1e-4 * max(1e-4, min(1.0, width / max(len(gaps), 1)))
    factor = torch.linalg.cholesky(second + ridge * torch.eye(width, dtype=torch.float64))
    return torch.cholesky_solve(mean[:, None], factor)[:, 0]
