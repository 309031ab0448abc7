"""Load any Hugging Face causal language model, or build a tiny one, with a tokenizer that can be trained on.

What every loop relies on is settled here once: an end-of-sequence token that exists, a padding token that is not it,
dropout off, and one place that says what is wrong with a model folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tiebreak.models.encode import PLAIN_CHAT
from tiebreak.records import InputError

EOS, PAD = "<|endoftext|>", "<|pad|>"


class Loaded(NamedTuple):
    """A model with the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_causal(where: str | Path, *, device: str = "cpu", revision: str | None = None) -> Loaded:
    """Load a causal language model from a folder or a hub name, ready for training: dropout off, pad distinct from EOS.

    Raises:
        InputError: the folder is missing, is not a model, has no tokenizer, or the tokenizer has no EOS.
    """
    return _load(where, AutoModelForCausalLM, device=device, revision=revision)


def load_reward(where: str | Path, *, device: str = "cpu", revision: str | None = None) -> Loaded:
    """Load a sequence classifier with one label, either a reward model or a causal model that gets a fresh head."""
    return _load(where, AutoModelForSequenceClassification, device=device, revision=revision, num_labels=1)


def _load(where: str | Path, kind: Any, *, device: str, revision: str | None, **options: Any) -> Loaded:
    folder = Path(where)
    local = folder.exists() or str(where).startswith((".", "/"))
    if local and not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model: it has no config.json; pass a Hugging Face folder or a hub name.")
    tokenizer = load_tokenizer(where, revision=revision)
    try:
        model = kind.from_pretrained(str(where), revision=revision, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"The model {where} cannot be loaded: {_first_line(error)}") from error
    added = len(tokenizer) - model.get_input_embeddings().num_embeddings
    if added > 0:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Loaded(without_dropout(model).to(device), tokenizer)


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(where), revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"The tokenizer of {where} cannot be loaded: {_first_line(error)}") from error
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
            if "dropout" in name and isinstance(value, float):
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
    fields = dict(config)
    if "model_type" not in fields:
        raise InputError(
            "A model to build needs model_type, for example llama, gpt2 or qwen3; add it to the model's keys."
        )
    settings = AutoConfig.for_model(
        fields.pop("model_type"),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
        **fields,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    return Loaded(without_dropout(model).to(device), tokenizer)


def to_reward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """Return a one-label sequence classifier on a copy of ``model``'s body, its head drawn from N(0, 1/(d+1)).

    The head's spread is that of Stiennon et al. (2020), so first scores are small whatever the width.
    """
    config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": 1})
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reward = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        body = getattr(model, model.base_model_prefix)
        getattr(reward, reward.base_model_prefix).load_state_dict(body.state_dict())
        width = reward.score.weight.shape[1]
        torch.nn.init.normal_(reward.score.weight, std=(width + 1) ** -0.5)
    return without_dropout(reward).to(model.device)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a Hugging Face folder (safetensors, configuration, tokenizer) in one move: all of it or nothing."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
