"""One optimizer step of any objective on any model: forests under a token budget, one gradient whichever way it splits.

The objective sees one number per branch. So a batch is computed in as many forests as memory asks for, and the result
is that of the whole batch at once: a separable objective divides by the whole batch's totals; one that couples rows
gets all numbers first and hands each forest its share of the gradient in a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiebreak.models.adapters import adapter_off, has_adapter
from tiebreak.models.forest import plant
from tiebreak.models.fused import gradients_in_place
from tiebreak.models.readings import OF_BOTH, READINGS, Other
from tiebreak.train.objectives.seen import NOTHING, Outcome, Whole
from tiebreak.train.objectives.switches import Kind, kind_of, needs_of, objective, parts_of
from tiebreak.train.pace import Pace
from tiebreak.train.pack import fill
from tiebreak.train.rows import Example, Loss, look, see, whole_of
from tiebreak.train.update import Compute, Learned, Step, Update


class Learner(Update):
    """A model, an objective and an optimizer, which take steps; the loop above decides on which rows.

    Args:
        model: a causal model, or a classifier with one label where the objective reads a head. Changed in place.
        knobs: of the objective; its ``score`` says what is read.
        pace: learning rate, weight decay and clipping.
        compute: precision and memory.
        loss: the objective.
        optimizer: name of a row of OPTIMIZERS.
        optimizer_knobs: its knobs.
        reference: a frozen model for objectives that compare with one; with an adapter the base is it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        knobs: Mapping[str, Any],
        pace: Pace,
        compute: Compute | None = None,
        *,
        loss: Loss = objective,
        optimizer: str = "adamw",
        optimizer_knobs: Mapping[str, Any] | None = None,
        reference: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(
            {"model": model},
            pace,
            compute,
            frozen=[] if reference is None else [reference],
            optimizer=optimizer,
            optimizer_knobs=optimizer_knobs,
        )
        self.model, self.knobs, self.loss, self.reference = model, dict(knobs), loss, reference
        self.kind, self.reads, _ = asked_of(loss, self.knobs)
        self.readings = tuple(name for name in READINGS if name in self.reads)
        self.past: Mapping[str, Tensor] = NOTHING
        self.progress = 0.0

    @property
    def head(self) -> bool:
        """Whether the objective reads a reward head instead of words."""
        return bool(self.knobs["score"] == "head")

    @property
    def compares(self) -> bool:
        """Whether the objective needs reference log-probs; a user's own score map gets them too."""
        return "reference" in self.reads

    @property
    def couples(self) -> bool:
        """Whether a row's loss may depend on the other rows of the batch; that of a function of one's own may."""
        return self.loss is not objective or any(part.couples for part in parts_of(self.knobs).values())

    def step(
        self,
        rows: Sequence[Example],
        number: int,
        total: int,
        references: Tensor | None = None,
        *,
        check: Callable[[float], None] | None = None,
    ) -> Step:
        """Take optimizer step ``number`` (from 0) of ``total`` on ``rows``.

        Args:
            rows: the batch.
            number: of this step, for the learning rate.
            total: steps in all.
            references: what :meth:`reference_logps` gives of the rows; computed here where missing and needed.
            check: called with the loss before anything is updated; what it raises ends the step.

        Raises:
            InputError: a loss or gradient that is not finite; the weights are those from before.
        """
        self.progress = number / total
        if references is None and self.compares:
            references = self.reference_logps(rows)

        def learn() -> Learned:
            outcome, tokens = self._learn_from(rows, references)
            numbers = {name: float(value) for name, value in {"loss": outcome.loss, **outcome.metrics}.items()}
            return Learned(numbers, tokens)

        return self.take(number, total, learn, check)

    def reference_logps(self, rows: Sequence[Example]) -> Tensor:
        """Return the reference's summed log-probs of the branches of ``rows``, (R, W), without gradients.

        W is the most branches that a row has; where one has fewer, NaN stands. Where further readings are taken of the
        reference, they follow in a third dimension.

        The reference is the model given as such, else the base under an adapter, else the model as it is now, which is
        right before its first update only.
        """
        off = adapter_off(self.model) if self.reference is None and has_adapter(self.model) else nullcontext()
        with off:
            flat = self.values(rows, model=self.reference or self.model, readings=self.readings_of_both)
        held = _held(rows)
        out = torch.full((*held.shape, *flat.shape[1:]), math.nan, dtype=flat.dtype, device=flat.device)
        out[held.to(flat.device)] = flat
        return out

    @property
    def readings_of_both(self) -> tuple[str, ...]:
        """What is read of the reference besides log-probs."""
        return tuple(name for name in self.readings if name in OF_BOTH)

    def values(
        self,
        rows: Sequence[Example],
        *,
        model: PreTrainedModel | None = None,
        readings: Sequence[str] | None = None,
    ) -> Tensor:
        """Return what is read of each branch, (B,) or (B, F), without gradients, of any number of rows."""
        parts = fill([row.tree.size for row in rows], self.compute.tokens or 16 * 1024)
        taken = self.readings if readings is None else readings
        with torch.no_grad():
            found = [self._look([rows[i] for i in part], model or self.model, taken) for part in parts]
        return _in_order(parts, found, rows)

    def outcome(
        self, rows: Sequence[Example], values: Tensor, references: Tensor | None, *, whole: Whole | None = None
    ) -> Outcome:
        """Hand the objective what it sees of ``rows``."""
        flat = None if references is None else references[:, : _width(rows)][_held(rows).to(references.device)]
        seen = see(
            rows,
            values,
            head=self.head,
            kind=self.kind,
            reference=None if flat is None else flat.to(values.device),
            readings=self.readings,
            past={**self.past, "progress": torch.tensor(self.progress)},
            whole=whole,
        )
        return self.loss(seen, **self.knobs)

    def _learn_from(self, rows: Sequence[Example], references: Tensor | None) -> tuple[Outcome, int]:
        """Add the gradient of the batch to the weights and return the outcome of the batch, without its graph."""
        parts = fill([row.tree.size for row in rows], self.compute.tokens)
        shares = self._shares(rows, references) if len(parts) > 1 and self.couples else None
        whole, found = whole_of(rows, self.kind), []
        for part in parts:
            some = [rows[i] for i in part]
            values = self._look(some, self.model, self.readings)
            found.append(values.detach())
            with gradients_in_place() if values.device.type == "cpu" else nullcontext():
                if shares is not None:
                    values.backward(_of_rows(shares, part, rows))
                else:
                    compared = None if references is None else references[part]
                    self.outcome(some, values, compared, whole=whole).loss.backward()
        with torch.no_grad():
            outcome = self.outcome(rows, _in_order(parts, found, rows), references)
        self.past = {name: value.detach() for name, value in outcome.kept.items()}
        return outcome, sum(row.tree.size for row in rows)

    def _shares(self, rows: Sequence[Example], references: Tensor | None) -> Tensor:
        """Return d loss / d value of every branch, (B,), from a first pass without activations."""
        values = self.values(rows).requires_grad_()
        (shares,) = torch.autograd.grad(self.outcome(rows, values, references).loss, values)
        return shares

    def _look(self, rows: Sequence[Example], model: PreTrainedModel, readings: Sequence[str]) -> Tensor:
        forest = plant([row.tree for row in rows]).to(model.device)
        with self.precision():
            return look(
                model,
                forest,
                head=self.head,
                steps=any(row.steps for row in rows),
                readings=readings,
                other=Other(self.reference or self.model, off=self.reference is None),
                extrapolate=self.knobs.get("extrapolate", 1.5),
                compared=[row.compared for row in rows],
            )


class Asked(NamedTuple):
    """The shape of row that an objective takes, what it reads besides log-probs or scores, and what rows must have."""

    kind: Kind
    reads: frozenset[str]
    needs: tuple[str, ...] = ()


def asked_of(loss: Loss, knobs: Mapping[str, Any]) -> Asked:
    """Return what an objective asks for; a function of one's own takes pairs wherever it has a score map."""
    if loss is objective:
        reads = frozenset(name for part in parts_of(knobs).values() for name in part.reads)
        return Asked(kind_of(knobs.get("link", "")), reads, needs_of(knobs))
    own = () if knobs["score"] in ("", "head", "log_prob") else ("reference",)
    return Asked("pairs" if knobs["score"] else "written", frozenset(own))


def _width(rows: Sequence[Example]) -> int:
    return max((len(row.tree.branches) for row in rows), default=0)


def _held(rows: Sequence[Example]) -> Tensor:
    """Return which places of a table of rows by branches hold one, (R, W)."""
    counts = torch.tensor([len(row.tree.branches) for row in rows], dtype=torch.long)
    return torch.arange(_width(rows))[None] < counts[:, None]


def _branches(part: Sequence[int], rows: Sequence[Example]) -> list[int]:
    """Return the numbers, within the batch, of the values of the rows of ``part``."""
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + row.values)
    return [branch for i in part for branch in range(starts[i], starts[i + 1])]


def _of_rows(values: Tensor, part: Sequence[int], rows: Sequence[Example]) -> Tensor:
    return values[torch.tensor(_branches(part, rows), device=values.device)]


def _in_order(parts: Sequence[Sequence[int]], found: Sequence[Tensor], rows: Sequence[Example]) -> Tensor:
    """Put the branch values of forests back into the order of the rows."""
    if not found:
        return torch.zeros(0)
    places = torch.tensor([branch for part in parts for branch in _branches(part, rows)], device=found[0].device)
    whole = torch.empty((len(places), *found[0].shape[1:]), dtype=found[0].dtype, device=found[0].device)
    return whole.index_copy_(0, places, torch.cat(list(found)))
