"""PEFT folders: an adapter, its configuration and the tokenizer on disk, and back on the base it names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiebreak.models.adapters import adapted, first, put_in
from tiebreak.models.forms import FILE, SCALAR, Form, read_form, write_form
from tiebreak.models.load import Loaded, load_causal, load_tokenizer, start_reward
from tiebreak.records import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT writes before each name of a weight."""


def save_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base: str,
    form: Form = SCALAR,
) -> None:
    """Write a PEFT folder (configuration, safetensors) and the tokenizer in one move: all of it or nothing.

    Args:
        model: an adapted model; a reward model's head is saved with the adapter.
        tokenizer: goes beside it, so that the folder can be used like a model's.
        folder: is replaced where it exists.
        base: folder or hub name of the frozen model, for whoever loads the adapter.
        form: of a reward model's head.

    Raises:
        InputError: there is no adapter.
    """
    from peft import get_peft_model_state_dict

    adapted(model)
    config = {**model.peft_config["default"].to_dict(), "base_model_name_or_path": base}
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    own = {PREFIX + name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    with _one_move(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=sorted))
        save_file(own, partial / WEIGHTS, metadata={"format": "pt"})
        tokenizer.save_pretrained(partial)
        write_form(partial, form)


def load_adapter(where: str | Path, *, base: str | None = None, device: str = "cpu") -> Loaded:
    """Load a PEFT folder on its base, as :func:`adapt` would leave it: the base frozen, the adapter ready to train.

    A reward adapter may name a causal model as its base, for it brings a head of its own. The base comes in full
    precision, after ``qlora`` too, so that ``merged(load_adapter(where).model)`` gives a plain model; numbers then
    differ from those in 4 bits by what rounding did to the base.

    Args:
        where: the folder.
        base: where the base is now; as the adapter's configuration says if not given.
        device: where the model goes.

    Raises:
        InputError: the folder is not a LoRA or DoRA adapter, or its base is missing or another one.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    folder = Path(where)
    config = _read_config(folder)
    base = base or config.base_model_name_or_path
    if not base:
        raise InputError(f"The adapter {folder} does not say which model is its base; pass base.")
    found = {name.removeprefix(PREFIX): value for name, value in load_file(folder / WEIGHTS).items()}
    head = _head(folder, found) if config.task_type == "SEQ_CLS" else None
    loaded = _with_tokenizer(folder, _load_base(folder, base, head=head, device=device))
    model = loaded.model.eval()
    put_in(model, config, seed=0)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(found.keys() | wanted.keys()):
        if _shape(found, name) != _shape(wanted, name):
            raise InputError(
                f"The adapter {folder} does not fit the base {base}: {name} is {_shape(found, name)} in the adapter "
                f"and {_shape(wanted, name)} in the model; pass the base it was trained on."
            )
    set_peft_model_state_dict(model, found)
    return loaded


def _read_config(folder: Path) -> Any:
    from peft import PeftConfig

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not an adapter: it has no {name}; pass a folder that save_adapter wrote.")
    try:
        kind = json.loads((folder / CONFIG).read_text())["peft_type"]
        if kind != "LORA":
            raise InputError(f"The adapter {folder} is of the kind {kind}; expected LORA.")
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / CONFIG} cannot be read: {first(error)}") from error
    start = config.init_lora_weights
    if config.bias != "none" or (isinstance(start, str) and start != "gaussian"):
        raise InputError(
            f"The adapter {folder} changes the weights of its base (bias {config.bias}, init_lora_weights {start}), so "
            "the base would not be there with the adapter off; expected a plain LoRA or DoRA."
        )
    config.inference_mode = False
    return config


def _head(folder: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the outputs of the head that came with an adapter, and its form."""
    form = read_form(folder / FILE) if (folder / FILE).is_file() else SCALAR
    outputs = [len(value) for name, value in weights.items() if name.endswith("score.weight")]
    return {"form": form, "labels": outputs[0] if outputs else 1}


def _load_base(folder: Path, base: str, *, head: Mapping[str, Any] | None, device: str) -> Loaded:
    try:
        if head is not None:
            return start_reward(base, seed=0, device=device, **head)
        return load_causal(base, device=device)
    except InputError as error:
        told = (
            f"The base of the adapter {folder} is not to be had; put it back, or pass base ({str(error).rstrip('.')})."
        )
        raise InputError(told) from error


def _with_tokenizer(folder: Path, base: Loaded) -> Loaded:
    """Return the base with the tokenizer that was saved beside the adapter, where there is one."""
    if not (folder / "tokenizer_config.json").is_file():
        return base
    model, tokenizer = base.model, load_tokenizer(folder)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"The tokenizer of the adapter {folder} has {len(tokenizer)} tokens and its base {rows}; pass the base it "
            "was trained on."
        )
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return base._replace(tokenizer=tokenizer)


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, tensors[name].shape)) if name in tensors else "missing"


@contextmanager
def _one_move(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of ``folder`` if nothing went wrong."""
    partial, old = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
