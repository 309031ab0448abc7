"""How strongly an ensemble prefers: exact means and spreads, and the pairs whose label was planted wrong come last."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.curate.judgments import chosen, judged, marked, met, rewarded, said, sides, through
from tiebreak.curate.flips import flip, plant_flips
from tiebreak.curate.order import band, bands
from tiebreak.curate.pairs import soft_label
from tiebreak.curate.strength import smooth, soft_by_strength, strength
from tiebreak.curate.table import Rows, curate
from tiebreak.records import InputError, Judgment, Pair


def one(*judgments: Judgment, pair: Pair | None = None, **knobs: Any) -> Pair:
    (found,) = strength(judged(*judgments, rows=[pair or chosen()]), **knobs).rows
    assert isinstance(found, Pair)
    return found


def test_margin_and_spread_are_the_mean_and_population_deviation_over_judges() -> None:
    found = one(rewarded(2.0, 1.0, judge="x"), rewarded(0.5, 1.0, judge="y"), rewarded(3.0, 0.5, judge="z"))
    assert found.margin == 1.0
    assert found.spread == pytest.approx(math.sqrt((0 + 1.5**2 + 1.5**2) / 3))
    assert (found.chosen_id, found.p, found.id) == ("a", 1.0, chosen().id)


def test_a_judge_counts_once_however_often_and_in_whichever_order_it_was_asked() -> None:
    often = [rewarded(3.0, 0.0, attempt=i) for i in range(3)]
    found = one(*often, rewarded(1.0, 0.0, slots=("b", "a")), rewarded(0.0, 2.0, judge="y"))
    # judge one: mean of 3, 3, 3 and -1 is 2; judge y: -2
    assert (found.margin, found.spread) == (0.0, 2.0)


def test_the_margin_is_in_favour_of_the_chosen_side() -> None:
    assert one(rewarded(0.0, 2.0)).margin == -2.0
    assert one(rewarded(0.0, 2.0), pair=chosen("b", "a")).margin == 2.0
    assert one(rewarded(0.0, 2.0)).spread == 0.0


def test_a_difference_can_be_of_log_odds_or_of_ratings() -> None:
    p = 1 / (1 + math.exp(-1.5))
    assert one(said(p), said(1 - p, slots=("b", "a")), of="logit").margin == pytest.approx(1.5)
    assert one(said(1.0), of="logit").margin == pytest.approx(math.log(1e6), abs=1e-5)
    judgment = marked({"m": [4, 1], "n": [2, 4]})
    assert one(judgment, of="mean").margin == 0.5
    assert one(judgment, of="m").margin == 3.0
    assert one(judgment, of={"n": -1.0}).margin == 2.0
    four = marked({"m": [4, 1, 2, 3]}, slots=("w", "a", "b", "z"))
    assert one(four, of="m").margin == -1.0


def test_labels_come_from_people_and_strengths_from_models() -> None:
    judgments = [said(winner=0, by="human:ann"), rewarded(1.0, 3.0, judge="x"), rewarded(0.0, 1.0, judge="y")]
    steps = [
        {"tiebreak.curate.pairs:soft_label": {"by": "human:*"}},
        {"tiebreak.curate.strength:strength": {"by": "model:*", "least": 2}},
    ]
    (pair,), *_ = curate(judgments, steps)
    assert (pair.chosen_id, pair.p, pair.margin, pair.spread) == ("a", 1.0, -1.5, 0.5)
    assert pair.judgment_ids == (judgments[0].id,)


def test_a_rating_is_named_as_it_is_or_the_nearest_word_is_told() -> None:
    for of in ("rewards", "mm"):
        with pytest.raises(InputError, match=f"of = '{of}'; expected reward, logit, mean, fine_grained, m, or weights"):
            one(marked({"m": [4, 1]}), of=of)


def test_a_pair_that_too_few_judged_is_dropped_and_counted() -> None:
    judgments = [rewarded(1.0, 0.0, judge="x"), rewarded(1.0, 0.0, judge="y"), rewarded(1.0, 0.0, prompt_id="q")]
    pairs = [chosen(), chosen(prompt="q"), chosen(prompt="r")]
    done = strength(judged(*judgments, rows=pairs), least=2)
    assert [pair.prompt_id for pair in done.rows] == ["p"]
    assert done.dropped == {"fewer than 2 judges' scores": 2}
    assert strength(judged(*judgments, rows=pairs)).dropped == {"no judge's score of it": 1}


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({}, "strength reads 'reward', and no judgment of these pairs gives it"),
        ({"of": "mean"}, "strength has of = 'mean', which reads ratings, and no judgment has any"),
        ({"of": "rewards"}, "of = 'rewards'.*Did you mean 'reward'"),
        ({"by": "human:*"}, "no judgment is by 'human:\\*'"),
        ({"least": 0}, "least = 0; expected a whole number of at least 1"),
    ],
)
def test_a_strength_that_nobody_gives_is_refused(knobs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        one(said(0.9), **knobs)


def test_a_label_is_as_sure_as_its_margin() -> None:
    pairs = [chosen(margin=m, prompt=f"p{i}") for i, m in enumerate((2.0, -1.0, 0.0, None))]
    done = soft_by_strength(Rows({}, pairs), eta=0.5)
    assert [pair.p for pair in done.rows] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.5)), 0.5])
    assert sides(done.rows) == [("a", "b"), ("b", "a"), ("a", "b")]
    assert [(pair.margin, pair.flipped) for pair in done.rows] == [(2.0, False), (1.0, True), (0.0, False)]
    assert done.dropped == {"no margin": 1}
    assert done.changed == {"sides exchanged": 1}
    assert soft_by_strength(Rows({}, [chosen(margin=1e4)])).rows[0].p == 1.0


def test_smoothing_takes_from_named_bands_alone() -> None:
    pairs = [chosen(band=number, prompt=f"p{number}", p=p) for number, p in enumerate((1.0, 1.0, 0.8, 0.5))]
    smoothed = smooth(Rows({}, pairs), band=[1, 2, 3], alpha=0.2).rows
    assert [pair.p for pair in smoothed] == pytest.approx([1.0, 0.8, 0.68, 0.5])
    assert smoothed[0] == pairs[0]
    assert smooth(Rows({}, pairs), band=[1, 2, 3]).changed == {"labels smoothed": 2}
    assert smooth(Rows({}, pairs), alpha=0.0).rows == pairs
    assert {pair.p for pair in smooth(Rows({}, pairs), band=[0, 1, 2, 3], alpha=0.5).rows} == {0.5}
    for knobs, words in (({"alpha": 0.6}, "alpha = 0.6"), ({"band": "low"}, "band = 'low'")):
        with pytest.raises(InputError, match=words):
            smooth(Rows({}, pairs), **knobs)
    with pytest.raises(InputError, match="smooth reads the band of pairs, and some have none"):
        smooth(Rows({}, [*pairs, chosen()]))


def noisy_judges(n: int, judges: int, noise: float, seed: int) -> tuple[list[Judgment], list[float]]:
    """Linear scorers of answers with two features: each has the true weights and an error of its own on top.

    The judgments are scores alone; the true difference of each pair comes beside.
    """
    rng = np.random.default_rng(seed)
    truth = np.array([1.0, -0.7])
    gaps = rng.normal(size=(n, 2)) * 2
    weights = truth + rng.normal(size=(judges, 2)) * noise
    scores = gaps @ weights.T + rng.normal(size=(n, judges)) * noise
    found = [
        rewarded(float(scores[i, m]), 0.0, judge=f"m{m}", slots=(f"x{i}", f"y{i}"), prompt_id=f"p{i}")
        for i in range(n)
        for m in range(judges)
    ]
    return found, [float(gap) for gap in gaps @ truth]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_flips_are_found_in_the_weakest_band(seed: int) -> None:
    """The published check: of 20 % planted flips, the lowest fifth of five noisy linear scorers holds over 80 %."""
    judgments, gaps = noisy_judges(600, 5, 0.3, seed)
    right = [
        chosen(*((f"x{i}", f"y{i}") if gap > 0 else (f"y{i}", f"x{i}")), prompt=f"p{i}") for i, gap in enumerate(gaps)
    ]
    spoilt = plant_flips(Rows({}, right), share=0.2, seed=seed).rows
    assert sum(pair.flipped for pair in spoilt) == 120
    rows = judged(*judgments, rows=spoilt)
    ranked = through(rows, strength, bands)
    found = sum(pair.flipped for pair in ranked if pair.band == 0)
    assert found / 120 > 0.8
    mended = through(rows, strength, bands, flip)
    # Those it missed stay wrong, and as many right ones were flipped in their place.
    assert sum(pair.flipped for pair in mended) == 2 * (120 - found)
    weakest = through(rows, strength, bands, partial(band, keep=0))
    assert len(weakest) == 120
    assert all(pair.margin < 0 for pair in weakest if pair.flipped)


def test_the_judgments_of_another_pair_of_the_prompt_say_nothing_of_this_one() -> None:
    judgments = met(("a", "b", 0.9), ("a", "c", 0.6))
    rows = judged(*judgments)
    found = through(rows, soft_label, partial(strength, of="logit"))
    assert [pair.margin for pair in found] == pytest.approx([math.log(9), math.log(1.5)])
