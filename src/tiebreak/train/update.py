"""One optimizer step, whatever it learns from: precision, learning rate, clipping, and a check that numbers are finite.

Both loops stand on this. What a step learns from is a function that adds gradients and says what they were the gradient
of; the rest is here once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from tiebreak.models.adapters import has_adapter
from tiebreak.models.attention import forest_mode
from tiebreak.models.heads import without_dropout
from tiebreak.records import InputError
from tiebreak.registry import nearest
from tiebreak.train.optimizers import make_optimizer
from tiebreak.train.pace import Pace

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


class Learned(NamedTuple):
    """What gradients were added for: the numbers to log, ``loss`` among them, and the tokens that went through."""

    numbers: dict[str, float]
    tokens: int


class Step(NamedTuple):
    """What one optimizer step did: the numbers to log, loss first, and how many tokens went through the body."""

    numbers: dict[str, float]
    tokens: int


class Update:
    """Models that learn together, with their optimizer; a loop above says what they learn from.

    Args:
        models: those that learn, changed in place, and what else of weights learns with them.
        pace: learning rate, weight decay and clipping.
        compute: precision and memory.
        frozen: models that are only asked, such as a reference.
        optimizer: name of a row of OPTIMIZERS.
        optimizer_knobs: its knobs.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        pace: Pace,
        compute: Compute | None = None,
        *,
        frozen: Sequence[PreTrainedModel] = (),
        optimizer: str = "adamw",
        optimizer_knobs: Mapping[str, Any] | None = None,
    ) -> None:
        self.pace, self.compute = pace, compute or Compute()
        self.models = [model for model in models.values() if isinstance(model, PreTrainedModel)]
        self.frozen = list(frozen)
        self.nets: nn.Module = next(iter(models.values())) if len(models) == 1 else nn.ModuleDict(models)
        narrow = self.compute.precision == "bfloat16_weights"
        for model in (*self.models, *self.frozen) if narrow else ():
            _to_bfloat16(model)
        self.optimizer = make_optimizer(
            self.nets,
            optimizer,
            optimizer_knobs or {},
            learning_rate=pace.learning_rate,
            weight_decay=pace.weight_decay,
            master=narrow,
        )
        self.trained = [parameter for parameter in self.nets.parameters() if parameter.requires_grad]

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Put models into the state in which they learn, and give them back as they were found."""
        for model in self.frozen:
            without_dropout(model).eval().requires_grad_(False)
        checkpointed = self.models if self.compute.checkpointing else []
        for model in checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            with forest_mode(*self.models, *self.frozen):
                for model in self.models:
                    without_dropout(model).train()
                yield
        finally:
            for model in checkpointed:
                model.gradient_checkpointing_disable()
                _unhook(model)
            for model in self.models:
                model.eval()

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Compute matrix products as ``compute`` says."""
        narrow = self.compute.precision == "bfloat16"
        with torch.autocast(self.models[0].device.type, torch.bfloat16, enabled=narrow):
            yield

    def take(
        self,
        number: int,
        total: int,
        learn: Callable[[], Learned],
        check: Callable[[float], None] | None = None,
    ) -> Step:
        """Take optimizer step ``number`` (from 0) of ``total`` along the gradient that ``learn`` adds to the weights.

        ``check`` is called with the loss before anything is updated; what it raises ends the step.

        Raises:
            InputError: a loss or gradient that is not finite; the weights are those from before.
        """
        try:
            learned = learn()
            loss = learned.numbers["loss"]
            _assert_finite("loss", loss, number)
            if check is not None:
                check(loss)
            rate = self.pace.rate(number, total)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            norm = float(nn.utils.clip_grad_norm_(self.trained, self.pace.clip))
            _assert_finite("gradient's norm", norm, number)
        except BaseException:
            self.forget()
            raise
        self.optimizer.step()
        self.forget()
        return Step({"loss": loss, "grad_norm": norm, "learning_rate": rate} | learned.numbers, learned.tokens)

    def forget(self) -> None:
        """Drop the gradients; those of the largest tables are set to zero in place, which costs no fresh memory."""
        for parameter in self.trained:
            if parameter.grad is not None and parameter.numel() >= 2**24 and parameter.device.type == "cpu":
                parameter.grad.zero_()
            else:
                parameter.grad = None


def _unhook(model: PreTrainedModel) -> None:
    """Take away the hook on the embeddings that transformers leaves behind after checkpointing."""
    if getattr(model, "_require_grads_hooks", None) or getattr(model, "_require_grads_hook", None):
        model.disable_input_require_grads()


def _to_bfloat16(model: PreTrainedModel) -> None:
    """Round the weights to bfloat16 but for those of adapters, which are few and move little."""
    for parameter in model.parameters():
        if parameter.requires_grad is False or not has_adapter(model):
            parameter.data = parameter.data.to(torch.bfloat16)


def _assert_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise InputError(
            f"The {what} at step {step + 1} is {value}; lower the learning rate or look for broken rows. "
            "The last checkpoint is kept."
        )
