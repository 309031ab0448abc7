"""An adapter on disk comes back on its base, and a merged one is a plain model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from tests.models.test_adapters import logps, reward, rewards, trained
from tests.models.tiny import causal, tokenizer, trees
from tiebreak.models import adapter_folder
from tiebreak.models.adapter_folder import load_adapter, save_adapter
from tiebreak.models.adapters import Adapter, adapt, adapter_off, has_adapter, merged
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import plant
from tiebreak.models.load import save_model
from tiebreak.models.logprobs import padded_logps, token_logps
from tiebreak.records import InputError

MODELS = pytest.mark.parametrize("model", ["llama", "gpt2"])
KINDS = pytest.mark.parametrize("kind", ["lora", "dora"])


@pytest.fixture
def base(tmp_path: Path) -> Callable[[str], str]:
    """Save a base and give its folder."""

    def make(name: str) -> str:
        loaded = causal(name)
        save_model(loaded.model, loaded.tokenizer, tmp_path / name)
        return str(tmp_path / name)

    return make


@MODELS
@KINDS
def test_a_saved_adapter_comes_back_on_its_base(
    model: str, kind: str, base: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where, folder = base(model), tmp_path / "adapter"
    loaded = causal(model)
    policy = trained(adapt(loaded.model, Adapter(kind=kind, rank=4), seed=0))
    capfd.readouterr()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_adapter(policy, loaded.tokenizer, folder, base="somewhere else")
    save_adapter(policy, loaded.tokenizer, folder, base=where)
    again = load_adapter(folder)
    assert torch.equal(torch.rand(3), expected)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert not list(tmp_path.glob(".*"))
    assert torch.equal(logps(again.model), logps(policy))
    assert again.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template
    names = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in again.model.named_parameters() if parameter.requires_grad} == names
    with adapter_off(again.model):
        assert torch.equal(logps(again.model), logps(loaded_base := causal(model).model))
    assert not has_adapter(loaded_base)


@MODELS
@pytest.mark.parametrize("head", [True, False])
def test_a_reward_adapter_brings_its_head(model: str, head: bool, base: Callable[[str], str], tmp_path: Path) -> None:
    """Its base is a reward model, or the causal model that it was made from."""
    where = base(model)
    made, tokens = reward(model)
    if head:
        where = str(tmp_path / "reward")
        save_model(made, tokens, Path(where))
    trained(adapt(made, Adapter(), seed=0))
    save_adapter(made, tokens, tmp_path / "adapter", base=where)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name for name in saved if "lora_" not in name} == {"base_model.model.score.weight"}
    again = load_adapter(tmp_path / "adapter").model
    assert torch.equal(rewards(again), rewards(made))


@MODELS
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's own, while it loads
def test_what_is_saved_is_an_adapter_to_peft_and_transformers(
    model: str, base: Callable[[str], str], tmp_path: Path
) -> None:
    from peft import PeftModel

    loaded, where, ids = causal(model), base(model), torch.tensor([[5, 6, 7, 8]])
    policy = trained(adapt(loaded.model, Adapter(), seed=0)).eval()
    save_adapter(policy, loaded.tokenizer, tmp_path / "adapter", base=where)
    plain = AutoModelForCausalLM.from_pretrained(where)
    for other in (
        PeftModel.from_pretrained(plain, tmp_path / "adapter"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"),
    ):
        torch.testing.assert_close(other(input_ids=ids).logits, policy(input_ids=ids).logits, atol=1e-5, rtol=0)


def test_the_configuration_is_the_same_every_time(tmp_path: Path) -> None:
    """PEFT keeps names in a set, whose order changes from one process to the next."""
    loaded = causal("llama")
    save_adapter(adapt(loaded.model, Adapter(), seed=0), loaded.tokenizer, tmp_path / "adapter", base="base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == "base"
    assert (config["task_type"], config["peft_type"], config["r"]) == ("CAUSAL_LM", "LORA", 16)


@MODELS
@KINDS
def test_a_merged_policy_is_a_plain_model(model: str, kind: str, tmp_path: Path) -> None:
    loaded, ids = causal(model), torch.tensor([[5, 6, 7, 8]])
    policy = trained(adapt(loaded.model, Adapter(kind=kind), seed=0)).eval()
    before = policy(input_ids=ids).logits
    names = set(causal(model).model.state_dict())
    assert merged(policy) is policy
    assert not has_adapter(policy)
    assert set(policy.state_dict()) == names
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert not [module for module in policy.modules() if type(module).__module__.startswith("peft")]
    torch.testing.assert_close(policy(input_ids=ids).logits, before, atol=1e-5, rtol=0)
    save_model(policy, loaded.tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain(input_ids=ids).logits, before, atol=1e-5, rtol=0)
    torch.testing.assert_close(logps(policy), padded_logps(policy, trees(), pad=1).detach(), atol=1e-5, rtol=0)


@MODELS
def test_a_merged_reward_model_is_a_plain_model(model: str, tmp_path: Path) -> None:
    made, tokens = reward(model)
    ids = torch.tensor([[5, 6, 7, 8], [9, 5, 6, 7]])
    before = trained(adapt(made, Adapter(), seed=0)).eval()(input_ids=ids).logits
    save_model(merged(made), tokens, tmp_path / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain(input_ids=ids).logits, before, atol=1e-5, rtol=0)
    assert type(made.score) is torch.nn.Linear


def test_an_update_moves_the_adapter_and_never_the_base() -> None:
    policy = adapt(causal("llama").model, Adapter(), seed=0)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        with forest_mode(policy):
            (-token_logps(policy, plant(trees())).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_what_is_wrong_with_an_adapter_folder_is_said_in_a_sentence(base: Callable[[str], str], tmp_path: Path) -> None:
    where, folder = base("llama"), tmp_path / "adapter"
    with pytest.raises(InputError, match="is not an adapter: it has no adapter_config"):
        load_adapter(where)
    loaded = causal("llama")
    policy = adapt(loaded.model, Adapter(), seed=0)
    save_adapter(policy, loaded.tokenizer, folder, base="./nowhere")
    with pytest.raises(
        InputError, match=r"base of the adapter .* pass base \(nowhere is not a model: it has no config"
    ) as refused:
        load_adapter(folder)
    assert "\n" not in str(refused.value)
    assert has_adapter(load_adapter(folder, base=where).model)
    with pytest.raises(InputError, match="cannot sit on GPT2LMHeadModel"):
        load_adapter(folder, base=base("gpt2"))
    small = causal("llama", num_hidden_layers=1)
    save_model(small.model, small.tokenizer, tmp_path / "small")
    with pytest.raises(InputError, match=r"does not fit the base .* and missing in the model"):
        load_adapter(folder, base=str(tmp_path / "small"))
    config = json.loads((folder / "adapter_config.json").read_text())
    for broken, said in (
        ({**config, "peft_type": "IA3"}, "of the kind IA3; expected LORA"),
        ({**config, "bias": "all"}, "changes the weights of its base"),
        ({**config, "init_lora_weights": "pissa"}, "changes the weights of its base"),
        ({**config, "task_type": "NONE"}, "cannot be read: Invalid task type"),
        ({}, "cannot be read"),
        ({**config, "base_model_name_or_path": None}, "does not say which model is its base"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=said):
            load_adapter(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="is not an adapter"):
        load_adapter(folder)


def test_an_adapter_may_come_without_a_tokenizer(base: Callable[[str], str], tmp_path: Path) -> None:
    where, folder = base("llama"), tmp_path / "adapter"
    save_adapter(adapt(causal("llama").model, Adapter(), seed=0), tokenizer(), folder, base=where)
    for path in folder.glob("*token*"):
        path.unlink()
    assert load_adapter(folder).tokenizer.get_vocab() == tokenizer().get_vocab()


def test_a_tokenizer_larger_than_the_base_is_refused(base: Callable[[str], str], tmp_path: Path) -> None:
    made = tokenizer()
    made.add_tokens(["never-seen"])
    save_adapter(adapt(causal("llama").model, Adapter(), seed=0), made, tmp_path / "adapter", base=base("llama"))
    with pytest.raises(InputError, match="has 331 tokens and its base 330"):
        load_adapter(tmp_path / "adapter")


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, folder = causal("llama"), tmp_path / "adapter"
    policy = adapt(loaded.model, Adapter(), seed=0)
    save_adapter(policy, loaded.tokenizer, folder, base="first")

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(adapter_folder, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_adapter(policy, loaded.tokenizer, folder, base="second")
    assert "first" in (folder / "adapter_config.json").read_text()
