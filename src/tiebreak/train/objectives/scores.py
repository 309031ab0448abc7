"""Score maps: what a branch is worth, (B,). And how two branches' scores are compared, and what is added to that."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Seen


def log_ratio(seen: Seen) -> Tensor:
    """rho(y) = log pi(y|x) - log pi_ref(y|x), the implicit reward over beta (Rafailov et al. 2023, eq. 5)."""
    assert seen.logps is not None
    assert seen.reference is not None
    return seen.logps - seen.reference


def log_prob(seen: Seen) -> Tensor:
    """Log pi(y|x), summed over the completion."""
    assert seen.logps is not None
    return seen.logps


def head(seen: Seen) -> Tensor:
    """What the reward head gives: one number, or k of them."""
    assert seen.scores is not None
    return seen.scores


SCORES: Mapping[str, Part] = {
    "log_ratio": Part(log_ratio, reads=("reference",)),
    "log_prob": Part(log_prob),
    "head": Part(head, reads=("scores",)),
}


def difference(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return how much more the chosen side is worth."""
    return chosen - rejected


COMPARES: Mapping[str, Part] = {"difference": Part(difference)}

OFFSETS: Mapping[str, Part] = {}
