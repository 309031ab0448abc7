"""A batch of two rows with all that any part of an objective reads, to try one on before there are any data."""

from __future__ import annotations

import torch

from tiebreak.train.objectives.seen import Seen

ROLES = ("rationale", "drawn", "mismatched")


def trial(*, head: bool, columns: int) -> Seen:
    """Return two rows of two compared branches, with one beside for each role.

    Args:
        head: whether a reward head is read in place of log-probs.
        columns: numbers that it gives of a branch.
    """
    width = 2 + len(ROLES)
    size, made = 2 * width, {"dtype": torch.float64}
    values = torch.linspace(-3.0, -1.0, size, **made)
    scores = values if columns == 1 else values[:, None].expand(size, columns)
    first = torch.tensor([0, width])
    columns_of = {name: values - 0.5 for name in ("public", "collision", "extrapolated")} | {"token_kl": -values}
    return Seen(
        lengths=torch.full((size,), 4),
        weight=torch.ones(size, **made),
        logps=None if head else values,
        reference=None if head else values + 0.25,
        scores=scores if head else None,
        chosen=first,
        rejected=first + 1,
        p=torch.tensor([0.75, 0.75], **made),
        margin=torch.ones(2, **made),
        share=torch.ones(2, **made),
        tree=torch.arange(2).repeat_interleave(width),
        grades=torch.tensor([1.0, 0.5, *[torch.nan] * len(ROLES)] * 2, **made),
        alone=first,
        label=torch.tensor([1.0, 0.0], **made),
        ratings=torch.tensor([[1.0] * columns, [2.0] * columns], **made),
        beside={role: first + 2 + number for number, role in enumerate(ROLES)},
        readings={} if head else columns_of,
        compared={} if head else {"public": values},
    )
