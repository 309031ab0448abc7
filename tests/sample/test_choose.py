"""Rules that choose among answers: the places they give, how chance decides, and the laws they lead to."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, product
from statistics import fmean

import numpy as np
import pytest

from tiebreak.records import InputError
from tiebreak.sample.choose import (
    ALIKE,
    FEW,
    PAIRS,
    SAME,
    Picked,
    Scores,
    acceptance,
    best,
    best_of_n_kl,
    coverage,
    expected_best,
    pair,
    rejection,
    singles,
)

REWARDS: Scores = [0.2, 3.0, None, -1.0, 2.5]
NAMES = [f"prompt {number}" for number in range(400)]
P = (0.4, 0.3, 0.2, 0.1)
"""A policy over four answers."""


def picked(rule: str, scores: Scores, name: str = "x", seed: int = 0, answers: str = "abcdefgh") -> Picked | str:
    return pair(rule, scores, answers[: len(scores)], seed=seed, name=name)


def test_each_rule_gives_the_stated_places() -> None:
    assert picked("best_worst", REWARDS) == (1, 3)
    assert picked("best_second", REWARDS) == (1, 4)
    for rule, pairs in (
        ("best_random", {(1, 0), (1, 3), (1, 4)}),
        ("random", {(1, 0), (1, 3), (1, 4), (4, 0), (4, 3), (0, 3)}),
    ):
        found = Counter(picked(rule, REWARDS, name) for name in NAMES)
        assert set(found) == pairs
        assert min(found.values()) > 0.6 * len(NAMES) / len(pairs), "each is as likely"
    assert best(REWARDS, seed=0, name="x") == [1]
    assert best(REWARDS, 3, seed=0, name="x") == [0, 1, 4], "in the order they were drawn"
    assert best(REWARDS, 9, seed=0, name="x") == [0, 1, 3, 4], "what has no score is never kept"


@pytest.mark.parametrize("rule", PAIRS)
def test_what_makes_no_pair_says_why(rule: str) -> None:
    assert picked(rule, [1.0, 1.0, 1.0]) == ALIKE
    assert picked(rule, [None, 1.0, None]) == FEW
    assert picked(rule, []) == FEW
    assert picked(rule, [1.0, 2.0], answers="aa") == SAME, "a noisy reward told two equal answers apart"
    assert picked(rule, [2.0, 1.0]) == (0, 1)
    assert picked(rule, [1.0, 2.0]) == (1, 0)


def test_a_best_that_is_tied_has_no_second_but_a_worst() -> None:
    assert picked("best_second", [3.0, 3.0, 1.0]) == ALIKE
    found = {picked("best_worst", [3.0, 3.0, 1.0, 1.0], name) for name in NAMES}
    assert found == {(0, 2), (0, 3), (1, 2), (1, 3)}, "chance decides between equal scores on both ends"


@pytest.mark.parametrize("rule", ["best_random", "random"])
def test_chance_hangs_on_the_seed_and_the_prompt(rule: str) -> None:
    first = [picked(rule, REWARDS, name) for name in NAMES]
    assert first == [picked(rule, REWARDS, name) for name in NAMES]
    assert first != [picked(rule, REWARDS, name, seed=1) for name in NAMES]
    assert len(set(first)) > 1


def test_local_keeps_the_best_of_each_prompt_and_chance_breaks_ties() -> None:
    groups: list[Scores] = [[1.0, 2.0, 0.0], [None, None], [5.0, None]]
    names = ["a", "b", "c"]
    assert singles("local", groups, share=1.0, seed=0, names=names) == [[1], [], [0]]
    tied = singles("local", [[1.0, 0.0, 1.0]] * len(NAMES), share=1.0, seed=0, names=NAMES)
    counts = Counter(places[0] for places in tied)
    assert set(counts) == {0, 2}
    assert abs(counts[0] - counts[2]) < 4 * math.sqrt(len(NAMES))


def test_top_keeps_a_share_of_all_answers_and_starves_hard_prompts() -> None:
    easy_and_hard: list[Scores] = [[9.0, 8.0, 7.0, 6.0], [0.3, 0.2, 0.1, None]]
    kept = singles("top", easy_and_hard, share=0.4, seed=0, names=["easy", "hard"])
    assert kept == [[0, 1, 2], []], "3 of the 7 answers with a score, all of one prompt"
    assert coverage(kept) == 0.5
    assert coverage(singles("local", easy_and_hard, share=0.4, seed=0, names=["easy", "hard"])) == 1.0
    everything = singles("top", easy_and_hard, share=1.0, seed=0, names=["easy", "hard"])
    assert everything == [[0, 1, 2, 3], [0, 1, 2]]
    assert singles("top", [[1.0] * 10], share=0.3, seed=0, names=["x"]) != singles(
        "top", [[1.0] * 10], share=0.3, seed=1, names=["x"]
    )
    assert sum(map(len, singles("top", [[1.0]] * 10, share=1e-6, seed=0, names=NAMES[:10]))) == 1


@pytest.mark.parametrize("draws", [1, 2, 3, 4])
def test_the_best_of_k_draws_has_the_law_f_to_the_k(draws: int) -> None:
    """One round of RAFT on infinite data: p_K(y) = F(y)^K - F(y-)^K, F the distribution of the reward."""
    worth = (1.0, -0.5, 0.7, 3.0)
    law = np.zeros(len(P))
    for drawn in product(range(len(P)), repeat=draws):
        (place,) = best([worth[answer] for answer in drawn], seed=0, name=str(drawn))
        law[drawn[place]] += math.prod(P[answer] for answer in drawn)
    order = np.argsort(worth)
    above = np.cumsum(np.array(P)[order])
    below = above - np.array(P)[order]
    np.testing.assert_allclose(law[order], above**draws - below**draws, atol=1e-14)
    assert law @ worth >= np.dot(P, worth) - 1e-14, "an exact fit of what was kept is never worse on average"


def exact_kl(worth: tuple[float, ...], draws: int) -> float:
    """KL of best-of-n from the policy, chance splitting equal rewards as evenly as the policy does."""
    levels = {value: sum(p for p, w in zip(P, worth, strict=True) if w == value) for value in set(worth)}
    total, below = 0.0, 0.0
    for value in sorted(levels):
        share = (below + levels[value]) ** draws - below**draws
        total += share * math.log(share / levels[value])
        below += levels[value]
    return total


@pytest.mark.parametrize("draws", [1, 2, 4, 16])
@pytest.mark.parametrize("worth", [(1.0, -0.5, 0.7, 3.0), (0.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0)])
def test_the_kl_of_best_of_n_is_bounded_by_the_formula(worth: tuple[float, ...], draws: int) -> None:
    assert exact_kl(worth, draws) <= best_of_n_kl(draws) + 1e-12
    assert best_of_n_kl(1) == 0.0


def test_the_kl_formula_is_what_a_reward_without_ties_comes_to() -> None:
    """Over 1000 equally likely answers the bound is nearly reached: integral of log(n u^(n-1)) n u^(n-1) du."""
    n, cells = 4, 1000
    edges = np.linspace(0.0, 1.0, cells + 1) ** n
    share = np.diff(edges)
    assert float(np.sum(share * np.log(share * cells))) == pytest.approx(best_of_n_kl(n), abs=1e-4)
    assert best_of_n_kl(4) == pytest.approx(0.6363, abs=1e-4)


def test_the_expected_best_is_the_mean_over_all_subsets() -> None:
    scores = [0.3, -1.0, 2.5, 2.5, 0.0, 7.0]
    for n in range(1, len(scores) + 1):
        brute = fmean(max(some) for some in combinations(scores, n))
        assert expected_best(scores, n) == pytest.approx(brute, abs=1e-13)
    assert expected_best(scores, 1) == pytest.approx(fmean(scores))
    assert expected_best(scores, len(scores)) == max(scores)
    passed = [1.0] * 3 + [0.0] * 7
    assert expected_best(passed, 2) == pytest.approx(1 - math.comb(7, 2) / math.comb(10, 2)), "pass@2"
    with pytest.raises(InputError, match="draw at least 7"):
        expected_best(scores, 7)


def test_the_expected_best_is_unbiased() -> None:
    """Averaged over all draws of N = 4 from the policy it is the exact mean of the best of n."""
    worth = (1.0, -0.5, 0.7, 3.0)
    for n in (1, 2, 3):
        exact = sum(
            math.prod(P[a] for a in drawn) * max(worth[a] for a in drawn) for drawn in product(range(4), repeat=n)
        )
        estimate = sum(
            math.prod(P[a] for a in drawn) * expected_best([worth[a] for a in drawn], n)
            for drawn in product(range(4), repeat=4)
        )
        assert estimate == pytest.approx(exact, abs=1e-13)


@pytest.mark.parametrize("beta", [0.1, 0.5, 5.0])
def test_what_is_accepted_has_the_tilted_law(beta: float) -> None:
    worth = [1.0, -0.5, 0.7, 3.0]
    law = np.array(P) * acceptance(worth, beta)
    tilted = np.array(P) * np.exp(np.array(worth) / beta)
    np.testing.assert_allclose(law / law.sum(), tilted / tilted.sum(), rtol=1e-12)
    assert acceptance([None, 2.0], beta) == [0.0, 1.0]


def test_rejection_accepts_as_often_as_it_should() -> None:
    worth: Scores = [1.0, None, 0.7, 1.5]
    accepted = Counter(place for name in NAMES for place in rejection(worth, 0.5, seed=0, name=name))
    for place, chance in enumerate(acceptance(worth, 0.5)):
        assert accepted[place] == pytest.approx(len(NAMES) * chance, abs=4 * math.sqrt(len(NAMES) / 4))
    assert accepted[3] == len(NAMES), "the best is always accepted"
    assert rejection(worth, 1e9, seed=0, name="x") == [0, 2, 3], "a large beta takes all"
    assert rejection(worth, 1e-9, seed=0, name="x") == [3], "a small beta takes the best"


def test_rejection_goes_on_until_there_are_enough() -> None:
    worth: Scores = [1.0, None, 0.7, 1.5, -40.0]
    for name in NAMES[:50]:
        assert [len(rejection(worth, 0.5, keep, seed=0, name=name)) for keep in (1, 2, 3, 4, 5)] == [1, 2, 3, 4, 4]
        assert rejection(worth, 1e-9, 2, seed=0, name=name) == [0, 3], "top-2 where beta is near 0"
    assert rejection([None, None], 0.5, 2, seed=0, name="x") == []
    with pytest.raises(InputError, match="temperature"):
        rejection(worth, 0.0, seed=0, name="x")


def test_unknown_rules_and_shares_are_refused() -> None:
    with pytest.raises(InputError, match="best_worst"):
        picked("best_wurst", REWARDS)
    with pytest.raises(InputError, match="expected local, top"):
        singles("global", [REWARDS], share=0.5, seed=0, names=["x"])
    for share in (0.0, 1.5):
        with pytest.raises(InputError, match="alpha"):
            singles("top", [REWARDS], share=share, seed=0, names=["x"])
