"""Checkpoints of a from-scratch GPT, ``model.pth`` with ``tokenizer.json`` beside it, in and out.

``{"model_state_dict": ..., "config": {"n_embd": 768, ...}}`` as torch saves it; what else such a file holds (optimizer,
step, best loss) is left aside. The model is :mod:`tiebreak.models.headwise`, so it trains and samples as any other.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiebreak.models.adapters import has_adapter
from tiebreak.models.headwise import HeadwiseConfig, HeadwiseForCausalLM, to_qwen3
from tiebreak.models.hex_tokenizer import read_hex, write_hex
from tiebreak.models.load import Loaded, save_model
from tiebreak.records import InputError

TOKENIZER = "tokenizer.json"
HOLDS = '{"model_state_dict": ..., "config": {...}}'
SIZES = ("n_embd", "n_head", "n_layer", "block_size")
"""What a configuration has to say: nothing else in the file tells all of it."""
REWARD = ("backbone.", "reward_head.", "value_head.")
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
"""What data-parallel training and compilation put in front of every key."""
THEIRS = (
    (r"^model\.embed_tokens\.", "token_embedding."),
    (r"^model\.norm\.", "norm."),
    (r"^model\.layers\.(\d+)\.input_layernorm\.", r"blocks.\1.attention_norm."),
    (r"^model\.layers\.(\d+)\.post_attention_layernorm\.", r"blocks.\1.ffn_norm."),
    (r"^model\.layers\.(\d+)\.self_attn\.", r"blocks.\1.attention."),
    (r"^model\.layers\.(\d+)\.mlp\.", r"blocks.\1.feed_forward."),
)
"""Our names of weights and theirs."""


class _Checkpoint(NamedTuple):
    """What is used of a file: weights by their own names, configuration, rows of the vocabulary if it says so."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    rows: int | None


def is_pth(path: str | Path) -> bool:
    """Whether ``path`` names such a file rather than a model folder or a name on the hub."""
    return Path(path).suffix.lower() == ".pth" and not Path(path).is_dir()


def read_pth(path: str | Path) -> Loaded:
    """Return the model of a ``.pth`` checkpoint in float32 on the processor, with the tokenizer beside it.

    The format has no end of text and no padding, so both get ids behind the tokenizer's, with rows of the embedding
    that are the mean of the known ones, the same every time. An embedding may have more rows than the tokenizer has
    ids: row i is id i's, the two new ids take the next rows, and rows behind them stay, though no text leads to them.
    There is no dropout.

    Raises:
        InputError: the file or its tokenizer is missing or broken, needs code to load, is a reward model or an
            architecture other than grouped attention with rotary turns, or has weights that its configuration, its
            tokenizer and each other do not explain.
    """
    path = Path(path)
    found = _opened(path)
    config = _config(found.config, found.weights, path)
    weights = _weights(found, config, path)
    tokenizer, ids = read_hex(path.with_name(TOKENIZER))
    table = weights["model.embed_tokens.weight"]
    if ids > len(table):
        raise InputError(
            f"{path.with_name(TOKENIZER)} has {ids:,} ids, but {path.name} has {len(table):,} rows for them; expected "
            "the tokenizer that the model was trained with."
        )
    surplus = table[len(tokenizer) :]
    table = torch.cat((table[:ids], table[:ids].mean(0).expand(len(tokenizer) - ids, -1), surplus))
    config.vocab_size = len(table)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    with torch.device("meta"):
        model = HeadwiseForCausalLM(config)
    model.load_state_dict(weights | {"model.embed_tokens.weight": table, "lm_head.weight": table}, assign=True)
    model.tie_weights()
    return Loaded(model.eval(), tokenizer)


def write_pth(loaded: Loaded, path: str | Path) -> None:
    """Write a model as such a checkpoint, with its tokenizer beside it: both whole, or nothing.

    What :func:`read_pth` reads of it equals ``loaded`` to the bit where that is in float32; weights in fewer bits are
    written as they are in float32.

    Raises:
        InputError: the model is of another architecture, has an adapter, or has a tokenizer that the format cannot
            hold; or another checkpoint's tokenizer is in the folder.
    """
    path, model = Path(path), loaded.model
    if not isinstance(model, HeadwiseForCausalLM):
        raise InputError(
            f"{type(model).__name__} cannot be written as a .pth checkpoint, which holds only models that were read "
            "from one; save a folder instead."
        )
    if has_adapter(model):
        raise InputError(f"The adapter has to be merged into its model before it is written to {path}.")
    own = {name: value.detach().to("cpu", torch.float32) for name, value in model.state_dict().items()}
    own["lm_head.weight"] = own["model.embed_tokens.weight"]
    weights = {_theirs(name): value.contiguous() for name, value in own.items()}
    config = _written(model.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(TOKENIZER)
    fresh, partial = (path.with_name(f".{name}.partial") for name in (f"{path.name}.{TOKENIZER}", path.name))
    try:
        write_hex(loaded.tokenizer, fresh)
        _assert_free(place, fresh, path)
        torch.save({"model_state_dict": weights, "config": config, "vocab_size": config["vocab_size"]}, partial)
        os.replace(fresh, place)
        os.replace(partial, path)
    finally:
        fresh.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


def convert(path: str | Path, folder: str | Path, *, plain: bool = False) -> None:
    """Read a checkpoint and save it as the model folder ``folder``, which the rest of the house takes.

    ``plain`` rewrites it as a Qwen3 that transformers loads without this package, for handing on.

    Raises:
        InputError: as for :func:`read_pth`, or ``folder`` is in use for something else than a model.
    """
    path, folder = Path(path), Path(folder)
    used = folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file())
    if used or folder.resolve() in path.resolve().parents:
        raise InputError(f"The folder {folder} holds something else than a model; name a new one.")
    loaded = read_pth(path)
    save_model(to_qwen3(loaded.model) if plain else loaded.model, loaded.tokenizer, folder)


def _opened(path: Path) -> _Checkpoint:
    """Load the file without running any code that it may carry."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be opened: {error.strerror or error}.") from error
    except Exception as error:  # a file that is not what it seems makes torch raise anything
        named = re.search(r"(?i:global) ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named:
            raise InputError(
                f"The checkpoint {path} needs the object {named[1]} to load, and loading here never runs code from a "
                f"file; where you trust it, load it with your own code and save {HOLDS} with plain tensors, numbers "
                "and texts."
            ) from error
        raise InputError(
            f"The checkpoint {path} cannot be read: it is cut off or not a file that torch.save wrote."
        ) from error
    weights, config = (whole.get(name) if isinstance(whole, dict) else None for name in ("model_state_dict", "config"))
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        held = f"a dictionary with {', '.join(map(str, whole)) or 'nothing'}" if isinstance(whole, dict) else "no dict"
        raise InputError(f"{path} is not a checkpoint: expected {HOLDS} with tensors by name, and found {held}.")
    weights = {WRAPPERS.sub("", str(name)): value for name, value in weights.items()}
    if any(name.startswith(REWARD) for name in weights):
        raise InputError(
            f"{path} is a reward model, which has no words to give; pass the checkpoint of the model it was made from."
        )
    if not isinstance(config, dict):
        raise InputError(f"{path} has no config, so the sizes of its model are not known; expected {HOLDS}.")
    rows = whole.get("vocab_size")
    return _Checkpoint(weights, config, rows if type(rows) is int else None)


def _config(given: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path) -> HeadwiseConfig:
    """Return the sizes of the model; the feed-forward width is that of its weights."""
    where = f"The config in {path}"
    for name in (*SIZES, "n_kv_head"):
        value = given.get(name)
        if value is None and name == "n_kv_head":
            continue
        if type(value) is not int or value < 1:
            said = f"has {name}: {value!r}" if name in given else f"has no {name}"
            raise InputError(f"{where} {said}; expected a whole number above 0.")
    _assert_kind(given, where)
    width, heads = given["n_embd"], given["n_head"]
    if width % (2 * heads) or given.get("head_dim") not in (None, width // heads):
        said = f" and head_dim {given['head_dim']}" if given.get("head_dim") is not None else ""
        raise InputError(
            f"{where} has n_embd {width}, n_head {heads}{said}; expected heads of the even size n_embd / n_head."
        )
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    if len(blocks) != given["n_layer"]:
        raise InputError(f"{where} has n_layer {given['n_layer']}, but there are weights of {len(blocks)} blocks.")
    inner = weights.get("blocks.0.feed_forward.gate_proj.weight")
    try:
        return HeadwiseConfig(
            hidden_size=width,
            intermediate_size=None if inner is None or not inner.dim() else len(inner),
            num_hidden_layers=given["n_layer"],
            num_attention_heads=heads,
            num_key_value_heads=given.get("n_kv_head"),
            max_position_embeddings=given["block_size"],
        )
    except ValueError as error:
        raise InputError(f"{where} does not add up: {error}.") from error


def _assert_kind(given: Mapping[str, Any], where: str) -> None:
    """Refuse what computes something else than grouped attention with rotary turns."""
    kind, places = given.get("attention_type", "gqa"), given.get("position_encoding_type", "rope")
    window = given.get("sliding_window_size", 4096)
    if kind == "swa":
        if type(window) is not int or window < given["block_size"]:
            raise InputError(
                f"{where} has attention_type swa with sliding_window_size {window!r}, below its block_size "
                f"{given['block_size']}; expected gqa, or a window that the context fits in."
            )
    elif kind != "gqa":
        raise InputError(f"{where} has attention_type {kind!r}; only gqa can be computed here.")
    if places != "rope":
        raise InputError(f"{where} has position_encoding_type {places!r}; only rope can be computed here.")
    if given.get("use_moe"):
        raise InputError(f"{where} has use_moe; only models without a mixture of experts can be computed here.")


def _weights(found: _Checkpoint, config: HeadwiseConfig, path: Path) -> dict[str, Tensor]:
    """Return the weights by our names in float32, after holding each against what the configuration says."""
    weights = dict(found.weights)
    table = weights.get("token_embedding.weight")
    weights.setdefault("lm_head.weight", table)
    config.vocab_size = len(table) if table is not None and table.dim() else 1
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in HeadwiseForCausalLM(config).state_dict().items()}
    names = {_theirs(name): name for name in shapes}
    for name, shape in zip(names, shapes.values(), strict=True):
        value = weights.get(name)
        if value is None:
            raise InputError(f"{path} has no weights {name}; expected the whole model of its config.")
        if name.endswith(".alpha") and value.numel() == 1:
            weights[name] = value = value.reshape(())
        if value.shape != shape or not value.is_floating_point():
            raise InputError(
                f"{path}: {name} has the shape {tuple(value.shape)} and the type {value.dtype}; its config makes it "
                f"{tuple(shape)}, of numbers with a fraction."
            )
    unknown = next((name for name in weights if name not in names), None)
    if unknown is not None:
        raise InputError(f"{path} has weights {unknown}, which the model of its config does not have.")
    if found.rows is not None and found.rows != config.vocab_size:
        raise InputError(f"{path} has vocab_size {found.rows:,}, but {config.vocab_size:,} rows in its embedding.")
    if not torch.equal(weights["lm_head.weight"], weights["token_embedding.weight"]):
        raise InputError(f"{path} has an lm_head that differs from its token_embedding; expected one matrix for both.")
    return {names[name]: value.to(torch.float32).contiguous() for name, value in weights.items()}


def _theirs(name: str) -> str:
    for pattern, theirs in THEIRS:
        name = re.sub(pattern, theirs, name)
    return name


def _written(config: HeadwiseConfig) -> dict[str, Any]:
    """Return the flat configuration of the format; training settings are its usual ones, with dropout off."""
    return {
        "n_embd": config.hidden_size,
        "n_head": config.num_attention_heads,
        "n_layer": config.num_hidden_layers,
        "block_size": config.max_position_embeddings,
        "dropout": 0.0,
        "vocab_size": config.vocab_size,
        "attention_type": "gqa",
        "n_kv_head": config.num_key_value_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "position_encoding_type": "rope",
        "use_moe": False,
        "grad_clip": 1.0,
        "weight_decay": 0.01,
        "device": "cpu",
        "seed": 1337,
    }


def _assert_free(place: Path, fresh: Path, path: Path) -> None:
    """Refuse to take another checkpoint's tokenizer from it."""
    if not place.exists() or place.read_bytes() == fresh.read_bytes():
        return
    others = sorted(other.name for other in path.parent.glob("*.pth") if other.name != path.name)
    if others or (path.parent / "config.json").exists():
        raise InputError(
            f"{place} belongs to {others[0] if others else 'the model folder it is in'} and differs from the "
            f"tokenizer of {path.name}; write into a folder of its own."
        )
