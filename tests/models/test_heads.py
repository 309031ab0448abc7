"""An encoder's scores are those of its own classifier on each prompt and answer, whatever else is in the batch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    LlamaConfig,
    PreTrainedModel,
)

from tests.models.tiny import ENCODERS, RUNS, SIZES, causal, ids, tokenizer, trees
from tiebreak.models.forest import Tree, plant
from tiebreak.models.heads import head_of, is_encoder, scores, unpacked
from tiebreak.models.load import build_encoder, save_model, to_reward
from tiebreak.records import InputError
from tiebreak.rewards.model import centre_bias
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.offline import Compute, Example, Pace, fit

KNOBS = {name: value for name, value in OFFLINE["bradley_terry"].knobs.items() if name != "outputs"}


def encoder(kind: str, *, seed: int = 0) -> PreTrainedModel:
    return build_encoder({"model_type": kind, **ENCODERS[kind]}, tokenizer(), seed=seed).model


def alone(model: PreTrainedModel, some: list[Tree]) -> torch.Tensor:
    """Scores of sequences by the library alone, one at a time."""
    sequences = [tree.trunk + branch for tree in some for branch in tree.branches]
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([one])).logits[:, 0] for one in sequences])


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_scores_as_it_does_plainly_one_sequence_at_a_time(kind: str) -> None:
    model = encoder(kind)
    with torch.no_grad():
        ours = scores(model, plant(trees()))
    assert ours.shape == (10,)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, alone(model, trees()), atol=1e-5, rtol=0)
    assert float(ours.std()) > 0.01


def test_deberta_with_the_switches_of_version_3_scores_as_it_does_plainly() -> None:
    switches = {
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "max_relative_positions": -1,
    }
    config = AutoConfig.for_model("deberta-v2", **ENCODERS["deberta-v2"], **switches, vocab_size=330, pad_token_id=1)
    model = to_reward(AutoModel.from_config(config), tokenizer(), seed=0)
    with torch.no_grad():
        torch.testing.assert_close(scores(model, plant(trees())), alone(model, trees()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ENCODERS)
def test_scores_depend_neither_on_padding_nor_on_the_batch_nor_on_order(kind: str) -> None:
    model, some = encoder(kind), trees()
    with torch.no_grad():
        whole = scores(model, plant(some))
        single = torch.cat([scores(model, plant([tree])) for tree in some])
        backwards = torch.cat([scores(model, plant([tree])) for tree in some[::-1]])
        beside = scores(model, plant([*some, Tree(ids(random.Random(1), 60), (ids(random.Random(2), 40),))]))
        together = scores(model, plant(some[::-1]))
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, beside[:-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(together, backwards, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_gradient_reaches_body_and_head_and_is_the_plain_one(kind: str) -> None:
    ours, plain, some = encoder(kind), encoder(kind), trees()
    pull = torch.linspace(-1, 1, 10)
    (scores(ours, plant(some)) * pull).sum().backward()
    rows = [torch.tensor([tree.trunk + branch]) for tree in some for branch in tree.branches]
    (torch.cat([plain(input_ids=row).logits[:, 0] for row in rows]) * pull).sum().backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)
    assert head_of(ours).weight.grad is not None
    assert ours.get_input_embeddings().weight.grad.abs().sum() > 0


def test_token_types_are_zeros() -> None:
    model, tree = encoder("bert"), Tree((5, 6, 7), ((8, 9),))
    row = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        said = model(input_ids=row, token_type_ids=torch.zeros_like(row)).logits[:, 0]
        torch.testing.assert_close(scores(model, plant([tree])), said, atol=1e-6, rtol=0)


def test_a_forest_unpacks_into_prompts_with_one_answer_each() -> None:
    rows, mask = unpacked(plant([Tree((1, 2), ((3,), (4, 5))), Tree((6,), ((7, 8, 9, 10),))]), pad=99)
    assert rows.tolist() == [[1, 2, 3, 99, 99], [1, 2, 4, 5, 99], [6, 7, 8, 9, 10]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_an_encoder_is_told_from_a_causal_model_and_from_one_with_a_decoder() -> None:
    assert all(is_encoder(encoder(kind)) for kind in ENCODERS)
    assert not any(is_encoder(causal(kind).model) for kind in RUNS)
    assert is_encoder(BertConfig())
    assert not is_encoder(BertConfig(is_decoder=True))
    assert not is_encoder(BartConfig())
    assert not is_encoder(LlamaConfig())


@pytest.mark.parametrize("kind", ["convbert", "yoso"])
def test_an_encoder_that_reads_padding_is_refused(kind: str) -> None:
    model = build_encoder({"model_type": kind, **SIZES, "initializer_range": 0.2}, tokenizer(), seed=0).model
    with pytest.raises(InputError, match=r"depend on padding.*use another encoder"):
        scores(model, plant(trees()))


def test_an_encoder_that_cannot_be_read_plainly_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="original_full"):
        scores(build_encoder({"model_type": "big_bird", **SIZES}, tokenizer(), seed=0).model, plant(trees()))
    with pytest.raises(InputError, match="cannot score padded rows"):
        scores(build_encoder({"model_type": "xmod", **SIZES}, tokenizer(), seed=0).model, plant(trees()))


def test_the_check_leaves_the_model_as_it_was() -> None:
    model = encoder("bert").train()
    scores(model, plant(trees()))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ENCODERS)
def test_centring_moves_all_scores_by_one_number(kind: str) -> None:
    model, some = encoder(kind), trees()
    with torch.no_grad():
        before = scores(model, plant(some))
        done = centre_bias(model, before, before[:2] - before[2:4])
        after = scores(model, plant(some))
    torch.testing.assert_close(after, before - before.mean(), atol=1e-6, rtol=0)
    assert done.exact
    assert (done.moved, done.typical) == (0.0, 0.0)
    assert done.before == pytest.approx(float(before.mean()), abs=1e-6)
    assert abs(done.after) < 1e-7


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "albert"])
def test_the_layers_of_a_head_that_a_model_has_are_kept_and_the_last_is_drawn(kind: str) -> None:
    """transformers reads a folder so too; with one label already, nothing is drawn."""
    start = encoder(kind)
    config = type(start.config).from_dict({**start.config.to_dict(), "num_labels": 3})
    three = AutoModelForSequenceClassification.from_config(config)
    made, again, other = (to_reward(three, tokenizer(), seed=seed) for seed in (0, 0, 1))
    last = [name for name, value in made.state_dict().items() if value.shape[:1] == (1,) and "classifier" in name]
    assert len(last) == 2
    for name, value in three.state_dict().items():
        assert name in last or torch.equal(value, made.state_dict()[name])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    assert not torch.equal(head_of(made).weight, head_of(other).weight)
    assert 0.5 < float(head_of(made).weight.detach().std()) * 33**0.5 < 1.5
    assert float(head_of(made).bias.detach().abs().max()) == 0.0
    same = to_reward(start, tokenizer(), seed=7).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in start.state_dict().items())


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_reward_head_sits_on_a_copy_of_an_encoders_body(kind: str) -> None:
    config = encoder(kind).config
    for bare in (AutoModel.from_config(config), AutoModelForMaskedLM.from_config(config)):
        made = to_reward(bare, tokenizer(), seed=0)
        body, copied = bare.base_model.state_dict(), made.base_model.state_dict()
        assert made.config.num_labels == 1
        assert all(torch.equal(body[name], copied[name]) for name in copied if name in body)
        assert all("pooler" in name for name in copied.keys() ^ body.keys())
        made_again = to_reward(bare, tokenizer(), seed=0)
        assert all(torch.equal(value, made_again.state_dict()[name]) for name, value in made.state_dict().items())


def pairs(count: int) -> list[Example]:
    """Answers that one word tells apart: 11 is good, 12 is bad."""
    draw = random.Random(0)
    made = []
    for _ in range(count):
        good, bad = (list(ids(draw, draw.randrange(3, 7))) for _ in range(2))
        for answer, mark in ((good, 11), (bad, 12)):
            answer[:] = [13 if token in (11, 12) else token for token in answer]
            answer[draw.randrange(len(answer))] = mark
        made.append(Example(Tree(ids(draw, 5), ((*good, 0), (*bad, 0)))))
    return made


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("compute", [Compute(), Compute(tokens=40, checkpointing=True)])
def test_bradley_terry_on_an_encoder_tells_16_pairs_apart(kind: str, compute: Compute, tmp_path: Path) -> None:
    fields = {**ENCODERS[kind], "initializer_range": 0.05}
    model = build_encoder({"model_type": kind, **fields}, tokenizer(), seed=0).model
    done = fit(
        model,
        pairs(16),
        KNOBS,
        Pace(epochs=20.0, batch=8, learning_rate=3e-3),
        seed=0,
        folder=tmp_path,
        held_out=pairs(16),
        compute=compute,
    )
    assert done.last["eval/rewards/accuracies"] == 1.0
    assert done.last["eval/loss"] < 0.1
    save_model(model, tokenizer(), tmp_path / "model")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    rows = [row.tree for row in pairs(16)]
    said = alone(saved, rows).view(-1, 2)
    with torch.no_grad():
        torch.testing.assert_close(scores(model, plant(rows)).view(-1, 2), said, atol=1e-5, rtol=0)
    assert (said[:, 0] > said[:, 1]).all()


def test_a_batch_split_into_forests_has_the_same_loss_and_gradient(tmp_path: Path) -> None:
    lines = []
    for tokens in (None, 30):
        folder, compute = tmp_path / str(tokens), Compute(tokens=tokens)
        pace = Pace(epochs=1.0, batch=8)
        fit(encoder("bert"), pairs(8), KNOBS, pace, seed=0, folder=folder, compute=compute)
        lines.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]))
    for name in ("loss", "grad_norm"):
        assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-4)


def test_a_model_with_no_last_layer_to_find_is_refused() -> None:
    with pytest.raises(InputError, match="no last layer"):
        head_of(causal("llama").model)
