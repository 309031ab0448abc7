"""Scores of completions, read at the final token of each, and the centring of a reward model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tiebreak.models.forest import Forest


def hidden_last(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the last hidden state at each branch's final token, shape (B, width). Run inside ``forest_mode``.

    The place is explicit: a search for the last non-padding token would read one token early where pad equals EOS.
    """
    body = getattr(model, model.base_model_prefix)
    out = body(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, forest=forest)
    return out.last_hidden_state[0, forest.last]


def scores(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the reward of each branch, shape (B,), in float32. Run inside ``forest_mode``."""
    return model.score(hidden_last(model, forest))[:, 0].float()


class Centred(NamedTuple):
    """What centring did: the mean reference score before and after, and how far it moved a difference at most."""

    before: float
    after: float
    moved: float


@torch.no_grad()
def centre(model: PreTrainedModel, references: Tensor, differences: Tensor) -> Centred:
    """Shift the head so that reference answers average 0, in a folder plain transformers reads back to the same scores.

    A sequence classifier's head has no bias, so the shift goes where the architecture allows. A final layer norm with a
    bias takes it exactly. Otherwise the head moves by the multiple of C^-1 m that makes its product with the mean
    reference state m vanish, C being the second moment of the state differences of training pairs: of all such moves it
    disturbs score differences least, and by how much is returned.

    Args:
        model: a sequence classifier with one label.
        references: final states of reference answers, shape (R, width).
        differences: chosen minus rejected final states of training pairs, shape (P, width).
    """
    weight = model.score.weight[0].double()
    states, gaps = references.double(), differences.double()
    before = float((states @ weight).mean())
    mean = states.mean(0)
    norm = _final_norm_bias(model)
    if norm is not None:
        norm -= (before * weight / weight.square().sum()).to(norm.dtype)
        return Centred(before, 0.0, 0.0)
    spread = gaps.T @ gaps / max(len(gaps), 1)
    spread += torch.eye(len(weight), dtype=torch.float64) * spread.diagonal().mean().clamp_min(1e-12) * 1e-4
    direction = torch.linalg.solve(spread, mean)
    moved = weight - direction * (mean @ weight) / (mean @ direction)
    model.score.weight[0] = moved.to(model.score.weight.dtype)
    after = float((states @ model.score.weight[0].double()).mean())
    return Centred(before, after, float((gaps @ (moved - weight)).abs().max()) if len(gaps) else 0.0)


def _final_norm_bias(model: PreTrainedModel) -> Tensor | None:
    """Return the bias of the layer norm that feeds the head, if there is one."""
    body = getattr(model, model.base_model_prefix)
    norms = [module for module in body.children() if isinstance(module, torch.nn.LayerNorm)]
    return norms[-1].bias if norms and norms[-1].bias is not None else None
