"""Heads with any number of outputs: made, saved as folders that plain transformers reads, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from tests.models.tiny import ENCODERS, RUNS, causal, tokenizer, trees
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import plant
from tiebreak.models.forms import FILE, SCALAR, Form
from tiebreak.models.heads import head_of, scores
from tiebreak.models.load import (
    Loaded,
    build_encoder,
    form_at,
    has_reward_head,
    load_causal,
    load_encoder,
    load_reward,
    save_model,
    start_reward,
    to_reward,
)
from tiebreak.models.score import score, score_columns
from tiebreak.records import InputError, Prompt, Response

KINDS = ["llama", "gpt2", "opt", "gemma3_text", "bert", "roberta", "modernbert"]
MARKS = Form(kind="attributes", names=("helpful", "right", "verbose"), weights=(0.65, 0.8, -0.4))
SKEW = Form(kind="skew", tau=0.1)
PROMPT = Prompt(text="POST: My cat left home.\n\nTL;DR:")
ANSWERS = [Response(prompt_id=PROMPT.id, text=text) for text in (" A cat left.", " Cats.", " It left and came back.")]


def made(kind: str, form: Form, labels: int) -> Loaded:
    fields = {"model_type": kind, **(ENCODERS[kind] if kind in ENCODERS else {**RUNS[kind]})}
    if kind in RUNS:
        fields["init_std" if kind == "opt" else "initializer_range"] = 0.2
    return start_reward(fields, seed=1, tokenizer=tokenizer(), labels=labels, form=form)


def read(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad(), forest_mode(model):
        return scores(model, plant(trees()))


def plainly(model: PreTrainedModel | Path) -> torch.Tensor:
    """The outputs of sequences by the library alone, one at a time."""
    if isinstance(model, Path):
        model = AutoModelForSequenceClassification.from_pretrained(model)
    model.eval()
    sequences = [tree.trunk + branch for tree in trees() for branch in tree.branches]
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([one])).logits for one in sequences])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("form", "labels"), [(MARKS, 3), (SKEW, 6)], ids=["attributes", "skew"])
def test_a_folder_of_many_outputs_is_read_plainly_to_the_same_numbers(
    kind: str, form: Form, labels: int, tmp_path: Path
) -> None:
    loaded = made(kind, form, labels)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model", form=form)
    ours = read(loaded.model)
    assert ours.shape == (10, labels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(plainly(loaded.model), plainly(tmp_path / "model"), atol=1e-6, rtol=0)
    torch.testing.assert_close(ours, plainly(tmp_path / "model"), atol=1e-5, rtol=0)
    again = load_reward(tmp_path / "model")
    torch.testing.assert_close(read(again.model), ours, atol=1e-6, rtol=0)
    assert again.form == form == loaded.form
    (row,) = score(again, [(PROMPT, ANSWERS)])
    torch.testing.assert_close(row, score(loaded, [(PROMPT, ANSWERS)])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_an_attributes_score_is_the_weighted_sum_of_what_the_folder_gives_by_name(kind: str, tmp_path: Path) -> None:
    loaded = made(kind, MARKS, 3)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model", form=MARKS)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "helpful", "1": "right", "2": "verbose"}
    (row,), (marks,) = score(loaded, [(PROMPT, ANSWERS)]), score_columns(loaded, [(PROMPT, ANSWERS)])
    assert row is not None
    assert marks is not None
    for value, of_one in zip(row, marks, strict=True):
        assert value == pytest.approx(sum(w * m for w, m in zip(MARKS.weights, of_one, strict=True)), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_one_output_has_no_file_and_the_numbers_it_always_had(kind: str, tmp_path: Path) -> None:
    loaded = made(kind, SCALAR, 1)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    assert not (tmp_path / "model" / FILE).exists()
    ours = read(loaded.model)
    assert ours.shape == (10,)
    torch.testing.assert_close(ours, plainly(tmp_path / "model")[:, 0], atol=1e-5, rtol=0)
    again = load_reward(tmp_path / "model")
    assert again.form == SCALAR
    assert (form_at(tmp_path / "model"), has_reward_head(tmp_path / "model")) == (SCALAR, True)
    torch.testing.assert_close(read(again.model), ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_left_and_right_padding_read_the_same_final_token(kind: str, tmp_path: Path) -> None:
    loaded = made(kind, MARKS, 3)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model", form=MARKS)
    ours = read(loaded.model)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = {"input_ids": [list(tree.trunk + branch) for tree in trees() for branch in tree.branches]}
    for side in ("left", "right"):
        batch = words.pad(rows, padding_side=side, return_tensors="pt")
        places = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            found = model(**batch, position_ids=places).logits
        torch.testing.assert_close(found, ours, atol=1e-5, rtol=0)


def test_the_end_of_an_answer_is_read_and_not_the_token_before_it() -> None:
    loaded = made("llama", SCALAR, 1)
    ended, cut = (Response(prompt_id=PROMPT.id, text=" Cats.", finish=finish) for finish in ("stop", "length"))
    written = Response(prompt_id=PROMPT.id, text=" Cats.<|endoftext|>", finish="length")
    ((one, other, third),) = score(loaded, [(PROMPT, [ended, cut, written])])
    assert abs(one - other) > 1e-3
    assert one == pytest.approx(third, abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_head_is_drawn_from_the_seed_with_the_spread_of_its_width(kind: str) -> None:
    first, again = (made(kind, SKEW, 8).model for _ in range(2))
    head = head_of(first)
    assert head.weight.shape == (8, 32)
    assert torch.equal(head.weight, head_of(again).weight)
    assert 0.8 < float(head.weight.detach().std()) * 33**0.5 < 1.2
    read(first)
    with forest_mode(first):
        scores(first, plant(trees())).square().sum().backward()
    assert (head.weight.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("start", ["causal", "encoder"])
def test_a_reward_model_of_many_outputs_starts_from_whatever_can_carry_a_head(start: str, tmp_path: Path) -> None:
    if start == "causal":
        loaded = causal("llama")
        save_model(loaded.model, loaded.tokenizer, tmp_path / "start")
    else:
        bare = build_encoder({"model_type": "bert", **ENCODERS["bert"]}, tokenizer(), seed=0).model
        save_model(AutoModel.from_config(bare.config), tokenizer(), tmp_path / "start")
    begun = start_reward(tmp_path / "start", seed=3, labels=3, form=MARKS)
    assert begun.model.config.num_labels == 3
    assert begun.form == MARKS
    save_model(begun.model, begun.tokenizer, tmp_path / "reward", form=MARKS)
    on = start_reward(tmp_path / "reward", seed=4, labels=3, form=MARKS)
    assert torch.equal(head_of(on.model).weight, head_of(begun.model).weight), "a head that is there stays"
    other = Form(kind="attributes", names=("a", "b", "c"), weights=(1, 1, 1))
    assert start_reward(tmp_path / "reward", seed=4, labels=3, form=other).form == other
    assert start_reward(tmp_path / "reward", seed=4, labels=3).form == MARKS
    with pytest.raises(InputError, match="has a head with 3 outputs, and 1 is asked for; start from the model"):
        start_reward(tmp_path / "reward", seed=4)
    with pytest.raises(InputError, match=r"with 3 outputs, and 6 are asked for; .* set outputs to 3"):
        start_reward(tmp_path / "reward", seed=4, labels=6, form=SKEW)


def test_a_form_that_does_not_fit_the_outputs_asked_for_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="The head to train has 5 outputs, and a head of the kind attributes has 3"):
        start_reward("./nowhere", seed=0, labels=5, form=MARKS)


def test_a_reward_model_of_one_output_cannot_grow_more(tmp_path: Path) -> None:
    for kind in ("llama", "bert"):
        loaded = made(kind, SCALAR, 1)
        save_model(loaded.model, loaded.tokenizer, tmp_path / kind)
        with pytest.raises(InputError, match="has a head with 1 output, and 4 are asked for"):
            start_reward(tmp_path / kind, seed=0, labels=4, form=SKEW)
        assert start_reward(tmp_path / kind, seed=0, form=Form(kind="pairwise")).form.kind == "pairwise"
    with pytest.raises(InputError, match="has a head with 1 output"):
        load_encoder(tmp_path / "bert", seed=0, labels=4, form=SKEW)


def test_a_classifier_of_classes_is_no_reward_model_and_only_an_encoders_head_is_drawn_anew(tmp_path: Path) -> None:
    for kind in ("llama", "bert"):
        loaded = made(kind, SKEW, 2)
        save_model(loaded.model, loaded.tokenizer, tmp_path / kind)
        assert form_at(tmp_path / kind) is None
        with pytest.raises(InputError, match=r"has no reward head .* nor a classifier with head\.json"):
            load_reward(tmp_path / kind)
    with pytest.raises(InputError, match="has a head with 2 outputs, and 1 is asked for"):
        start_reward(tmp_path / "llama", seed=0)
    assert start_reward(tmp_path / "bert", seed=0).model.config.num_labels == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "scaler"}', "head.json has the kind 'scaler'"),
        ('{"kind": "skew", "tau": 1.0}', "has 3 outputs, and a head of the kind skew has an even number"),
        ('{"kind": "steps", "aggregate": "min", "separator": "\\n"}', "has 3 outputs, and a head of the kind steps"),
        ("{", "head.json cannot be read"),
    ],
)
def test_a_head_file_that_does_not_fit_is_refused_wherever_the_folder_is_opened(
    text: str, words: str, tmp_path: Path
) -> None:
    loaded = made("llama", MARKS, 3)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model", form=MARKS)
    (tmp_path / "model" / FILE).write_text(text)
    for opened in (load_reward, form_at, load_causal):
        with pytest.raises(InputError, match=words):
            opened(tmp_path / "model")


def test_a_policy_with_a_file_of_that_name_is_still_a_policy(tmp_path: Path) -> None:
    loaded = causal("llama")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    (tmp_path / "model" / FILE).write_text('{"kind": "skew", "tau": 1.0}')
    assert form_at(tmp_path / "model") is None
    assert load_causal(tmp_path / "model").form == SCALAR


def test_saving_replaces_the_folder_form_and_card_and_all(tmp_path: Path) -> None:
    many, one = made("llama", MARKS, 3), causal("llama")
    save_model(many.model, many.tokenizer, tmp_path / "model", form=MARKS, card="# marks\n")
    assert (tmp_path / "model" / "README.md").read_text() == "# marks\n"
    plain = to_reward(one.model, one.tokenizer, seed=0)
    save_model(plain, one.tokenizer, tmp_path / "model")
    assert not [name for name in (FILE, "README.md") if (tmp_path / "model" / name).exists()]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
