"""From rows to what an objective sees: one number per branch, from one pass of the model over a forest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiebreak.models.forest import Forest, Tree
from tiebreak.models.heads import scores
from tiebreak.models.load import context_of
from tiebreak.models.logprobs import token_logps
from tiebreak.records import InputError
from tiebreak.train.objectives.switches import Outcome, Seen, Whole

Loss = Callable[..., Outcome]
"""An objective: a :class:`Seen` and keywords, ``score`` among them, to an :class:`Outcome`."""


class Example(NamedTuple):
    """One row to train on: a tree with one branch, or with the chosen branch first and the rejected one second.

    ``p`` is P(chosen is better); ``weight`` counts the row that many times; ``label`` names the dataset it comes from.
    """

    tree: Tree
    p: float = 1.0
    weight: float = 1.0
    label: str = ""

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each branch are learned."""
        return [sum(taught) for taught in self.tree.taught] or [len(branch) for branch in self.tree.branches]


def check_rows(rows: Sequence[Example], model: PreTrainedModel, *, pairs: bool) -> None:
    """Refuse rows that cannot be trained on, before anything is computed.

    Raises:
        InputError: no rows, the wrong number of completions, a probability or weight out of range, or a row longer than
            the model's context.
    """
    if not rows:
        raise InputError("There is nothing to train on: every row was dropped or none was given; look at the funnel.")
    context = context_of(model)
    for number, row in enumerate(rows):
        branches = row.tree.branches
        if pairs and len(branches) != 2:
            raise InputError(f"Row {number} has {len(branches)} completions; a pair objective needs 2.")
        if not 0.0 <= row.p <= 1.0:
            raise InputError(f"Row {number} has p = {row.p}; P(chosen is better) lies between 0 and 1.")
        if not 0.0 < row.weight < math.inf:
            raise InputError(f"Row {number} has weight {row.weight}; give a positive number or drop the row.")
        longest = len(row.tree.trunk) + max(map(len, branches), default=0)
        if context is not None and longest > context:
            raise InputError(f"Row {number} has {longest} tokens and the model {context} positions; lower window.")


def look(model: PreTrainedModel, forest: Forest, *, head: bool) -> Tensor:
    """Return each branch's score, or the sum of its learned tokens' log-probs, shape (B,), in float32."""
    return scores(model, forest) if head else forest.sums(token_logps(model, forest))


def whole_of(rows: Sequence[Example], pairs: bool) -> Whole:
    """Return what a loss over ``rows`` is divided by, whichever part of them is computed at once."""
    return Whole(
        weight=sum(row.weight for row in rows),
        tokens=sum(row.weight * branch for row in rows for branch in row.lengths[: 1 if pairs else None]),
    )


def see(
    rows: Sequence[Example],
    values: Tensor,
    *,
    head: bool,
    pairs: bool,
    reference: Tensor | None,
    whole: Whole | None = None,
) -> Seen:
    """Hand an objective the branch values of ``rows``; pairs stand chosen first, rejected second."""
    device = values.device
    sizes = [(length, row.weight) for row in rows for length in row.lengths]
    seen: dict[str, Tensor | None] = {"scores" if head else "logps": values, "reference": reference}
    if pairs:
        firsts = torch.arange(len(rows), device=device) * 2
        seen |= {"chosen": firsts, "rejected": firsts + 1, "p": torch.tensor([row.p for row in rows], device=device)}
    lengths = torch.tensor([length for length, _ in sizes], device=device)
    weight = torch.tensor([weight for _, weight in sizes], device=device)
    return Seen(lengths=lengths, weight=weight, whole=whole, **seen)


def mark_of(model: nn.Module, rows: Sequence[Example], *settings: Mapping[str, Any]) -> str:
    """Return a hash of all that decides a training's result, so that a checkpoint is resumed by its own run only.

    Of each weight tensor its sum and up to 4096 evenly spaced numbers are read: enough to tell two models apart.
    """
    digest = hashlib.blake2b(repr([sorted(part.items()) for part in settings]).encode(), digest_size=16)
    for part in _parts(model, rows):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _parts(model: nn.Module, rows: Sequence[Example]) -> Iterator[np.ndarray]:
    for parameter in model.parameters():
        flat = parameter.detach().flatten()
        yield flat[:: max(1, len(flat) // 4096)].float().cpu().numpy()
        yield flat.sum(dtype=torch.float64).cpu().numpy()
    for row in rows:
        yield np.array([row.p, row.weight])
        yield np.frombuffer(row.label.encode(), dtype=np.uint8)
        for ids in (row.tree.trunk, *row.tree.branches, *row.tree.taught):
            yield np.array([len(ids), *ids], dtype=np.int64)
