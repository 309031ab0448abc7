"""Strength by an ensemble that never judges what it learned: planted flips come out weakest."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from tiebreak.models.features import LinearHead
from tiebreak.records import InputError, Pair
from tiebreak.train.ensemble import (
    Strength,
    fit_ensemble,
    judgments,
    mean_of,
    separation,
    strength,
    with_strength,
)
from tiebreak.train.frozen import FeatureRows, alone_on, pairs_on
from tiebreak.train.heads import fit_linear, scores
from tiebreak.train.objectives.by_feature import PLAIN
from tiebreak.train.pace import Pace

PACE = Pace(epochs=15, batch=128, learning_rate=3e-2)


def flipped(seed: int, *, pairs: int = 1000, width: int = 8) -> tuple[FeatureRows, torch.Tensor]:
    """Pairs that a linear utility decides, of which about a fifth are labelled the wrong way round."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(2 * pairs, width, generator=draw)
    worth = values @ torch.randn(width, generator=draw)
    one, two = torch.arange(pairs), torch.arange(pairs) + pairs
    wrong = torch.rand(pairs, generator=draw) < 0.2
    first = (worth[one] > worth[two]) ^ wrong
    return pairs_on(values, torch.where(first, one, two), torch.where(first, two, one)), wrong


def test_strength_separates_planted_flips() -> None:
    """The weakest fifth holds over 80 % of the flips; areas 0.995 (0.993 to 0.998) and 0.989 (0.984 to 0.994)."""
    for seed in (0, 1):
        rows, wrong = flipped(seed)
        found = strength(rows, PLAIN, PACE, seed=seed, models=5, folds=2)
        weakest = found.mean.argsort()[: len(rows) // 5]
        assert float(wrong[weakest].sum() / wrong.sum()) > 0.8
        area = separation(found.mean, wrong)
        assert area.low > 0.97
        assert area.n == len(rows)


def test_heads_that_judge_what_they_learned_hide_its_errors() -> None:
    """With as many features as pairs a head knows all labels by heart: hardly any flip has a negative strength."""
    rows, wrong = flipped(0, pairs=300, width=200)
    pace = Pace(epochs=40, batch=100, learning_rate=5e-2)
    found = strength(rows, PLAIN, pace, seed=0, models=2, folds=2)
    chosen, rejected = rows.seen.chosen, rows.seen.rejected
    heads = [fit_linear(rows, PLAIN, pace, seed=seed).head for seed in range(2)]
    learned = torch.stack([scores(head, rows)[chosen] - scores(head, rows)[rejected] for head in heads]).mean(0)
    assert float((learned[wrong] < 0).double().mean()) < 0.1
    assert float((found.mean[wrong] < 0).double().mean()) > 0.5


def test_no_head_sees_a_group_that_it_judges() -> None:
    """Each group has a feature of its own, so only a head that learned from the group knows its answers apart."""
    values = torch.zeros(24, 6)
    values[torch.arange(24), torch.arange(24) // 4] = torch.tensor([1.0, -1.0] * 12)
    sides = (range(0, 24, 2), range(1, 24, 2))
    pace = Pace(epochs=8, batch=4, learning_rate=0.3)
    whole = pairs_on(values, *sides, groups=[f"prompt {i // 2}" for i in range(12)])
    found = strength(whole, PLAIN, pace, seed=3, models=2, folds=3)
    assert float(found.gaps.abs().max()) < 2.0
    split = strength(pairs_on(values, *sides), PLAIN, pace, seed=3, models=2, folds=4)
    assert float((split.gaps > 4.0).double().mean()) > 0.7


def test_mean_and_spread_are_those_of_the_differences() -> None:
    sides = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[2.0, 4.0], [1.0, 0.0]]])
    found = Strength(sides)
    assert found.gaps.tolist() == [[1.0, -3.0], [-2.0, 1.0]]
    assert found.mean.tolist() == [-0.5, -1.0]
    assert found.spread.tolist() == pytest.approx([1.5, 2.0])


def test_strength_is_its_seed() -> None:
    rows, _ = flipped(0, pairs=60)
    one, same, other = (
        strength(rows, PLAIN, Pace(epochs=1, batch=32), seed=seed, models=2, folds=2).sides for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def pairs(count: int) -> list[Pair]:
    return [Pair(prompt_id="p", chosen_id=f"a{i}", rejected_id=f"b{i}") for i in range(count)]


def test_strength_is_written_as_margins_and_as_judgments() -> None:
    found = Strength(torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[2.0, 4.0], [1.0, 1.0]]]))
    marked = with_strength(pairs(2), found)
    assert [(pair.margin, pair.spread) for pair in marked] == [(-0.5, 1.5), (-1.5, 1.5)]
    assert [pair.id for pair in marked] == [pair.id for pair in pairs(2)]
    made = judgments(pairs(2), found, name="heads")
    assert [judgment.by for judgment in made] == ["model:heads-0", "model:heads-0", "model:heads-1", "model:heads-1"]
    assert [judgment.fields["scores"] for judgment in made] == [[1.0, 0.0], [0.0, 3.0], [2.0, 4.0], [1.0, 1.0]]
    assert [judgment.verdict for judgment in made] == ["slot", "slot", "slot", "tie"]
    assert made[0].p_better("a0") == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert made[1].winner == 1
    with pytest.raises(InputError, match="3 pairs and the strength of 2"):
        with_strength(pairs(3), found)


def test_separation_counts_pairs_of_pairs() -> None:
    values, wrong = [0.0, 1.0, 1.0, 2.0, 3.0], [True, False, True, False, False]
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product([1.0, 2.0, 3.0], [0.0, 1.0])]
    found = separation(values, wrong)
    assert found.value == pytest.approx(sum(won) / len(won))
    table = np.array(won).reshape(3, 2)
    error = np.sqrt(table.mean(1).var(ddof=1) / 3 + table.mean(0).var(ddof=1) / 2)
    assert found.low == pytest.approx(found.value - 1.959964 * error, abs=1e-5)
    assert found.high == 1.0
    with pytest.raises(InputError, match="two pairs or more of each kind"):
        separation([1.0, 2.0], [False, False])


def test_the_mean_of_linear_heads_is_one() -> None:
    values = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for bias in (False, True):
        heads = [LinearHead(5, 2, bias=bias, seed=seed) for seed in range(4)]
        for head in heads:
            head.calibrate(values)
        expected = torch.stack([head(values) for head in heads]).mean(0)
        assert torch.allclose(mean_of(heads)(values), expected, atol=1e-5)


def test_an_ensemble_reward_says_how_far_its_heads_are_apart() -> None:
    rows, _ = flipped(0, pairs=120)
    found = fit_ensemble(rows.part(range(80)), PLAIN, PACE, seed=0, models=3, held_out=rows.part(range(80, 120)))
    alone = fit_ensemble(rows.part(range(80)), PLAIN, PACE, seed=0, models=1)
    assert found.last["spread"] > 0.0
    assert alone.last["spread"] == 0.0
    assert found.last["eval/loss"] > 0.0
    with pytest.raises(InputError, match="models 1 or more"):
        fit_ensemble(rows, PLAIN, PACE, seed=0, models=0)


def test_what_has_no_strength_is_refused() -> None:
    rows, _ = flipped(0, pairs=10)
    for models, folds in ((0, 2), (2, 1), (2, 11)):
        with pytest.raises(InputError, match="from 2 folds up to as many as there are groups"):
            strength(rows, PLAIN, PACE, seed=0, models=models, folds=folds)
    with pytest.raises(InputError, match="Strength is of pairs"):
        strength(alone_on(rows.values, [0, 1], label=[1.0, 0.0]), PLAIN, PACE, seed=0)
