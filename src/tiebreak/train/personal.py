"""PAL trained on features: one reward for each user, and a user more from ten of their votes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tiebreak.models.ideal import IdealMixture, IdealPoint
from tiebreak.records import InputError, Progress, quiet
from tiebreak.train.frozen import Batch, FeatureRows, evenly
from tiebreak.train.heads import Fitted, fit_head
from tiebreak.train.objectives.switches import objective
from tiebreak.train.offline import settle
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Loss

WEIGHTS = "users.weight"


def fit_pal_a(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    prototypes: int = 2,
    space: int = 0,
    layers: int = 2,
    activation: str = "relu",
    mix: str = "f(Pw)",
    even: bool = False,
    bound: float = 0.0,
) -> Fitted:
    """Train PAL-A (:class:`tiebreak.models.ideal.IdealPoint`) on rows that say whose they are.

    Args:
        rows: pairs with users.
        knobs: of the objective.
        pace: prototypes and users have 50 times its learning rate, as published (1e-4 and 5e-3).
        seed: draws the weights and orders the rows.
        held_out: rows of the same users.
        patience: epochs without a lower held-out loss.
        progress: called after each step.
        prototypes: k.
        space: width of the space of preferences, 0 for that of the features.
        layers: hidden layers of the projector.
        activation: of the projector.
        mix: how ideal points come from prototypes.
        even: let every user count the same, whoever voted most.
        bound: norm from which on ideal points cost what they are longer; 0: none. The released code has 4, on features
            as the backbone gives them; here they are standardised, so that norm would say something else.
    """
    shape: dict[str, Any] = {"prototypes": prototypes, "space": space, "layers": layers, "activation": activation}
    head = IdealPoint(rows.width, _users(rows), **shape, mix=mix, seed=seed)
    own = _even(rows) if even else rows
    head.calibrate(own.own)
    given: dict[str, Any] = {"held_out": held_out, "patience": patience, "progress": progress}
    beside = partial(_too_long, codes=head.users.codes(rows.users), bound=bound) if bound else None
    return fit_head(head, own, knobs, pace, seed=seed, beside=beside, **given)


def fit_pal_b(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    prototypes: int = 2,
    space: int = 0,
    layers: int = 2,
    activation: str = "gelu",
    even: bool = False,
) -> Fitted:
    """Train PAL-B (:class:`tiebreak.models.ideal.IdealMixture`) on rows that say whose they are and have prompts.

    Arguments are those of :func:`fit_pal_a`.
    """
    if rows.prompts is None:
        raise InputError(
            "PAL-B looks at the prompt, and the rows have no features of theirs; give prompts, or use pal_a."
        )
    shape: dict[str, Any] = {"prototypes": prototypes, "space": space, "layers": layers, "activation": activation}
    head = IdealMixture(rows.width, _users(rows), **shape, seed=seed)
    head.calibrate(rows.own, rows.prompts)
    given: dict[str, Any] = {"held_out": held_out, "patience": patience, "progress": progress}
    return fit_head(head, _even(rows) if even else rows, knobs, pace, seed=seed, **given)


def fit_user(
    head: IdealPoint | IdealMixture,
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    *,
    name: str,
    steps: int = 200,
    learning_rate: float = 0.1,
    shrink: float = 0.01,
    loss: Loss = objective,
) -> IdealPoint | IdealMixture:
    """Return a copy of ``head`` that knows one user more, ``name``; ``head`` stays as it is.

    Everything but the new user's row of weights is frozen, so no other user's reward moves. The row starts with equal
    shares and takes full-batch steps of Adam; the released code draws it at random and takes one epoch at 5e-3.

    Args:
        head: a trained one.
        rows: votes of this user; whose they say to be is not read.
        knobs: of the objective, the one the head learned with.
        name: of the user.
        steps: of Adam.
        learning_rate: of Adam.
        shrink: pulls the row towards equal shares, by this times half its square; few votes that agree would else be
            taken for certainty.
        loss: the switches, or a function of that shape.

    Raises:
        InputError: no votes, or the user is known already.
    """
    whole = settle(loss, knobs)
    if not len(rows):
        raise InputError(f"There are no votes of {name!r} to learn from; give about ten.")
    grown = copy.deepcopy(head)
    grown.requires_grad_(False).eval()
    old = grown.users.weight.detach()
    row = torch.zeros(old.shape[1], requires_grad=True)
    batch = rows.take(range(len(rows)))
    codes = torch.full((len(batch.row),), len(old))
    optimizer = torch.optim.Adam([row], lr=learning_rate)
    for _ in range(steps):
        found = _with(grown, torch.cat([old, row[None]]), batch, codes)
        total = loss(replace(batch.seen, scores=found), **whole).loss + 0.5 * shrink * row.square().sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    grown.users.join(name, row)
    grown.requires_grad_(True)
    return grown


def _with(head: nn.Module, weights: Tensor, batch: Batch, codes: Tensor) -> Tensor:
    """Return the scores of a batch where the users' weights are ``weights``."""
    found: Tensor = functional_call(head, {WEIGHTS: weights}, (batch.values, codes, batch.prompts))
    return found


def _users(rows: FeatureRows) -> list[str]:
    if not rows.users:
        raise InputError("PAL learns whose preferences are whose, and the rows do not say it; give users.")
    return sorted(set(rows.users))


def _even(rows: FeatureRows) -> FeatureRows:
    """Return the rows with weights that let every user count the same."""
    assert rows.seen.tree is not None
    weight = rows.seen.weight * evenly(rows.users)[rows.seen.tree]
    return replace(rows, seen=replace(rows.seen, weight=weight))


def _too_long(head: IdealPoint, batch: Batch, *, codes: Tensor, bound: float) -> Mapping[str, Tensor]:
    """Return by how much the ideal points of a batch are longer than ``bound``, a mean over its branches."""
    longer = head.points(codes[batch.row]).norm(dim=1) - bound
    return {"bound": longer.clamp_min(0.0).mean()}
