"""All methods a stage can name, whichever loop carries them out, with their published paces. Loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from tiebreak.registry import Row, Table
from tiebreak.train.objectives import presets as objectives
from tiebreak.train.policy_gradient import presets as policy_gradient

Loop = Literal["offline", "online", "rounds"]

ROUNDS = Table(
    "rounds",
    "method",
    [
        Row(
            name="iterative_dpo",
            does="rounds of: draw n answers, score them, make pairs by a rule, train with DPO on those",
            target="tiebreak.train.rounds:repeat",
            knobs={
                "objective": "dpo",
                "rounds": 3,
                "select": "best_worst",
                "compared_with": "previous",
                "beta": None,
            },
            paper="Dong et al. 2024, arXiv 2405.07863",
        ),
        Row(
            name="raft",
            does="rounds of: draw n answers, keep the best of each prompt (local) or of all (top), SFT on those",
            target="tiebreak.train.rounds:repeat",
            knobs={"objective": "sft", "rounds": 3, "select": "local", "alpha": None},
            paper="Dong et al. 2023, arXiv 2304.06767",
        ),
    ],
)
"""Methods that repeat the offline loop on what the policy draws; ``objective`` is that of each round.

``select`` is a rule of :mod:`tiebreak.sample.choose`; ``compared_with`` says whether the reference is the policy that a
round began with (``previous``) or the first of all (``start``); ``beta`` is the objective's own where it is missing,
and ``alpha``, the share of all answers that ``top`` keeps, 0.2.
"""

_ROUND_PACES: dict[str, dict[str, Any]] = {
    "iterative_dpo": {"learning_rate": 5e-7, "epochs": 2.0, "batch": 128, "decay": "cosine"},
    "raft": {"learning_rate": 2e-5, "epochs": 1.0, "batch": 64, "decay": "linear"},
}

METHODS = Table(
    "methods", "method", [*objectives.OBJECTIVES, *objectives.HEADS, *policy_gradient.POLICY_GRADIENT, *ROUNDS]
)
PACES: dict[str, dict[str, Any]] = {
    **objectives.PACES,
    **policy_gradient.PACES,
    **{name: {**pace, "n": 8, "temperature": 1.0} for name, pace in _ROUND_PACES.items()},
}


def loop_of(method: str) -> Loop:
    """Return which loop carries out ``method``; a user's own objective is learned offline."""
    if method in policy_gradient.POLICY_GRADIENT:
        return "online"
    return "rounds" if method in ROUNDS else "offline"
