"""Tiny random models of many architectures, a tokenizer trained on a few lines, and trees to run them on."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from tiebreak.models.forest import Tree
from tiebreak.models.load import Loaded, build_causal, train_tokenizer

torch.set_num_threads(1)  # models this small only wait for a second thread

TEXTS = [
    "SUBREDDIT: r/pets\n\nTITLE: My cat\n\nPOST: The cat left home and came back.\n\nTL;DR: The cat came back.",
    "user: How are you?\n\nassistant: I am well, thank you.\n\n",
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
WINDOW = 5
"""The sliding windows are shorter than the sequences, or they would not be tested."""

RUNS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "gpt2": GPT2,
    "gpt_neox": SIZES,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "opt": OPT,
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "granite": {**GROUPED, "logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "phi": SIZES,
    "gemma3_text": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma2": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
SPREAD = {"initializer_range": 0.2}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {**SIZES, **SPREAD},
    "distilbert": {
        "dim": 32,
        "hidden_dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    },
    "roberta": {**SIZES, **SPREAD},
    "deberta-v2": {
        **SIZES,
        **SPREAD,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "modernbert": {
        **SIZES,
        **SPREAD,
        "local_attention": 2 * WINDOW,
        "layer_types": ["full_attention", "sliding_attention"],
        "classifier_pooling": "mean",
    },
    "electra": {**SIZES, **SPREAD, "embedding_size": 16},
    "albert": {**SIZES, **SPREAD, "embedding_size": 16},
    "mpnet": {**SIZES, **SPREAD},
}
"""Models that attend in both directions, with the switches that their published weights have."""
NO_CLASSIFIER = ("cohere", "granite")
"""Architectures that transformers has no sequence classifier for."""
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon": (FALCON, "attention interface"),
    "gpt_oss": ({**GROUPED, "head_dim": 8, "num_local_experts": 4}, "sinks"),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2}, "linear_attention"),
    "lfm2": ({**GROUPED, "layer_types": ["conv", "full_attention"]}, "conv"),
}


def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 4, vocabulary=330)


def causal(kind: str, *, seed: int = 0, **more: Any) -> Loaded:
    """A model in eval mode, its weights spread out so that the numbers to compare differ."""
    fields = {**(RUNS[kind] if kind in RUNS else REFUSED[kind][0]), **more}
    spread = {"init_std" if kind == "opt" else "initializer_range": 0.2}
    return build_causal({"model_type": kind, **spread, **fields}, tokenizer(), seed=seed)


def ids(draw: random.Random, length: int) -> tuple[int, ...]:
    """Ordinary tokens: neither EOS nor padding."""
    return tuple(draw.randrange(2, 250) for _ in range(length))


def trees(seed: int = 0) -> list[Tree]:
    """Trees of one to four branches, with a trunk of one token and with branches of one token among them."""
    draw = random.Random(seed)
    shape = [(9, (7, 3)), (1, (4,)), (14, (1, 6, 2)), (5, (5, 1, 1, 8))]
    return [Tree(ids(draw, trunk), tuple(ids(draw, length) for length in lengths)) for trunk, lengths in shape]
