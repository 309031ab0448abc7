"""Features of a frozen backbone: the very numbers the head is given, computed once, and heads that go back into it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.models.tiny import ENCODERS, causal, ids, tokenizer, trees
from tiebreak.models.attention import forest_mode
from tiebreak.models.features import (
    FEW,
    Features,
    FeedForward,
    LinearHead,
    Standard,
    features,
    prompt_features,
    put_in,
    weights_mark,
)
from tiebreak.models.forest import Tree, plant
from tiebreak.models.heads import head_of, scores
from tiebreak.models.load import build_encoder, load_reward, save_model, to_reward
from tiebreak.records import InputError

CAUSAL = ("llama", "gpt2", "qwen3", "gemma3_text")
READ = ("bert", "roberta", "modernbert")


def classifier(kind: str, *, seed: int = 0, head: int = 2) -> PreTrainedModel:
    if kind in ENCODERS:
        return build_encoder({"model_type": kind, **ENCODERS[kind]}, tokenizer(), seed=seed).model
    loaded = causal(kind, seed=seed)
    return to_reward(loaded.model, loaded.tokenizer, seed=head)


def computed(model: PreTrainedModel, some: list[Tree]) -> torch.Tensor:
    with torch.no_grad(), forest_mode(model):
        return scores(model, plant(some))


@contextmanager
def counting(model: PreTrainedModel) -> Iterator[list[int]]:
    """Count the tokens that go through the model's body."""
    seen: list[int] = []
    body = getattr(model, model.base_model_prefix)
    hook = body.register_forward_pre_hook(
        lambda module, given, asked: seen.append(asked["input_ids"].numel()), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("kind", [*CAUSAL, *READ])
def test_the_last_layer_on_features_gives_the_scores_of_the_model(kind: str) -> None:
    model, some = classifier(kind), trees()
    found = features(model, some)
    with torch.no_grad():
        again = head_of(model)(found.each)[:, 0]
    assert torch.allclose(again, computed(model, some), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "roberta"])
def test_a_linear_head_put_into_the_model_scores_as_on_features(kind: str, tmp_path: Path) -> None:
    model, some = classifier(kind), trees()
    found = features(model, some)
    head = LinearHead(found.values.shape[1], bias=head_of(model).bias is not None, seed=5)
    head.calibrate(found.values)
    put_in(head, model)
    expected = head(found.each).detach()
    assert torch.allclose(computed(model, some), expected, atol=1e-4)
    save_model(model, tokenizer(), tmp_path / "model")
    assert torch.allclose(computed(load_reward(tmp_path / "model").model, some), expected, atol=1e-4)


def test_equal_completions_of_equal_prompts_are_computed_once() -> None:
    model, draw = classifier("llama"), random.Random(1)
    trunk, other = ids(draw, 6), ids(draw, 6)
    answers = [ids(draw, 4) for _ in range(2 * FEW + 3)]
    asked = [Tree(trunk, (answers[i], answers[j])) for i in range(5) for j in range(5, len(answers))]
    asked += [Tree(other, (answers[0],))]
    features(model, asked[:1])
    with counting(model) as seen:
        found = features(model, asked)
    assert sum(seen) == len(answers) * 4 + 3 * 6 + 6 + 4
    assert found.values.shape == (len(answers) + 1, 32)
    apart = torch.cat([features(model, [tree]).each for tree in asked])
    assert torch.allclose(found.each, apart, atol=1e-5)


def test_the_split_into_forests_does_not_matter() -> None:
    model, some = classifier("gpt2"), trees()
    assert torch.allclose(features(model, some, tokens=1).values, features(model, some).values, atol=1e-5)
    with pytest.raises(InputError, match="0 tokens at once"):
        features(model, some, tokens=0)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_prompts_are_read_alone(kind: str) -> None:
    model = classifier(kind)
    some = trees()
    found = prompt_features(model, some)
    fewer = [tree._replace(branches=tree.branches[:1]) for tree in some]
    assert torch.equal(found.each, prompt_features(model, fewer).each)
    expected = features(model, [Tree(tree.trunk[:-1], (tree.trunk[-1:],)) for tree in some if len(tree.trunk) > 1]).each
    long = [i for i, tree in enumerate(some) if len(tree.trunk) > 1]
    assert torch.allclose(found.each[long], expected, atol=1e-5)


def test_features_come_from_disk_whatever_the_head_and_the_order_of_rows(tmp_path: Path) -> None:
    model, some = classifier("llama"), trees()
    first = features(model, some, cache=tmp_path)
    other = classifier("llama", head=9)
    with counting(other) as seen:
        second = features(other, [tree for tree in reversed(some)], cache=tmp_path)
    assert (first.read, second.read, seen) == (False, True, [])
    assert torch.equal(second.values, first.values)
    assert torch.equal(second.each, features(model, [tree for tree in reversed(some)]).each)


def test_other_weights_or_other_tokens_are_computed_anew(tmp_path: Path) -> None:
    model, some = classifier("llama"), trees()
    features(model, some, cache=tmp_path)
    changed = [some[0]._replace(trunk=(7, *some[0].trunk[1:])), *some[1:]]
    assert not features(model, changed, cache=tmp_path).read
    assert not prompt_features(model, some, cache=tmp_path).read
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 3] += 0.1
    assert not features(model, some, cache=tmp_path).read
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_a_file_that_a_crash_cut_short_is_computed_anew(tmp_path: Path) -> None:
    model, some = classifier("llama"), trees()
    first = features(model, some, cache=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    again = features(model, some, cache=tmp_path)
    assert not again.read
    assert torch.equal(again.values, first.values)
    assert features(model, some, cache=tmp_path).read


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        features(classifier("llama"), trees(), cache=tmp_path / "file")


def test_the_model_is_left_as_it_was() -> None:
    model = classifier("llama").train()
    before = weights_mark(model)
    features(model, trees())
    assert model.training
    assert weights_mark(model) == before


def test_no_trees_are_no_features() -> None:
    found = features(classifier("llama"), [])
    assert isinstance(found, Features)
    assert found.each.shape == (0, 32)


def test_standardised_features_have_mean_0_and_spread_1_and_missing_ones_are_the_mean() -> None:
    values = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, float("nan")], [5.0, 5.0, 4.0]])
    standard = Standard(3)
    standard.fit(values)
    found = standard(values)
    assert found[:, 0].mean() == 0.0
    assert float(found[:, 0].square().mean()) == pytest.approx(1.0)
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert found[1, 2] == 0.0


@pytest.mark.parametrize("bias", [False, True])
def test_a_folded_head_is_the_same_map_on_features_as_they_are(bias: bool) -> None:
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 7 + 3
    head = LinearHead(6, 3, bias=bias, seed=1)
    head.calibrate(values)
    weight, offset = head.folded()
    expected = values @ weight.T + (0.0 if offset is None else offset)
    assert torch.allclose(head(values), expected, atol=1e-4)
    assert (offset is None) != bias


def test_a_head_that_does_not_fit_is_refused() -> None:
    model = classifier("llama")
    with pytest.raises(InputError, match="gives 3 numbers from 32 features and the classifier's last layer 1"):
        put_in(LinearHead(32, 3), model)
    with pytest.raises(InputError, match="without a bias"):
        put_in(LinearHead(32, bias=True), model)


def test_a_network_is_told_which_features_are_missing() -> None:
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    head = FeedForward(4, hidden=(8, 5), masked=True, seed=3)
    head.calibrate(values)
    absent, mean = values.clone(), values.clone()
    absent[:, 2], mean[:, 2] = float("nan"), values[:, 2].mean()
    assert torch.isfinite(head(absent)).all()
    assert not torch.allclose(head(absent), head(mean))
    plain = FeedForward(4, seed=3)
    with pytest.raises(InputError, match="A feature is missing"):
        plain(absent)


def test_a_network_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"There is no activation 'rleu'; .* Did you mean 'relu'"):
        FeedForward(4, activation="rleu")
    with pytest.raises(InputError, match="hidden layers"):
        FeedForward(4, hidden=())
