"""Scores of completions, read at the final token of each, and the centring of a reward model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import LayerNorm
from transformers import PreTrainedModel

from tiebreak.models.forest import Forest
from tiebreak.records import InputError


def hidden_last(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the last hidden state at each branch's final token, shape (B, width). Run inside ``forest_mode``.

    The place is explicit: a search for the last non-padding token would read one token early where pad equals EOS.
    """
    body = getattr(model, model.base_model_prefix)
    out = body(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, forest=forest)
    return out.last_hidden_state[0, forest.last]


def scores(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return the reward of each branch, shape (B,), in float32. Run inside ``forest_mode``."""
    values: Tensor = model.score(hidden_last(model, forest))
    return values[:, 0].float()


class Centred(NamedTuple):
    """What centring did: the mean reference score before and after, and how far it moved score differences of pairs.

    ``moved`` is the largest move and ``typical`` its root mean square; ``spread`` is the root mean square of the
    differences themselves, to compare with. ``exact`` says that no difference moved at all (beyond rounding).
    """

    before: float
    after: float
    moved: float
    typical: float = 0.0
    spread: float = 0.0
    exact: bool = False


def final_norm(model: PreTrainedModel, forest: Forest) -> LayerNorm | None:
    """Return the layer norm with a bias whose output is what the head reads, if there is one. Run in ``forest_mode``.

    It is found by what it gives, not by its name, which differs from one architecture to the next.
    """
    given: dict[int, LayerNorm] = {}

    def keep(module: LayerNorm, _inputs: object, output: Tensor) -> None:
        given[output.data_ptr()] = module

    norms = [m for m in model.modules() if isinstance(m, LayerNorm) and m.bias is not None]
    hooks = [norm.register_forward_hook(keep) for norm in norms]
    try:
        body = getattr(model, model.base_model_prefix)
        with torch.no_grad():
            out = body(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, forest=forest)
    finally:
        for hook in hooks:
            hook.remove()
    return given.get(out.last_hidden_state.data_ptr())


def centre(
    model: PreTrainedModel, references: Tensor, differences: Tensor, *, norm: LayerNorm | None = None
) -> Centred:
    """Shift the head so that reference answers average 0, in a folder plain transformers reads back to the same scores.

    A sequence classifier's head has no bias, so the shift goes where the architecture allows. ``norm``, a final layer
    norm with a bias, takes it exactly. Otherwise (RMSNorm has no bias) the head moves by the multiple of C^-1 m that
    makes its product with the mean reference state m vanish, C being the second moment of the state differences of
    pairs, lightly shrunk: of all moves of the head that centre it, this one disturbs score differences least in the
    mean square. The mean is then 0 up to float32; how far differences moved is returned.

    Args:
        model: a sequence classifier with one label.
        references: final states of reference answers, shape (R, width).
        differences: chosen minus rejected final states of pairs, shape (P, width).
        norm: what :func:`final_norm` found.
    """
    head = model.score.weight.detach()
    weight = head[0].double().cpu()
    states, gaps = references.detach().double().cpu(), differences.detach().double().cpu()
    mean = states.mean(0)
    before = float(mean @ weight)
    spread = float((gaps @ weight).square().mean().sqrt()) if len(gaps) else 0.0
    if norm is not None:
        old = norm.bias.detach().double().cpu()
        norm.bias.data.copy_(old - before * weight / weight.square().sum())
        shift = norm.bias.detach().double().cpu() - old
        return Centred(before, float((mean + shift) @ weight), 0.0, spread=spread, exact=True)
    direction = _least_disturbing(gaps, mean)
    if not float(mean @ direction) > 0.0:
        raise InputError("The reference answers have no state to centre on (all zero or not finite); check the model.")
    for _ in range(2):  # the second time takes back what rounding to float32 left
        now = head[0].double().cpu()
        head[0] = (now - direction * (mean @ now) / (mean @ direction)).to(head.device, head.dtype)
    moves = gaps @ (head[0].double().cpu() - weight) if len(gaps) else torch.zeros(1)
    after = float(mean @ head[0].double().cpu())
    return Centred(before, after, float(moves.abs().max()), float(moves.square().mean().sqrt()), spread)


def _least_disturbing(gaps: Tensor, mean: Tensor) -> Tensor:
    """Return C^-1 m; C is shrunk towards its mean variance by width / pairs x 1e-4, so it is positive definite."""
    width = len(mean)
    second = gaps.T @ gaps / max(len(gaps), 1)
    ridge = second.diagonal().mean().clamp_min(1e-12) * 1e-4 * max(1e-4, min(1.0, width / max(len(gaps), 1)))
    factor = torch.linalg.cholesky(second + ridge * torch.eye(width, dtype=torch.float64))
    return torch.cholesky_solve(mean[:, None], factor)[:, 0]
