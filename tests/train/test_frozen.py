"""Heads on features: the same objective on the same rows as for whole models, and planted truths that come back."""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.tiny import causal, ids
from tiebreak.models import heads
from tiebreak.models.attention import forest_mode
from tiebreak.models.features import Features, FeedForward, LinearHead, features, put_in
from tiebreak.models.forest import Tree, plant
from tiebreak.models.load import to_reward
from tiebreak.records import InputError
from tiebreak.train.frozen import FeatureRows, Shifted, alone_on, evenly, pairs_on, rows_on
from tiebreak.train.heads import (
    fit_as,
    fit_examples,
    fit_feed_forward,
    fit_head,
    fit_linear,
    importance,
    measure,
    score,
    scores,
)
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.by_feature import PACES, PLAIN, ROWS, settled
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import Kind
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example, see

MARGIN = {**PLAIN, "offset": "margin"}
FAST = Pace(epochs=4, batch=64, learning_rate=3e-2)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tree(draw: random.Random, branches: int) -> Tree:
    return Tree(ids(draw, 5), tuple(ids(draw, draw.randrange(1, 6)) for _ in range(branches)))


def examples(kind: str, count: int = 9) -> list[Example]:
    draw = random.Random(3)
    made: list[Example] = []
    for number in range(count):
        weight, label = draw.uniform(0.5, 2), str(number % 2)
        if kind == "pairs":
            row = Example(tree(draw, 2), draw.uniform(0.5, 1), weight, label, margin=draw.random())
        elif kind == "beside":
            row = Example(tree(draw, 3), 1.0, weight, label, beside=("drawn",))
        elif kind == "list":
            size = draw.randrange(2, 5)
            row = Example(tree(draw, size), 1.0, weight, label, grades=tuple(sorted(draw.sample(range(9), size))[::-1]))
        elif kind == "label":
            row = Example(tree(draw, 1), 1.0, weight, label, grades=(draw.random(),))
        else:
            row = Example(tree(draw, 1), 1.0, weight, label, ratings=(draw.random(), math.nan))
        made.append(row)
    return made


def featured(some: list[Example], kind: Kind) -> FeatureRows:
    count = sum(len(row.tree.branches) for row in some)
    values = torch.arange(count * 4.0).view(count, 4)
    return rows_on(some, Features(values, torch.arange(count)), kind=kind)


def assert_equal(one: Seen, two: Seen) -> None:
    for field in fields(Seen):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
            assert a is not None, field.name
            assert b is not None, field.name
            assert torch.allclose(a.double(), b.double(), equal_nan=True), field.name
        else:
            assert (not a and not b) or {n: v.tolist() for n, v in a.items()} == {n: v.tolist() for n, v in b.items()}


@pytest.mark.parametrize(
    ("shape", "kind"),
    [("pairs", "pairs"), ("beside", "pairs"), ("list", "pairs"), ("list", "list"), ("label", "alone"), ("r", "alone")],
)
def test_a_batch_is_what_an_objective_sees_of_those_examples(shape: str, kind: Kind) -> None:
    some = examples(shape)
    whole = featured(some, kind)
    for rows in ([0, 1, 2], [7, 2, 5], [4], list(range(9))):
        chosen = [some[i] for i in rows]
        batch = whole.take(rows)
        expected = see(chosen, torch.zeros(len(batch.values)), head=True, kind=kind, reference=None)
        assert_equal(batch.seen, Seen(**{**vars(expected), "scores": None}))
        starts = np.cumsum([0, *(len(row.tree.branches) for row in some)])
        assert (batch.values[:, 0] / 4).tolist() == [n for i in rows for n in range(starts[i], starts[i + 1])]
        assert batch.row.tolist() == [i for i in rows for _ in some[i].tree.branches]
        part = whole.part(rows)
        assert_equal(part.take(range(len(rows))).seen, batch.seen)
        assert part.groups == tuple(row.tree.trunk for row in chosen)


def test_a_head_on_features_learns_what_the_whole_model_with_a_frozen_body_would() -> None:
    """One batch: the loss and the gradient of the last layer are those of the trainer of whole models."""
    loaded = causal("llama")
    model = to_reward(loaded.model, loaded.tokenizer, seed=2)
    some = examples("pairs")
    learner = Learner(model, {**MARGIN, "margin_scale": 0.5}, Pace())
    with forest_mode(model):
        values = learner.values(some)
        model.zero_grad()
        outcome, _ = learner._learn_from(some, None)
    rows = rows_on(some, features(model, [row.tree for row in some]), kind="pairs")
    head = LinearHead(32)
    head.layer.weight.data.copy_(model.score.weight.detach())
    assert torch.allclose(scores(head, rows), values, atol=1e-5)
    seen = rows.take(range(len(rows)))
    found = learner.loss(Seen(**{**vars(seen.seen), "scores": score(head, seen)}), **learner.knobs)
    found.loss.backward()
    assert float(found.loss.detach()) == pytest.approx(float(outcome.loss), abs=1e-6)
    assert torch.allclose(head.layer.weight.grad, model.score.weight.grad, atol=1e-6)


def planted(count: int, width: int, seed: int = 0) -> tuple[FeatureRows, torch.Tensor]:
    """Pairs that a linear utility decides by Bradley-Terry, and its weights."""
    draw = drawn(seed)
    values = torch.randn(2 * count, width, generator=draw) * torch.logspace(-1, 2, width)
    weight = torch.randn(width, generator=draw) / torch.logspace(-1, 2, width)
    one, two = torch.arange(count), torch.arange(count) + count
    first = torch.rand(count, generator=draw) < torch.sigmoid((values @ weight)[one] - (values @ weight)[two])
    return pairs_on(values, torch.where(first, one, two), torch.where(first, two, one)), weight


def test_bradley_terry_finds_planted_weights_whatever_the_scale_of_features() -> None:
    rows, weight = planted(4000, 6)
    found = fit_linear(rows, PLAIN, Pace(epochs=16, batch=128, learning_rate=3e-2), seed=1)
    scale = torch.logspace(-1, 2, 6)
    error = (found.head.folded()[0][0] - weight) * scale
    assert float(error.abs().max()) < 0.15


def test_a_fit_is_its_seed_and_leaves_the_generator_alone() -> None:
    rows, _ = planted(200, 4)
    state = torch.random.get_rng_state()
    fits = [fit_feed_forward(rows, PLAIN, FAST, seed=seed, dropout=0.2).head for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    one, same, other = (torch.cat([p.flatten() for p in head.parameters()]) for head in fits)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_regression_heads_recover_planted_attributes_from_partial_ratings() -> None:
    draw = drawn(0)
    values = torch.randn(400, 5, generator=draw)
    truth = torch.randn(3, 5, generator=draw)
    ratings = values @ truth.T + torch.tensor([1.0, 2.0, 3.0])
    ratings[torch.rand(400, 3, generator=draw) < 0.3] = math.nan
    rows = alone_on(values, range(400), ratings=ratings)
    found = fit_linear(
        rows, {**PLAIN, "link": "squared"}, Pace(epochs=60, learning_rate=3e-2), seed=1, outputs=3, bias=True
    )
    weight, bias = found.head.folded()
    assert torch.allclose(weight, truth, atol=0.02)
    assert bias is not None
    assert torch.allclose(bias, torch.tensor([1.0, 2.0, 3.0]), atol=0.02)


def utility(values: torch.Tensor) -> torch.Tensor:
    """A monotone utility of seven features between 0 and 5, the third the strongest by far."""
    bent = torch.stack([values[:, 0], (values[:, 1] + 0.1).log(), values[:, 2] ** 2 / 2, values[:, 3] ** 0.5], 1)
    return bent @ torch.tensor([0.4, 0.3, 1.0, 0.5]) + torch.tanh(values[:, 4:] - 2) @ torch.tensor([0.5, 0.3, 0.1])


def ranks(values: torch.Tensor) -> torch.Tensor:
    return values.argsort().argsort().double()


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_500_pairs_recover_a_monotone_utility_of_seven_features(missing: float) -> None:
    draw = drawn(4)
    values = torch.rand(1400, 7, generator=draw) * 5
    worth = utility(values)
    given = values.masked_fill(torch.rand(1400, 7, generator=draw) < missing, math.nan)
    one, two = torch.arange(700), torch.arange(700, 1400)
    better = worth[one] > worth[two]
    rows = pairs_on(given, torch.where(better, one, two), torch.where(better, two, one))
    found = fit_feed_forward(rows.part(range(500)), PLAIN, Pace(epochs=25, learning_rate=5e-3), seed=2)
    fresh = torch.rand(500, 7, generator=draw) * 5
    with torch.no_grad():
        correlation = torch.corrcoef(torch.stack([ranks(found.head(fresh)), ranks(utility(fresh))]))[0, 1]
    assert float(correlation) > 0.9
    assert found.head.masked == (missing > 0)
    lost = importance(found.head, rows.part(range(500, 700)), PLAIN, seed=0)
    assert max(range(7), key=lambda i: lost["accuracy"][i]) == 2
    assert max(range(7), key=lambda i: lost["loss"][i]) == 2


def test_patience_ends_a_training_that_learns_noise_and_keeps_its_best_weights() -> None:
    draw = drawn(0)
    values = torch.randn(200, 60, generator=draw)
    rows = pairs_on(values, range(100), range(100, 200))
    learned, held = rows.part(range(50)), rows.part(range(50, 100))
    found = fit_linear(
        learned, PLAIN, Pace(epochs=200, batch=10, learning_rate=1e-2), seed=1, held_out=held, patience=3
    )
    assert found.stopped
    assert found.steps == found.best + 3 * 5 < 200 * 5
    assert measure(found.head, held, PLAIN)["loss"] == found.last["eval/loss"]


def test_weight_decay_pulls_on_matrices_only() -> None:
    rows, _ = planted(64, 4)
    still = pairs_on(torch.ones_like(rows.values), range(64), range(64, 128))
    head = FeedForward(4, seed=1)
    with torch.no_grad():
        head.last.bias.fill_(1.0)
    before = head.last.weight.detach().clone()
    fit_head(head, still, PLAIN, Pace(epochs=1, batch=64, learning_rate=0.1, weight_decay=0.5), seed=0)
    assert torch.allclose(head.last.weight, before * 0.95)
    assert head.last.bias.tolist() == [1.0]


def test_users_can_count_the_same_whoever_voted_most() -> None:
    users = ("a", "a", "a", "b")
    weight = evenly(users)
    assert weight.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    assert float(weight.mean()) == pytest.approx(1.0)


def refused(message: str, rows: FeatureRows, knobs: dict[str, Any], head: Any = None, **more: Any) -> None:
    with pytest.raises(InputError, match=message):
        fit_head(head or LinearHead(4), rows, knobs, FAST, seed=0, **more)


def test_what_cannot_be_learned_on_features_is_refused() -> None:
    rows, _ = planted(10, 4)
    refused("score has to be head, not log_ratio", rows, {**PLAIN, "score": "log_ratio"})
    refused("rows have no margin", rows, MARGIN)
    refused("takes rows of the kind pairs", alone_on(rows.values, range(3), label=[1.0, 0.0, 1.0]), PLAIN)
    refused("nothing to train on", rows.part([]), PLAIN)
    refused("patience needs held-out rows", rows, PLAIN, patience=2)
    spoilt = pairs_on(torch.full((2, 4), math.inf), [0], [1])
    refused("loss at step 1 is nan", spoilt, PLAIN)
    with pytest.raises(InputError, match="2 rows and 3 users"):
        pairs_on(rows.values, [0, 1], [2, 3], users=["a", "b", "c"])
    with pytest.raises(InputError, match="names completion 99 of 20"):
        pairs_on(rows.values, [0], [99])
    with pytest.raises(InputError, match="steps cannot be learned"):
        rows_on([Example(Tree((1,), ((2,),)), steps=(1.0,))], Features(torch.ones(1, 2), torch.zeros(1)), kind="alone")


def test_a_head_of_several_outputs_goes_back_into_a_classifier() -> None:
    loaded = causal("llama")
    model = to_reward(loaded.model, loaded.tokenizer, seed=2, labels=3)
    head = LinearHead(32, 3, seed=1)
    put_in(head, model)
    assert torch.equal(model.score.weight, head.layer.weight)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_it_is_and_its_trainer_takes_its_knobs(row: Any) -> None:
    assert row.formula
    assert row.use
    assert "arXiv" in row.paper
    values = torch.randn(12, 4, generator=drawn(1))
    rows = pairs_on(values, range(6), range(6, 12), users=["a", "b"] * 3, prompts=values, prompt=range(6))
    given: dict[str, Any] = {"seed": 1}
    if row.name == "meta_reward":
        given["shifted"] = Shifted(values, torch.arange(12) // 3)
    if row.name == "gated_reward":
        given |= {"marks": torch.nn.Linear(4, 3)}
    pace = {name: value for name, value in PACES[row.name].items() if name != "epochs"}
    found = fit_as(row.load(), rows, settled(row.knobs), Pace(epochs=1, **pace), **given)
    assert math.isfinite(found.last["loss"])


def test_a_row_takes_the_knobs_of_the_functions_it_is_switched_to() -> None:
    (row,) = (row for row in ROWS if row.name == "feature_network")
    whole = row.settle({"target": "smoothed", "smoothing": 0.2, "hidden": [8]}, where="train.reward")
    assert (whole["smoothing"], whole["hidden"]) == (0.2, [8])
    with pytest.raises(InputError, match="no knob 'hiden'"):
        row.settle({"hiden": [8]}, where="train.reward")


def test_examples_are_learned_from_with_the_backbone_as_it_is(tmp_path: Any) -> None:
    loaded = causal("llama")
    model = to_reward(loaded.model, loaded.tokenizer, seed=2)
    before = [parameter.clone() for parameter in model.parameters()]
    some = examples("pairs", 24)
    given: dict[str, Any] = {"seed": 1, "held_out": some[18:], "cache": tmp_path}
    found = fit_examples(model, fit_linear, some[:18], {**MARGIN, "outputs": 1}, FAST, **given)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found.last["eval/loss"] > 0.0
    put_in(found.head, model)
    with forest_mode(model), torch.no_grad():
        values = heads.scores(model, plant([row.tree for row in some]))
    rows = rows_on(some, features(model, [row.tree for row in some], cache=tmp_path), kind="pairs")
    assert torch.allclose(scores(found.head, rows), values, atol=1e-4)
    assert len(list(tmp_path.iterdir())) == 1


def test_examples_of_users_with_prompts_and_shifted_responses_find_their_trainers() -> None:
    loaded = causal("llama")
    model = to_reward(loaded.model, loaded.tokenizer, seed=2)
    some, draw = examples("pairs", 8), random.Random(5)
    rows = {row.name: row for row in ROWS}
    users = ["ann", "bo"] * 4

    def fit(name: str, **more: Any) -> Any:
        return fit_examples(model, rows[name].load(), some[:6], rows[name].knobs, FAST, seed=0, **more).head

    assert fit("pal_b", users=users[:6], prompts=True).users.names == ("ann", "bo")
    assert fit("pal_a", users=users, held_out=some[6:]).kind == "pal_a"
    assert fit("meta_reward", shifted=[tree(draw, 3), tree(draw, 2)]).kind == "linear"
