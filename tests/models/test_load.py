"""Models and tokenizers come in ready to be trained, the same every time, and without noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from tests.models.tiny import RUNS, TEXTS, causal, tokenizer
from tiebreak.models.load import (
    build_causal,
    context_of,
    has_reward_head,
    load_causal,
    load_reward,
    load_tokenizer,
    save_model,
    to_reward,
    train_tokenizer,
)
from tiebreak.records import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loaded = causal("llama")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_with_the_same_weights(folder: Path) -> None:
    first, again = causal("llama").model.state_dict(), load_causal(folder).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not list(folder.parent.glob(".*"))


def test_saving_again_replaces_the_folder(folder: Path) -> None:
    other = causal("llama", seed=1)
    save_model(other.model, other.tokenizer, folder)
    assert torch.equal(load_causal(folder).model.lm_head.weight, other.model.lm_head.weight)


def test_loading_and_saving_say_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    loaded = load_causal(folder)
    reward = to_reward(loaded.model, loaded.tokenizer, seed=0)
    save_model(reward, loaded.tokenizer, folder.with_name("reward"))
    load_reward(folder.with_name("reward"))
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert logging.is_progress_bar_enabled()


def test_a_tokenizer_that_pads_with_eos_gets_a_padding_token_of_its_own(folder: Path) -> None:
    made = load_tokenizer(folder)
    made.pad_token = made.eos_token
    made.save_pretrained(folder)
    again = load_tokenizer(folder)
    assert again.pad_token_id not in (None, again.eos_token_id)


def test_a_new_padding_token_gets_a_mean_row_the_same_every_time(tmp_path: Path) -> None:
    """A random row could take nearly all of the probability: a mean one gets at most 1/V."""
    made = tokenizer()
    loaded = causal("gpt2", vocab_size=len(made))
    with torch.no_grad():
        loaded.model.transformer.ln_f.bias.fill_(3.0)
        loaded.model.transformer.wte.weight.sub_(0.5)  # real logits far below 0, as GPT-2's
    made.add_special_tokens({"pad_token": made.eos_token})
    save_model(loaded.model, made, tmp_path / "model")
    made.pad_token = made.eos_token
    made.save_pretrained(tmp_path / "model")
    made.add_tokens(["never-seen"])
    made.save_pretrained(tmp_path / "model")
    first, again = (load_causal(tmp_path / "model") for _ in range(2))
    assert len(first.tokenizer) == first.model.config.vocab_size == loaded.model.config.vocab_size + 1
    assert torch.equal(first.model.transformer.wte.weight, again.model.transformer.wte.weight)
    with torch.no_grad():
        logits = first.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0]
    assert logits[:, :-1].max() < -5
    assert (logits.softmax(-1)[:, -1] <= 1 / logits.shape[-1]).all()


def test_a_reward_model_and_a_policy_are_not_taken_for_each_other(folder: Path) -> None:
    loaded = load_causal(folder)
    save_model(to_reward(loaded.model, loaded.tokenizer, seed=0), loaded.tokenizer, folder.with_name("reward"))
    assert has_reward_head(folder.with_name("reward"))
    assert not has_reward_head(folder)
    with pytest.raises(InputError, match="no reward head"):
        load_reward(folder)
    with pytest.raises(InputError, match="is a reward model"):
        load_causal(folder.with_name("reward"))


def test_a_classifier_of_two_classes_is_no_reward_model(folder: Path) -> None:
    loaded = load_causal(folder)
    config = type(loaded.model.config).from_dict({**loaded.model.config.to_dict()})
    two = AutoModelForSequenceClassification.from_config(config)
    save_model(two, loaded.tokenizer, folder.with_name("two"))
    with pytest.raises(InputError, match="one label"):
        load_reward(folder.with_name("two"))


def test_what_is_wrong_with_a_folder_is_said_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config"):
        load_causal(tmp_path)
    with pytest.raises(InputError, match="no config"):
        load_causal("./nowhere")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        load_causal(folder)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_dropout_is_off_whatever_the_configuration_says(kind: str, tmp_path: Path) -> None:
    """B8: with dropout on, policy and reference would differ at the first step."""
    on = {"gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}, "llama": {"attention_dropout": 0.5}}
    loaded = causal(kind, **on.get(kind, {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    ids = torch.tensor([[5, 6, 7, 8]])
    for model in (loaded.model, load_causal(tmp_path / "model").model):
        model.train()
        torch.testing.assert_close(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits, atol=1e-6, rtol=0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.to_dict().items() >= on.get(kind, {}).items()


def test_a_key_a_model_does_not_have_is_refused_with_the_nearest_one() -> None:
    """transformers would ignore it and build a model of 7 billion parameters."""
    with pytest.raises(InputError, match=r"'hiden_size'.*'hidden_size'"):
        build_causal({"model_type": "llama", "hiden_size": 32}, tokenizer(), seed=0)
    with pytest.raises(InputError, match=r"'lama'.*Did you mean"):
        build_causal({"model_type": "lama"}, tokenizer(), seed=0)
    with pytest.raises(InputError, match="needs model_type"):
        build_causal({"hidden_size": 32}, tokenizer(), seed=0)


def test_a_model_that_does_not_add_up_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="to build cannot be loaded"):
        build_causal({"model_type": "gpt2", "n_embd": 30, "n_head": 4}, tokenizer(), seed=0)


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = causal("llama"), causal("llama"), causal("llama", seed=1)
    to_reward(first.model, first.tokenizer, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.model.lm_head.weight, again.model.lm_head.weight)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


@pytest.mark.parametrize("kind", RUNS)
def test_a_reward_head_sits_on_a_copy_of_the_body(kind: str) -> None:
    loaded = causal(kind)
    first, again = (to_reward(loaded.model, loaded.tokenizer, seed=3) for _ in range(2))
    assert first.config.num_labels == 1
    assert torch.equal(first.score.weight, again.score.weight)
    assert 0.5 < float(first.score.weight.detach().std()) * 33**0.5 < 1.5
    body = getattr(loaded.model, loaded.model.base_model_prefix).state_dict()
    copied = getattr(first, first.base_model_prefix).state_dict()
    assert all(torch.equal(body[name], copied[name]) for name in body)


def test_the_context_is_what_the_configuration_says() -> None:
    assert context_of(causal("llama").model) == context_of(causal("gpt2").model) == 128


def test_equal_texts_give_equal_tokenizers_with_separate_eos_and_pad() -> None:
    first, again = tokenizer(), tokenizer()
    assert first.get_vocab() == again.get_vocab()
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert first.eos_token_id != first.pad_token_id


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1))
def test_a_trained_tokenizer_has_no_unknown_text(text: str) -> None:
    made = train_tokenizer(TEXTS, vocabulary=300)
    ids = made.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert made.decode(ids, clean_up_tokenization_spaces=False) == text
