"""The architecture computes what its description says, runs as any other here, and is a Qwen3 in other words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, Qwen3ForCausalLM

from tests.models.tiny import causal, tokenizer, trees
from tests.train.made import examples
from tiebreak.models.adapters import Adapter, adapt, adapter_off, merged
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.generate import generate
from tiebreak.models.heads import scores
from tiebreak.models.headwise import HeadwiseConfig, HeadwiseForCausalLM, HeadwiseModel, to_qwen3
from tiebreak.models.load import (
    Loaded,
    build_causal,
    context_of,
    has_reward_head,
    load_causal,
    load_reward,
    save_model,
    to_reward,
)
from tiebreak.models.logprobs import padded_logps, plain_logps, token_logps
from tiebreak.records import InputError
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.presets import OBJECTIVES
from tiebreak.train.objectives.switches import objective
from tiebreak.train.offline import Compute, Pace, fit, settle

SHAPES = [(2, 1, 32), (4, 1, 32), (4, 2, 32), (4, 4, 24), (6, 3, 48)]
"""Heads, key heads, width."""


def made(heads: int = 4, shared: int = 2, width: int = 32, *, seed: int = 0) -> Loaded:
    """A model whose every weight is its own, norms and blends too."""
    config = {
        "model_type": "headwise_gpt",
        "hidden_size": width,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    loaded = build_causal(config, tokenizer(), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "norm" in name or "alpha" in name:
                weight.copy_(0.2 + 1.3 * torch.rand(weight.shape, generator=draw))
    return Loaded(loaded.model.eval(), loaded.tokenizer)


def described(state: Mapping[str, Tensor], ids: Tensor, heads: int, shared: int) -> Tensor:
    """The logits (B, T, V) of ``ids`` (B, T), written out from the description alone."""
    weights = {name.removeprefix("model."): value for name, value in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[name]

    def turn(x: Tensor) -> Tensor:
        """Each pair of neighbours of x (B, T, heads, size) is a complex number; head h turns it by h."""
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        pace = 10000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
        angle = torch.arange(x.shape[-2])[:, None] * pace
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)

    x = weights["embed_tokens.weight"][ids]
    (rows, long), ahead = ids.shape, torch.full((ids.shape[1],) * 2, -math.inf).triu(1)
    for layer in (f"layers.{i}." for i in range(2)):
        h = norm(x, layer + "input_layernorm.weight")
        q, k, v = (
            (h @ weights[f"{layer}self_attn.{n}_proj.weight"].T).view(rows, long, many, -1)
            for n, many in (("q", heads), ("k", shared), ("v", shared))
        )
        q, k = (turn(norm(some, f"{layer}self_attn.{n}_norm.weight")) for n, some in (("q", q), ("k", k)))
        k, v = (some.repeat_interleave(heads // shared, 2) for some in (k, v))
        seen = (torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + ahead).softmax(-1)
        x = x + torch.einsum("bhqk,bkhd->bqhd", seen, v).flatten(2) @ weights[f"{layer}self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm.weight")
        gate, expand, up = (h @ weights[f"{layer}mlp.{n}_proj.weight"].T for n in ("gate", "expand", "up"))
        blend = weights[layer + "mlp.alpha"]
        x = x + (blend * silu(gate) * up + (1 - blend) * silu(expand) * up) @ weights[layer + "mlp.down_proj.weight"].T
    return norm(x, "norm.weight") @ weights["embed_tokens.weight"].T


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def some_ids(rows: int = 3, long: int = 19) -> Tensor:
    return torch.randint(2, 250, (rows, long), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("heads", "shared", "width"), SHAPES)
def test_logits_are_those_of_the_description_and_of_the_rewritten_qwen3(heads: int, shared: int, width: int) -> None:
    model, ids = made(heads, shared, width, seed=heads).model, some_ids()
    expected = described(model.state_dict(), ids, heads, shared)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits(model, ids), expected, atol=2e-5, rtol=0)
    plain = to_qwen3(model)
    assert type(plain) is Qwen3ForCausalLM
    torch.testing.assert_close(logits(plain, ids), expected, atol=2e-5, rtol=0)


def test_a_turn_by_the_heads_number_is_not_no_turn_and_not_a_turn_by_the_place() -> None:
    """Head 0 of queries and keys stays as it is, and the others differ."""
    model, ids = made(4, 4).model, some_ids()
    norm = model.model.layers[0].self_attn.q_norm
    states = torch.randn(1, 5, 4, 8)
    turned, alone = norm(states), norm(states[:, :, :1])
    assert torch.equal(turned[:, :, :1], alone)
    assert not torch.allclose(norm(states[:, :, :1].expand(1, 5, 4, 8))[:, :, 1], alone[:, :, 0])
    again = model(input_ids=ids, position_ids=torch.zeros_like(ids) + 77).logits.detach()
    assert torch.equal(again, logits(model, ids))


def test_the_rewritten_model_is_read_by_transformers_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded, ids = made(), some_ids()
    capfd.readouterr()
    save_model(to_qwen3(loaded.model), loaded.tokenizer, tmp_path / "plain")
    again = load_causal(tmp_path / "plain")
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")) is Qwen3ForCausalLM
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    torch.testing.assert_close(logits(again.model, ids), logits(loaded.model, ids), atol=2e-5, rtol=0)
    assert context_of(again.model) == context_of(loaded.model) == 128
    long = some_ids(1, 128)
    torch.testing.assert_close(logits(again.model, long), logits(loaded.model, long), atol=2e-5, rtol=0)


def test_what_cannot_be_rewritten_is_refused() -> None:
    with pytest.raises(InputError, match="LlamaForCausalLM is not a model with turned heads"):
        to_qwen3(causal("llama").model)
    with pytest.raises(InputError, match="merge the adapter first"):
        to_qwen3(adapt(made().model, Adapter(rank=2), seed=0))


def test_a_saved_folder_loads_as_any_other(tmp_path: Path) -> None:
    loaded, ids = made(), some_ids()
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    again = load_causal(tmp_path / "model").model
    assert type(again) is HeadwiseForCausalLM
    assert type(again.model) is HeadwiseModel
    assert again.lm_head.weight is again.model.embed_tokens.weight
    first, second = loaded.model.state_dict(), again.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(logits(again, ids), logits(loaded.model, ids))
    assert "rope" not in (tmp_path / "model" / "config.json").read_text()


def test_sizes_that_are_not_given_are_the_published_ones() -> None:
    config = HeadwiseConfig()
    assert (config.num_key_value_heads, config.intermediate_size, config.tie_word_embeddings) == (3, 2048, True)
    assert HeadwiseConfig(num_attention_heads=2).num_key_value_heads == 1
    for wrong in ({"hidden_size": 30, "num_attention_heads": 4}, {"num_attention_heads": 4, "num_key_value_heads": 3}):
        with pytest.raises(InputError, match=r"to build cannot be loaded: .*heads"):
            build_causal({"model_type": "headwise_gpt", "num_hidden_layers": 1, **wrong}, tokenizer(), seed=0)
    with pytest.raises(InputError, match=r"no key 'attention_dropout'"):
        build_causal({"model_type": "headwise_gpt", "attention_dropout": 0.1}, tokenizer(), seed=0)


def test_the_forest_gives_the_log_probs_and_gradients_of_padded_rows() -> None:
    found = []
    for route in (padded_logps, token_logps):
        model = made().model
        if route is padded_logps:
            values = padded_logps(model, trees(), pad=1)
            (values * torch.linspace(-1, 1, len(values))).sum().backward()
        else:
            with forest_mode(model):
                values = token_logps(model, plant(trees()))
                (values * torch.linspace(-1, 1, len(values))).sum().backward()
                torch.testing.assert_close(plain_logps(model, plant(trees())), values, atol=1e-5, rtol=0)
        found.append((values.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    torch.testing.assert_close(found[1][0], found[0][0], atol=2e-5, rtol=0)
    assert (found[1][1] - found[0][1]).norm() < 1e-4 * found[0][1].norm()


def test_the_rewritten_model_gives_the_same_log_probs_in_a_forest() -> None:
    model = made().model
    plain = to_qwen3(model)
    with forest_mode(model, plain), torch.no_grad():
        expected, found = (token_logps(one, plant(trees())) for one in (model, plain))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_greedy_samples_are_those_of_a_plain_pass_over_the_whole_text() -> None:
    model, prompts = made().model, [(5, 6, 7), (9,), (11, 12, 13, 14, 15, 16)]
    eos = int(model.config.eos_token_id)
    drawn = generate(
        model, prompts, list("abc"), max_new_tokens=12, temperature=0.0, eos=eos, pad=model.config.pad_token_id
    )
    for prompt, (one,) in zip(prompts, drawn, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and (ids[-1] != eos or len(ids) == len(prompt)):
            ids.append(int(described(model.state_dict(), torch.tensor([ids]), 4, 2)[0, -1].argmax()))
        assert [i for i in ids[len(prompt) :] if i != eos] == list(one.ids)


def test_a_reward_model_scores_and_saves_and_is_rewritten_too(tmp_path: Path) -> None:
    loaded = made()
    reward = to_reward(loaded.model, loaded.tokenizer, seed=3)
    save_model(reward, loaded.tokenizer, tmp_path / "reward")
    save_model(to_qwen3(reward), loaded.tokenizer, tmp_path / "plain")
    rows = [
        scores_of(model)
        for model in (reward, load_reward(tmp_path / "reward").model, load_reward(tmp_path / "plain").model)
    ]
    assert has_reward_head(tmp_path / "reward")
    assert torch.equal(rows[0], rows[1])
    torch.testing.assert_close(rows[2], rows[0], atol=1e-5, rtol=0)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    by_hand = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")(input_ids=ids).logits[0]
    with forest_mode(reward), torch.no_grad():
        torch.testing.assert_close(scores(reward, plant([Tree((5, 6), ((7, 8, 9),))])), by_hand, atol=1e-5, rtol=0)


def scores_of(model: PreTrainedModel) -> Tensor:
    with forest_mode(model), torch.no_grad():
        return scores(model, plant(trees()))


def test_an_adapter_sits_on_every_layer_and_comes_off_again() -> None:
    model, ids = made().model, some_ids()
    before = logits(model, ids)
    adapt(model, Adapter(rank=2), seed=1)
    assert torch.equal(logits(model, ids), before)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(0.05)
    assert sum("expand_proj.lora_A" in name for name, _ in model.named_parameters()) == 2
    moved = logits(model, ids)
    with adapter_off(model):
        assert torch.equal(logits(model, ids), before)
    torch.testing.assert_close(logits(merged(model), ids), moved, atol=2e-5, rtol=0)
    assert not torch.allclose(moved, before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_weight_learns_the_same_with_activations_computed_twice(checkpointing: bool) -> None:
    """One step of SFT moves every weight, the blends among them."""
    model = made().model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = settle(objective, OBJECTIVES["sft"].knobs)
    learner = Learner(model, whole, Pace(learning_rate=0.1), Compute(checkpointing=checkpointing))
    with learner.ready():
        learner.step(examples("sft"), 0, 1, None)
    after = model.state_dict()
    assert [name for name in after if torch.equal(after[name], before[name])] == []
    twin = made().model
    other = Learner(twin, whole, Pace(learning_rate=0.1), Compute(checkpointing=not checkpointing))
    with other.ready():
        other.step(examples("sft"), 0, 1, None)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=0)


def test_the_first_loss_of_dpo_is_ln_2(tmp_path: Path) -> None:
    """B8: policy and reference are one model at the first step, in training mode too; nothing is dropped."""
    model, ids = made().model, some_ids()
    assert torch.equal(logits(model.train(), ids), logits(model.eval(), ids))
    seen: list[Any] = []
    fit(
        model,
        examples("dpo"),
        OBJECTIVES["dpo"].knobs,
        Pace(batch=5, learning_rate=1e-3),
        seed=0,
        folder=tmp_path,
        progress=lambda done, steps, numbers: seen.append(numbers["loss"]),
    )
    assert abs(seen[0] - math.log(2)) < 1e-6
    assert seen[-1] != seen[0]
