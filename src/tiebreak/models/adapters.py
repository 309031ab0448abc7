"""Low-rank adapters on a frozen base, through PEFT: a policy is trained at the memory of its base and little more.

The adapter is put into the model in place, so the model stays the class it was: forests, heads and generation do not
notice. With the adapter off it is its base again, which is the reference of preference losses at no extra memory.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tiebreak.models.heads import is_encoder
from tiebreak.records import InputError
from tiebreak.registry import nearest

KINDS = ("lora", "dora", "qlora")
ALL = "all-linear"
"""Every linear layer but the vocabulary head and a reward head."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """How a frozen model is adapted; an update of a layer is ``alpha / rank * B @ A``.

    ``kind`` is ``lora`` (Hu et al., 2021), ``dora`` (Liu et al., 2024: the norm of each row is trained by itself) or
    ``qlora`` (Dettmers et al., 2023: LoRA on a base in 4 bits). ``dropout`` of 0 keeps policy and reference equal and
    runs repeatable. ``targets`` are names of layers or of their ends (``q_proj``), as PEFT reads them: a string is a
    pattern of whole names, and ``all-linear`` is every linear layer but the head.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] | str = ALL

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            close = nearest(self.kind, KINDS)
            raise InputError(f"There is no adapter of the kind {self.kind!r}; there are {', '.join(KINDS)}.{close}")
        if self.rank < 1:
            raise InputError(f"An adapter's rank is {self.rank}; expected 1 or more, for example 16.")
        if not self.alpha > 0:
            raise InputError(f"An adapter's alpha is {self.alpha}; expected more than 0, for example twice the rank.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"An adapter's dropout is {self.dropout}; expected 0 or more and less than 1.")
        if not self.targets:
            raise InputError(f"An adapter has no targets; name layers, or write {ALL}.")
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))


def adapt(model: PreTrainedModel, adapter: Adapter, *, seed: int) -> PreTrainedModel:
    """Freeze ``model`` and add the adapter to it in place; its answers stay the same, for B starts at 0.

    The head of a reward model is trained as a whole, as a copy, so that :func:`adapter_off` finds the old one.

    Args:
        model: a causal language model or a reward model, in 4 bits where the kind is ``qlora``.
        adapter: what to add.
        seed: draws A without touching the global generator, the same numbers on every device.

    Raises:
        InputError: the model has an adapter, a target is not a layer of it or shares its weights with another, or what
            ``qlora`` needs is missing.
    """
    from peft import LoraConfig

    if has_adapter(model):
        raise InputError(f"The {type(model).__name__} has an adapter already; merge that one first.")
    if is_encoder(model):
        raise InputError(f"{type(model).__name__} is an encoder, which trains as a whole; leave out adapter.")
    if adapter.kind == "qlora":
        _check_bitsandbytes()
        if not getattr(model, "is_loaded_in_4bit", False):
            raise InputError("An adapter of the kind qlora needs its base in 4 bits; load it with quantized_settings.")
    head = _has_score(model)
    layers = _targeted(model, adapter.targets)
    alpha: Any = adapter.alpha  # PEFT calls it an int and divides it
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        use_dora=adapter.kind == "dora",
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=["score"] if head else None,
    )
    put_in(model, config, seed=seed)
    return model


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether an adapter sits on ``model``, switched on or off."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` be its frozen base, to the bit: the reference of an adapted policy. Restored whatever happens.

    A reward model gets its old head back too. What was computed before with the adapter on keeps its gradient.

    Raises:
        InputError: there is no adapter, so the model itself would pass for its own reference.
    """
    parts = [module for _, module in adapted(model)]
    on = [part for part in parts if not part.disable_adapters]
    trained = [(parameter, parameter.requires_grad) for part in parts for parameter in part.parameters()]
    try:
        for part in on:
            part.enable_adapters(False)
        yield
    finally:
        for part in on:
            part.enable_adapters(True)
        for parameter, wanted in trained:  # PEFT's switch sets these as it sees fit
            parameter.requires_grad_(wanted)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Fold the adapter into the weights in place and return ``model``, plain again: nothing of PEFT is left in it.

    It can be saved as any model, adapted anew or trained as a whole.

    Raises:
        InputError: there is no adapter, the base is in 4 bits, which would round the update away, or an adapted layer
            shares its weights with another.
    """
    parts = adapted(model)
    if getattr(model, "is_loaded_in_4bit", False):
        raise InputError(
            "An adapter cannot be merged into a base in 4 bits, which would round it away; save the adapter, load it "
            "on the base in full precision and merge it there."
        )
    tied = _tied(model)
    for name, _ in parts:
        if f"{name}.base_layer" in tied:
            raise InputError(f"The adapter on {name} cannot be merged: another layer has the same weights.")
    for name, part in parts:
        if hasattr(part, "unload_and_optionally_merge_module"):
            plain = part.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            part.merge(safe_merge=True)
            plain = part.get_base_layer()
        model.set_submodule(name, plain)
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model.requires_grad_(True)


def quantized_settings() -> dict[str, Any]:
    """Return what ``from_pretrained`` needs to load the base of ``qlora``: NF4 with double quantization, bf16 compute.

    Layers that stay whole are in bf16 too: they compute no finer than what they are fed.

    Raises:
        InputError: bitsandbytes or a CUDA device is missing.
    """
    from transformers import BitsAndBytesConfig

    _check_bitsandbytes()
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantized, "dtype": torch.bfloat16}


def put_in(model: PreTrainedModel, config: Any, *, seed: int) -> None:
    """Let PEFT put the adapter into ``model``; A is drawn on the processor, wherever the model is.

    The adapter is in float32 on any base, for in bfloat16 small updates are rounded away.
    """
    from peft.functional import cast_adapter_dtype

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT gets it right for each layer by itself
        torch.random.default_generator.manual_seed(seed)
        try:
            model.add_adapter(config)
        except ValueError as error:
            model._hf_peft_config_loaded = False
            raise InputError(f"An adapter cannot sit on {type(model).__name__}: {first(error)}") from error
    cast_adapter_dtype(model, "default")


def adapted(model: PreTrainedModel) -> list[tuple[str, Any]]:
    """Return the modules of PEFT in ``model`` with their names: adapted layers, and heads that are trained whole."""
    if not has_adapter(model):
        raise InputError(f"The {type(model).__name__} has no adapter; add one with adapt, or load one.")
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def _has_score(model: PreTrainedModel) -> bool:
    named = type(model).__name__.endswith("ForSequenceClassification")
    return named and isinstance(getattr(model, "score", None), nn.Linear)


def _targeted(model: PreTrainedModel, targets: Sequence[str] | str) -> dict[str, nn.Module]:
    """Return the layers ``targets`` name, as PEFT reads them; each name is there or an InputError says what is.

    PEFT itself ignores a name without a layer where another one has some.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    layers = {
        name: module
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, Conv1D)) and not (_has_score(model) and name == "score")
    }
    if isinstance(targets, str) and targets.lower() == ALL:
        return layers
    named = [_pattern(targets)] if isinstance(targets, str) else [rf"(.*\.)?{re.escape(name)}" for name in targets]
    found: dict[str, nn.Module] = {}
    for target, pattern in zip([targets] if isinstance(targets, str) else targets, named, strict=True):
        matched = [name for name in modules if re.fullmatch(pattern, name)]
        wrong = [name for name in matched if name not in layers]
        if wrong or not matched:
            raise InputError(_no_layer(model, target, layers, wrong, listed=not isinstance(targets, str)))
        found |= {name: layers[name] for name in matched}
    for name in sorted(found.keys() & _tied(model)):
        raise InputError(
            f"targets: {name} shares its weights with another layer of {type(model).__name__}, so an adapter on it "
            "could not be merged; leave it out."
        )
    return found


def _pattern(targets: str) -> str:
    try:
        re.compile(targets)
    except re.error as error:
        raise InputError(f"targets: {targets!r} is not a pattern ({error}); expected a list of names.") from error
    return targets


def _no_layer(
    model: PreTrainedModel, target: str, layers: dict[str, nn.Module], wrong: list[str], *, listed: bool
) -> str:
    """Say what was asked for and what there is; a lone name in place of a list is the likeliest slip."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    there = f"there are {', '.join(ends[:16])}{' and others' if len(ends) > 16 else ''}"
    if wrong:
        kind = type(model.get_submodule(wrong[0])).__name__
        return f"targets: {target!r} takes in {wrong[0]} ({kind}), which is no linear layer; {there}."
    what = "layer" if listed else "layer whose whole name is"
    slip = " Did you mean the list [" + target + "]?" if not listed and target in ends else nearest(target, ends)
    return f"targets: {type(model).__name__} has no {what} {target!r}; {there}.{slip}"


def _tied(model: PreTrainedModel) -> set[str]:
    """Return the names of modules whose weight another module holds too, as embeddings and heads often do."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            names.setdefault(id(weight), []).append(name)
    return {name for group in names.values() if len(group) > 1 for name in group}


def _check_bitsandbytes() -> None:
    missing = "bitsandbytes" if find_spec("bitsandbytes") is None else ""
    missing = missing or ("" if torch.cuda.is_available() else "CUDA device")
    if missing:
        raise InputError(
            f"An adapter of the kind qlora needs bitsandbytes and a CUDA device, and this machine has no {missing}; "
            "use lora, or pip install bitsandbytes on a machine with a GPU."
        )


def first(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
