"""One optimizer step: the same gradient however a batch is split, the model given back as it was, nothing half done."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.tiny import causal
from tests.train.made import examples, start
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.logprobs import padded_logps
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.objectives.switches import Outcome, Seen, objective
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example, Loss
from tiebreak.train.update import Compute

UNCLIPPED = Pace(batch=8, learning_rate=1e-3, warmup=0.0, decay="constant", clip=1e9)
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "bradley_terry": ("bradley_terry", {}),
    "dpo": ("dpo", {"target": "soft"}),
    "dpo with a likelihood term": ("dpo", {"nll": 0.7}),
}
"""Name to the method that starts it and the knobs that differ from its row."""
OBJECTIVE = pytest.mark.parametrize("name", TRAINED)


class Caught:
    """Stands in for the optimizer and keeps the gradient instead of stepping."""

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self.trained = trained
        self.param_groups: list[dict[str, Any]] = [{}]
        self.gradient = torch.zeros(0)

    def step(self) -> None:
        """Copy the gradients, zeros where a weight got none."""
        given = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.trained]
        self.gradient = torch.cat([gradient.flatten().float() for gradient in given]).clone()


class Taken(NamedTuple):
    """What a step logged and the gradient it would have used."""

    numbers: dict[str, float]
    gradient: Tensor


def batch(method: str, count: int = 8, seed: int = 0) -> list[Example]:
    """Rows of all lengths, each with a weight of its own."""
    draw = random.Random(seed)
    return [row._replace(weight=draw.uniform(0.2, 3.0)) for row in examples(method, count, seed)]


def made(
    method: str,
    compute: Compute | None = None,
    *,
    kind: str = "llama",
    pace: Pace = UNCLIPPED,
    model: PreTrainedModel | None = None,
    loss: Loss = objective,
    knobs: Mapping[str, Any] | None = None,
    **more: Any,
) -> Learner:
    whole = {**(OFFLINE[method].knobs if loss is objective else {}), **(knobs or {})}
    return Learner(model or start(method, kind), whole, pace, compute, loss=loss, **more)


def taken(learner: Learner, rows: Sequence[Example], references: Tensor | None = None) -> Taken:
    """Take one step whose update is caught."""
    caught = Caught(learner.trained)
    learner.optimizer = caught
    with learner.ready():
        numbers = learner.step(rows, 0, 10, references).numbers
    return Taken(numbers, caught.gradient)


def another(kind: str = "llama") -> PreTrainedModel:
    """A reference that is not the policy, so that log-ratios differ from 0."""
    return causal(kind, seed=7).model


def caught_from(name: str, rows: Sequence[Example], compute: Compute | None = None, *, kind: str = "llama") -> Taken:
    method, knobs = TRAINED[name]
    reference = another(kind) if method == "dpo" else None
    return taken(made(method, compute, kind=kind, knobs=knobs, reference=reference), rows)


def assert_same(one: Taken, other: Taken, within: float = 1e-6) -> None:
    """Equal up to rounding: rewards and margins are small differences of log-probabilities, and round as these do."""
    largest = max(1.0, *map(abs, other.numbers.values()))
    assert one.numbers == pytest.approx(other.numbers, rel=0, abs=within * largest)
    assert one.numbers["loss"] == pytest.approx(other.numbers["loss"], rel=within, abs=within)
    assert float(other.gradient.norm()) > 1e-2
    assert float((one.gradient - other.gradient).norm()) < within * float(other.gradient.norm())


@OBJECTIVE
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_batch_has_one_gradient_however_it_is_split(name: str, kind: str) -> None:
    rows = batch(TRAINED[name][0])
    whole = caught_from(name, rows, kind=kind)
    sizes = sorted(row.tree.size for row in rows)
    for tokens in (1, sizes[len(rows) // 2], 2 * sizes[-1], sum(sizes)):
        assert_same(caught_from(name, rows, Compute(tokens=tokens), kind=kind), whole)


@OBJECTIVE
def test_an_adapter_has_one_gradient_however_a_batch_is_split(name: str) -> None:
    method, knobs = TRAINED[name]
    rows, found = batch(method), []
    for tokens in (None, 1, 30):
        model = adapt(start(method, "gpt2"), Adapter(rank=4, alpha=8.0), seed=0)
        found.append(taken(made(method, Compute(tokens=tokens), model=model, knobs=knobs), rows))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@OBJECTIVE
def test_the_order_of_the_rows_in_a_batch_plays_no_role(name: str) -> None:
    rows = batch(TRAINED[name][0])
    whole = caught_from(name, rows)
    for seed in (1, 2):
        shuffled = random.Random(seed).sample(rows, len(rows))
        for tokens in (None, 30):
            assert_same(caught_from(name, shuffled, Compute(tokens=tokens)), whole)


def beyond_the_mean(seen: Seen, *, score: str = "log_prob", scale: float = 0.3) -> Outcome:
    """A loss of one's own that couples rows: each margin is measured from the mean margin of the batch."""
    values = seen.scores if score == "head" else seen.logps
    assert values is not None
    if seen.reference is not None:
        values = values - seen.reference
    margins = values[seen.chosen] - values[seen.rejected]
    away = margins - margins.mean()
    return Outcome(
        (scale * away).square().mean() - scale * margins.std().log() * (seen.weight[seen.chosen]).mean(),
        {"spread": margins.std().detach()},
    )


@pytest.mark.parametrize("score", ["log_prob", "log_ratio", "head"])
def test_a_loss_that_couples_rows_has_one_gradient_too(score: str) -> None:
    method = "bradley_terry" if score == "head" else "dpo"
    rows = batch(method)

    def caught(some: Sequence[Example], tokens: int | None) -> Taken:
        reference = another() if score == "log_ratio" else None
        knobs = {"score": score, "scale": 0.3}
        learner = made(method, Compute(tokens=tokens), loss=beyond_the_mean, knobs=knobs, reference=reference)
        return taken(learner, some)

    whole = caught(rows, None)
    for tokens in (1, 25, 60):
        assert_same(caught(rows, tokens), whole, 2e-6)
        assert_same(caught(rows[::-1], tokens), whole, 2e-6)


def test_given_references_stand_for_those_that_a_step_computes_itself() -> None:
    rows, knobs = batch("dpo"), TRAINED["dpo"][1]
    learner = made("dpo", knobs=knobs, reference=another())
    with learner.ready():
        references = learner.reference_logps(rows)
    assert references.shape == (len(rows), 2)
    for tokens in (None, 1):
        alone = made("dpo", Compute(tokens=tokens), knobs=knobs)
        assert_same(taken(alone, rows, references), caught_from("dpo", rows))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@OBJECTIVE
def test_activations_computed_twice_give_the_same_gradient(name: str, kind: str, precision: str) -> None:
    rows = batch(TRAINED[name][0])
    kept = caught_from(name, rows, Compute(precision=precision), kind=kind)
    assert_same(caught_from(name, rows, Compute(precision=precision, checkpointing=True), kind=kind), kept)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["sft", "bradley_terry", "dpo"])
def test_activations_computed_twice_give_an_adapter_the_same_gradient(name: str, kind: str) -> None:
    method, knobs = TRAINED[name]
    found = []
    for checkpointing in (False, True):
        model = adapt(start(method, kind), Adapter(rank=4, alpha=8.0), seed=0)
        found.append(taken(made(method, Compute(checkpointing=checkpointing), model=model, knobs=knobs), batch(method)))
    assert_same(found[1], found[0])


def test_activations_are_computed_twice_where_that_is_asked_for() -> None:
    counts = []
    for checkpointing in (False, True):
        learner = made("sft", Compute(checkpointing=checkpointing))
        seen: list[bool] = []
        with learner.ready():
            learner.values(batch("sft"))
            learner.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(True))
            learner.step(batch("sft"), 0, 1)
        counts.append(len(seen))
    assert counts == [1, 2]


class Computed(NamedTuple):
    """The loss of each row of a batch by itself and the gradient of the batch."""

    losses: Tensor
    gradient: Tensor


def losses_of(learner: Learner, rows: Sequence[Example], values: Tensor, references: Tensor | None) -> Tensor:
    each = values.detach().view(len(rows), -1)
    compared = [None] * len(rows) if references is None else references.split(1)
    return torch.stack([learner.outcome([row], each[i], compared[i]).loss for i, row in enumerate(rows)])


def in_forests(learner: Learner, rows: Sequence[Example], references: Tensor | None) -> Computed:
    with learner.ready():
        losses = losses_of(learner, rows, learner.values(rows), references)
    return Computed(losses, taken(learner, rows, references).gradient)


def padded(learner: Learner, rows: Sequence[Example], references: Tensor | None, *, narrow: bool) -> Computed:
    """Compute the plain way: padded rows, eager attention, torch's own autocast."""
    learner.model.set_attn_implementation("eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        tokens = padded_logps(learner.model, [row.tree for row in rows], pad=1)
    values = torch.stack([part.sum() for part in tokens.split([length for row in rows for length in row.lengths])])
    learner.outcome(rows, values, references).loss.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in learner.trained if weight.grad is not None])
    return Computed(losses_of(learner, rows, values, references), gradient)


@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_bfloat16_is_as_near_to_float32_as_in_the_plain_padded_computation(kind: str, name: str) -> None:
    """The root mean square over rows and seeds, for a single loss may be near by luck."""
    method, knobs = TRAINED[name]
    away: dict[str, list[Tensor]] = {"forest": [], "padded": []}
    for seed in range(12):
        rows, model = batch(method, 16, seed), causal(kind, seed=seed).model
        other = made(method, model=another(kind), knobs=knobs)
        with other.ready():
            references = other.values(rows).view(-1, 2) if method == "dpo" else None

        def learner(precision: str, model: PreTrainedModel = model) -> Learner:
            return made(method, Compute(precision=precision), model=copy.deepcopy(model), knobs=knobs)

        exact = padded(learner("float32"), rows, references, narrow=False)
        wide = in_forests(learner("float32"), rows, references)
        torch.testing.assert_close(wide.losses, exact.losses, atol=1e-5, rtol=1e-5)
        assert float((wide.gradient - exact.gradient).norm()) < 1e-5 * float(exact.gradient.norm())
        for route, found in (
            ("forest", in_forests(learner("bfloat16"), rows, references)),
            ("padded", padded(learner("float32"), rows, references, narrow=True)),
        ):
            gradient = (found.gradient - exact.gradient).norm() / exact.gradient.norm()
            away[route].append(torch.cat([found.losses - exact.losses, gradient[None]]))
    near, far = (torch.stack(away[route]).square().mean(0) for route in ("forest", "padded"))
    for part in (slice(None, -1), slice(-1, None)):  # the losses, and the gradient
        assert 0 < float(near[part].mean().sqrt()) <= 1.2 * float(far[part].mean().sqrt())


def test_bfloat16_weights_learn_and_leave_float32_masters_with_the_optimizer() -> None:
    rows, knobs = batch("dpo"), TRAINED["dpo"][1]
    learner = made("dpo", Compute(precision="bfloat16_weights"), knobs=knobs)
    with learner.ready():
        references = learner.reference_logps(rows)
        losses = [learner.step(rows, number, 12, references).numbers["loss"] for number in range(12)]
    assert losses[-1] < losses[0] - 0.1
    assert {weight.dtype for weight in learner.trained} == {torch.bfloat16}
    masters = [values["master"] for values in learner.optimizer.state_dict()["state"].values()]
    assert {master.dtype for master in masters} == {torch.float32}
    assert sum(master.numel() for master in masters) == sum(weight.numel() for weight in learner.trained)
    narrow = sorted(float(weight.detach().double().sum()) for weight in learner.trained)
    rounded = sorted(float(master.to(torch.bfloat16).double().sum()) for master in masters)
    assert narrow == rounded
    assert any(not torch.equal(master, master.to(torch.bfloat16).float()) for master in masters)


def test_updates_too_small_for_bfloat16_add_up_in_the_masters() -> None:
    rows = batch("sft")
    pace = Pace(batch=8, learning_rate=1e-5, warmup=0.0, decay="constant")
    learner = made("sft", Compute(precision="bfloat16_weights"), pace=pace)
    weight = learner.model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    with learner.ready():
        learner.step(rows, 0, 200)
        after_one = int((weight != before).sum())
        for number in range(1, 60):
            learner.step(rows, number, 200)
    assert after_one < 0.05 * weight.numel()
    assert int((weight != before).sum()) > 4 * max(after_one, 1)
