"""Forecasts of memory from a configuration: exact where weights are counted, a little above where autograd keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.models.tiny import RUNS, causal
from tests.train.test_memory import SIZES, WORDS, built, kept, learner, rows
from tiebreak.models import logprobs
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.records import InputError
from tiebreak.train import footprint
from tiebreak.train.footprint import Memory, estimate
from tiebreak.train.optimizers import OPTIMIZERS
from tiebreak.train.rows import Example
from tiebreak.train.update import PRECISIONS


def foretold(kind: str, some: Sequence[Example], *, trained: float | None = None, **more: Any) -> int:
    """Return the estimate of what :func:`kept` measures; of the head, the states that are kept for it."""
    predicted = sum(sum(row.lengths) for row in some)
    settings: dict[str, Any] = {"precision": "float32", "checkpointing": False, **more}
    tokens = sum(row.tree.size for row in some)
    found = estimate(
        {"model_type": kind, **SIZES[kind]},
        vocabulary=WORDS,
        tokens=tokens,
        predicted=predicted,
        trained=trained,
        **settings,
    )
    return found.activations + predicted * 64 * footprint.STATES[settings["precision"]][0]


@pytest.mark.parametrize("kind", list(SIZES))
@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_activations_are_at_most_a_quarter_above_what_autograd_keeps(kind: str, precision: str, adapter: bool) -> None:
    some, model, trained = rows(3, 120, 60), built(kind), None
    if adapter:
        adapt(model, Adapter(rank=4), seed=0)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    measured = kept(learner(model, precision=precision), some)
    assert measured <= foretold(kind, some, precision=precision, trained=trained) <= 1.25 * measured


@pytest.mark.parametrize("kind", list(SIZES))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_keeps_a_residual_a_layer_and_one_layer(kind: str, precision: str) -> None:
    some = rows(3, 120, 60)
    residuals = kept(learner(built(kind), precision=precision, checkpointing=True), some)
    layer = kept(learner(built(kind), precision=precision), some) / 6
    whole = foretold(kind, some, precision=precision, checkpointing=True)
    copies = 2 * sum(w.numel() for n, w in built(kind).named_parameters() if w.ndim == 2 and f"{WORDS}" not in n)
    assert residuals + layer <= whole <= 2 * (residuals + layer) + (copies if precision == "bfloat16" else 0)


@pytest.mark.parametrize("kind", list(RUNS))
@pytest.mark.parametrize("predicted", [64, 0])
def test_weights_are_counted_exactly_from_the_configuration(kind: str, predicted: int) -> None:
    loaded = causal(kind)
    body = loaded.model if predicted else getattr(loaded.model, loaded.model.base_model_prefix)
    size = sum(weight.numel() for weight in body.parameters())
    state = torch.get_rng_state()
    for precision, each in (("float32", 4), ("bfloat16", 4), ("bfloat16_weights", 2)):
        for config in ({"model_type": kind, **RUNS[kind]}, loaded.model.config):
            found = estimate(
                config, vocabulary=WORDS, precision=precision, checkpointing=False, tokens=99, predicted=predicted
            )
            assert found.weights == each * size
            assert bool(found.head) == bool(predicted)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", list(SIZES))
def test_without_transformers_the_closed_form_is_close(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> Memory:
        config = {"model_type": kind, **SIZES[kind]}
        return estimate(config, vocabulary=WORDS, precision="bfloat16", checkpointing=False, tokens=720, predicted=360)

    exact = ask()
    monkeypatch.setattr(footprint, "_made", lambda *_, **__: None)
    assert ask() == pytest.approx(exact, rel=0.1)
    assert ask().weights == pytest.approx(exact.weights, rel=0.01)


def test_what_is_trained_and_how_decides_gradients_and_moments() -> None:
    def ask(precision: str = "float32", **more: Any) -> Memory:
        config = {"model_type": "llama", **SIZES["llama"]}
        settings: dict[str, Any] = {"vocabulary": WORDS, "checkpointing": False, "tokens": 500, "predicted": 100}
        return estimate(config, precision=precision, **(settings | more))

    full = ask()
    size = full.weights // 4
    assert (full.gradients, full.optimizer) == (4 * size, 8 * size)
    assert full.total == sum(full[:5])
    assert ask(optimizer="adafactor").optimizer < size / 10
    assert ask(reference_in_step=True).total == full.total + 4 * size
    narrow = ask("bfloat16_weights")
    assert (narrow.weights, narrow.gradients, narrow.optimizer) == (2 * size, 2 * size, 12 * size)
    adapter = ask(trained=1000, reference_in_step=True)
    assert (adapter.weights, adapter.gradients, adapter.optimizer) == (4 * size + 4000, 4000, 8000)
    assert ask("bfloat16_weights", trained=1000).weights == 2 * size + 4000
    idle = ask(tokens=0, predicted=0)
    assert idle.total == idle.weights + 2 * idle.optimizer  # a checkpoint's copy of the moments, gradients being gone
    with pytest.raises(InputError, match=r"no precision 'float31'.*Did you mean 'float32'"):
        ask("float31")


def test_the_constants_are_those_of_the_engine() -> None:
    assert footprint.TILE == logprobs.TILE
    assert set(footprint.STATES) == set(PRECISIONS)
    assert set(footprint.MOMENTS) == {row.name for row in OPTIMIZERS}
