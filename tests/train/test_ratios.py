"""Ratios, clips and aggregations by hand, and minibatches that are computed in parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tiebreak.train.policy_gradient.switches import (
    AGGREGATIONS,
    CLIPS,
    RATIOS,
    Acted,
    Bounds,
    Totals,
    policy_gradient,
    value_loss,
)

Double = torch.float64
LENGTHS = (3, 1, 0, 2)
BOUNDS = Bounds(low=0.2, high=0.3, most=3.0)
PLAIN = {"ratio": "token", "clip": "none", "aggregation": "token_mean"}


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=Double)


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, dtype=Double, generator=torch.Generator().manual_seed(seed))


def batch(lengths: Sequence[int] = LENGTHS, *, moved: Tensor | None = None, **more: Any) -> Acted:
    """Random tokens whose policy ``moved`` by log-ratios (M,) since they were drawn; on-policy without."""
    count = sum(lengths)
    old = normal(count, 1) - 2
    fields: dict[str, Any] = {
        "logps": (old + (0.0 if moved is None else moved)).requires_grad_(True),
        "old": old,
        "advantages": normal(count, 2),
        "branch": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        "lengths": torch.tensor(lengths),
        "kept": torch.ones(count, dtype=Double),
        "whole": Totals(len(lengths), count, count),
    }
    return Acted(**{**fields, **more})


def slope(value: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, of, retain_graph=True))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_ratios_of_tokens_and_of_completions() -> None:
    seen = batch(moved=real(0.3, -0.1, 0.4, 0.5, 1.0, -2.0), reference=normal(6, 3))
    close(RATIOS["token"](seen), real(0.3, -0.1, 0.4, 0.5, 1.0, -2.0))
    close(RATIOS["sequence_sum"](seen), real(0.6, 0.6, 0.6, 0.5, -1.0, -1.0))
    close(RATIOS["sequence_mean"](seen), real(0.2, 0.2, 0.2, 0.5, -0.5, -0.5))
    assert seen.reference is not None
    far = seen.logps - seen.reference
    close(RATIOS["reference_sum"](seen)[[0, 3, 4]], torch.stack([far[:3].sum(), far[3], far[4:].sum()]))


def test_the_ratio_of_a_completion_is_the_geometric_mean_of_its_tokens() -> None:
    ratios = [1.5, 0.5, 2.0]
    seen = batch((3,), moved=real(*ratios).log())
    assert RATIOS["sequence_mean"](seen).exp().tolist() == pytest.approx([math.prod(ratios) ** (1 / 3)] * 3)
    assert RATIOS["sequence_sum"](seen).exp().tolist() == pytest.approx([math.prod(ratios)] * 3)


@pytest.mark.parametrize("clip", [name for name in CLIPS if name != "square"])
@pytest.mark.parametrize("ratio", ["sequence_mean", "sequence_sum"])
def test_with_one_token_each_every_ratio_is_the_tokens(ratio: str, clip: str) -> None:
    seen = batch((1, 1, 1, 1), moved=real(0.5, -0.5, 0.1, 2.0))
    losses = [policy_gradient(seen, **{**PLAIN, "ratio": r, "clip": clip}).loss for r in ("token", ratio)]
    close(losses[0], losses[1])
    close(slope(losses[0], seen.logps)[0], slope(losses[1], seen.logps)[0])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("clip", ["clip", "dual", "two_sided", "cispo"])
def test_where_the_policy_has_not_moved_nothing_is_cut(clip: str, ratio: str, aggregation: str) -> None:
    """Equal to the plain ratio in value and gradient; cispo in gradient of a token, its value being A log pi."""
    seen = batch()
    found, plain = (
        policy_gradient(seen, ratio=ratio, clip=name, aggregation=aggregation, bounds=BOUNDS).loss
        for name in (clip, "none")
    )
    if clip != "cispo":
        close(found, plain)
    if clip != "cispo" or ratio == "token":
        assert slope(plain, seen.logps)[0].abs().min() > 1e-3
        close(slope(found, seen.logps)[0], slope(plain, seen.logps)[0])


def clipped(clip: str, ratio: float, advantage: float, bounds: Bounds = BOUNDS) -> tuple[float, float]:
    """What one token gains, and the slope of that in its log-probability."""
    seen = batch((1,), moved=real(math.log(ratio)), advantages=real(advantage))
    gain = CLIPS[clip](RATIOS["token"](seen), seen, bounds)
    return float(gain.detach()), float(slope(gain.sum(), seen.logps)[0])


@pytest.mark.parametrize(
    ("clip", "ratio", "advantage", "gain", "rise"),
    [
        ("none", 4.0, 2.0, 8.0, 8.0),
        ("none", 0.25, -2.0, -0.5, -0.5),
        ("clip", 1.1, 2.0, 2.2, 2.2),
        ("clip", 1.1, -2.0, -2.2, -2.2),
        ("clip", 1.25, 2.0, 2.5, 2.5),  # beyond low, within high
        ("clip", 1.5, 2.0, 2.6, 0.0),
        ("clip", 1.5, -2.0, -3.0, -3.0),
        ("clip", 9.0, -2.0, -18.0, -18.0),
        ("clip", 0.75, -2.0, -1.6, 0.0),  # within high, beyond low
        ("clip", 0.5, 2.0, 1.0, 1.0),
        ("clip", 0.5, -2.0, -1.6, 0.0),
        ("dual", 1.5, 2.0, 2.6, 0.0),
        ("dual", 9.0, 2.0, 2.6, 0.0),
        ("dual", 2.0, -2.0, -4.0, -4.0),
        ("dual", 9.0, -2.0, -6.0, 0.0),
        ("dual", 0.5, 2.0, 1.0, 1.0),
        ("dual", 0.5, -2.0, -1.6, 0.0),
        ("two_sided", 1.5, 2.0, 2.6, 0.0),
        ("two_sided", 2.0, -2.0, -4.0, -4.0),
        ("two_sided", 9.0, -2.0, -6.0, 0.0),
        ("two_sided", 0.5, 2.0, 1.0, 1.0),
        ("two_sided", 0.5, -2.0, -1.6, 0.0),
    ],
)
def test_a_clip_stops_only_what_goes_on_in_the_wanted_direction(
    clip: str, ratio: float, advantage: float, gain: float, rise: float
) -> None:
    assert clipped(clip, ratio, advantage) == pytest.approx((gain, rise), abs=1e-12)


@pytest.mark.parametrize("ratio", [0.1, 0.79, 0.81, 1.0, 1.29, 1.31, 2.9, 3.1, 50.0])
def test_dual_and_two_sided_are_one_clip_while_the_third_bound_is_the_outermost(ratio: float) -> None:
    for advantage in (-1.5, 0.0, 0.7):
        assert clipped("dual", ratio, advantage) == clipped("two_sided", ratio, advantage)
        if advantage >= 0:
            assert clipped("dual", ratio, advantage) == clipped("clip", ratio, advantage)
    inner = Bounds(low=0.2, high=0.3, most=1.1)
    assert clipped("two_sided", 1.2, 1.0, inner) == pytest.approx((1.1, 0.0))
    assert clipped("dual", 1.2, 1.0, inner) == pytest.approx((1.2, 1.2))


@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.1), (1.5, 1.5), (2.9, 2.9), (3.5, 3.0), (50.0, 3.0)])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_weighs_every_token_and_never_by_more_than_most(ratio: float, weight: float, advantage: float) -> None:
    """The cap is ``most``, not 1 + high; the ratio is a number, so the slope is weight x A and nothing else."""
    logp = float(batch((1,), moved=real(math.log(ratio))).logps.detach())
    assert clipped("cispo", ratio, advantage) == pytest.approx((weight * advantage * logp, weight * advantage))


def test_cispo_does_not_differentiate_a_completions_ratio_either() -> None:
    seen = batch((2,), moved=real(0.4, 0.2), advantages=real(1.0, -3.0))
    gain = CLIPS["cispo"](RATIOS["sequence_mean"](seen), seen, BOUNDS)
    close(slope(gain.sum(), seen.logps)[0], math.exp(0.3) * seen.advantages)


def test_the_square_clip_is_a_regression_on_the_advantage() -> None:
    seen = batch((2,), moved=real(0.4, 0.2), reference=real(-3.0, -1.0), advantages=real(0.5, 0.5))
    far = RATIOS["reference_sum"](seen)
    gain = CLIPS["square"](far, seen, Bounds(scale=0.1))
    close(gain, -((0.1 * far - 0.5) ** 2))
    close(slope(gain.mean(), seen.logps)[0], (-0.2 * (0.1 * far - 0.5)).detach())


@pytest.mark.parametrize("clip", [name for name in CLIPS if name != "square"])
def test_a_ratio_beyond_all_numbers_leaves_the_loss_finite(clip: str) -> None:
    """A completion of a thousand tokens moves by a hundred nats in all before each token moves by a tenth."""
    for advantage in (1.0, 0.0, -1.0):
        seen = batch(
            (1, 1),
            logps=torch.tensor([120.0, -1.0], requires_grad=True),
            old=torch.tensor([0.0, -1.0]),
            advantages=torch.tensor([advantage, 1.0]),
            kept=torch.ones(2),
        )
        outcome = policy_gradient(seen, **{**PLAIN, "clip": clip}, bounds=BOUNDS)
        found = slope(outcome.loss, seen.logps)[0]
        assert bool(outcome.loss.isfinite())
        assert bool(found.isfinite().all())
        assert float(found[1]) == -0.5


VALUES = real(1.0, 2.0, 6.0, 5.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sequence_mean", (9 / 3 + 5 + 7 / 2) / 4),
        ("sequence_sum", 21 / 4),
        ("token_mean", 21 / 6),
        ("batch_token_mean", 21 / 8),
        ("constant", 21 / (4 * 10)),
    ],
)
def test_aggregations(aggregation: str, expected: float) -> None:
    seen = batch(whole=Totals(sequences=4, tokens=6, share=8))
    assert float(AGGREGATIONS[aggregation](VALUES, seen, 10.0)) == pytest.approx(expected, abs=1e-12)


def test_with_equal_lengths_aggregations_differ_by_known_factors() -> None:
    seen, values = batch((4, 4, 4)), normal(12, 5)
    found = {name: float(gather(values, seen, 10.0)) for name, gather in AGGREGATIONS.items()}
    mean = float(values.mean())
    assert found == pytest.approx(
        {
            "sequence_mean": mean,
            "sequence_sum": 4 * mean,
            "token_mean": mean,
            "batch_token_mean": mean,
            "constant": 4 * mean / 10,
        },
        abs=1e-12,
    )


def test_with_other_lengths_a_token_weighs_what_its_aggregation_says() -> None:
    """One completion of 3 tokens and one of 1: a token of the long one counts a third, or the same."""
    values = torch.zeros(4, dtype=Double, requires_grad=True)
    found = {n: slope(gather(values, batch((3, 1)), 10.0), values)[0].tolist() for n, gather in AGGREGATIONS.items()}
    assert found["sequence_mean"] == pytest.approx([1 / 6] * 3 + [1 / 2])
    assert found["sequence_sum"] == pytest.approx([1 / 2] * 4)
    assert found["token_mean"] == found["batch_token_mean"] == pytest.approx([1 / 4] * 4)
    assert found["constant"] == pytest.approx([1 / 20] * 4)


def everything(lengths: Sequence[int] = LENGTHS, **more: Any) -> Acted:
    """A batch with all that a loss may see."""
    count = sum(lengths)
    fields: dict[str, Any] = {
        "reference": normal(count, 4) - 2,
        "distance": normal(count, 5).square().requires_grad_(True),
        "entropy": normal(count, 6).requires_grad_(True),
        "values": normal(count, 7).requires_grad_(True),
        "old_values": normal(count, 8),
        "returns": normal(count, 9),
        "trust": normal(count, 10).exp(),
        "whole": Totals(3, 5, 7),
    }
    return batch(lengths, moved=0.4 * normal(count, 11), **{**fields, **more})


LEARNED = ("logps", "distance", "entropy", "values")
FLAT = ("old", "advantages", "kept", "reference", "old_values", "returns", "trust")


def some(seen: Acted, completions: Sequence[int]) -> Acted:
    """A part of a batch, its tokens still those that the batch's gradient is taken of."""
    places = torch.cat([torch.nonzero(seen.branch == one)[:, 0] for one in completions])
    lengths = seen.lengths[list(completions)]
    flat = {name: getattr(seen, name)[places] for name in (*LEARNED, *FLAT)}
    branch = torch.arange(len(completions)).repeat_interleave(lengths)
    return Acted(**flat, branch=branch, lengths=lengths, whole=seen.whole)


TERMS = {"value": 0.3, "value_clip": 0.2, "entropy": 0.07, "beta": 0.5, "kl_in": "loss", "bounds": BOUNDS}


@pytest.mark.parametrize("kl", ["k2", "k3", "full"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_parts_add_up_to_the_minibatch(aggregation: str, ratio: str, kl: str) -> None:
    """Loss, gradient and metrics, the value loss, the entropy and the distance to the reference included."""
    seen = everything(kept=real(1, 1, 1, 1, 0, 0))
    knobs = {**TERMS, "kl": kl, "ratio": ratio, "aggregation": aggregation, "constant": 9.0}
    knobs["clip"] = "square" if ratio == "reference_sum" else "clip"
    whole = policy_gradient(seen, **knobs)
    for split in ([[0], [1], [2], [3]], [[3, 1], [2, 0]], [[2], [0, 1, 3]]):
        parts = [policy_gradient(some(seen, part), **knobs) for part in split]
        total = torch.stack([part.loss for part in parts]).sum()
        close(total, whole.loss)
        tokens = [getattr(seen, name) for name in LEARNED if name != "distance" or kl == "full"]
        for mine, all_at_once in zip(slope(total, *tokens), slope(whole.loss, *tokens), strict=True):
            close(mine, all_at_once)
        for name, value in whole.metrics.items():
            close(torch.stack([part.metrics[name] for part in parts]).sum(), value)


@pytest.mark.parametrize("kl", ["k2", "full"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_masked_completion_counts_nowhere(aggregation: str, ratio: str, kl: str) -> None:
    seen = everything(kept=real(0, 0, 0, 1, 1, 1))
    knobs = {**TERMS, "kl": kl, "ratio": ratio, "aggregation": aggregation}
    knobs["clip"] = "square" if ratio == "reference_sum" else "two_sided"
    whole, rest = policy_gradient(seen, **knobs), policy_gradient(some(seen, [1, 2, 3]), **knobs)
    close(whole.loss, rest.loss)
    for name, value in whole.metrics.items():
        close(value, rest.metrics[name])
    for name in ("logps", "entropy", "values"):
        assert slope(whole.loss, getattr(seen, name))[0][:3].tolist() == [0.0] * 3


def test_the_value_loss_is_half_the_worse_of_two_squares() -> None:
    seen = batch(
        (4,),
        values=real(1.0, 1.0, 0.1, 3.0).requires_grad_(True),
        old_values=real(0.0, 0.0, 0.0, 0.0),
        returns=real(2.0, 0.0, 1.0, 0.1),
        kept=real(1, 1, 1, 0),
        whole=Totals(1, 3, 3),
    )
    assert seen.values is not None
    bounded = value_loss(seen, 0.2)
    assert float(bounded.detach()) == pytest.approx(0.5 * (1.8**2 + 1.0**2 + 0.9**2) / 3, abs=1e-12)
    assert slope(bounded, seen.values)[0].tolist() == pytest.approx([0.0, 1 / 3, -0.9 / 3, 0.0], abs=1e-12)
    free = value_loss(seen, 0.0)
    assert float(free.detach()) == pytest.approx(0.5 * (1 + 1 + 0.81) / 3, abs=1e-12)
    assert slope(free, seen.values)[0].tolist() == pytest.approx([-1 / 3, 1 / 3, -0.9 / 3, 0.0], abs=1e-12)


def test_a_loss_is_the_sum_of_its_terms_by_their_weights() -> None:
    seen = everything(whole=Totals(4, 6, 6))
    plain = policy_gradient(seen, **PLAIN)
    full = policy_gradient(seen, **PLAIN, kl="full", kl_in="loss", beta=0.5, entropy=0.07, value=0.3, value_clip=0.0)
    assert seen.distance is not None
    assert seen.entropy is not None
    terms = 0.5 * seen.distance.mean() - 0.07 * seen.entropy.mean() + 0.3 * value_loss(seen, 0.0)
    close(full.loss, plain.loss + terms)
    paid = policy_gradient(seen, **PLAIN, kl="k1", kl_in="reward", beta=0.5)
    close(paid.loss, plain.loss)


def test_trust_weighs_the_gain_of_a_token() -> None:
    seen = everything(trust=None)
    gains = (seen.logps - seen.old).exp() * seen.advantages
    weights = real(1.0, 0.5, 2.0, 0.0, 1.0, 1.0)
    seen = everything(trust=weights)
    close(policy_gradient(seen, **PLAIN).loss, -(gains * weights).sum() / 5)


def test_the_numbers_tell_how_far_the_policy_moved() -> None:
    moved = real(1.5, 1.25, 0.75, 0.5, 1.0, 1.0).log()
    seen = batch(moved=moved, advantages=real(1.0, 1.0, -1.0, 1.0, 1.0, 1.0), kept=real(1, 1, 1, 1, 1, 0))
    seen = Acted(**{**vars(seen), "whole": Totals(3, 5, 5)})
    metrics = policy_gradient(seen, **{**PLAIN, "clip": "clip"}, bounds=BOUNDS).metrics
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "loss/policy": -(1.3 + 1.25 - 0.8 + 0.5 + 1.0) / 5,
            "policy/ratio": (1.5 + 1.25 + 0.75 + 0.5 + 1.0) / 5,
            "policy/approx_kl": float((moved**2 / 2).sum()) / 5,
            "policy/clip_fraction": 2 / 5,  # 1.5 upwards and 0.75 downwards; 0.5 goes back
        },
        abs=1e-7,  # the share is counted in float32
    )


def test_the_names_of_the_switches() -> None:
    assert list(RATIOS) == ["token", "sequence_mean", "sequence_sum", "reference_sum"]
    assert list(CLIPS) == ["none", "clip", "dual", "two_sided", "cispo", "square"]
    assert list(AGGREGATIONS) == ["sequence_mean", "sequence_sum", "token_mean", "batch_token_mean", "constant"]
