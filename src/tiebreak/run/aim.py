"""What a stage that learns from rows aims at: its objective with all knobs, and the head it learns with, if one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tiebreak.models.forms import SCALAR, Form, form_from
from tiebreak.recipe import Stage, row_knobs
from tiebreak.records import InputError
from tiebreak.train.heads import Fitted, fit_linear
from tiebreak.train.learner import Asked, asked_of
from tiebreak.train.objectives.by_feature import OWN
from tiebreak.train.objectives.by_feature import ROWS as FEATURE_ROWS
from tiebreak.train.objectives.by_head import form_knobs, form_row
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.objectives.switches import objective
from tiebreak.train.objectives.targets import BELIEVES
from tiebreak.train.offline import settle
from tiebreak.train.rows import Loss

ON_FEATURES = frozenset(row.name for row in FEATURE_ROWS)


class Aim(NamedTuple):
    """A method, settled.

    ``asked`` is what it asks of rows and engine; ``ties`` says that a pair without a winner teaches it something.
    ``form`` is that of the reward head, whose ``outputs`` are its columns; None where words are learned. ``trainer``
    trains a head on features of a backbone that stays as it is; None where the whole model learns.
    """

    loss: Loss
    knobs: dict[str, Any]
    asked: Asked
    form: Form | None = None
    outputs: int = 1
    trainer: Callable[..., Fitted] | None = None

    @property
    def ties(self) -> bool:
        """Whether a pair without a winner can be learned from."""
        return self.knobs.get("target") not in BELIEVES


def aim_of(stage: Stage, where: str) -> Aim:
    """Return what ``stage`` aims at; ``where`` opens what is said of a mistake.

    Raises:
        InputError: a knob or a switch that does not exist, or does not go with the others.
    """
    row = OFFLINE[stage.method]
    given = row_knobs(row, stage.knobs, where)
    if stage.method in ON_FEATURES:
        of_loss = {name: value for name, value in given.items() if name not in OWN}
        columns = int(given.get("outputs", 1))
        return Aim(objective, given, asked_of(objective, of_loss), SCALAR, columns, row.load())
    own = form_knobs(stage.method)
    own |= {name: given.pop(name) for name in own}
    loss: Loss = row.load()
    knobs = settle(loss, given)
    asked = asked_of(loss, knobs)
    if knobs["score"] != "head":
        if stage.backbone == "frozen":
            raise InputError(f"{where}.backbone is frozen, and {stage.method} learns words; only a reward head can.")
        return Aim(loss, knobs, asked)
    form = form_from(form_row(stage.method, knobs, own), where)
    if form.kind == "attributes" and "outputs" not in stage.knobs:
        knobs["outputs"] = len(form.names)
    outputs = int(knobs.get("outputs", 1))
    form.check(outputs, where)
    if form.kind == "steps":
        asked = asked._replace(needs=("steps", *asked.needs))
    return Aim(loss, knobs, asked, form, outputs, fit_linear if stage.backbone == "frozen" else None)


def is_scalar(form: Form | None) -> bool:
    """Whether a head gives one number whose zero can be chosen."""
    return form is not None and form.kind == SCALAR.kind
