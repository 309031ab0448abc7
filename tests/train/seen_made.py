"""Batches as an objective sees them, made up in float64: pairs and lists, parts of them, and slopes by difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from tiebreak.train.objectives.seen import Seen, Whole
from tiebreak.train.objectives.switches import objective
from tiebreak.train.objectives.terms import first_of

Double = torch.float64
LEAVES = ("logps", "scores")
"""Fields that take a gradient."""
GRADED = ("public", "token_kl")
"""Readings that take one; the others are numbers."""


def numbers(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=Double)


def branches(count: int, seed: int = 0, *, width: int = 0) -> dict[str, Any]:
    """Of ``count`` branches all that can be read; scores have ``width`` columns, or are one number where it is 0."""
    source = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, dtype=Double, generator=source)

    lengths = torch.randint(2, 9, (count,), generator=source)
    logps = -lengths * (0.2 + drawn(count).abs())
    reference = -lengths * (0.2 + drawn(count).abs())
    shared = torch.rand(count, dtype=Double, generator=source)
    return {
        "lengths": lengths,
        "logps": logps.requires_grad_(True),
        "reference": reference,
        "scores": drawn(*((count, width) if width else (count,))).requires_grad_(True),
        "readings": {
            "public": (shared * logps.detach()).requires_grad_(True),
            "collision": -lengths * (0.1 + 0.3 * shared),
            "token_kl": drawn(count).abs().requires_grad_(True),
            "extrapolated": 1.5 * logps.detach() - 0.5 * reference,
        },
        "compared": {"public": shared * reference},
    }


def pairs(
    chosen: Sequence[float] | int = 4, rejected: Sequence[float] = (), *, seed: int = 0, width: int = 0, **more: Any
) -> Seen:
    """A batch of pairs: drawn, as many as ``chosen`` says, or with these log-probs against a reference of 0.

    Row i has branches 2i and 2i+1. ``more`` replaces fields; numbers per pair or branch may be given as lists.
    """
    count = chosen if isinstance(chosen, int) else len(chosen)
    made = branches(2 * count, seed, width=width)
    if not isinstance(chosen, int):
        values = numbers([v for pair in zip(chosen, rejected, strict=True) for v in pair])
        made |= {"logps": values.requires_grad_(True), "reference": torch.zeros_like(values)}
    source = torch.Generator().manual_seed(seed + 1)
    firsts = 2 * torch.arange(count)
    weight = 0.5 + torch.rand(count, dtype=Double, generator=source)
    made |= {
        "weight": weight.repeat_interleave(2),
        "chosen": firsts,
        "rejected": firsts + 1,
        "p": 0.5 + 0.5 * torch.rand(count, dtype=Double, generator=source),
        "margin": 0.1 + torch.rand(count, dtype=Double, generator=source),
        "share": torch.ones(count, dtype=Double),
        "tree": torch.arange(count).repeat_interleave(2),
        "grades": numbers([1.0, 0.0]).repeat(count),
    }
    return Seen(**{**made, **{name: _tensor(value) for name, value in more.items()}})


def _tensor(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return numbers(value) if any(isinstance(one, float) for one in value) else torch.tensor(value)


def lists(grades: Sequence[Sequence[float]], *, seed: int = 0, width: int = 0, **more: Any) -> Seen:
    """A batch of lists, one per row of ``grades``; every two branches with different grades are a pair."""
    sizes = [len(row) for row in grades]
    flat = [grade for row in grades for grade in row]
    tree = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    found = [
        (i, j) for i in range(len(flat)) for j in range(len(flat)) if int(tree[i]) == int(tree[j]) and flat[i] > flat[j]
    ]
    better, worse = torch.tensor(found, dtype=torch.long).reshape(-1, 2).T
    share = 1.0 / torch.bincount(tree[better], minlength=len(sizes)).to(Double)[tree[better]]
    weight = 0.5 + torch.rand(len(sizes), dtype=Double, generator=torch.Generator().manual_seed(seed + 1))
    made = branches(len(flat), seed, width=width) | {
        "weight": weight[tree],
        "chosen": better,
        "rejected": worse,
        "p": torch.ones(len(found), dtype=Double),
        "margin": numbers([flat[i] - flat[j] for i, j in found]),
        "share": share,
        "tree": tree,
        "grades": numbers(flat),
    }
    return Seen(**{**made, **{name: _tensor(value) for name, value in more.items()}})


def whole_of(seen: Seen) -> Whole:
    """What the parts of ``seen`` are divided by."""
    first = first_of(seen)
    return Whole(float(seen.weight[first].sum()), float((seen.weight * seen.lengths)[first].sum()))


def part_of(seen: Seen, rows: Sequence[int]) -> Seen:
    """These rows of ``seen``, in this order, as a part of the whole."""
    assert seen.tree is not None
    kept = torch.cat([torch.nonzero(seen.tree == row).flatten() for row in rows])
    place = torch.full((len(seen.tree),), -1)
    place[kept] = torch.arange(len(kept))
    order = {row: new for new, row in enumerate(rows)}

    def one_to_a(index: Tensor) -> Tensor:
        """Where ``index`` names branches that stay, by new row."""
        stays = torch.nonzero(place[index] >= 0).flatten()
        return stays[torch.argsort(place[index][stays], stable=True)]

    cut: dict[str, Any] = {"whole": whole_of(seen) if seen.whole is None else seen.whole}
    for name in ("lengths", "weight", "logps", "reference", "scores", "grades"):
        value = getattr(seen, name)
        cut[name] = None if value is None else value[kept]
    cut["tree"] = torch.tensor([order[int(row)] for row in seen.tree[kept]])
    if seen.chosen is not None and seen.rejected is not None:
        stay = one_to_a(seen.chosen)
        cut |= {"chosen": place[seen.chosen[stay]], "rejected": place[seen.rejected[stay]]}
        cut |= {n: None if getattr(seen, n) is None else getattr(seen, n)[stay] for n in ("p", "margin", "share")}
    if seen.alone is not None:
        stay = one_to_a(seen.alone)
        cut["alone"] = place[seen.alone[stay]]
        cut |= {n: None if getattr(seen, n) is None else getattr(seen, n)[stay] for n in ("label", "ratings")}
    for name in ("readings", "compared"):
        cut[name] = {key: value[kept] for key, value in getattr(seen, name).items()}
    cut["beside"] = {role: place[index[one_to_a(index)]] for role, index in seen.beside.items()}
    return replace(seen, **cut)


def leaves(seen: Seen) -> dict[str, Tensor]:
    """All tensors of ``seen`` that take a gradient, by name."""
    found = {name: getattr(seen, name) for name in LEAVES}
    found |= {name: seen.readings.get(name) for name in GRADED}
    return {name: value for name, value in found.items() if value is not None and value.requires_grad}


def with_leaf(seen: Seen, name: str, value: Tensor) -> Seen:
    """``seen`` with another tensor for one of its leaves."""
    if name in {one.name for one in fields(Seen)}:
        return replace(seen, **{name: value})
    return replace(seen, readings={**seen.readings, name: value})


def loss_of(seen: Seen, **knobs: Any) -> float:
    return float(objective(seen, **knobs).loss.detach())


def slopes(seen: Seen, **knobs: Any) -> dict[str, Tensor]:
    """The gradient of the loss with respect to every leaf, zeros where it does not depend on one."""
    found = leaves(seen)
    loss = objective(seen, **knobs).loss
    gradients = torch.autograd.grad(loss, list(found.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(found, gradients, strict=True))


def slopes_by_difference(seen: Seen, *, step: float = 1e-6, **knobs: Any) -> dict[str, Tensor]:
    """The same by central differences."""
    made: dict[str, Tensor] = {}
    for name, value in leaves(seen).items():
        flat = value.detach().flatten()
        made[name] = torch.zeros_like(flat)
        for place in range(len(flat)):
            ends = [flat.clone(), flat.clone()]
            ends[0][place] += step
            ends[1][place] -= step
            up, down = (loss_of(with_leaf(seen, name, end.reshape(value.shape)), **knobs) for end in ends)
            made[name][place] = (up - down) / (2 * step)
        made[name] = made[name].reshape(value.shape)
    return made
