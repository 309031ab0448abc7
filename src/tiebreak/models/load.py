"""Load any Hugging Face causal language model or encoder, or build a tiny one, with a tokenizer to train on.

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
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from tiebreak.models.encode import PLAIN_CHAT
from tiebreak.models.forms import FILE, SCALAR, STEP, Form, assert_same_head, by_token, form_of, write_form
from tiebreak.models.heads import (
    as_scorer,
    as_token_classifier,
    cannot_load,
    draw_head,
    grow,
    is_encoder,
    labelled,
    to_reward,
    without_dropout,
)
from tiebreak.models.heads import context_of as context_of
from tiebreak.models.headwise import register
from tiebreak.records import InputError
from tiebreak.registry import nearest

EOS, PAD = "<|endoftext|>", "<|pad|>"
register()


class Loaded(NamedTuple):
    """A model with the tokenizer that belongs to it, and what the outputs of a reward model's head are."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    form: Form = SCALAR


def load_causal(where: str | Path, *, device: str = "cpu", revision: str | None = None, **settings: Any) -> Loaded:
    """Load a causal language model from a folder or a hub name, ready for training: dropout off, pad distinct from EOS.

    Raises:
        InputError: the folder is missing, is not a model, is a reward model or an encoder, has no tokenizer, or the
            tokenizer has no EOS.
    """
    if has_reward_head(where, revision=revision):
        raise InputError(f"The model {where} is a reward model, which has no words to give; pass the policy's folder.")
    config = _config(where, revision)
    _assert_causal(config, f"The model {where}")
    return _load(where, AutoModelForCausalLM, config, device=device, revision=revision, **settings)


def load_reward(where: str | Path, *, device: str = "cpu", revision: str | None = None) -> Loaded:
    """Load a reward model, of a causal language model or an encoder, with its form.

    That is a sequence classifier with one label, or a classifier with a head.json that says what its outputs are. Of a
    causal model whose scores are of steps, the token classifier comes as a classifier with one label.

    Raises:
        InputError: as for :func:`load_causal`, or the model has no head, so that its scores would be random, or another
            one than head.json says.
    """
    config = _config(where, revision)
    form = form_of(config, where, revision=revision)
    if form is None:
        raise InputError(
            f"The model {where} has no reward head (it is not a sequence classifier with one label, nor a classifier "
            f"with {FILE}); train one, for example with method: bradley_terry."
        )
    kind = AutoModelForTokenClassification if by_token(config) else AutoModelForSequenceClassification
    loaded = _load(where, kind, config, device=device, revision=revision)
    scorer = as_scorer(loaded.model) if by_token(config) and not is_encoder(config) else loaded.model
    return Loaded(scorer, loaded.tokenizer, form)


def load_encoder(
    where: str | Path,
    *,
    seed: int,
    device: str = "cpu",
    revision: str | None = None,
    labels: int = 1,
    form: Form = SCALAR,
) -> Loaded:
    """Load an encoder (BERT, RoBERTa, DeBERTa, ModernBERT ...) as the start of a reward model.

    A reward head with as many labels stays as it is; else its last layer is drawn as in :func:`to_reward`, and what the
    folder has of the layers before it stays. The tokenizer's separator becomes its EOS, so that the model reads
    ``[CLS] prompt answer [SEP]``.

    Raises:
        InputError: as for :func:`load_causal`, or the model is not an encoder, or weights of its body are missing.
    """
    if has_reward_head(where, revision=revision):
        return start_reward(where, seed=seed, device=device, revision=revision, labels=labels, form=form)
    config = _config(where, revision)
    if not is_encoder(config):
        raise InputError(f"The model {where} ({config.model_type}) is no encoder such as BERT; use load_causal.")
    steps = form.kind == "steps"
    config.update(labelled(config, form, len(STEP) if steps else labels))
    kind = AutoModelForTokenClassification if steps else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = _load(where, kind, config, device="cpu", revision=revision, fresh=True)
        draw_head(loaded.model)
    return Loaded(loaded.model.to(device), loaded.tokenizer, form)


def start_reward(
    model: str | Path | Mapping[str, Any],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
    revision: str | None = None,
    labels: int = 1,
    form: Form | None = None,
) -> Loaded:
    """Return what the training of a reward model starts from, which has a head, drawn from ``seed`` where it had none.

    Args:
        model: folder or hub name of a reward model, a causal language model or an encoder; or the fields of a
            transformers configuration, of which one is built.
        seed: draws the head, and all weights of a model to build.
        tokenizer: of a model to build; a loaded one brings its own.
        device: where the model goes.
        revision: of a hub name.
        labels: outputs of the head.
        form: what they are; that of a reward model to start from, else ``scalar``, if not given.

    Raises:
        InputError: the model cannot be loaded or built, has no classifier, or a head that is not the one asked for.
    """
    if form is not None:
        form.check(labels, "The head to train")
    asked = form or SCALAR
    if isinstance(model, Mapping):
        if tokenizer is None:
            raise InputError("A reward model to build needs a tokenizer; train one with train_tokenizer.")
        if is_encoder(_settings(model, tokenizer)):
            return build_encoder(model, tokenizer, seed=seed, device=device, labels=labels, form=asked)
        start = build_causal(model, tokenizer, seed=seed, device=device)
    elif (own := form_at(model, revision=revision)) is not None:
        assert_same_head(_config(model, revision), model, own, labels, form)
        return load_reward(model, device=device, revision=revision)._replace(form=form or own)
    elif is_encoder(_config(model, revision)):
        return load_encoder(model, seed=seed, device=device, revision=revision, labels=labels, form=asked)
    else:
        assert_same_head(_config(model, revision), model, SCALAR, labels, form)
        start = load_causal(model, device=device, revision=revision)
    return Loaded(to_reward(start.model, start.tokenizer, seed=seed, labels=labels, form=asked), start.tokenizer, asked)


def form_at(where: str | Path, *, revision: str | None = None) -> Form | None:
    """Return what the outputs of the reward model at ``where`` are, None where it has no reward head.

    Raises:
        InputError: there is no configuration, or a head.json that cannot be read or does not fit the head.
    """
    return form_of(_config(where, revision), where, revision=revision)


def has_reward_head(where: str | Path, *, revision: str | None = None) -> bool:
    """Whether the model at ``where`` is a reward model. Reads its configuration and head.json only."""
    return form_at(where, revision=revision) is not None


def _config(where: str | Path, revision: str | None) -> Any:
    folder = Path(where)
    local = folder.exists() or str(where).startswith((".", "/"))
    if local and not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model: it has no config.json; pass a Hugging Face folder or a hub name.")
    with cannot_load(f"The model {where}"):
        return AutoConfig.from_pretrained(str(where), revision=revision)


def _assert_causal(config: Any, what: str) -> None:
    """Refuse as a policy what cannot write; transformers would run BERT as one, to no sense."""
    if is_encoder(config) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        cure = " It can be a reward model: use method: bradley_terry." if is_encoder(config) else ""
        raise InputError(
            f"{what} ({config.model_type}) has no words to give; expected a causal language model such as Llama, Qwen "
            f"or GPT-2.{cure}"
        )


def _load(
    where: str | Path, kind: Any, config: Any, *, device: str, revision: str | None, fresh: bool = False, **more: Any
) -> Loaded:
    """Load model and tokenizer; ``fresh``: the head may be missing or of another shape, and is drawn then."""
    encoder = is_encoder(config)
    tokenizer = load_tokenizer(where, revision=revision, encoder=encoder)
    with cannot_load(f"The model {where}"), _without_bars(said=not fresh):
        model, found = kind.from_pretrained(
            str(where),
            revision=revision,
            config=config,
            ignore_mismatched_sizes=fresh,
            output_loading_info=True,
            **{"dtype": torch.float32, **more},
        )
    lost = sorted(n for n in found["missing_keys"] if n.startswith(f"{model.base_model_prefix}.") and "pooler" not in n)
    if fresh and lost:
        raise InputError(f"The model {where} has no weights for {lost[0]}, which would be random; pass a whole model.")
    if len(tokenizer) > len(model.get_input_embeddings().weight):
        grow(model, len(tokenizer))
    if not encoder or model.config.pad_token_id is None:  # RoBERTa counts positions from it
        model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Loaded(without_dropout(model) if more else without_dropout(model).to(device), tokenizer)


def load_tokenizer(where: str | Path, *, revision: str | None = None, encoder: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer and give it a padding token of its own where it has none or shares EOS.

    A padding token equal to EOS would make the end of an answer unlearnable and move a reward model's read-out to the
    token before it. An ``encoder``'s separator becomes its EOS: BERT ends every text with [SEP] and has no EOS.
    """
    folder = Path(where)
    if folder.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InputError(
            f"The model folder {folder} has no tokenizer; save the tokenizer it was trained with beside it."
        )
    with cannot_load(f"The tokenizer of {where}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(where), revision=revision)
    if encoder and tokenizer.sep_token_id is not None:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise InputError(f"The tokenizer of {where} has no EOS token, so no answer could ever end; set its eos_token.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


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
    _assert_causal(settings, "The model to build")
    with torch.random.fork_rng(devices=[]), cannot_load("The model to build"):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    return Loaded(without_dropout(model).to(device), tokenizer)


def build_encoder(
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    device: str = "cpu",
    labels: int = 1,
    form: Form = SCALAR,
) -> Loaded:
    """Build an encoder with a reward head from a configuration, all weights drawn from ``seed``.

    Arguments are those of :func:`build_causal`. A tokenizer trained here puts nothing in front of a prompt, so where a
    [CLS] would stand the head finds the prompt's first token.
    """
    settings = _settings(config, tokenizer)
    if not is_encoder(settings):
        raise InputError(f"The model to build ({settings.model_type}) is no encoder such as bert; use build_causal.")
    with torch.random.fork_rng(devices=[]), cannot_load("The model to build"):
        torch.manual_seed(seed)
        body = AutoModel.from_config(settings, dtype=torch.float32)
    return Loaded(to_reward(body, tokenizer, seed=seed, labels=labels, form=form).to(device), tokenizer, form)


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
    with cannot_load(f"The {kind} to build"):
        made = CONFIG_MAPPING[kind]
        known = {*inspect.signature(made.__init__).parameters, *made().to_dict(), *made.attribute_map} - {"self"}
        for name in fields:
            if name not in known:
                raise InputError(f"A {kind} to build has no key {name!r}.{nearest(name, known)}")
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        special["bos_token_id"] = tokenizer.eos_token_id
        return AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **special, **fields})


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    form: Form = SCALAR,
    card: str = "",
) -> None:
    """Write a Hugging Face folder (safetensors, configuration, tokenizer) in one move: all of it or nothing.

    Args:
        model: goes in as it is; one whose scores are of steps as a token classifier, where the architecture has one.
        tokenizer: goes beside it.
        folder: is replaced where it exists.
        form: of a reward model's head, kept as head.json.
        card: the text of README.md.
    """
    partial, old = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _without_bars():
        (as_token_classifier(model) if form.kind == "steps" else model).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_form(partial, form)
    if card:
        (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _without_bars(*, said: bool = True) -> Iterator[None]:
    """Keep transformers' own progress bars out of the user's terminal, and give them back as they were.

    ``said`` says that its warnings are shown; it would warn of a head that is fresh on purpose.
    """
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not said:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
