"""What some objectives read of a completion besides its log-probability, a number a branch.

Where a reading takes two models, both are asked at the same places, and the vocabulary stands as a whole for a tile of
places only: its logits are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tiebreak.models.adapters import adapter_off
from tiebreak.models.forest import Forest
from tiebreak.models.heads import states
from tiebreak.models.logprobs import Head, Words, distributions, plain_head, tiles, words

OF_BOTH = ("public",)
"""Readings that are taken of the reference too."""
OF_TWO = ("token_kl", "extrapolated")
"""Readings that take both models at once, so that the reference has to be there in each step."""


class Other(NamedTuple):
    """The other of two models: one that is frozen, or the model itself without its adapter (``off``)."""

    model: PreTrainedModel
    off: bool = False


class Asked(NamedTuple):
    """What a reading is taken from."""

    forest: Forest
    said: Words
    model: PreTrainedModel
    other: Other | None
    compared: Sequence[int]
    extrapolate: float


def read(
    model: PreTrainedModel,
    forest: Forest,
    readings: Sequence[str],
    compared: Sequence[int] = (),
    *,
    other: Other | None = None,
    extrapolate: float = 1.0,
) -> Tensor:
    """Return (B, 1 + len(readings)): summed log-probs of learned tokens, then ``readings``. Run in ``forest_mode``.

    Args:
        model: a causal model.
        forest: the branches.
        readings: names of READINGS.
        compared: how many branches of each tree are compared; all where it is empty.
        other: the second model of those that take two.
        extrapolate: m of ``extrapolated``.
    """
    said = words(model, forest, collision="collision" in readings)
    asked = Asked(forest, said, model, other, compared, extrapolate)
    return torch.stack([forest.sums(said.logps), *(READINGS[name](asked) for name in readings)], 1)


def public(asked: Asked) -> Tensor:
    """Return the log-prob of as many tokens as the shortest compared branch of the tree has (LD-DPO), (B,)."""
    forest = asked.forest
    shortest = torch.full((len(forest.spans),), torch.iinfo(torch.long).max, device=forest.ids.device)
    counts = torch.tensor(asked.compared or [len(span.branches) for span in forest.spans], device=forest.ids.device)
    first = torch.searchsorted(forest.tree, torch.arange(len(forest.spans), device=forest.ids.device))
    among = torch.arange(len(forest.tree), device=forest.ids.device) - first[forest.tree] < counts[forest.tree]
    shortest = shortest.scatter_reduce(0, forest.tree[among], forest.lengths[among], "amin")
    starts = forest.lengths.cumsum(0) - forest.lengths
    place = torch.arange(len(forest.branch), device=forest.ids.device) - starts[forest.branch]
    return forest.sums(asked.said.logps * (place < shortest[forest.tree[forest.branch]]))


def collision(asked: Asked) -> Tensor:
    """Return the sum over tokens of log sum_v p_v^2, (B,), without a gradient (WPO's yardstick of a token)."""
    assert asked.said.collision is not None
    return asked.forest.sums(asked.said.collision)


def token_kl(asked: Asked) -> Tensor:
    """Return the sum over tokens of KL(other || model) over the whole vocabulary, (B,) (Zeng et al. 2024, eq. 9)."""
    return asked.forest.sums(_tiled(asked, _divergence))


def extrapolated(asked: Asked) -> Tensor:
    """Return log-probs of learned tokens under softmax(m l + (1 - m) l_other), summed, (B,), without a gradient."""
    with torch.no_grad():
        return asked.forest.sums(_tiled(asked, _extrapolate))


READINGS: Mapping[str, Callable[[Asked], Tensor]] = {
    "public": public,
    "collision": collision,
    "token_kl": token_kl,
    "extrapolated": extrapolated,
}


def _divergence(own: Tensor, others: Tensor, _targets: Tensor, _m: float) -> Tensor:
    p, q = own.log_softmax(-1), others.log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1)


def _extrapolate(own: Tensor, others: Tensor, targets: Tensor, m: float) -> Tensor:
    mixed = (m * own + (1 - m) * others).log_softmax(-1)
    return mixed.gather(1, targets[:, None])[:, 0]


def _tiled(asked: Asked, of_logits: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Tensor:
    """Return ``of_logits`` of both models at every learned token, (M,), a tile of places at a time."""
    assert asked.other is not None
    forest, m, other = asked.forest, asked.extrapolate, asked.other
    own_head = plain_head(asked.model)
    off = adapter_off(other.model) if other.off else nullcontext()
    with torch.no_grad(), off:
        other_head = plain_head(other.model)
        beside = None if other_head is None else states(other.model, forest).index_select(0, forest.predictors)
        whole = None if beside is not None and own_head is not None else distributions(other.model, forest)
    if own_head is None or other_head is None or beside is None:
        assert whole is not None
        return of_logits(distributions(asked.model, forest), whole, forest.targets, m)
    said, found = asked.said.states, []
    for rows in tiles(len(forest.targets), len(own_head.weight)):

        def one(part: Tensor, rows: slice = rows) -> Tensor:
            with torch.no_grad():
                others = _logits(beside[rows], other_head)
            return of_logits(_logits(part, own_head), others, forest.targets[rows], m)

        found.append(checkpoint(one, said[rows], use_reentrant=False) if torch.is_grad_enabled() else one(said[rows]))
    return torch.cat(found) if found else said.new_zeros(0)


def _logits(part: Tensor, head: Head) -> Tensor:
    """Return the logits of some places, (m, V), in float32."""
    logits = torch.nn.functional.linear(part.to(head.weight.dtype), head.weight).float()
    if head.bias is not None:
        logits = logits + head.bias.float()
    logits = logits * head.factor
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
