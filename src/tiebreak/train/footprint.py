"""What a training takes of memory, from sizes alone: weights, gradients, moments, activations and the head.

The forest engine's own figures, calibrated on what autograd keeps. torch is imported inside a function: a forecast
needs none where it is not installed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from tiebreak.records import InputError
from tiebreak.registry import nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["MOMENTS", "Laid", "Memory", "Shape", "estimate", "memory_of", "sized"]

STATES: Mapping[str, tuple[int, int]] = {"float32": (4, 4), "bfloat16": (4, 2), "bfloat16_weights": (2, 2)}
"""Bytes of a number in the residual stream and in what matrix products read, by precision."""

MOMENTS: Mapping[str, float] = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 0.02, "sgd": 4}
"""Bytes of optimizer state per trained weight; sgd with momentum, and an optimizer of one's own counts as adamw."""

PLAIN = {"biogpt", "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "opt", "phi"}
PLAIN |= {"starcoder2", "xglm"}
"""Model types with layer norms and a feed-forward of two matrices; others count as Llama, which keeps more."""

TILE = 2**24
"""Logits of one tile of the head."""


class Memory(NamedTuple):
    """Bytes at the peak of a training.

    ``weights`` count a reference beside the model; ``activations`` are what the backward pass keeps, bfloat16 copies of
    the matrices and the gradients of one layer among it; ``head`` is what the vocabulary head works with. ``total`` is
    not their sum where a step or the copy of the moments for a checkpoint takes more than activations and head do.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    total: int


class Shape(NamedTuple):
    """Sizes of a model in numbers: of one layer, but for ``norms`` (inputs of all norms, per token) and weights."""

    width: int
    layers: int
    query: int
    keys: int
    dim: int
    inner: int
    readers: int
    plain: bool
    capped: bool
    vocabulary: int
    norms: int
    matrices: float
    weights: float


class Laid(NamedTuple):
    """Places of padded attention per token, and the longest row; no padding where attention runs in blocks."""

    padding: float = 1.0
    longest: int = 0


def estimate(
    config: Mapping[str, Any] | PretrainedConfig,
    *,
    vocabulary: int,
    precision: str,
    checkpointing: bool,
    tokens: int,
    predicted: int,
    optimizer: str = "adamw",
    trained: float | None = None,
    reference_in_step: bool = False,
) -> Memory:
    """Return the memory of a training on forests of ``tokens`` tokens, from a model's configuration alone.

    Weights are counted on transformers' own model without storage where it can be made, else by the closed form of
    the usual layer. Activations are those of the forest engine, rather above than below what is measured.

    Args:
        config: a transformers configuration, or its fields, ``model_type`` among them.
        vocabulary: tokens of the tokenizer, which the configuration may not know yet.
        precision: a name of PRECISIONS.
        checkpointing: whether activations are computed twice instead of kept.
        tokens: of one forest.
        predicted: learned tokens of one forest, which reach the vocabulary head; 0 for a reward model, which has none.
        optimizer: a row of OPTIMIZERS.
        trained: weights of an adapter, beside a frozen base; None trains all.
        reference_in_step: whether a frozen copy of the model stands beside it; the base under an adapter is one.
    """
    shape = _shape(config, vocabulary, words=predicted > 0)
    moments = MOMENTS.get(optimizer, MOMENTS["adamw"])
    found = memory_of(shape, precision, checkpointing, tokens, predicted, moments=moments, trained=trained)
    other = found.weights if reference_in_step and trained is None else 0
    return found._replace(weights=found.weights + other, total=found.total + other)


def memory_of(
    shape: Shape,
    precision: str,
    checkpointing: bool,
    tokens: int,
    predicted: int,
    *,
    moments: float,
    trained: float | None,
    laid: Laid | None = None,
) -> Memory:
    """Return the memory of a training of a model of this shape; ``moments`` are bytes per trained weight.

    The rest is as for :func:`estimate`, without a reference beside the model.
    """
    if precision not in STATES:
        there = ", ".join(STATES)
        raise InputError(f"There is no precision {precision!r}; there are {there}.{nearest(precision, STATES)}")
    narrow, adapter = precision == "bfloat16_weights", trained is not None
    learned = shape.weights if trained is None else trained
    size = 2 if narrow else 4
    weights = shape.weights * size + (4 * learned if adapter else 0)
    gradients = learned * (4 if adapter else size)
    master = narrow and not adapter
    optimizer = learned * (moments + (4 if master else 0))
    layer = _layer(shape, precision, adapter) + _attention(shape, precision, laid or Laid())
    residual, product = STATES[precision]
    kept = shape.width * residual * shape.layers + layer if checkpointing else layer * shape.layers
    flow = 3 * shape.inner * product + 4 * shape.width * residual
    places = 8 * shape.dim + 64  # cosines, sines and indices, which all layers share
    activations = tokens * (kept + flow + places) + (2 * shape.matrices if precision == "bfloat16" else 0)
    head = _head(shape, precision, predicted, adapter)
    between = max(4 * learned if master else 0, optimizer - gradients)  # wide gradients of a step; a checkpoint's copy
    total = weights + gradients + optimizer + max(activations + head, between)
    return Memory(*(round(part) for part in (weights, gradients, optimizer, activations, head, total)))


def _layer(shape: Shape, precision: str, adapter: bool) -> float:
    """Return the bytes that one layer keeps of a token, attention's own tensors apart.

    A norm keeps its input, in float32 and once more normed unless it is torch's layer norm. Autocast copies what a
    matrix reads for each matrix by itself, and so does an adapter in float32 on a base in bfloat16; else those that
    read the same share it. The feed-forward keeps what its activation reads and gives, and the gate's product.
    """
    residual, product = STATES[precision]
    apart = precision == "bfloat16" or (adapter and precision == "bfloat16_weights")
    read = 4 if adapter and precision == "bfloat16_weights" else product
    readers = shape.readers if apart else 2
    norm = residual if shape.plain else 4 + (0 if adapter else 4)
    inner = shape.inner * ((1 if shape.plain else 3) * product + read)
    return shape.norms / shape.layers * norm + (shape.width * readers + shape.query) * read + inner


def _attention(shape: Shape, precision: str, laid: Laid) -> float:
    """Return the bytes that attention keeps of a token in one layer: queries, keys, values, its output; the mask."""
    residual, product = STATES[precision]
    mask = laid.padding * laid.longest * (5 / shape.layers + (0 if residual == product == 4 else product))
    return (2 * shape.query + 2 * shape.keys) * product * laid.padding + mask


def _head(shape: Shape, precision: str, predicted: int, adapter: bool) -> float:
    """Return the bytes at the vocabulary head: states and their gradient, one tile of logits, the matrix's gradient."""
    if not predicted:
        return 0
    residual, product = STATES[precision]
    states = predicted * shape.width * (2 * residual + (product if residual != product else 0))
    logits = min(predicted, max(1, TILE // shape.vocabulary)) * shape.vocabulary
    tile = logits * (4 + (2 if product == 2 else 0) + (8 if shape.capped else 0))
    copies = (0 if adapter else residual + product) + (product if residual != product else 0)
    return states + tile + shape.vocabulary * shape.width * copies


def _shape(config: Any, vocabulary: int, *, words: bool) -> Shape:
    made = _made(config, vocabulary, words=words)
    return sized(config, vocabulary, None) if made is None else sized(made[0], vocabulary, made[1])


def _made(config: Any, vocabulary: int, *, words: bool) -> tuple[Any, dict[str, tuple[int, ...]]] | None:
    """Return the whole configuration and the shape of every weight, None where the model cannot be made here."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        fields = dict(config) if isinstance(config, Mapping) else {}
        whole = AutoConfig.for_model(**fields) if fields else copy.deepcopy(config)
        text = whole.get_text_config()
        text.vocab_size = vocabulary
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(text, name, None)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(whole)
    except Exception:  # whatever a foreign configuration makes transformers say, the closed form is left
        return None
    body = model if words else getattr(model, model.base_model_prefix)
    return text, {name: tuple(weight.shape) for name, weight in body.named_parameters()}


def sized(config: Any, vocabulary: int, weights: Mapping[str, tuple[int, ...]] | None) -> Shape:
    """Read the sizes from a configuration, and the norms and counts from the shapes of all weights where known."""

    def of(*names: str, default: Any = None) -> Any:
        given = (config.get(name) if isinstance(config, Mapping) else getattr(config, name, None) for name in names)
        return next((value for value in given if value), default)

    width = of("hidden_size", "n_embd", "d_model", default=768)
    layers = of("num_hidden_layers", "n_layer", "num_layers", default=12)
    heads = of("num_attention_heads", "n_head", default=12)
    dim = of("head_dim", default=width // heads)
    inner = of("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", default=4 * width)
    inner = (max(inner) if isinstance(inner, Sequence) else inner) * of("num_experts_per_tok", default=1)
    query, keys = heads * dim, of("num_key_value_heads", default=heads) * dim
    plain = of("model_type") in PLAIN
    capped = of("final_logit_softcapping") is not None
    norms, readers = (2 * layers + 1) * width, 4 if plain else 5
    if weights is None:
        matrices = layers * (2 * width * (query + keys) + (2 if plain else 3) * width * inner)
        tables = 1 if of("tie_word_embeddings", default=plain) else 2
        count = matrices + norms + tables * vocabulary * width
        if plain:
            biases = layers * (query + 2 * keys + 2 * width + inner) + norms
            count += biases + of("max_position_embeddings", "n_positions", default=0) * width
    else:
        sizes = {name: shape for name, shape in weights.items() if "lora_" not in name}
        wide = [shape for shape in sizes.values() if len(shape) > 1 and vocabulary not in shape]
        matrices, count = (sum(map(prod, shapes)) for shapes in (wide, sizes.values()))
        readers = max(2, len(wide) // layers - 2)  # all matrices of a layer but the two that end its halves
        scales = {name: shape[0] for name, shape in sizes.items() if len(shape) == 1 and name.endswith("weight")}
        spread = {name: (query if "q_" in name else keys) if size == dim else size for name, size in scales.items()}
        norms = sum(spread.values()) or norms
    return Shape(width, layers, query, keys, dim, inner, readers, plain, capped, vocabulary, norms, matrices, count)
