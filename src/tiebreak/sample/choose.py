"""Which answers to a prompt go on, by their rewards: pure rules over numbers, with every chance drawn from a seed.

A score of None counts nowhere. Where scores are equal, chance decides, and its stream hangs on the seed and a name (the
prompt's id), so that a rule says the same of a prompt wherever it stands, and not the same place of every prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tiebreak.records import InputError, content_id
from tiebreak.registry import nearest

Scores = Sequence[float | None]
"""The rewards of one prompt's answers, in the order they were drawn."""

ALIKE = "equal scores"
SAME = "equal answers"
FEW = "fewer than two scores"


class Picked(NamedTuple):
    """The places of a pair's two answers among a prompt's draws."""

    chosen: int
    rejected: int


def best_worst(count: int, chance: np.random.Generator) -> tuple[int, int]:
    """The best against the worst (``max_min`` of Dong et al. 2024)."""
    return 0, count - 1


def best_second(count: int, chance: np.random.Generator) -> tuple[int, int]:
    """The best against the second best: the smallest difference that the prompt offers."""
    return 0, 1


def best_random(count: int, chance: np.random.Generator) -> tuple[int, int]:
    """The best against any other, each as likely."""
    return 0, int(chance.integers(1, count))


def any_two(count: int, chance: np.random.Generator) -> tuple[int, int]:
    """Any two, each pair as likely."""
    first, second = sorted(chance.choice(count, 2, replace=False).tolist())
    return first, second


PAIRS: Mapping[str, Callable[[int, np.random.Generator], tuple[int, int]]] = {
    "best_worst": best_worst,
    "best_second": best_second,
    "best_random": best_random,
    "random": any_two,
}
"""How a pair is made: of how many ranked answers (0 is the best) to the ranks of the chosen and the rejected one."""
SINGLES = ("local", "top")
"""How answers to imitate are found: the best of each prompt, or the best of all."""


def pair(rule: str, scores: Scores, answers: Sequence[Hashable], *, seed: int, name: str) -> Picked | str:
    """Return the pair that ``rule`` makes of a prompt's answers, or why there is none.

    Two answers with equal scores are no pair, nor are two equal answers, whatever a noisy reward says of them.

    Args:
        rule: a name of :data:`PAIRS`.
        scores: of the answers.
        answers: what the scores are of; only whether two are equal matters.
        seed: of chance.
        name: of the prompt.

    Raises:
        InputError: there is no such rule.
    """
    check_rule(rule, PAIRS)
    chance = _stream(seed, rule, name)
    ranks = _ranked(scores, chance)
    if len(ranks) < 2:
        return FEW
    better, worse = (ranks[place] for place in PAIRS[rule](len(ranks), chance))
    if scores[better] == scores[worse]:
        return ALIKE
    return SAME if answers[better] == answers[worse] else Picked(better, worse)


def best(scores: Scores, keep: int = 1, *, seed: int, name: str) -> list[int]:
    """Return the places of the ``keep`` best answers, in the order they were drawn; with one it is best-of-n.

    The order says nothing about the rewards, so that a judge who sees the answers as they come learns nothing from it.
    """
    return sorted(_ranked(scores, _stream(seed, "best", name))[:keep])


def singles(rule: str, groups: Sequence[Scores], *, share: float, seed: int, names: Sequence[str]) -> list[list[int]]:
    """Return of each prompt the places of the answers to imitate (RAFT, Dong et al. 2023).

    Args:
        rule: ``local`` keeps the best of each prompt, ``top`` the best ``share`` of all answers to all prompts. The
            second starves hard prompts: report :func:`coverage`.
        groups: the scores by prompt.
        share: above 0 and at most 1, of the answers that have a score; at least one is kept.
        seed: of chance.
        names: of the prompts.

    Raises:
        InputError: there is no such rule, or the share is none.
    """
    check_rule(rule, SINGLES)
    if rule == "local":
        return [best(scores, seed=seed, name=name) for scores, name in zip(groups, names, strict=True)]
    if not 0 < share <= 1:
        raise InputError(f"alpha is {share}; expected a share of the answers to keep, above 0 and up to 1.")
    places = [(i, j) for i, scores in enumerate(groups) for j in range(len(scores))]
    ranks = _ranked([groups[i][j] for i, j in places], _stream(seed, "top", ""))
    kept: list[list[int]] = [[] for _ in groups]
    for i, j in sorted(places[rank] for rank in ranks[: math.ceil(share * len(ranks) - 1e-9)]):
        kept[i].append(j)
    return kept


def coverage(kept: Sequence[Sequence[int]]) -> float:
    """Return the share of prompts of which anything was kept."""
    return sum(bool(places) for places in kept) / len(kept) if kept else 0.0


def acceptance(scores: Scores, beta: float) -> list[float]:
    """Return exp((r - r_max) / beta), the probability with which each answer is accepted; without a score it is 0.

    Where r_max is the largest reward there is, what is accepted has the law pi(y) exp(r(y) / beta) / Z (Liu et al.
    2023, arXiv 2309.06657, eq. 14). The best of the draws stands for it, which comes close with many of them.

    Raises:
        InputError: beta is not above 0.
    """
    if not beta > 0:
        raise InputError(f"beta is {beta}; expected a temperature in units of the reward, above 0.")
    most = max((score for score in scores if score is not None), default=0.0)
    return [0.0 if score is None else math.exp((score - most) / beta) for score in scores]


def rejection(scores: Scores, beta: float, keep: int | None = None, *, seed: int, name: str) -> list[int]:
    """Return the places of the answers that statistical rejection sampling accepts, in the order they were drawn.

    With ``keep`` it goes through those not yet accepted until there are so many (Liu et al. 2023, algorithm 1), each
    time against the best of them; without, once. A small ``beta`` takes the best only, a large one takes all. Equal
    answers count as often as they were drawn.
    """
    chance = _stream(seed, "rejection", name)
    left = {place: score for place, score in enumerate(scores) if score is not None}
    accepted: list[int] = []
    most = len(left) if keep is None else min(keep, len(left))
    while len(accepted) < most:
        for place, chances in zip(list(left), acceptance(list(left.values()), beta), strict=True):
            if len(accepted) < most and chance.random() < chances:
                accepted.append(place)
                del left[place]
        if keep is None:
            break
    return sorted(accepted)


def expected_best(scores: Sequence[float], n: int) -> float:
    """Return the unbiased estimate of the expected best of ``n`` answers from the N >= n that were drawn.

    It is the mean of the maximum over all subsets of n: sum over i of x_(i) C(i - 1, n - 1) / C(N, n), x_(1) the
    smallest. With scores of 0 and 1 it is pass@n (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Raises:
        InputError: fewer than ``n`` scores, or ``n`` below 1.
    """
    if not 1 <= n <= len(scores):
        raise InputError(f"The best of {n} cannot be estimated from {len(scores)} answers; draw at least {n}.")
    every = math.comb(len(scores), n)
    return math.fsum(x * (math.comb(i, n - 1) / every) for i, x in enumerate(sorted(scores)))


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n, the KL divergence of best-of-n from the policy, in nats.

    It is exact where no two answers have the same reward, and an upper bound where rewards are discrete (Beirami et al.
    2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def check_rule(name: str, known: Iterable[str], *, where: str = "select") -> None:
    """Refuse a rule that is not among those known.

    Raises:
        InputError: there is no such rule, with the nearest name.
    """
    if name not in (names := list(known)):
        raise InputError(f"{where} is {name!r}; expected {', '.join(names)}.{nearest(name, names)}")


def _ranked(scores: Scores, chance: np.random.Generator) -> list[int]:
    """Return the places that have a score, the best first; chance orders those with equal scores."""
    mixed = chance.permutation(len(scores)).tolist()
    known = [(place, score) for place in mixed if (score := scores[place]) is not None]
    return [place for place, _ in sorted(known, key=lambda one: -one[1])]


def _stream(seed: int, *names: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(int(content_id("choose", seed, *names), 16)))
