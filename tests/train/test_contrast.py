"""InfoNCE beside a reward loss: its formula, its ends, and what it adds to a training."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from tiebreak.models.features import FeedForward
from tiebreak.records import InputError
from tiebreak.train.contrast import contrast, fit_contrastive, info_nce
from tiebreak.train.frozen import FeatureRows, alone_on, pairs_on
from tiebreak.train.heads import fit_feed_forward, measure
from tiebreak.train.objectives.by_feature import PLAIN
from tiebreak.train.pace import Pace

FAST = Pace(epochs=4, batch=16, learning_rate=1e-2)
LONG = Pace(epochs=30, batch=16, learning_rate=1e-2)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(count: int = 48, width: int = 6) -> FeatureRows:
    values = torch.randn(2 * count, width, generator=drawn(0))
    better = values[:count, 0] > values[count:, 0]
    one, two = torch.arange(count), torch.arange(count) + count
    return pairs_on(values, torch.where(better, one, two), torch.where(better, two, one))


def test_the_loss_is_the_formula() -> None:
    first, second = (torch.randn(5, 3, generator=drawn(seed), dtype=torch.float64) for seed in (0, 1))
    expected = 0.0
    for i in range(5):
        near = [float(first[i] @ second[j] / first[i].norm() / second[j].norm()) / 0.2 for j in range(5)]
        expected += (math.log(sum(math.exp(value) for value in near)) - near[i]) / 5
    assert float(info_nce(first, second, temperature=0.2)) == pytest.approx(expected, abs=1e-12)


def test_equal_items_cannot_be_told_apart_and_orthogonal_ones_can() -> None:
    same = torch.ones(7, 4)
    assert float(info_nce(same, same)) == pytest.approx(math.log(7))
    assert float(info_nce(torch.eye(7), torch.eye(7))) == pytest.approx(math.log1p(6 * math.exp(-20)), abs=1e-6)
    assert float(info_nce(torch.eye(7)[:1], torch.eye(7)[:1])) == 0.0
    turned = torch.eye(7).roll(1, 0)
    assert float(info_nce(torch.eye(7), turned)) == pytest.approx(20.0, abs=1e-3)


def test_scale_does_not_matter() -> None:
    first, second = (torch.randn(6, 3, generator=drawn(seed)) for seed in (0, 1))
    assert torch.allclose(info_nce(first * 7, second * 0.1), info_nce(first, second), atol=1e-5)


def test_without_weight_it_is_the_plain_network_bit_for_bit() -> None:
    rows = pairs()
    plain = fit_feed_forward(rows, PLAIN, FAST, seed=3, hidden=(8,)).head
    bare = fit_contrastive(rows, PLAIN, FAST, seed=3, hidden=(8,), contrast_weight=0.0).head
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), bare.parameters(), strict=True))


@pytest.mark.parametrize("of", ["responses", "difference"])
def test_views_of_an_answer_come_together_while_rewards_are_learned(of: str) -> None:
    rows = pairs()

    def views(head: FeedForward) -> float:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            batch = rows.take(range(len(rows)))
            return float(contrast(head, batch, of=of, weight=1.0, temperature=0.05, rate=0.1)["contrast"])

    plain, found = (
        fit_contrastive(rows, PLAIN, LONG, seed=3, hidden=(16,), contrast_of=of, contrast_weight=weight)
        for weight in (0.0, 0.3)
    )
    assert views(found.head) < views(plain.head) - 0.1
    assert measure(found.head, rows, PLAIN)["rewards/accuracies"] > 0.9
    assert found.last["contrast"] > 0.0


def test_dropped_features_lie_at_their_mean() -> None:
    rows = pairs()
    head = FeedForward(6, hidden=(4,), seed=0)
    head.calibrate(rows.values)
    batch = rows.take(range(4))
    terms = partial(contrast, head, batch, of="responses", temperature=0.05)
    torch.manual_seed(0)
    one = terms(weight=1.0, rate=0.5)["contrast"]
    torch.manual_seed(0)
    assert torch.allclose(terms(weight=3.0, rate=0.5)["contrast"], 3 * one)


def test_missing_features_stay_missing() -> None:
    rows = pairs()
    holes = rows.values.clone()
    holes[::3, 2] = math.nan
    found = fit_contrastive(pairs_on(holes, range(48), range(48, 96)), PLAIN, FAST, seed=0, hidden=(8,))
    assert found.head.masked
    assert math.isfinite(found.last["contrast"])


def test_what_cannot_be_contrasted_is_refused() -> None:
    rows = pairs()
    with pytest.raises(InputError, match="contrast_of is 'both'; expected responses or difference"):
        fit_contrastive(rows, PLAIN, FAST, seed=0, contrast_of="both")
    with pytest.raises(InputError, match="a share between 0 and 1"):
        fit_contrastive(rows, PLAIN, FAST, seed=0, feature_dropout=1.0)
    single = alone_on(rows.values, range(10), label=[0.0, 1.0] * 5)
    with pytest.raises(InputError, match="between the sides of pairs"):
        fit_contrastive(single, PLAIN | {"link": "cross_entropy"}, FAST, seed=0, contrast_of="difference")
