"""ArmoRM's second stage on features: pairs teach a gate which marks count behind which prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import Linear

from tiebreak.models.gated import Gated
from tiebreak.records import InputError, Progress, quiet
from tiebreak.train.frozen import FeatureRows
from tiebreak.train.heads import Fitted, fit_head
from tiebreak.train.pace import Pace


def fit_gated(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    marks: Linear,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    hidden: Sequence[int] = (1024, 1024, 1024),
    dropout: float = 0.2,
    gate_temperature: float = 10.0,
    unwanted: int = -1,
) -> Fitted:
    """Train the gate of :class:`tiebreak.models.gated.Gated` over ``marks``, which stay as they are.

    The released code trains the gate on marks as they are and takes out verbosity afterwards; here it is taken out
    before, so the gate learns from what it will mix.

    Args:
        rows: pairs with prompts.
        knobs: of the objective.
        pace: of the gate; the release takes 2,000 steps of 1,024 pairs at 1e-3.
        seed: draws the gate and orders the rows.
        marks: the last layer of a model that was trained by regression on the same backbone.
        held_out: rows that are never learned from.
        patience: epochs without a lower held-out loss.
        progress: called after each step.
        hidden: widths of the gate's hidden layers.
        dropout: of them.
        gate_temperature: of the softmax.
        unwanted: number of the mark whose company the others are freed of, such as verbosity; -1: none.

    Raises:
        InputError: rows without prompts, or marks of other features.
    """
    if rows.prompts is None:
        raise InputError("A gate reads the prompt, and the rows have no features of theirs; give prompts.")
    if marks.in_features != rows.width:
        raise InputError(
            f"The marks read {marks.in_features} features and the rows have {rows.width}; use one backbone for both."
        )
    shape: dict[str, Any] = {"hidden": hidden, "dropout": dropout, "temperature": gate_temperature}
    head = Gated(rows.width, marks.out_features, **shape, seed=seed)
    head.mark(marks.weight.detach().cpu(), None if marks.bias is None else marks.bias.detach().cpu())
    if unwanted >= 0:
        head.without(unwanted, rows.own)
    head.calibrate(rows.own, rows.prompts)
    return fit_head(head, rows, knobs, pace, seed=seed, held_out=held_out, patience=patience, progress=progress)
