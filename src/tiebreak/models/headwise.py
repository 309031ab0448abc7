"""A from-scratch GPT whose queries and keys turn with the number of their head, as a transformers architecture.

Some small code bases apply the rotary turn while the heads, not the positions, lie on the axis it counts along: query
head h turns by h, key head g by g, and a token's place is known from the causal mask alone. Weights trained that way
work no other way, so this computes exactly that. The rest is a Qwen3 with a blend of two gates in its feed-forward
layers; :func:`to_qwen3` writes all of it as a plain Qwen3, which loads anywhere.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
    initialization,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3PreTrainedModel

from tiebreak.models.adapters import has_adapter
from tiebreak.records import InputError

KIND = "headwise_gpt"
THETA = 10000.0
"""Pair i of a head of size D turns by head number * THETA^(-2i/D)."""
EPSILON = 1e-6
STILL = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 1e30,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1,
}
"""Rotary positions of a Qwen3 that turn by nothing: every wavelength is longer than 1, so all are stretched by 1e30.

The kind ``linear`` would do as well in transformers, but servers multiply the context by its factor.
"""


class HeadwiseConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of the model. ``num_key_value_heads`` is a quarter of the heads where it is not given.

    ``intermediate_size`` is then 8/3 of the width, rounded up to a multiple of 256. There is no dropout to set, so
    that policy and reference agree at the first step.
    """

    model_type = KIND
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    hidden_act: ClassVar[str] = "silu"
    rms_norm_eps: ClassVar[float] = EPSILON
    attention_bias: ClassVar[bool] = False
    attention_dropout: ClassVar[float] = 0.0
    sliding_window: ClassVar[int | None] = None
    rope_parameters: ClassVar[dict[str, Any]] = {"rope_type": "default", "rope_theta": THETA}

    def __init__(
        self,
        *,
        vocab_size: int = 50257,
        hidden_size: int = 768,
        intermediate_size: int | None = None,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_key_value_heads: int | None = None,
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        **more: Any,
    ) -> None:
        shared = max(1, num_attention_heads // 4) if num_key_value_heads is None else num_key_value_heads
        if hidden_size % (2 * num_attention_heads):
            raise ValueError(f"hidden_size {hidden_size} is not an even multiple of the {num_attention_heads} heads")
        if num_attention_heads % shared:
            raise ValueError(f"{num_attention_heads} heads cannot share {shared} key heads evenly")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size or -(-int(8 * hidden_size / 3) // 256) * 256
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = shared
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        none = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        super().__init__(**{"tie_word_embeddings": True, **none, **more})
        self.__dict__.pop("rope_parameters", None)  # transformers makes a setting of it, and there is nothing to set

    @property
    def layer_types(self) -> list[str]:
        """What transformers asks of each layer."""
        return ["full_attention"] * self.num_hidden_layers


@functools.cache
def _turns(heads: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (heads, size // 2) of how far each pair of each head turns."""
    with torch.inference_mode(False):
        pace = 1.0 / THETA ** (torch.arange(0, size, 2, device=device).float() / size)
        angles = torch.arange(heads, device=device).float()[:, None] * pace
        return angles.cos(), angles.sin()


class HeadRMSNorm(nn.Module):  # type: ignore[misc]
    """Norm of each head, then its turn: here the heads still lie on the axis before the last, (..., heads, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, states: Tensor) -> Tensor:
        """Return ``states`` (..., heads, size) normed and turned."""
        normed = rms_norm(states.float(), states.shape[-1:], self.weight.float(), EPSILON)
        cosine, sine = _turns(*states.shape[-2:], states.device)
        even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1)
        return turned.flatten(-2).to(states.dtype)


class BlendedMLP(Qwen3MLP):  # type: ignore[misc]
    """Feed-forward with two gates on one input: down((alpha silu(gate x) + (1 - alpha) silu(expand x)) * up x)."""

    def __init__(self, config: HeadwiseConfig) -> None:
        super().__init__(config)
        self.expand_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=False)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer adds to its input, (..., width)."""
        gate = torch.lerp(silu(self.expand_proj(x)), silu(self.gate_proj(x)), self.alpha.to(x.dtype))
        down: Tensor = self.down_proj(gate * self.up_proj(x))
        return down


class Still(nn.Module):  # type: ignore[misc]
    """In place of rotary positions: a turn by nothing, (1, 1, head size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of angle 0."""
        return x.new_ones(1, 1, self.size), x.new_zeros(1, 1, self.size)


class HeadwisePreTrainedModel(Qwen3PreTrainedModel):  # type: ignore[misc]
    """What the models below share: their configuration and how their weights start."""

    config_class = HeadwiseConfig

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlendedMLP):
            initialization.constant_(module.alpha, 0.5)


class HeadwiseModel(HeadwisePreTrainedModel, Qwen3Model):  # type: ignore[misc]
    """The body: Qwen3's, with its own norms of queries and keys, feed-forward layers and no positions."""

    def __init__(self, config: HeadwiseConfig) -> None:
        super().__init__(config)
        size = config.hidden_size // config.num_attention_heads
        self.rotary_emb = Still(size)
        for layer in self.layers:
            layer.self_attn.q_norm, layer.self_attn.k_norm = HeadRMSNorm(size), HeadRMSNorm(size)
            layer.mlp = BlendedMLP(config)
        self.post_init()


class HeadwiseForCausalLM(HeadwisePreTrainedModel, Qwen3ForCausalLM):  # type: ignore[misc]
    """The language model; its head is the embedding."""

    def __init__(self, config: HeadwiseConfig) -> None:
        Qwen3PreTrainedModel.__init__(self, config)  # Qwen3's own would first build a body to throw away
        self.model = HeadwiseModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class HeadwiseForSequenceClassification(GenericForSequenceClassification, HeadwisePreTrainedModel):  # type: ignore[misc]
    """A reward model on the body; its head is ``score``."""


def register() -> None:
    """Let transformers' Auto classes know the architecture, so that its folders load as any other."""
    AutoConfig.register(KIND, HeadwiseConfig, exist_ok=True)
    AutoModel.register(HeadwiseConfig, HeadwiseModel, exist_ok=True)
    AutoModelForCausalLM.register(HeadwiseConfig, HeadwiseForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(HeadwiseConfig, HeadwiseForSequenceClassification, exist_ok=True)


def to_qwen3(model: PreTrainedModel) -> PreTrainedModel:
    """Return ``model`` written as a Qwen3 without positions: other weights, the same function up to rounding.

    Anybody can load the result with transformers alone. It has twice the head size, as many key heads as query heads
    and twice the feed-forward width, so it is for handing on, not for training.

    A turned product is u . R(a) v = cos(a) u . v - sin(a) Ju . v, where J turns each pair by 90 degrees and a is the
    key head's angle less the query head's. So a query is [u; Ju], which holds no angle, and a key, copied for each
    query head, [cos(a) v; -sin(a) v]; its doubled length keeps the mean square that the norms divide by.

    Args:
        model: a language model or a reward model of this architecture, which stays as it is.

    Raises:
        InputError: ``model`` is of another architecture, or has an adapter.
    """
    if getattr(model.config, "model_type", None) != KIND or isinstance(model, HeadwiseModel):
        raise InputError(f"{type(model).__name__} is not a model with turned heads, so there is nothing to rewrite.")
    if has_adapter(model):
        raise InputError("A model with an adapter cannot be rewritten as a Qwen3; merge the adapter first.")
    own = model.state_dict()
    rewritten = {name: value for name, value in own.items() if ".layers." not in name}
    for number in range(model.config.num_hidden_layers):
        start = f"model.layers.{number}."
        layer = {name.removeprefix(start): value for name, value in own.items() if name.startswith(start)}
        attention = _plain_attention(layer, model.config.num_attention_heads)
        changed = {**layer, **attention, **_plain_mlp(layer)}
        rewritten |= {start + n: v for n, v in changed.items() if "expand_proj" not in n and "alpha" not in n}
    kind = Qwen3ForSequenceClassification if hasattr(model, "score") else Qwen3ForCausalLM
    with torch.random.fork_rng(devices=[]):
        made = kind(_plain_config(model.config)).to(model.device, model.dtype)
    made.load_state_dict(rewritten)
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = model.generation_config
    return made.train(model.training)


def _plain_config(config: HeadwiseConfig) -> Qwen3Config:
    heads = config.num_attention_heads
    shared = ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "initializer_range"]
    shared += ["pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "id2label", "label2id"]
    return Qwen3Config(
        **{name: getattr(config, name) for name in shared},
        intermediate_size=2 * config.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=2 * (config.hidden_size // heads),
        rms_norm_eps=EPSILON,
        rope_parameters=dict(STILL),
    )


def _plain_attention(layer: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Return the attention weights of a Qwen3 layer without positions, computed in float64."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    query, key, value, out, of_query, of_key = (layer[f"self_attn.{name}.weight"].double() for name in names)
    size = len(of_query)
    shared = len(key) // size
    query, key, value = (some.view(-1, size, some.shape[1]) for some in (query, key, value))
    mine = torch.arange(heads, device=key.device) // (heads // shared)
    away = (mine - torch.arange(heads, device=key.device)).double()[:, None]
    pace = THETA ** (-torch.arange(0, size, 2, device=key.device).double() / size)
    angles = (away * pace).repeat_interleave(2, 1)[:, :, None]
    key, value = key[mine], value[mine]
    out = out.view(-1, heads, size)
    plain = {
        "q_proj": torch.cat((query, _quarter(query)), 1).flatten(0, 1),
        "k_proj": 2**0.5 * torch.cat((angles.cos() * key, -angles.sin() * key), 1).flatten(0, 1),
        "v_proj": torch.cat((value, torch.zeros_like(value)), 1).flatten(0, 1),
        "o_proj": torch.cat((out, torch.zeros_like(out)), 2).flatten(1),
        "q_norm": 2**0.5 * torch.cat((of_query, of_query.view(-1, 2).flip(1).flatten())),
        "k_norm": torch.cat((of_key, of_key)) / 2**0.5,
    }
    dtype = layer["self_attn.q_proj.weight"].dtype
    return {f"self_attn.{name}.weight": weight.to(dtype) for name, weight in plain.items()}


def _quarter(rows: Tensor) -> Tensor:
    """Turn each pair of ``rows`` (heads, size, d) by 90 degrees: (x, y) becomes (-y, x)."""
    even, odd = rows.unflatten(1, (-1, 2)).unbind(2)
    return torch.stack((-odd, even), 2).flatten(1, 2)


def _plain_mlp(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a gated feed-forward of twice the width: alpha and 1 - alpha go into its rows of ``up``."""
    gate, expand, up, down = (layer[f"mlp.{name}_proj.weight"] for name in ("gate", "expand", "up", "down"))
    alpha = layer["mlp.alpha"]
    return {
        "mlp.gate_proj.weight": torch.cat((gate, expand)),
        "mlp.up_proj.weight": torch.cat((alpha * up, (1 - alpha) * up)),
        "mlp.down_proj.weight": torch.cat((down, down), 1),
    }
