"""Targets: which side should win, and how surely."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.seen_made import Double, loss_of, numbers, pairs, slopes
from tiebreak.records import InputError
from tiebreak.train.objectives.by_link import ROWS
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective
from tiebreak.train.objectives.targets import TARGETS

ROW = {row.name: row.knobs or {} for row in ROWS}
DPO: dict[str, Any] = {"score": "log_ratio", "link": "logistic", "beta": 0.1}
NOISE: Part = TARGETS["noise_aware"]
DOUBT = {"smoothing": 0.1, "doubted": 0.1, "extrapolate": 1.5, "trusting": 0.2}
"""The scalars of ``noise_aware``."""


def target(name: str, seen: Seen, **knobs: float) -> list[float]:
    made: list[float] = TARGETS[name](seen, knobs=knobs).tolist()
    return made


def test_each_target_is_its_formula() -> None:
    seen = pairs([1.0, 2.0], [0.0, 5.0], p=[0.6, 1.0], margin=[0.5, -2.0])
    assert target("hard", seen) == [1.0, 1.0]
    assert target("soft", seen) == [0.6, 1.0]
    assert target("smoothed", seen, smoothing=0.3) == [0.7, 0.7]
    assert target("unbiased", seen, flip_rate=0.2) == pytest.approx([0.8 / 0.6] * 2)
    assert target("gap", seen, gap_scale=3.0) == pytest.approx([1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(6.0))])


@pytest.mark.parametrize(("row", "knob"), [("cdpo", "smoothing"), ("robust_dpo", "flip_rate"), ("spa", "smoothing")])
def test_without_wrong_labels_the_noise_treatments_are_dpo(row: str, knob: str) -> None:
    """Whatever the judgments' probability is, since DPO does not read it."""
    seen = replace(pairs(5), past={"doubt_below": torch.tensor(0.0), "doubt_distance": torch.tensor(1.0)})
    knobs = {**ROW[row], knob: 0.0}
    assert loss_of(seen, **knobs) == loss_of(seen, **DPO)
    assert torch.equal(slopes(seen, **knobs)["logps"], slopes(seen, **DPO)["logps"])


def test_soft_labels_reduce_to_dpo_and_to_conservative_dpo() -> None:
    assert loss_of(pairs(4, p=[1.0] * 4), **ROW["osp"]) == loss_of(pairs(4), **DPO)
    assert loss_of(pairs(4, p=[0.9] * 4), **ROW["osp"]) == pytest.approx(loss_of(pairs(4), **ROW["cdpo"]), rel=1e-14)


@given(st.floats(-20, 20), st.floats(0, 0.49))
def test_the_mean_over_flips_of_robust_dpo_is_dpo(z: float, eps: float) -> None:
    knobs = {**ROW["robust_dpo"], "beta": 1.0, "flip_rate": eps}
    mean = (1 - eps) * loss_of(pairs([z], [0.0]), **knobs) + eps * loss_of(pairs([0.0], [z]), **knobs)
    assert mean == pytest.approx(loss_of(pairs([z], [0.0]), **{**DPO, "beta": 1.0}), rel=1e-12, abs=1e-12)


def test_the_three_noise_treatments_are_three_losses() -> None:
    """Smoothed, unbiased and modelled, at the same rate."""
    seen = pairs(6)
    found = {
        loss_of(seen, **{**ROW["cdpo"], "smoothing": 0.2}),
        loss_of(seen, **{**ROW["robust_dpo"], "flip_rate": 0.2}),
        loss_of(seen, **{**DPO, "link": "flip_channel", "channel_flips": 0.2}),
        loss_of(seen, **DPO),
    }
    assert len({round(loss, 6) for loss in found}) == 4


def test_a_large_gap_is_not_yet_certainty() -> None:
    """In single precision sigmoid(17) is 1, and the squared link could not come back from there."""
    seen = pairs([30.0], [0.0], margin=[30.0])
    single = replace(seen, margin=seen.margin.float())  # type: ignore[union-attr]
    knobs = {**ROW["rpo_square"], "beta": 1.0}
    assert loss_of(single, **knobs) == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(InputError, match="smaller gap_scale"):
        loss_of(single, **{**knobs, "gap_scale": 2.0})


@pytest.mark.parametrize(
    ("name", "knobs", "said"),
    [
        ("smoothed", {"smoothing": 0.5}, "smoothing is 0.5; expected .* below 0.5"),
        ("smoothed", {"smoothing": -0.1}, "smoothing is -0.1"),
        ("unbiased", {"flip_rate": 0.5}, "flip_rate is 0.5"),
        ("unbiased", {"flip_rate": 0.7}, "flip_rate is 0.7"),
        ("noise_aware", {**DOUBT, "smoothing": 0.6}, "smoothing is 0.6"),
        ("noise_aware", {**DOUBT, "doubted": 0.0}, "doubted is 0.0"),
    ],
)
def test_shares_that_make_no_sense_are_refused(name: str, knobs: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        target(name, pairs(2), **knobs)


def test_exo_without_smoothing_is_refused() -> None:
    with pytest.raises(InputError, match="smoothing above 0"):
        loss_of(pairs(2), **{**ROW["exo"], "smoothing": 0.0})


def with_margins(margins: list[float], past: dict[str, Any]) -> Seen:
    """Pairs whose extrapolated policy favours the chosen side by so much."""
    values = numbers([v for margin in margins for v in (margin, 0.0)])
    seen = pairs([0.0] * len(margins), [0.0] * len(margins))
    return replace(seen, readings={"extrapolated": values}, past=past)


def test_only_pairs_that_the_bolder_policy_doubts_are_smoothed() -> None:
    below = {"doubt_below": torch.tensor(0.5, dtype=Double)}
    q = NOISE(with_margins([0.4, 0.5, 0.6, -3.0], below), knobs=DOUBT).tolist()
    assert q == [0.9, 1.0, 1.0, 0.9]
    assert NOISE(with_margins([0.4, -3.0], {}), knobs=DOUBT).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("done", "q"), [(0.19, 1.0), (0.2, 0.9), (0.9, 0.9)])
def test_nothing_is_doubted_before_a_share_of_the_training_is_over(done: float, q: float) -> None:
    past = {"doubt_below": torch.tensor(0.5), "progress": torch.tensor(done, dtype=Double)}
    assert NOISE(with_margins([0.4], past), knobs=DOUBT).tolist() == [q]


def test_at_the_start_no_pair_is_doubted_for_being_like_all_others() -> None:
    """Policy and reference are one, so every margin is 0 and so is the threshold."""
    seen = with_margins([0.0, 0.0, 0.0], {})
    after = replace(seen, past=NOISE.kept(seen, knobs=DOUBT))
    assert NOISE(after, knobs=DOUBT).tolist() == [1.0, 1.0, 1.0]


def test_a_bolder_policy_that_is_the_policy_doubts_by_its_own_margin() -> None:
    seen = pairs(8)
    assert seen.logps is not None
    assert seen.reference is not None
    seen = replace(seen, readings={"extrapolated": seen.logps.detach()})
    rho = (seen.logps - seen.reference).detach()
    margins = (rho[0::2] - rho[1::2]).tolist()
    q = NOISE(replace(seen, past={"doubt_below": torch.tensor(0.3)}), knobs={**DOUBT, "extrapolate": 1.0}).tolist()
    assert q == [0.9 if margin < 0.3 else 1.0 for margin in margins]
    assert {0.9, 1.0} == set(q)


@pytest.mark.parametrize("size", [1, 4, 32])
def test_in_the_long_run_the_share_that_is_asked_for_is_doubted(size: int) -> None:
    """The threshold stays bounded, so what it moved by in all tends to 0: no size of batch is favoured."""
    source = torch.Generator().manual_seed(size)
    past: dict[str, Any] = {}
    found = []
    for _ in range(6000 // size):
        margins = (2.0 + 3.0 * torch.randn(size, dtype=Double, generator=source)).tolist()
        seen = with_margins(margins, past)
        if past:
            found += NOISE(seen, knobs=DOUBT).tolist()
        past = dict(NOISE.kept(seen, knobs=DOUBT))
    assert sum(q < 1.0 for q in found) / len(found) == pytest.approx(0.1, abs=0.02)
    assert {name: value.ndim for name, value in past.items()} == {"doubt_below": 0, "doubt_distance": 0}


def test_flipped_labels_are_what_is_doubted() -> None:
    """Margins of a policy that ranks well: right labels about 1, flipped ones about -1."""
    source = torch.Generator().manual_seed(0)
    flips = torch.rand(2000, generator=source) < 0.1
    margins = torch.where(flips, -1.0, 1.0) + 0.7 * torch.randn(2000, generator=source)
    first = with_margins(margins.tolist(), {})
    q = NOISE(replace(first, past=NOISE.kept(first, knobs=DOUBT)), knobs=DOUBT)
    assert int((q < 1).sum()) == 200
    assert float(flips[q < 1].double().mean()) > 0.6


def test_a_batch_keeps_the_threshold_for_the_next() -> None:
    seen = with_margins([0.0, 1.0, 2.0, 3.0], {})
    kept = objective(seen, **ROW["spa"]).kept
    assert float(kept["doubt_below"]) == pytest.approx(0.3)
    assert float(kept["doubt_distance"]) == pytest.approx((0.3 + 0.7 + 1.7 + 2.7) / 4)
    after = objective(replace(seen, past=kept), **ROW["spa"]).kept
    assert float(after["doubt_below"]) == pytest.approx(0.3 + 0.5 * 1.35 * (0.1 - 0.25))
    assert not objective(seen, **ROW["cdpo"]).kept


def test_what_targets_ask_of_rows_and_engine() -> None:
    assert TARGETS["gap"].needs == ("margin",)
    assert set(NOISE.reads) == {"extrapolated", "reference"}
    assert {"extrapolate": 1.5}.items() <= NOISE.knobs.items()
    assert not any(part.couples for part in TARGETS.values())
