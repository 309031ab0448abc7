"""Preferences that go round in a circle: no score can order them, skew embeddings can; planted ones, and people's."""

from __future__ import annotations

import importlib
import math
from itertools import combinations, permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tiebreak.stats.intervals import rate
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective

KINDS, EACH, VOTES, SURE = 3, 10, 5, 0.85
"""Rock, paper and scissors, items of each, votes of a pair, and the probability that a vote is for the winner."""
BRADLEY_TERRY = {"score": "head", "compare": "difference", "link": "logistic", "target": "soft"}
SKEW = {**BRADLEY_TERRY, "compare": "skew", "skew_tau": 1.0}


@pytest.fixture
def bench(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark of cycles, whose fits and counts are tried here."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    return importlib.import_module("cycles")


def seen(scores: torch.Tensor, p: float) -> Seen:
    """Rock beats scissors, scissors beat paper and paper beats rock, each with probability ``p``."""
    ones = torch.ones(3, dtype=torch.float64)
    return Seen(
        lengths=ones, weight=ones, scores=scores, chosen=torch.arange(3), rejected=torch.tensor([1, 2, 0]), p=p * ones
    )


def test_no_score_is_better_than_a_coin_on_a_circle() -> None:
    """The loss is convex in the scores and flat at 0, so ln 2 is the least that there is."""
    scores = torch.zeros(3, dtype=torch.float64).requires_grad_()
    found = objective(seen(scores, 0.9), **BRADLEY_TERRY).loss
    (slope,) = torch.autograd.grad(found, scores)
    assert found.item() == pytest.approx(math.log(2), abs=1e-15)
    assert slope.abs().max().item() < 1e-16


def test_three_vectors_a_third_of_a_turn_apart_reach_the_least_loss_there_is() -> None:
    """Of length sqrt(logit p / sin 120 degrees) they say p of every pair, so the loss is the entropy of p."""
    p = 0.9
    turn = 2 * torch.pi / 3 * torch.arange(3, dtype=torch.float64)
    length = math.sqrt(math.log(p / (1 - p)) / math.sin(2 * math.pi / 3))
    vectors = length * torch.stack([turn.cos(), turn.sin()], 1)
    found = objective(seen(vectors, p), **SKEW).loss
    assert found.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-12)


def planted(seed: int) -> dict[str, Any]:
    """Every two items of different kinds, the first one the true winner, with a few votes that may be wrong."""
    chance = np.random.default_rng(seed)
    kind = np.repeat(np.arange(KINDS), EACH)
    both = [(i, j) for i in range(len(kind)) for j in range(len(kind)) if (kind[j] - kind[i]) % KINDS == 1]
    first, second = np.array(both).T
    return {"first": first, "second": second, "share": chance.binomial(VOTES, SURE, len(first)) / VOTES}


def test_planted_rock_paper_scissors_is_ranked_by_embeddings_and_not_by_scores(bench: ModuleType) -> None:
    """Votes are noisy and the planted winner is the truth; the last fit sees all votes, the others leave pairs out.

    Scores of all pairs add up to 0, for every item stands as often on either side. Where a pair is left out its
    winner's score lacks a win, so that scores do worse than a coin there; embeddings know it from the other pairs.
    """
    made = planted(seed=1)
    fold = np.random.default_rng(2).permutation(len(made["share"])) % 5
    masks = np.array([fold != held for held in range(6)])
    logits = {
        name: bench.fit(**made, mass=masks, items=KINDS * EACH, setting=setting)
        for name, setting in bench.CONTROLS.items()
    }
    assert (logits["skew"][fold, np.arange(len(fold))] > 0).mean() > 0.95
    assert (logits["skew"][5] > 0).mean() > 0.95
    scores = rate((logits["bradley_terry"][5] > 0).astype(float))
    assert scores.low < 0.5 < scores.high
    assert logits["bradley_terry"][5].sum() == pytest.approx(0, abs=1e-9)
    assert (logits["bradley_terry"][fold, np.arange(len(fold))] > 0).mean() < 0.5


def test_fits_side_by_side_do_not_touch_each_other(bench: ModuleType) -> None:
    made = planted(seed=3)
    masks = np.array([np.arange(len(made["share"])) % 2 == half for half in (0, 1)])
    for setting in (bench.Setting(1, 0.1), bench.Setting(4, 0.3), bench.Setting(2, 0.1, 10.0)):
        how = {"items": KINDS * EACH, "setting": setting}
        both = bench.fit(**made, mass=masks, **how)
        np.testing.assert_allclose(both[:1], bench.fit(**made, mass=masks[:1], **how), atol=1e-9)


def test_a_strong_pull_towards_bradley_terry_gives_its_numbers(bench: ModuleType) -> None:
    made = planted(seed=4)
    how = {**made, "mass": np.ones((1, len(made["share"]))), "items": KINDS * EACH}
    plain, near = (bench.fit(**how, setting=setting) for setting in (bench.Setting(1, 0.1), bench.Setting(2, 0.1, 1e9)))
    np.testing.assert_allclose(near, plain, atol=1e-3)


def test_cycles_are_counted_as_one_would_by_hand(bench: ModuleType) -> None:
    items = 9
    both = np.array(list(combinations(range(items), 2)))
    gap = np.random.default_rng(5).integers(-1, 2, len(both))
    beats = {(i, j) if way > 0 else (j, i) for (i, j), way in zip(both.tolist(), gap, strict=True) if way}
    around = {
        frozenset(three)
        for three in permutations(range(items), 3)
        if {*zip(three, three[1:] + three[:1], strict=True)} <= beats
    }
    met = {frozenset(pair) for pair in beats}
    whole = [three for three in combinations(range(items), 3) if {frozenset(p) for p in combinations(three, 2)} <= met]
    found = bench.cycles(both[:, 0], both[:, 1], gap, items)
    assert (found.cyclic, found.triangles) == (len(around), len(whole))
    inside = {frozenset(pair) for three in around for pair in combinations(three, 2)} & met
    assert {frozenset(pair) for pair in both[found.inside].tolist()} == inside
    assert 0 < len(around) < len(whole)


def test_votes_of_people_go_round_no_oftener_than_chance_would_have_it(shared_path, bench: ModuleType) -> None:
    votes = bench.read_votes(shared_path("ukpconvarg1") / "crowd_votes.tsv")
    gap = votes.wins - votes.losses
    assert (len(votes.topics), votes.items, len(gap)) == (22, 712, 11_288)
    assert int((votes.wins + votes.losses + votes.ties).sum()) == 56_308
    found = bench.cycles(votes.first, votes.second, gap, votes.items)
    assert (found.triangles, found.cyclic, int(found.inside.sum())) == (86_899, 3_124, 3_902)
    drawn = bench.by_chance(votes, 20, seed=1)
    assert min(drawn) < found.cyclic < max(drawn)


@pytest.mark.slow
def test_embeddings_predict_the_votes_of_people_as_scores_do(shared_path, bench: ModuleType) -> None:
    """Held-out accuracies are apart by less than a point: there is next to nothing for embeddings to find."""
    votes = bench.read_votes(shared_path("ukpconvarg1") / "crowd_votes.tsv")
    gap = votes.wins - votes.losses
    fold = np.random.default_rng(1).permutation(len(gap)) % 5
    right = {}
    for name, setting in bench.CONTROLS.items():
        held_out = bench.cross_validated(votes, fold, [setting], seed=1)
        right[name] = (held_out.logits * gap > 0)[gap != 0].mean()
    assert min(right.values()) > 0.86
    assert abs(right["skew"] - right["bradley_terry"]) < 0.01
