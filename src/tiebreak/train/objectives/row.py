"""How a method of the tables is written: DPO's switches, and what it changes. Loads no torch."""

from __future__ import annotations

from typing import Any

from tiebreak.registry import Row

LOSS = "tiebreak.train.objectives.switches:objective"
SETTLES = "tiebreak.train.objectives.switches:settled"
PLAIN: dict[str, Any] = {"score": "log_ratio", "link": "logistic", "target": "hard", "beta": 0.1, "nll": 0.0}
"""The switches of DPO, which a row changes."""
_ORDER = ("score", "compare", "offset", "link", "target", "weight", "beta")


def method(name: str, does: str, formula: str, use: str, paper: str, **knobs: Any) -> Row:
    """Return a row whose knobs are DPO's with ``knobs`` over them, switches first and the likelihood last.

    A knob of None is left out: the method does not read it.
    """
    whole = {name: value for name, value in {**PLAIN, **knobs}.items() if value is not None}
    named = [*(name for name in _ORDER if name in whole), *(name for name in whole if name not in (*_ORDER, "nll"))]
    settled = {name: whole[name] for name in (*named, "nll") if name in whole}
    return Row(name=name, does=does, target=LOSS, knobs=settled, paper=paper, formula=formula, use=use, more=SETTLES)
