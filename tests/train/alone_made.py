"""Batches of rows that stand alone, as an objective sees them, made up in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.train.seen_made import Double, branches, numbers
from tiebreak.train.objectives.seen import Seen

NAN = float("nan")


def alone(
    label: Sequence[float] = (1.0, 0.0, 1.0, 0.0, 0.25),
    *,
    rho: Sequence[float] | None = None,
    drift: Sequence[float] | None = None,
    weight: Sequence[float] | None = None,
    seed: int = 0,
    **more: Any,
) -> Seen:
    """Rows of one compared branch and a mismatched one, in turns; ``rho`` and ``drift`` are their log-ratios."""
    count = len(label)
    made = branches(2 * count, seed)
    if rho is not None:
        beside = drift if drift is not None else [0.0] * count
        values = numbers([v for both in zip(rho, beside, strict=True) for v in both])
        made |= {"logps": values.requires_grad_(True), "reference": torch.zeros_like(values)}
    drawn = 0.5 + torch.rand(count, dtype=Double, generator=torch.Generator().manual_seed(seed + 1))
    places = 2 * torch.arange(count)
    made |= {
        "weight": (drawn if weight is None else numbers(weight)).repeat_interleave(2),
        "alone": places,
        "label": numbers(label),
        "tree": torch.arange(count).repeat_interleave(2),
        "beside": {"mismatched": places + 1},
    }
    return Seen(**{**made, **more})


def rated(ratings: Sequence[Sequence[float]], *, seed: int = 0, **more: Any) -> Seen:
    """Rows of one branch with marks by attribute, under a head of as many columns."""
    made = branches(len(ratings), seed, width=len(ratings[0]))
    made |= {
        "weight": torch.ones(len(ratings), dtype=Double),
        "alone": torch.arange(len(ratings)),
        "ratings": torch.tensor(ratings, dtype=Double),
        "tree": torch.arange(len(ratings)),
    }
    return Seen(**{**made, **more})


def rho_of(seen: Seen, places: Tensor | None = None) -> list[float]:
    """The log-ratios of the compared branches, or of those in ``places``, as plain numbers."""
    assert seen.logps is not None
    assert seen.reference is not None
    ratio = (seen.logps - seen.reference).detach()
    return ratio[seen.alone if places is None else places].tolist()


def weights_of(seen: Seen) -> list[float]:
    return seen.weight[seen.alone].tolist()
