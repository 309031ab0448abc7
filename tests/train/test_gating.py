"""A gate on planted marks: which of two counts depends on the prompt, and no fixed mixture can say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tiebreak.records import InputError
from tiebreak.train.frozen import FeatureRows, alone_on, pairs_on
from tiebreak.train.gating import fit_gated
from tiebreak.train.heads import fit_linear, measure
from tiebreak.train.objectives.by_feature import PLAIN
from tiebreak.train.pace import Pace

SMALL: dict[str, Any] = {"hidden": (16,), "dropout": 0.0, "gate_temperature": 1.0, "seed": 0}
PACE = Pace(epochs=20, batch=64, learning_rate=1e-2)


def world(seed: int, count: int = 800) -> tuple[FeatureRows, FeatureRows]:
    """Ratings on two attributes, and pairs where the first counts behind some prompts and the second behind others."""
    draw = torch.Generator().manual_seed(seed)
    values, prompts = torch.randn(2 * count, 6, generator=draw), torch.randn(50, 6, generator=draw)
    marks = values @ torch.randn(2, 6, generator=draw).T
    prompt = torch.randint(0, 50, (count,), generator=draw)
    which = (prompts[prompt, 0] > 0).long()
    one, two = torch.arange(count), torch.arange(count) + count
    gap = (marks[one] - marks[two]).gather(1, which[:, None])[:, 0]
    chosen, rejected = torch.where(gap > 0, one, two), torch.where(gap > 0, two, one)
    return alone_on(values, range(400), ratings=marks[:400]), pairs_on(
        values, chosen, rejected, prompts=prompts, prompt=prompt
    )


def test_a_gate_finds_which_mark_counts_behind_which_prompt() -> None:
    rated, pairs = world(1)
    marks = fit_linear(rated, PLAIN | {"link": "squared"}, Pace(epochs=40, learning_rate=3e-2), seed=0, outputs=2).head
    layer = nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(marks.folded()[0])
    learned, held = pairs.part(range(600)), pairs.part(range(600, 800))
    found = fit_gated(learned, PLAIN, PACE, marks=layer, held_out=held, **SMALL)
    fixed = fit_linear(learned, PLAIN, PACE, seed=0).head
    assert found.last["eval/rewards/accuracies"] > 0.9
    assert measure(fixed, held, PLAIN)["rewards/accuracies"] < 0.8
    shares = found.head.shares(pairs.prompts).detach()
    first = pairs.prompts[:, 0] <= 0
    assert float(shares[first, 0].mean()) > 0.8
    assert float(shares[~first, 0].mean()) < 0.2
    assert torch.equal(found.head.weight, layer.weight)


def test_an_unwanted_mark_counts_nothing() -> None:
    _, pairs = world(2)
    layer = nn.Linear(6, 3)
    found = fit_gated(pairs, PLAIN, Pace(epochs=1, batch=64), marks=layer, unwanted=2, **SMALL)
    assert torch.allclose(found.head.marks(pairs.values)[:, 2], torch.zeros(1600), atol=1e-5)
    assert not torch.equal(found.head.weight[:2], layer.weight[:2])


def test_what_a_gate_needs_is_said() -> None:
    _, pairs = world(2)
    with pytest.raises(InputError, match="the rows have no features of theirs"):
        fit_gated(pairs_on(pairs.values, [0], [1]), PLAIN, PACE, marks=nn.Linear(6, 2), **SMALL)
    with pytest.raises(InputError, match="read 5 features and the rows have 6"):
        fit_gated(pairs, PLAIN, PACE, marks=nn.Linear(5, 2), **SMALL)
