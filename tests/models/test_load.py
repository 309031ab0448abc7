"""Models and tokenizers come in ready to be trained, the same every time, and without noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tests.models.tiny import ENCODERS, NO_CLASSIFIER, RUNS, SIZES, TEXTS, causal, tokenizer
from tiebreak.models.encode import encode_tree
from tiebreak.models.forest import plant
from tiebreak.models.heads import head_of, scores
from tiebreak.models.load import (
    build_causal,
    build_encoder,
    context_of,
    has_reward_head,
    load_causal,
    load_encoder,
    load_reward,
    load_tokenizer,
    save_model,
    start_reward,
    to_reward,
    train_tokenizer,
)
from tiebreak.records import InputError, Prompt, Response


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


@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind not in NO_CLASSIFIER])
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


@pytest.mark.parametrize("kind", NO_CLASSIFIER)
def test_a_model_without_a_classifier_is_refused_in_a_sentence(kind: str) -> None:
    loaded = causal(kind)
    with pytest.raises(InputError, match=r"A reward head on .*ForCausalLM cannot be loaded"):
        to_reward(loaded.model, loaded.tokenizer, seed=3)


@pytest.mark.parametrize(("kind", "context"), [("bert", 128), ("modernbert", 128), ("roberta", 126), ("mpnet", 126)])
def test_the_context_of_an_encoder_is_what_it_can_read(kind: str, context: int) -> None:
    """RoBERTa counts its positions from behind the padding token, whose id is 1 here."""
    model = build_encoder({"model_type": kind, **ENCODERS[kind]}, tokenizer(), seed=0).model
    assert context_of(model) == context
    row = torch.full((1, context), 5)
    assert model(input_ids=row, attention_mask=torch.ones_like(row)).logits.isfinite().all()


def bert_tokenizer() -> PreTrainedTokenizerBase:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "my", "cat", "left", "home", "."]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def bert_folder(folder: Path, kind: type = AutoModelForMaskedLM, model_type: str = "bert", **more: object) -> Path:
    """A folder as they are published: BERT's own tokenizer, which has [SEP] and no EOS."""
    fields = {**ENCODERS[model_type], "vocab_size": 10, "pad_token_id": 0, **more}
    made = bert_tokenizer()
    save_model(kind.from_config(AutoConfig.for_model(model_type, **fields)), made, folder)
    assert made.eos_token is None
    return folder


def test_an_encoder_reads_cls_prompt_answer_sep(tmp_path: Path) -> None:
    loaded = load_encoder(bert_folder(tmp_path / "bert"), seed=0)
    assert loaded.tokenizer.eos_token == "[SEP]"
    prompt = Prompt(text="my cat")
    answers = [Response(prompt_id=prompt.id, text=text) for text in ("left home.", "left [SEP] [CLS]")]
    tree, cut = encode_tree(loaded.tokenizer, prompt, answers, window=100)
    assert tree is not None
    assert loaded.tokenizer.convert_ids_to_tokens(tree.trunk) == ["[CLS]", "my", "cat"]
    assert loaded.tokenizer.convert_ids_to_tokens(tree.branches[0]) == ["left", "home", ".", "[SEP]"]
    assert {2, 3}.isdisjoint(tree.branches[1][:-1]), "what is written is no control token"
    assert not cut


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "electra"])
def test_an_encoder_without_a_reward_head_gets_one_from_the_seed(kind: type, model_type: str, tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "start", kind, model_type, num_labels=3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (load_encoder(folder, seed=seed).model for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert first.config.num_labels == 1
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(head_of(first).weight, head_of(other).weight)
    assert 0.5 < float(head_of(first).weight.detach().std()) * 33**0.5 < 1.5
    body, copied = kind.from_pretrained(folder).base_model.state_dict(), first.base_model.state_dict()
    assert all(torch.equal(value, copied[name]) for name, value in body.items() if name in copied)
    by_hand = to_reward(kind.from_pretrained(folder), bert_tokenizer(), seed=0).base_model.state_dict()
    assert all(torch.equal(value, by_hand[name]) for name, value in copied.items() if name in body)


def test_loading_an_encoder_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = bert_folder(tmp_path / "start")
    capfd.readouterr()
    level = logging.get_verbosity()
    loaded = load_encoder(folder, seed=0)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "reward")
    load_reward(tmp_path / "reward")
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert logging.get_verbosity() == level


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_saved_encoder_is_read_by_plain_transformers_to_the_same_scores(kind: str, tmp_path: Path) -> None:
    loaded = load_encoder(bert_folder(tmp_path / "start", model_type=kind), seed=0)
    with torch.no_grad():
        head_of(loaded.model).bias.fill_(0.5)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    made = AutoTokenizer.from_pretrained(tmp_path / "reward")
    assert has_reward_head(tmp_path / "reward")
    prompt = Prompt(text="my cat")
    answers = [Response(prompt_id=prompt.id, text=text) for text in ("left home.", "left.")]
    tree = encode_tree(made, prompt, answers, window=100)[0]
    assert tree is not None
    rows = made(["my cat left home.", "my cat left."], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = scores(loaded.model, plant([tree]))
        theirs = plain(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, 0]
        again = scores(load_reward(tmp_path / "reward").model, plant([tree]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours, again, atol=1e-6, rtol=0)


def test_a_head_with_one_label_stays_as_it_is(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "reward", AutoModelForSequenceClassification, num_labels=1)
    expected = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    for loaded in (load_encoder(folder, seed=3), start_reward(folder, seed=3), load_reward(folder)):
        assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
        assert loaded.tokenizer.eos_token == "[SEP]"


def test_an_encoder_whose_body_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "start")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(InputError, match=r"no weights for bert\.encoder\.layer\.2.*pass a whole model"):
        load_encoder(folder, seed=0)


def test_an_encoder_is_no_policy(tmp_path: Path, folder: Path) -> None:
    """transformers would take BERT for one, each word seeing the word to predict."""
    start = bert_folder(tmp_path / "start")
    with pytest.raises(InputError, match=rf"{start} \(bert\) has no words.*expected a causal.*bradley_terry"):
        load_causal(start)
    with pytest.raises(InputError, match=r"to build \(distilbert\) has no words.*bradley_terry"):
        build_causal({"model_type": "distilbert", **ENCODERS["distilbert"]}, tokenizer(), seed=0)
    with pytest.raises(InputError, match=r"to build \(t5\) has no words to give; expected a causal[^.]*\.$"):
        build_causal({"model_type": "t5"}, tokenizer(), seed=0)
    with pytest.raises(InputError, match="is a reward model"):
        load_causal(bert_folder(tmp_path / "reward", AutoModelForSequenceClassification, num_labels=1))
    with pytest.raises(InputError, match=r"\(llama\) is no encoder"):
        load_encoder(folder, seed=0)
    with pytest.raises(InputError, match=r"\(llama\) is no encoder"):
        build_encoder({"model_type": "llama"}, tokenizer(), seed=0)
    assert build_causal(
        {"model_type": "bert", **SIZES, "is_decoder": True}, tokenizer(), seed=0
    ).model.config.is_decoder


def test_a_reward_model_starts_from_whatever_can_carry_a_head(tmp_path: Path, folder: Path) -> None:
    llama = {"model_type": "llama", **RUNS["llama"]}
    bert = {"model_type": "bert", **ENCODERS["bert"]}
    for model, name in ((llama, "Llama"), (bert, "Bert"), (folder, "Llama"), (bert_folder(tmp_path / "bert"), "Bert")):
        first, again = (start_reward(model, seed=2, tokenizer=tokenizer()).model for _ in range(2))
        assert type(first).__name__ == f"{name}ForSequenceClassification"
        assert first.config.num_labels == 1
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    built = build_causal(llama, tokenizer(), seed=2)
    by_hand = to_reward(built.model, built.tokenizer, seed=2).score.weight
    assert torch.equal(start_reward(llama, seed=2, tokenizer=tokenizer()).model.score.weight, by_hand)
    with pytest.raises(InputError, match="needs a tokenizer"):
        start_reward(llama, seed=2)


@pytest.mark.parametrize("kind", ENCODERS)
def test_dropout_is_off_in_an_encoder_too(kind: str) -> None:
    model = build_encoder({"model_type": kind, **ENCODERS[kind]}, tokenizer(), seed=0).model
    row = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model.train()(input_ids=row).logits, model.eval()(input_ids=row).logits)


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
