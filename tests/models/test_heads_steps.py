"""Scores of steps: read at each step's own token, saved as a token classifier that plain transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, LlamaConfig, LlamaForTokenClassification, PreTrainedModel

from tests.models.tiny import ENCODERS, RUNS, causal, tokenizer, trees
from tiebreak.models.attention import forest_mode
from tiebreak.models.encode import encode_tree
from tiebreak.models.forest import Tree, plant
from tiebreak.models.forms import FILE, Form, with_steps
from tiebreak.models.heads import as_token_classifier, head_of, loads_plainly, scores, step_scores
from tiebreak.models.load import Loaded, load_causal, load_reward, save_model, start_reward, to_reward
from tiebreak.models.score import score, score_columns, score_each, tree_scores
from tiebreak.records import InputError, Prompt, Response

STEPS = Form(kind="steps", aggregate="product")
BY_TOKEN = ["llama", "gpt2", "gpt_neox", "qwen2", "phi", "gemma2"]
WHOLE_ONLY = ["opt", "gemma3_text"]
"""Architectures that transformers has no token classifier for."""
READ_BOTH_WAYS = ["bert", "roberta", "deberta-v2", "modernbert", "distilbert", "electra"]
PROMPT = Prompt(text="POST: My cat left home.\n\nTL;DR:")
TEXTS = (" A cat left.\nIt came back.\nDone", " Cats.", " It left.\n\nIt was missed")
ANSWERS = [Response(prompt_id=PROMPT.id, text=text) for text in TEXTS]


def made(kind: str, form: Form = STEPS) -> Loaded:
    fields = {"model_type": kind, **(ENCODERS[kind] if kind in ENCODERS else RUNS[kind])}
    if kind in RUNS:
        fields["init_std" if kind == "opt" else "initializer_range"] = 0.2
    return start_reward(fields, seed=1, tokenizer=tokenizer(), form=form)


def marked() -> list[Tree]:
    """Trees in which every other token of a branch, the last among them, ends a step."""
    return [
        tree._replace(
            taught=tuple(tuple((len(branch) - i) % 2 == 1 for i in range(len(branch))) for branch in tree.branches)
        )
        for tree in trees()
    ]


def read(model: PreTrainedModel, some: list[Tree] | None = None) -> torch.Tensor:
    with torch.no_grad(), forest_mode(model):
        return step_scores(model, plant(marked() if some is None else some))


def plainly(folder: Path) -> torch.Tensor:
    """The logits of both labels at each step's end by the library alone, one sequence at a time, (M, 2)."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    found = []
    for tree in marked():
        for branch, taught in zip(tree.branches, tree.taught, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tree.trunk + branch])).logits[0, len(tree.trunk) :]
            found.append(logits[torch.tensor(taught)])
    return torch.cat(found)


def test_learned_tokens_know_their_own_places() -> None:
    forest = plant(marked())
    assert torch.equal(forest.ids[0, forest.learned], forest.targets)
    assert torch.equal(forest.owner[forest.learned], forest.branch)
    apart = torch.tensor([(len(b) - i) % 2 == 1 for t in trees() for b in t.branches for i in range(len(b))])
    assert torch.equal(plant(trees()).learned[apart], forest.learned)
    assert set(forest.last.tolist()) <= set(forest.learned.tolist())


@pytest.mark.parametrize("kind", ["llama", *WHOLE_ONLY])
def test_a_step_is_read_as_an_answer_that_ended_there_would_be(kind: str) -> None:
    model = made(kind).model
    ends = [
        (tree, branch[: i + 1])
        for tree in marked()
        for branch, taught in zip(tree.branches, tree.taught, strict=True)
        for i in range(len(branch))
        if taught[i]
    ]
    with torch.no_grad(), forest_mode(model):
        cut = scores(model, plant([Tree(tree.trunk, (branch,)) for tree, branch in ends]))
    torch.testing.assert_close(read(model), cut, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [*BY_TOKEN, *READ_BOTH_WAYS])
def test_the_folder_is_a_token_classifier_whose_second_probability_is_the_steps(kind: str, tmp_path: Path) -> None:
    loaded = made(kind)
    ours = read(loaded.model)
    assert ours.shape == (len(plant(marked()).learned),)
    assert float(ours.std()) > 0.01
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model", form=STEPS)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForTokenClassification")
    assert config["id2label"] == {"0": "wrong", "1": "right"}
    logits = plainly(tmp_path / "model")
    assert not logits[:, 0].any()
    torch.testing.assert_close(logits[:, 1], ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.softmax(-1)[:, 1], torch.sigmoid(ours), atol=1e-6, rtol=0)
    again = load_reward(tmp_path / "model")
    assert again.form == STEPS
    torch.testing.assert_close(read(again.model), ours, atol=1e-6, rtol=0)
    save_model(again.model, again.tokenizer, tmp_path / "again", form=again.form)
    torch.testing.assert_close(plainly(tmp_path / "again"), logits, atol=1e-6, rtol=0)
    assert loads_plainly(loaded.model, STEPS)


@pytest.mark.parametrize("kind", WHOLE_ONLY)
def test_without_a_token_classifier_the_folder_is_read_by_the_house_alone(kind: str, tmp_path: Path) -> None:
    loaded = made(kind)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model", form=STEPS)
    again = load_reward(tmp_path / "model")
    assert (tmp_path / "model" / FILE).exists()
    assert again.form == STEPS
    torch.testing.assert_close(read(again.model), read(loaded.model), atol=1e-6, rtol=0)
    assert not loads_plainly(loaded.model, STEPS)


def test_saving_shares_the_body_and_leaves_the_model_as_it_was() -> None:
    loaded = made("llama")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    saved = as_token_classifier(loaded.model)
    assert saved.base_model is loaded.model.base_model
    assert not any(parameter.is_meta for parameter in saved.parameters())
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert not head_of(saved).weight[0].any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_published_token_classifier_of_two_labels_needs_only_the_file(bias: bool, tmp_path: Path) -> None:
    """Its first label has a logit of its own; what is read is the difference."""
    fields = {**RUNS["llama"], "initializer_range": 0.2, "vocab_size": len(tokenizer()), "pad_token_id": 1}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForTokenClassification(LlamaConfig(**fields, num_labels=2))
        model.score.weight.normal_(std=0.2)
        model.score.bias.copy_(torch.tensor([0.25, 0.75]) * bias)
    save_model(model, tokenizer(), tmp_path / "model")
    with pytest.raises(InputError, match="has no reward head"):
        load_reward(tmp_path / "model")
    (tmp_path / "model" / FILE).write_text('{"kind": "steps", "aggregate": "min", "separator": "\\n"}')
    logits = plainly(tmp_path / "model")
    loaded = load_reward(tmp_path / "model")
    torch.testing.assert_close(read(loaded.model), logits[:, 1] - logits[:, 0], atol=1e-5, rtol=0)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again", form=loaded.form)
    found = plainly(tmp_path / "again").softmax(-1)
    torch.testing.assert_close(found, logits.softmax(-1), atol=1e-5, rtol=0)


def test_training_goes_on_from_such_a_folder_and_no_other_head_starts_there(tmp_path: Path) -> None:
    loaded = made("llama")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model", form=STEPS)
    on = start_reward(tmp_path / "model", seed=5, form=Form(kind="steps", aggregate="last"))
    assert on.form.aggregate == "last"
    torch.testing.assert_close(read(on.model), read(loaded.model), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="of the kind steps, and 1 of the kind scalar is asked for; start from"):
        start_reward(tmp_path / "model", seed=5, form=Form())
    with pytest.raises(InputError, match="is a reward model"):
        load_causal(tmp_path / "model")
    plain = causal("llama")
    save_model(to_reward(plain.model, plain.tokenizer, seed=0), plain.tokenizer, tmp_path / "scalar")
    with pytest.raises(InputError, match="of the kind scalar, and 1 of the kind steps is asked for"):
        start_reward(tmp_path / "scalar", seed=5, form=STEPS)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_gradient_of_a_step_reaches_body_and_head(kind: str) -> None:
    model = made(kind).model
    with forest_mode(model):
        step_scores(model, plant(marked())).square().sum().backward()
    assert (head_of(model).weight.grad.abs().sum(1) > 0).all()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("aggregate", ["product", "min", "last"])
def test_an_answers_score_is_the_aggregate_of_its_steps(kind: str, aggregate: str) -> None:
    loaded = made(kind, Form(kind="steps", aggregate=aggregate))
    (row,), (steps,) = score(loaded, [(PROMPT, ANSWERS)]), score_columns(loaded, [(PROMPT, ANSWERS)])
    assert steps is not None
    assert [len(of_one) for of_one in steps] == [3, 1, 2]
    make = {"product": torch.prod, "min": torch.min, "last": lambda p: p[-1]}[aggregate]
    expected = [float(make(torch.sigmoid(torch.tensor(of_one, dtype=torch.float64)))) for of_one in steps]
    assert row == pytest.approx(expected, abs=1e-9)
    alone = score_each(loaded, [(PROMPT, answer) for answer in ANSWERS])
    assert alone == pytest.approx(expected, abs=1e-6)
    assert score_each(loaded, [(PROMPT, Response(prompt_id=PROMPT.id, text=" word" * 200))], window=64) == [None]


def test_steps_follow_the_separator() -> None:
    words = Form(kind="steps", separator=" ")
    (steps,) = score_columns(made("llama", words), [(PROMPT, ANSWERS)])
    assert steps is not None
    assert [len(of_one) for of_one in steps] == [5, 1, 4]


def test_trees_without_marks_are_refused_and_not_read_at_every_token() -> None:
    loaded = made("llama")
    tree = encode_tree(loaded.tokenizer, PROMPT, ANSWERS, window=100)[0]
    assert tree is not None
    with pytest.raises(InputError, match="no marks where they end; mark them with with_steps"):
        tree_scores(loaded, [tree])
    (row,) = tree_scores(loaded, [with_steps(loaded.tokenizer, tree, TEXTS, "\n")])
    assert row == pytest.approx(score(loaded, [(PROMPT, ANSWERS)])[0], abs=1e-6)
