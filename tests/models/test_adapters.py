"""An adapted model is the model it was, with its base inside: equal at the start, and to the bit with adapters off."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.models.tiny import causal, trees
from tiebreak.models import adapters
from tiebreak.models.adapter_folder import save_adapter
from tiebreak.models.adapters import Adapter, adapt, adapter_off, has_adapter, merged, quantized_settings
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import plant
from tiebreak.models.generate import generate
from tiebreak.models.heads import scores
from tiebreak.models.load import to_reward
from tiebreak.models.logprobs import padded_logps, token_logps
from tiebreak.records import InputError

MODELS = pytest.mark.parametrize("model", ["llama", "gpt2"])
KINDS = pytest.mark.parametrize("kind", ["lora", "dora"])


def logps(model: PreTrainedModel) -> Tensor:
    with forest_mode(model), torch.no_grad():
        return token_logps(model, plant(trees()))


def rewards(model: PreTrainedModel) -> Tensor:
    with forest_mode(model), torch.no_grad():
        return scores(model, plant(trees()))


def reward(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    loaded = causal(name)
    return to_reward(loaded.model, loaded.tokenizer, seed=1), loaded.tokenizer


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """Move everything that is trained, so that B is not 0 and a head is not what it was."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@MODELS
def test_the_start_is_the_base_to_the_bit(model: str) -> None:
    base = logps(causal(model).model)
    assert torch.equal(logps(adapt(causal(model).model, Adapter(), seed=0)), base)
    dora = logps(adapt(causal(model).model, Adapter(kind="dora"), seed=0))
    torch.testing.assert_close(dora, base, atol=1e-6, rtol=0)


@MODELS
def test_a_reward_model_starts_at_its_scores(model: str) -> None:
    made, _ = reward(model)
    before = rewards(made)
    assert torch.equal(rewards(adapt(made, Adapter(), seed=0)), before)


@MODELS
@KINDS
def test_the_first_loss_is_ln_2_and_its_gradient_reaches_the_adapter_alone(model: str, kind: str) -> None:
    """The adapter off is the reference; switching does not cut the graph of what came before."""
    policy = adapt(causal(model).model, Adapter(kind=kind), seed=0).train()
    forest = plant(trees())
    with forest_mode(policy):
        values = token_logps(policy, forest)
        with adapter_off(policy):
            reference = token_logps(policy, forest)
    assert not reference.requires_grad
    assert torch.equal(values, reference)
    ratio = (values - reference).sum()
    loss = -torch.nn.functional.logsigmoid(ratio)
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-7)
    loss.backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in policy.named_parameters() if "lora_" in name}
    assert any(parameter.grad.abs().max() > 0 for name, parameter in policy.named_parameters() if "lora_B" in name)


@MODELS
@KINDS
def test_a_forest_under_a_trained_adapter_is_the_plain_computation(model: str, kind: str) -> None:
    policy = trained(adapt(causal(model).model, Adapter(kind=kind), seed=0)).eval()
    plain = padded_logps(policy, trees(), pad=1).detach()
    assert (plain - logps(causal(model).model)).abs().max() > 0.1
    torch.testing.assert_close(logps(policy), plain, atol=1e-5, rtol=0)


@MODELS
@KINDS
def test_the_adapter_off_is_the_base_to_the_bit(model: str, kind: str) -> None:
    base = logps(causal(model).model)
    policy = trained(adapt(causal(model).model, Adapter(kind=kind), seed=0))
    on = logps(policy)
    with adapter_off(policy):
        assert torch.equal(logps(policy), base)
    assert torch.equal(logps(policy), on)
    assert not torch.equal(on, base)


@MODELS
def test_a_reward_model_gets_its_old_head_and_then_its_new_one_back(model: str) -> None:
    """Transformers' own switch puts a head off and never on again."""
    made, _ = reward(model)
    before = rewards(made)
    on = rewards(trained(adapt(made, Adapter(), seed=0)))
    with adapter_off(made):
        assert torch.equal(rewards(made), before)
    assert torch.equal(rewards(made), on)
    assert not torch.equal(on, before)


def test_the_adapter_comes_back_whatever_happens() -> None:
    policy = trained(adapt(causal("llama").model, Adapter(kind="dora"), seed=0))
    frozen = next(parameter for name, parameter in policy.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in policy.parameters()]
    on = logps(policy)
    with pytest.raises(ZeroDivisionError), adapter_off(policy):
        logps(policy).sum() / (1 // 0)
    with adapter_off(policy):
        off = logps(policy)
        with adapter_off(policy):
            pass
        assert torch.equal(logps(policy), off)
    assert torch.equal(logps(policy), on)
    assert [parameter.requires_grad for parameter in policy.parameters()] == flags


def test_a_model_without_an_adapter_cannot_be_its_own_reference() -> None:
    loaded = causal("llama")
    assert not has_adapter(loaded.model)
    with pytest.raises(InputError, match="has no adapter"), adapter_off(loaded.model):
        pass
    with pytest.raises(InputError, match="has no adapter"):
        merged(loaded.model)
    with pytest.raises(InputError, match="has no adapter"):
        save_adapter(loaded.model, loaded.tokenizer, Path("unused"), base="base")


@MODELS
@KINDS
def test_only_the_adapter_is_trained_and_the_model_stays_what_it_was(model: str, kind: str) -> None:
    plain, policy = causal(model).model, causal(model).model
    assert adapt(policy, Adapter(kind=kind), seed=0) is policy
    assert has_adapter(policy)
    assert type(policy) is type(plain)
    assert policy.get_output_embeddings() is policy.lm_head
    assert type(policy.lm_head) is torch.nn.Linear
    assert getattr(policy, policy.base_model_prefix).config is policy.config
    names = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    drawn = generate(policy.eval(), [(5, 6, 7)], ["a"], temperature=0, max_new_tokens=4, eos=0, pad=1)
    assert drawn == generate(plain.eval(), [(5, 6, 7)], ["a"], temperature=0, max_new_tokens=4, eos=0, pad=1)


def test_a_reward_models_head_is_trained_too() -> None:
    made, _ = reward("llama")
    adapt(made, Adapter(), seed=0)
    names = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert {name for name in names if "lora_" not in name} == {"score.modules_to_save.default.weight"}
    assert made.score.weight.shape == (1, made.score.in_features)


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    models = [causal("llama").model for _ in range(3)]
    torch.manual_seed(5)
    first, again, other = (
        adapt(model, Adapter(), seed=seed).state_dict() for model, seed in zip(models, (0, 0, 1), strict=True)
    )
    assert torch.equal(torch.rand(3), expected)
    drawn = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in drawn)
    assert all((first[name] == 0).all() for name in first if "lora_B" in name)


@MODELS
@KINDS
def test_an_adapter_is_in_float32_on_any_base(model: str, kind: str) -> None:
    """In bfloat16 an update of a learning rate of 1e-5 would be rounded away."""
    policy = causal(model).model.to(torch.bfloat16).eval()
    base = logps(policy)
    adapt(policy, Adapter(kind=kind), seed=0)
    assert {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad} == {torch.float32}
    if kind == "lora":
        assert torch.equal(logps(policy), base)
    trained(policy)
    with adapter_off(policy):
        assert torch.equal(logps(policy), base)
    assert {parameter.dtype for parameter in merged(policy).parameters()} == {torch.bfloat16}


def test_dropout_of_the_base_stays_off() -> None:
    policy = adapt(causal("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).model, Adapter(), seed=0)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(trained(policy).train()(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)


def test_dropout_of_the_adapter_does_not_move_the_start() -> None:
    policy = adapt(causal("llama").model, Adapter(dropout=0.5), seed=0).train()
    base = logps(causal("llama").model)
    assert torch.equal(logps(policy), base)
    assert not torch.equal(logps(trained(policy)), logps(policy))
    assert torch.equal(logps(policy.eval()), logps(policy))


@MODELS
def test_an_adapter_added_after_a_model_was_tried_runs_forests_too(model: str) -> None:
    """A model is tried once, before its first forest; what is added later computes the same way."""
    policy = causal(model).model.eval()
    logps(policy)
    before = policy.config._attn_implementation
    trained(adapt(policy, Adapter(), seed=0))
    torch.testing.assert_close(logps(policy), padded_logps(policy, trees(), pad=1).detach(), atol=1e-5, rtol=0)
    with pytest.raises(ZeroDivisionError), forest_mode(policy), adapter_off(policy):
        token_logps(policy, plant(trees())).sum() / (1 // 0)
    assert policy.config._attn_implementation == before


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (("q_porj",), r"no layer 'q_porj'; there are q_proj, k_proj.* Did you mean 'q_proj'\?"),
        (("q_proj", "c_attn"), "no layer 'c_attn'"),
        ("q_proj", r"whole name is 'q_proj'.* Did you mean the list \[q_proj\]\?"),
        (".*[", "is not a pattern"),
        (("mlp",), "takes in model.layers.0.mlp .LlamaMLP"),
        (("embed_tokens",), "takes in model.embed_tokens .Embedding"),
    ],
)
def test_a_target_that_is_not_there_is_said_in_a_sentence(targets: Any, said: str) -> None:
    """PEFT passes over a misspelt name where another one fits."""
    loaded = causal("llama")
    with pytest.raises(InputError, match=said) as refused:
        adapt(loaded.model, Adapter(targets=targets), seed=0)
    assert "\n" not in str(refused.value)
    assert not has_adapter(loaded.model)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("targets", [["q_proj", "1.mlp.up_proj", "lm_head"], r".*\.layers\.1\..*_proj"])
def test_targets_are_read_as_peft_reads_them(targets: Any) -> None:
    policy = trained(adapt(causal("llama").model, Adapter(targets=targets), seed=0))
    layers = {name.partition(".lora_")[0] for name, p in policy.named_parameters() if p.requires_grad}
    assert len(layers) == (2 + 2 if isinstance(targets, list) else 7)
    on = logps(policy)
    torch.testing.assert_close(logps(merged(policy)), on, atol=1e-5, rtol=0)


def test_a_layer_that_shares_its_weights_is_refused() -> None:
    """Merged into one it would change the other."""
    with pytest.raises(InputError, match="lm_head shares its weights"):
        adapt(causal("gpt2").model, Adapter(targets=("c_attn", "lm_head")), seed=0)


def test_one_adapter_at_a_time() -> None:
    policy = adapt(causal("llama").model, Adapter(), seed=0)
    with pytest.raises(InputError, match="has an adapter already"):
        adapt(policy, Adapter(), seed=0)
    assert has_adapter(adapt(merged(policy), Adapter(), seed=0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "laro"}, r"'laro'; there are lora, dora, qlora\. Did you mean 'lora'\?"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"targets": ()}, "no targets"),
    ],
)
def test_an_adapter_that_makes_no_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Adapter(**fields)


def test_four_bits_need_a_library_a_gpu_and_a_base_in_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal("llama").model
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    for ask in (quantized_settings, lambda: adapt(model, Adapter(kind="qlora"), seed=0)):
        with pytest.raises(InputError, match="has no bitsandbytes"):
            ask()
    monkeypatch.setattr(adapters, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="has no CUDA device"):
        quantized_settings()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="needs its base in 4 bits"):
        adapt(model, Adapter(kind="qlora"), seed=0)
