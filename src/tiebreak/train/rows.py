"""From rows to what an objective sees: one number per branch, from one pass of the model over a forest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiebreak.models import heads
from tiebreak.models.forest import Forest, Tree
from tiebreak.models.load import context_of
from tiebreak.models.logprobs import token_logps
from tiebreak.models.readings import OF_BOTH, Other, read
from tiebreak.records import InputError
from tiebreak.train.objectives.part import made_by
from tiebreak.train.objectives.seen import NOTHING, Outcome, Seen, Whole
from tiebreak.train.objectives.switches import Kind

Loss = Callable[..., Outcome]
"""An objective: a :class:`Seen` and keywords, ``score`` among them, to an :class:`Outcome`."""


class Example(NamedTuple):
    """One row to train on: a tree whose first branches are compared, the best or chosen one first.

    A pair has two of them and ``p``, P(the first is better), and perhaps a ``margin``; a list has ``grades``, one for
    each; a row that stands alone has one, with a grade that is P(it is desirable), or with ``ratings``, NaN where one
    is missing. ``steps`` are P(right) of each learned token, where learned tokens end steps. ``beside`` names the roles
    of the branches that follow. ``weight`` counts the row that many times; ``label`` names the dataset it comes from.
    """

    tree: Tree
    p: float = 1.0
    weight: float = 1.0
    label: str = ""
    margin: float | None = None
    grades: tuple[float, ...] = ()
    ratings: tuple[float, ...] = ()
    steps: tuple[float, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each branch are learned."""
        return [sum(taught) for taught in self.tree.taught] or [len(branch) for branch in self.tree.branches]

    @property
    def compared(self) -> int:
        """How many branches are compared."""
        return len(self.tree.branches) - len(self.beside)

    @property
    def values(self) -> int:
        """How many values a model gives of it: one a branch, or one a step."""
        return len(self.steps) or len(self.tree.branches)


def check_rows(
    rows: Sequence[Example], model: PreTrainedModel, *, kind: Kind = "written", needs: Sequence[str] = ()
) -> None:
    """Refuse rows that cannot be trained on, before anything is computed.

    Args:
        rows: those to learn from.
        model: what learns.
        kind: the shape of row that the objective takes.
        needs: fields of the rows that the objective reads.

    Raises:
        InputError: no rows, the wrong number of completions, a field that is missing, with the curate step that makes
            it, a probability or weight out of range, or a row longer than the model's context.
    """
    if not rows:
        raise InputError("There is nothing to train on: every row was dropped or none was given; look at the funnel.")
    context = context_of(model)
    check_shapes(rows, kind=kind, needs=needs)
    for number, row in enumerate(rows):
        branches = row.tree.branches
        if not 0.0 <= row.p <= 1.0:
            raise InputError(f"Row {number} has p = {row.p}; P(chosen is better) lies between 0 and 1.")
        if not 0.0 < row.weight < math.inf:
            raise InputError(f"Row {number} has weight {row.weight}; give a positive number or drop the row.")
        longest = len(row.tree.trunk) + max(map(len, branches), default=0)
        if context is not None and longest > context:
            raise InputError(f"Row {number} has {longest} tokens and the model {context} positions; lower window.")


def check_shapes(rows: Sequence[Example], *, kind: Kind, needs: Sequence[str] = ()) -> None:
    """Refuse rows of another shape than an objective takes, or without a field that it reads; needs no model.

    Raises:
        InputError: which row, what it lacks, and the curate step that makes it.
    """
    for number, row in enumerate(rows):
        if wrong := _SHAPES[kind](row):
            raise InputError(f"Row {number} {wrong}")
        if lacks := next((need for need in needs if not _HAS.get(need, partial(_beside, need))(row)), None):
            raise InputError(f"Row {number} has no {lacks}, which the objective reads; {made_by(lacks)}.")


def _pair_shape(row: Example) -> str:
    if row.grades and len(set(row.grades)) == 1:
        return "has one grade for all its completions, so none is preferred; drop it."
    fits = len(row.grades) == row.compared > 1 if row.grades else row.compared == 2
    return "" if fits else f"has {row.compared} completions; a pair objective needs 2, or a grade for each."


def _list_shape(row: Example) -> str:
    fits = len(row.grades) == row.compared
    return "" if fits else f"has {row.compared} completions and {len(row.grades)} grades; {made_by('grades')}."


def _alone_shape(row: Example) -> str:
    return "" if row.compared == 1 else f"has {row.compared} completions and should stand alone; {made_by('label')}."


_SHAPES: Mapping[str, Callable[[Example], str]] = {
    "written": lambda row: "",
    "pairs": _pair_shape,
    "list": _list_shape,
    "alone": _alone_shape,
}
_HAS: Mapping[str, Callable[[Example], bool]] = {
    "margin": lambda row: row.margin is not None or len(row.grades) > 1,
    "grades": lambda row: bool(row.grades),
    "label": lambda row: bool(row.grades or row.steps),
    "ratings": lambda row: bool(row.ratings),
    "steps": lambda row: bool(row.steps),
}


def _beside(role: str, row: Example) -> bool:
    return role in row.beside


def mismatched(rows: Sequence[Example], room: int | None, seed: int) -> list[Example]:
    """Put behind each row's prompt the first completion of a row with another prompt, as the branch ``mismatched``.

    The rows are put into an order drawn by ``seed`` and each takes from the next one after it whose prompt differs and
    whose completion fits into ``room`` tokens, so no two rows are paired by how they lie.

    Raises:
        InputError: a row has nobody to take from.
    """
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    out = list(rows)
    for number, place in enumerate(order):
        row = rows[place]
        others = (rows[order[(number + step) % len(order)]].tree for step in range(1, len(order)))
        for other in others:
            if other.trunk != row.tree.trunk and (room is None or len(row.tree.trunk) + len(other.branches[0]) <= room):
                branches = (*row.tree.branches, other.branches[0])
                out[place] = row._replace(tree=row.tree._replace(branches=branches), beside=(*row.beside, "mismatched"))
                break
        else:
            raise InputError(
                f"Row {place} finds no completion of another prompt to compare with, among {len(rows)} rows; an "
                "objective with such a baseline needs two prompts or more."
            )
    return out


def look(
    model: PreTrainedModel,
    forest: Forest,
    *,
    head: bool,
    steps: bool = False,
    readings: Sequence[str] = (),
    other: Other | None = None,
    extrapolate: float = 1.0,
    compared: Sequence[int] = (),
) -> Tensor:
    """Return what is read of each branch, (B,) or (B, F), in float32: scores, or log-probs and further readings.

    Args:
        model: a classifier where ``head`` is true, else a causal model.
        forest: the branches.
        head: read the head's outputs.
        steps: read them at each learned token, (M,), not at each branch's end.
        readings: names of what is read besides the sum of learned tokens' log-probs, a column each.
        other: the other model, for readings that take two.
        extrapolate: how far ``extrapolated`` goes from the other model through this one.
        compared: of each tree how many branches are compared, for readings that look at them together.
    """
    if head:
        return heads.step_scores(model, forest) if steps else heads.scores(model, forest)
    if not readings:
        return forest.sums(token_logps(model, forest))
    return read(model, forest, readings, compared, other=other, extrapolate=extrapolate)


def whole_of(rows: Sequence[Example], kind: Kind) -> Whole:
    """Return what a loss over ``rows`` is divided by, whichever part of them is computed at once."""
    return Whole(
        weight=sum(row.weight * (len(row.steps) or 1) for row in rows),
        tokens=sum(row.weight * branch for row in rows for branch in row.lengths[: None if kind == "written" else 1]),
    )


def see(
    rows: Sequence[Example],
    values: Tensor,
    *,
    head: bool,
    kind: Kind,
    reference: Tensor | None,
    readings: Sequence[str] = (),
    past: Mapping[str, Tensor] = NOTHING,
    whole: Whole | None = None,
) -> Seen:
    """Hand an objective what was read of ``rows``, in the shape that its link takes.

    ``reference`` has a column for each reading that the reference has too, (B,) or (B, 1 + those of ``OF_BOTH``).
    """
    made: dict[str, Any] = {"past": past, "whole": whole}
    if head:
        made["scores"] = values
    else:
        made |= {"logps": _column(values, 0), "readings": {n: _column(values, i + 1) for i, n in enumerate(readings)}}
        if reference is not None:
            both = [name for name in readings if name in OF_BOTH]
            made |= {"reference": _column(reference, 0)}
            made |= {"compared": {name: _column(reference, i + 1) for i, name in enumerate(both)}}
    return Seen(**_sizes(rows, values), **_SHAPED[kind](rows, values), **made)


def _column(values: Tensor, number: int) -> Tensor:
    return values if values.ndim == 1 else values[:, number]


def _sizes(rows: Sequence[Example], values: Tensor) -> dict[str, Tensor]:
    sizes = [
        (length, row.weight) for row in rows for length in (row.lengths if not row.steps else (1,) * len(row.steps))
    ]
    return {
        "lengths": torch.tensor([length for length, _ in sizes], device=values.device),
        "weight": torch.tensor([weight for _, weight in sizes], device=values.device),
    }


def _as_pairs(rows: Sequence[Example], values: Tensor) -> dict[str, Any]:
    """Name the pairs of each row: its two branches, or every two of a list whose grades differ."""
    pairs: list[tuple[int, int, float, float, float]] = []
    start, plain = 0, True
    for row in rows:
        if row.grades:
            plain = False
            gaps = {
                (i, j): row.grades[i] - row.grades[j]
                for i in range(row.compared)
                for j in range(row.compared)
                if row.grades[i] > row.grades[j]
            }
            pairs += [(start + i, start + j, 1.0, gap, 1 / len(gaps)) for (i, j), gap in gaps.items()]
        else:
            pairs.append((start, start + 1, row.p, math.nan if row.margin is None else row.margin, 1.0))
        start += row.values
    columns = list(zip(*pairs, strict=True)) or [()] * 5
    made = {
        "chosen": torch.tensor(columns[0], dtype=torch.long, device=values.device),
        "rejected": torch.tensor(columns[1], dtype=torch.long, device=values.device),
        "p": torch.tensor(columns[2], device=values.device),
        "tree": _trees(rows, values),
    }
    if any(not math.isnan(gap) for gap in columns[3]):
        made["margin"] = torch.tensor(columns[3], device=values.device)
    if not plain:
        made |= {"share": torch.tensor(columns[4], device=values.device), "grades": _grades(rows, values)}
    return made | _roles(rows, values)


def _as_lists(rows: Sequence[Example], values: Tensor) -> dict[str, Any]:
    return _as_pairs(rows, values)


def _as_alone(rows: Sequence[Example], values: Tensor) -> dict[str, Any]:
    """Name the one compared branch of each row, or each of its steps, with what is known of it."""
    if rows and rows[0].steps:
        label = torch.tensor([p for row in rows for p in row.steps], device=values.device)
        return {"alone": torch.arange(len(label), device=values.device), "label": label, "tree": _trees(rows, values)}
    starts = torch.tensor([0, *(row.values for row in rows)], device=values.device).cumsum(0)[:-1]
    made: dict[str, Any] = {"alone": starts, "tree": _trees(rows, values)}
    if rows and rows[0].ratings:
        made["ratings"] = torch.tensor([row.ratings for row in rows], device=values.device)
    if rows and rows[0].grades:
        made["label"] = torch.tensor([row.grades[0] for row in rows], device=values.device)
    return made | _roles(rows, values)


_SHAPED: Mapping[str, Callable[[Sequence[Example], Tensor], dict[str, Any]]] = {
    "written": lambda rows, values: {},
    "pairs": _as_pairs,
    "list": _as_lists,
    "alone": _as_alone,
}


def _trees(rows: Sequence[Example], values: Tensor) -> Tensor:
    counts = torch.tensor([row.values for row in rows], dtype=torch.long, device=values.device)
    return torch.arange(len(rows), device=values.device).repeat_interleave(counts)


def _grades(rows: Sequence[Example], values: Tensor) -> Tensor:
    """Return the grade of each branch, NaN where it is not compared."""
    found = [(*row.grades, *(math.nan,) * (row.values - len(row.grades))) for row in rows]
    return torch.tensor([grade for grades in found for grade in grades], device=values.device)


def _roles(rows: Sequence[Example], values: Tensor) -> dict[str, Any]:
    """Index the branches beside by their role."""
    places: dict[str, list[int]] = {}
    start = 0
    for row in rows:
        for number, role in enumerate(row.beside):
            places.setdefault(role, []).append(start + row.compared + number)
        start += row.values
    return {"beside": {role: torch.tensor(found, device=values.device) for role, found in places.items()}}


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
        if row[4:] != (None, (), (), (), ()):
            yield np.frombuffer(repr(row[4:]).encode(), dtype=np.uint8)
        for ids in (row.tree.trunk, *row.tree.branches, *row.tree.taught):
            yield np.array([len(ids), *ids], dtype=np.int64)
