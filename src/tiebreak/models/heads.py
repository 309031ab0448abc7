"""The head of a reward model: made, found, read at the end of each completion or step, and put into another class.

A causal model's classifier is read in a forest. An encoder attends in both directions, so branches cannot share a
trunk: each is read behind its own copy of the prompt, by the model's own head.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.forms import SCALAR, STEP, Form
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


def of_tokens(model: PreTrainedModel) -> bool:
    """Whether ``model`` is a token classifier."""
    return type(model).__name__.endswith("ForTokenClassification")


def head_of(model: PreTrainedModel) -> Linear:
    """Return the layer whose outputs are the scores: the last one outside the body with that many, whatever its name.

    Raises:
        InputError: there is none.
    """
    body, columns = f"{model.base_model_prefix}.", model.config.num_labels
    outside = [module for name, module in model.named_modules() if not name.startswith(body)]
    found = [module for module in outside if isinstance(module, Linear) and module.out_features == columns]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no last layer with {columns} output{'s' * (columns != 1)} to be a reward "
            f"head; {CURE}"
        )
    return found[-1]


def draw_head(model: PreTrainedModel) -> None:
    """Draw the last layer of the head from N(0, 1/(d+1)) by the global generator, d being its width; its bias is 0.

    Of a token classifier of steps the first label keeps the logit 0.
    """
    head = head_of(model)
    torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    if head.bias is not None:
        torch.nn.init.zeros_(head.bias)
    if of_tokens(model):
        torch.nn.init.zeros_(head.weight[:1])


def labelled(config: PreTrainedConfig, form: Form, columns: int) -> dict[str, Any]:
    """Return the fields of ``config`` with the names of a head's ``columns``."""
    if columns == len(form.names):
        names = form.names
    elif columns == len(STEP) and form.kind == "steps":
        names = STEP
    else:
        names = ("reward",) if columns == 1 else tuple(f"output_{i}" for i in range(columns))
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return {**config.to_dict(), **labels, "problem_type": None}


def to_reward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int, labels: int = 1, form: Form = SCALAR
) -> PreTrainedModel:
    """Return a sequence classifier on a copy of ``model``'s body, its head drawn from N(0, 1/(d+1)).

    The head's spread is that of Stiennon et al. (2020), so first scores are small whatever the width. Of an encoder's
    head only the last layer is drawn so; layers that ``model`` has are copied, all if it has as many labels already. An
    encoder whose scores are of steps is a token classifier.

    Args:
        model: a causal model or an encoder.
        tokenizer: says what padding is.
        seed: draws the head.
        labels: columns of the head.
        form: what they are.

    Raises:
        InputError: the architecture has no classifier.
    """
    encoder = is_encoder(model)
    steps = encoder and form.kind == "steps"
    columns, kind = (
        (len(STEP), AutoModelForTokenClassification) if steps else (labels, AutoModelForSequenceClassification)
    )
    config = type(model.config).from_dict(labelled(model.config, form, columns))
    if not encoder:
        config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]), cannot_load(f"A reward head on {type(model).__name__}"):
        torch.manual_seed(seed)
        reward = kind.from_config(config, dtype=torch.float32)
        if not encoder and not isinstance(getattr(reward, "score", None), Linear):
            raise InputError(f"{type(reward).__name__} keeps its head elsewhere than in `score`; use another model.")
        own, body = reward.state_dict(), model.base_model.state_dict()
        known = {**model.state_dict(), **{f"{reward.base_model_prefix}.{name}": body[name] for name in body}}
        reward.load_state_dict({n: v for n, v in known.items() if n in own and v.shape == own[n].shape}, strict=False)
        if not encoder or type(model) is not type(reward) or model.config.num_labels != columns:
            draw_head(reward)
    return without_dropout(reward).to(model.device)


def as_token_classifier(model: PreTrainedModel) -> PreTrainedModel:
    """Return what to save of a model whose scores are of steps: a token classifier of the labels wrong and right.

    The logit of right is the score s and that of wrong 0, so softmax([0, s])[1] = sigmoid(s) at a step's last token.
    The body is shared with ``model``. Where transformers has no such class for the architecture, or one with further
    layers, it is ``model`` itself. An encoder is one already; its head is brought into this form in place, which leaves
    its scores as they are.
    """
    with torch.no_grad():
        if of_tokens(model):
            head = head_of(model)
            for rows in (head.weight, head.bias):
                if rows is not None:
                    rows[1] -= rows[0]
                    rows[0] = 0.0
            return model
        if type(model.config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
            return model
        weight, bias = model.score.weight, model.score.bias
        both = torch.cat([torch.zeros_like(weight), weight])
        own = None if bias is None else torch.cat([torch.zeros_like(bias), bias])
        return _on_same_body(model, AutoModelForTokenClassification, both, own) or model


def loads_plainly(model: PreTrainedModel, form: Form) -> bool:
    """Whether plain transformers alone, given the folder of ``model``, gives what ``form`` describes."""
    by_token = of_tokens(model) or type(model.config) in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    return by_token if form.kind == "steps" else not form.relative


def as_scorer(model: PreTrainedModel) -> PreTrainedModel:
    """Return a causal token classifier of two labels as a classifier with one: the difference of the two logits.

    Raises:
        InputError: the architecture's sequence classifier is made of other layers.
    """
    head = head_of(model)
    with torch.no_grad():
        bias = None if head.bias is None or head.bias[0] == head.bias[1] else head.bias[1:] - head.bias[:1]
        made = _on_same_body(model, AutoModelForSequenceClassification, head.weight[1:] - head.weight[:1], bias)
    if made is None:
        raise InputError(f"{type(model).__name__} cannot be read as scores of steps; use another model.")
    return made


def _on_same_body(model: PreTrainedModel, kind: Any, weight: Tensor, bias: Tensor | None) -> PreTrainedModel | None:
    """Return a model of ``kind`` with the body of ``model`` itself and this head, None if it would need more weights.

    It is made without memory of its own, so a body is never there twice.
    """
    config = type(model.config).from_dict(labelled(model.config, Form(kind="steps"), len(weight)))
    with cannot_load(f"Another head on {type(model).__name__}"), torch.device("meta"):
        made = kind.from_config(config, dtype=weight.dtype)
    same = type(made.base_model) is type(model.base_model)
    setattr(made, made.base_model_prefix, model.base_model)
    old = head_of(made)
    head = Linear(weight.shape[1], len(weight), bias=old.bias is not None or bias is not None, device="meta")
    head.weight = Parameter(weight.detach().clone())
    if head.bias is not None:
        head.bias = Parameter(weight.new_zeros(len(weight)) if bias is None else bias.detach().clone())
    made.set_submodule(next(name for name, module in made.named_modules() if module is old), head)
    if not same or any(parameter.is_meta for parameter in made.parameters()):
        return None
    return without_dropout(made).train(model.training)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Set every dropout of ``model`` to 0, so that policy and reference agree at the first step and runs repeat."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many positions ``model`` was made for, None where its configuration does not say.

    RoBERTa and its like count positions from behind their padding token's id, so they have fewer than they say.
    """
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        counted = name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding)
        if counted and module.padding_idx is not None:
            found = int(module.num_embeddings) - module.padding_idx - 1
    return found


def grow(model: PreTrainedModel, size: int) -> None:
    """Add vocabulary rows that are the mean of the known ones.

    A mean row gets at most 1/V of the probability (Jensen), where a row of small random numbers can get nearly all of
    it: GPT-2's real logits lie far below 0. And a mean is the same every time the model is loaded.
    """
    known = model.get_input_embeddings().num_embeddings
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model.resize_token_embeddings(size, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for rows in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                if rows is not None and rows.shape[0] == size:
                    rows[known:] = rows[:known].mean(0)


@contextmanager
def cannot_load(what: str) -> Iterator[None]:
    """Turn what transformers says about a model it cannot make into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{what} cannot be loaded: {lines[0]}") from error


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
    """Return what the head gives at each branch's end, in float32: (B,) of one label, else (B, k).

    Run inside ``forest_mode``, which an encoder ignores.

    Raises:
        InputError: an encoder whose scores depend on padding, so on what else is in the batch.
    """
    if is_encoder(model):
        return _read_checked(model, forest)
    return _columns(model.score(hidden_last(model, forest)))


def step_scores(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the logit that a step is right at each learned token, (M,), in float32. Run inside ``forest_mode``.

    A step is read where it ends, at the token itself and not at the one before. An encoder's is the difference of its
    two labels' logits; it sees the steps that follow too.

    Raises:
        InputError: as for :func:`scores`.
    """
    if is_encoder(model):
        return _read_checked(model, forest)
    values: Tensor = model.score(states(model, forest).index_select(0, forest.learned))
    return values[:, 0].float()


def _columns(values: Tensor) -> Tensor:
    return values[:, 0].float() if values.shape[1] == 1 else values.float()


def _read_checked(model: PreTrainedModel, forest: Forest) -> Tensor:
    if model not in _tried:
        _try_padding(model)
        _tried.add(model)
    return _read(model, forest)


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
    """Return what an encoder's classifier gives; token types are left out, which every model takes for zeros.

    Of a sequence classifier that is (B,) or (B, k), of a token classifier the score of each learned token, (M,).
    """
    ids, mask = unpacked(forest, pad=model.config.pad_token_id or 0)
    values: Tensor = model(input_ids=ids, attention_mask=mask).logits
    if not of_tokens(model):
        return _columns(values)
    both = values[forest.branch, forest.positions[0, forest.learned]].float()
    return both[:, 1] - both[:, 0]


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
