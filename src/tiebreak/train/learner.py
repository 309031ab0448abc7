"""One optimizer step of any objective on any model: forests under a token budget, one gradient whichever way it splits.

The objective sees one number per branch. So a batch is computed in as many forests as memory asks for, and the result
is that of the whole batch at once: a separable objective divides by the whole batch's totals; one that couples rows
gets all numbers first and hands each forest its share of the gradient in a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiebreak.models.adapters import adapter_off, has_adapter
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import plant
from tiebreak.models.fused import gradients_in_place
from tiebreak.models.load import without_dropout
from tiebreak.records import InputError
from tiebreak.registry import nearest
from tiebreak.train.objectives.switches import Outcome, Whole, objective
from tiebreak.train.optimizers import make_optimizer
from tiebreak.train.pace import Pace
from tiebreak.train.pack import fill
from tiebreak.train.rows import Example, Loss, look, see, whole_of

PRECISIONS: Mapping[str, str] = {
    "float32": "everything in float32",
    "bfloat16": "matrix products in bfloat16, weights and optimizer in float32",
    "bfloat16_weights": "weights in bfloat16 too, with a float32 copy in the optimizer",
}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How numbers are computed; none of it changes what is learned beyond rounding.

    ``precision`` is a name of :data:`PRECISIONS`; ``checkpointing`` computes activations twice instead of keeping them;
    ``tokens`` bounds the tokens of one forest, so that a batch takes several (None: one forest a batch).
    """

    precision: str = "float32"
    checkpointing: bool = False
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"There is no precision {self.precision!r}; there are {', '.join(PRECISIONS)}."
                f"{nearest(self.precision, PRECISIONS)}"
            )
        if self.tokens is not None and self.tokens < 1:
            raise InputError(f"tokens is {self.tokens}; a forest holds at least 1 token.")


class Step(NamedTuple):
    """What one optimizer step did: the numbers to log, loss first, and how many tokens went through the body."""

    numbers: dict[str, float]
    tokens: int


class Learner:
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
        self.model, self.knobs, self.pace, self.loss = model, dict(knobs), pace, loss
        self.compute = compute or Compute()
        self.reference = reference
        if self.compute.precision == "bfloat16_weights":
            _to_bfloat16(model)
            if reference is not None:
                _to_bfloat16(reference)
        self.optimizer = make_optimizer(
            model,
            optimizer,
            optimizer_knobs or {},
            learning_rate=pace.learning_rate,
            weight_decay=pace.weight_decay,
            master=self.compute.precision == "bfloat16_weights",
        )
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    @property
    def head(self) -> bool:
        """Whether the objective reads a reward head instead of words."""
        return bool(self.knobs["score"] == "head")

    @property
    def pairs(self) -> bool:
        """Whether rows are pairs."""
        return bool(self.knobs["score"])

    @property
    def compares(self) -> bool:
        """Whether the objective needs reference log-probs; a user's own score map gets them too."""
        return self.knobs["score"] not in ("", "head", "log_prob")

    @property
    def separable(self) -> bool:
        """Whether the loss is a sum over rows for sure: ours is, a function of one's own may couple them."""
        return self.loss is objective and not any(
            ":" in value for value in self.knobs.values() if isinstance(value, str)
        )

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Put models into the state in which they learn, and give them back as they were found."""
        models = [self.model] if self.reference is None else [self.model, self.reference]
        if self.reference is not None:
            without_dropout(self.reference).eval().requires_grad_(False)
        checkpointed = self.compute.checkpointing
        if checkpointed:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            with forest_mode(*models):
                without_dropout(self.model).train()
                yield
        finally:
            if checkpointed:
                self.model.gradient_checkpointing_disable()
                _unhook(self.model)
            self.model.eval()

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
            references: the reference's log-probs of the rows (R, 2); computed here where missing and needed.
            check: called with the loss before anything is updated; what it raises ends the step.

        Raises:
            InputError: a loss or gradient that is not finite; the weights are those from before.
        """
        if references is None and self.compares:
            references = self.reference_logps(rows)
        try:
            outcome, tokens = self._learn_from(rows, references)
            loss = float(outcome.loss)
            _assert_finite("loss", loss, number)
            if check is not None:
                check(loss)
            rate = self.pace.rate(number, total)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self.pace.clip))
            _assert_finite("gradient's norm", norm, number)
        except BaseException:
            self.forget()
            raise
        self.optimizer.step()
        self.forget()
        numbers = {"loss": loss, "grad_norm": norm, "learning_rate": rate}
        return Step(numbers | {name: float(value) for name, value in outcome.metrics.items()}, tokens)

    def forget(self) -> None:
        """Drop the gradients; those of the largest tables are set to zero in place, which costs no fresh memory."""
        for parameter in self.trained:
            if parameter.grad is not None and parameter.numel() >= 2**24 and parameter.device.type == "cpu":
                parameter.grad.zero_()
            else:
                parameter.grad = None

    def reference_logps(self, rows: Sequence[Example]) -> Tensor:
        """Return the reference's summed log-probs of both branches of ``rows``, (R, 2), without gradients.

        The reference is the model given as such, else the base under an adapter, else the model as it is now, which is
        right before its first update only.
        """
        off = adapter_off(self.model) if self.reference is None and has_adapter(self.model) else nullcontext()
        with off:
            return self.values(rows, model=self.reference or self.model).view(-1, 2)

    def values(self, rows: Sequence[Example], *, model: PreTrainedModel | None = None) -> Tensor:
        """Return each branch's score or summed log-probability, (B,), without gradients, of any number of rows."""
        parts = fill([row.tree.size for row in rows], self.compute.tokens or 16 * 1024)
        with torch.no_grad():
            found = [self._look([rows[i] for i in part], model or self.model) for part in parts]
        return _in_order(parts, found, rows)

    def outcome(
        self, rows: Sequence[Example], values: Tensor, references: Tensor | None, *, whole: Whole | None = None
    ) -> Outcome:
        """Hand the objective what it sees of ``rows``."""
        flat = None if references is None else references.flatten().to(values.device)
        return self.loss(see(rows, values, head=self.head, pairs=self.pairs, reference=flat, whole=whole), **self.knobs)

    def _learn_from(self, rows: Sequence[Example], references: Tensor | None) -> tuple[Outcome, int]:
        """Add the gradient of the batch to the weights and return the outcome of the batch, without its graph."""
        parts = fill([row.tree.size for row in rows], self.compute.tokens)
        shares = self._shares(rows, references) if len(parts) > 1 and not self.separable else None
        found = []
        for part in parts:
            some = [rows[i] for i in part]
            values = self._look(some, self.model)
            found.append(values.detach())
            with gradients_in_place() if values.device.type == "cpu" else nullcontext():
                if shares is not None:
                    values.backward(_of_rows(shares, part, rows))
                else:
                    compared = None if references is None else references[part]
                    self.outcome(some, values, compared, whole=whole_of(rows, self.pairs)).loss.backward()
        with torch.no_grad():
            outcome = self.outcome(rows, _in_order(parts, found, rows), references)
        return outcome, sum(row.tree.size for row in rows)

    def _shares(self, rows: Sequence[Example], references: Tensor | None) -> Tensor:
        """Return d loss / d value of every branch, (B,), from a first pass without activations."""
        values = self.values(rows).requires_grad_()
        (shares,) = torch.autograd.grad(self.outcome(rows, values, references).loss, values)
        return shares

    def _look(self, rows: Sequence[Example], model: PreTrainedModel) -> Tensor:
        forest = plant([row.tree for row in rows]).to(model.device)
        narrow = self.compute.precision == "bfloat16"
        with torch.autocast(model.device.type, torch.bfloat16, enabled=narrow):
            return look(model, forest, head=self.head)


def _unhook(model: PreTrainedModel) -> None:
    """Take away the hook on the embeddings that transformers leaves behind after checkpointing."""
    if getattr(model, "_require_grads_hooks", None) or getattr(model, "_require_grads_hook", None):
        model.disable_input_require_grads()


def _to_bfloat16(model: PreTrainedModel) -> None:
    """Round the weights to bfloat16 but for those of adapters, which are few and move little."""
    for parameter in model.parameters():
        if parameter.requires_grad is False or not has_adapter(model):
            parameter.data = parameter.data.to(torch.bfloat16)


def _branches(part: Sequence[int], rows: Sequence[Example]) -> list[int]:
    """Return the numbers, within the batch, of the branches of the rows of ``part``."""
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row.tree.branches))
    return [branch for i in part for branch in range(starts[i], starts[i + 1])]


def _of_rows(values: Tensor, part: Sequence[int], rows: Sequence[Example]) -> Tensor:
    return values[torch.tensor(_branches(part, rows), device=values.device)]


def _in_order(parts: Sequence[Sequence[int]], found: Sequence[Tensor], rows: Sequence[Example]) -> Tensor:
    """Put the branch values of forests back into the order of the rows."""
    if not found:
        return torch.zeros(0)
    places = torch.tensor([branch for part in parts for branch in _branches(part, rows)], device=found[0].device)
    whole = torch.empty(len(places), dtype=found[0].dtype, device=found[0].device)
    return whole.index_copy_(0, places, torch.cat(list(found)))


def _assert_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"The {what} at step {step + 1} is {value}; lower the learning rate or look for broken rows. "
            "The last checkpoint is kept."
        )
