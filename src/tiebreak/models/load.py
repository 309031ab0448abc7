"""Load any Hugging Face causal language model, or build a tiny one, with a tokenizer that can be trained on.

What every loop relies on is settled here once: an end-of-sequence token that exists, a padding token that is not it,
dropout off, and one place that says what is wrong with a model folder.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from tiebreak.models.encode import PLAIN_CHAT
from tiebreak.records import InputError
from tiebreak.registry import nearest

EOS, PAD = "<|endoftext|>", "<|pad|>"


class Loaded(NamedTuple):
    """A model with the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_causal(where: str | Path, *, device: str = "cpu", revision: str | None = None) -> Loaded:
    """Load a causal language model from a folder or a hub name, ready for training: dropout off, pad distinct from EOS.

    Raises:
        InputError: the folder is missing, is not a model, is a reward model, has no tokenizer, or the tokenizer has no
            EOS.
    """
    if has_reward_head(where, revision=revision):
        raise InputError(f"The model {where} is a reward model, which has no words to give; pass the policy's folder.")
    return _load(where, AutoModelForCausalLM, device=device, revision=revision)


def load_reward(where: str | Path, *, device: str = "cpu", revision: str | None = None) -> Loaded:
    """Load a reward model: a sequence classifier with one label.

    Raises:
        InputError: as for :func:`load_causal`, or the model has no head, so that its scores would be random.
    """
    if not has_reward_head(where, revision=revision):
        raise InputError(
            f"The model {where} has no reward head (it is not a sequence classifier with one label); train one, for "
            "example with method: bradley_terry."
        )
    return _load(where, AutoModelForSequenceClassification, device=device, revision=revision)


def has_reward_head(where: str | Path, *, revision: str | None = None) -> bool:
    """Whether the model at ``where`` is a sequence classifier with one label. Reads its configuration only."""
    config = _config(where, revision)
    kinds = getattr(config, "architectures", None) or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds) and config.num_labels == 1


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many positions ``model`` was made for, None where its configuration does not say."""
    found: int | None = getattr(model.config, "max_position_embeddings", None)
    return found


def _config(where: str | Path, revision: str | None) -> Any:
    folder = Path(where)
    local = folder.exists() or str(where).startswith((".", "/"))
    if local and not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model: it has no config.json; pass a Hugging Face folder or a hub name.")
    with _cannot_load(f"The model {where}"):
        return AutoConfig.from_pretrained(str(where), revision=revision)


def _load(where: str | Path, kind: Any, *, device: str, revision: str | None) -> Loaded:
    config = _config(where, revision)
    tokenizer = load_tokenizer(where, revision=revision)
    with _cannot_load(f"The model {where}"), _without_bars():
        model = kind.from_pretrained(str(where), revision=revision, config=config, dtype=torch.float32)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        _grow(model, len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Loaded(without_dropout(model).to(device), tokenizer)


def _grow(model: PreTrainedModel, size: int) -> None:
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


def load_tokenizer(where: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer and give it a padding token of its own where it has none or shares EOS.

    A padding token equal to EOS would make the end of an answer unlearnable and move a reward model's read-out to the
    token before it.
    """
    folder = Path(where)
    if folder.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InputError(
            f"The model folder {folder} has no tokenizer; save the tokenizer it was trained with beside it."
        )
    with _cannot_load(f"The tokenizer of {where}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(where), revision=revision)
    if tokenizer.eos_token_id is None:
        raise InputError(f"The tokenizer of {where} has no EOS token, so no answer could ever end; set its eos_token.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Set every dropout of ``model`` to 0, so that policy and reference agree at the first step and runs repeat."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def train_tokenizer(texts: Iterable[str], *, vocabulary: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on ``texts``; any text encodes and decodes back to itself.

    Ties between merges are broken by frequency and then by id, so equal texts give equal tokenizers.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=PLAIN_CHAT,
        clean_up_tokenization_spaces=False,
    )


def build_causal(
    config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, seed: int, device: str = "cpu"
) -> Loaded:
    """Build a causal language model from a configuration with weights drawn from ``seed``.

    Args:
        config: the fields of a transformers configuration, ``model_type`` included.
        tokenizer: sets the vocabulary size and the special tokens.
        seed: draws the weights without touching the global generator.
        device: where the model goes.
    """
    settings = _settings(config, tokenizer)
    with torch.random.fork_rng(devices=[]), _cannot_load("The model to build"):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    return Loaded(without_dropout(model).to(device), tokenizer)


def _settings(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the transformers configuration; a field it does not have is refused, for transformers would ignore it."""
    fields = dict(config)
    if "model_type" not in fields:
        raise InputError(
            "A model to build needs model_type, for example llama, gpt2 or qwen3; add it to the model's keys."
        )
    kind = fields.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise InputError(f"transformers has no model_type {kind!r}.{nearest(str(kind), CONFIG_MAPPING)}")
    with _cannot_load(f"The {kind} to build"):
        made = CONFIG_MAPPING[kind]
        known = {*inspect.signature(made.__init__).parameters, *made().to_dict(), *made.attribute_map} - {"self"}
        for name in fields:
            if name not in known:
                raise InputError(f"A {kind} to build has no key {name!r}.{nearest(name, known)}")
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        special["bos_token_id"] = tokenizer.eos_token_id
        return AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **special, **fields})


def to_reward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """Return a one-label sequence classifier on a copy of ``model``'s body, its head drawn from N(0, 1/(d+1)).

    The head's spread is that of Stiennon et al. (2020), so first scores are small whatever the width.
    """
    label = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}
    config = type(model.config).from_dict({**model.config.to_dict(), **label})
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]), _cannot_load(f"A reward head on {type(model).__name__}"):
        torch.manual_seed(seed)
        reward = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        if not isinstance(getattr(reward, "score", None), torch.nn.Linear):
            raise InputError(f"{type(reward).__name__} keeps its head elsewhere than in `score`; use another model.")
        body = getattr(model, model.base_model_prefix)
        getattr(reward, reward.base_model_prefix).load_state_dict(body.state_dict())
        width = reward.score.weight.shape[1]
        torch.nn.init.normal_(reward.score.weight, std=(width + 1) ** -0.5)
    return without_dropout(reward).to(model.device)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a Hugging Face folder (safetensors, configuration, tokenizer) in one move: all of it or nothing."""
    partial, old = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _without_bars():
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' own progress bars out of the user's terminal, and give them back as they were."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _cannot_load(what: str) -> Iterator[None]:
    """Turn what transformers says about a model it cannot make into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{what} cannot be loaded: {lines[0]}") from error
