"""The reference of a policy: its log-probs computed once and kept on disk, or in the step from a frozen model.

A reference that stays is the start of the training. One that follows takes a share of the policy every few steps:
all of it at intervals, or a little at each step, which is a moving average (TR-DPO, Gorbatovski et al. 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tiebreak.models.adapters import has_adapter
from tiebreak.records import InputError
from tiebreak.train.learner import Learner
from tiebreak.train.rows import Example, mark_of


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where the reference's log-probs come from.

    ``compute`` is ``cached`` (once, before the first update: nothing but the policy is in memory then) or ``step``.
    Every ``sync_every`` steps the reference becomes ``sync_mix`` parts policy and the rest itself; 0 lets it stay.
    """

    compute: str = "cached"
    sync_every: int = 0
    sync_mix: float = 1.0

    def __post_init__(self) -> None:
        if self.compute not in ("cached", "step"):
            raise InputError(f"The reference is computed {self.compute!r}; expected cached or step.")
        if self.sync_every < 0 or not 0 < self.sync_mix <= 1:
            raise InputError(
                f"The reference has sync_every {self.sync_every} and sync_mix {self.sync_mix}; expected at "
                "least 0, and a share above 0 and up to 1."
            )
        if self.sync_every and self.compute == "cached":
            raise InputError("A reference that follows the policy cannot be cached; set reference compute to step.")


class Cached(NamedTuple):
    """Log-probs of the branches of every row, as ``Learner.reference_logps`` gives them, and whether from disk."""

    logps: Tensor
    read: bool


def frozen_copy(model: PreTrainedModel, settings: Reference) -> PreTrainedModel | None:
    """Return the model that is the reference in the step; None where the base under an adapter is it.

    Raises:
        InputError: the reference should follow a policy that is an adapter.
    """
    if has_adapter(model):
        if settings.sync_every:
            raise InputError(
                "A reference that follows the policy needs full training; leave out adapter, or set sync_every to 0."
            )
        return None
    return copy.deepcopy(model).eval().requires_grad_(False)


class Follower:
    """A frozen model that moves towards the policy every ``sync_every`` steps, and its state for a checkpoint.

    It moves in float32 whatever the model's precision, for a small share of a difference is less than bfloat16 tells.
    """

    def __init__(self, model: PreTrainedModel, settings: Reference) -> None:
        self.model = model
        self.settings = settings
        self.wide = {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}

    def follow(self, policy: PreTrainedModel, done: int) -> None:
        """Move after step ``done`` (from 1), if it is time."""
        if done % self.settings.sync_every:
            return
        with torch.no_grad():
            for name, other in policy.named_parameters():
                self.wide[name].lerp_(other.float(), self.settings.sync_mix)
        self.load(self.wide)

    def state(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        return dict(self.wide)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back weights."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.wide[name].copy_(state[name])
                parameter.copy_(state[name])


def cached_logps(learner: Learner, rows: Sequence[Example], folder: Path) -> Cached:
    """Return the reference's log-probs of ``rows``, from disk where this reference has seen these rows before.

    The name of the file is a hash of the reference's weights, the rows' token ids (so the tokenizer's too) and the
    precision, so another training on the same rows and start pays nothing. Run before the first update.
    """
    bare = [Example(row.tree) for row in rows]
    how = {"precision": learner.compute.precision, "readings": learner.readings_of_both}
    path = folder / f"{mark_of(learner.model, bare, how)}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):  # not there, or cut short by a crash: computed again
        return Cached(load_file(path)["logps"].to(learner.model.device), True)
    logps = learner.reference_logps(rows)
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"logps": logps.cpu().contiguous()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The reference's log-probs cannot be written to {path}: {error}; free some space.") from error
    return Cached(logps, False)
