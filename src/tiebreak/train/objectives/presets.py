"""Published methods as rows: which switches they set, with the paper's defaults. Importing this loads no torch."""

from __future__ import annotations

from typing import Any

from tiebreak.registry import Table
from tiebreak.train.objectives import by_feature, by_head, by_link, by_row, by_score
from tiebreak.train.objectives.row import LOSS, SETTLES, method

__all__ = ["HEADS", "LOSS", "OBJECTIVES", "OFFLINE", "PACES", "SETTLES"]

_FIRST = [
    method(
        "sft",
        "maximise the likelihood of written answers",
        "-mean_t log p_t(y)",
        "before anything else: a policy that has seen the task is what preferences can improve",
        "Ouyang et al. 2022, arXiv 2203.02155",
        score="",
        link="",
        target=None,
        beta=None,
        nll=1.0,
    ),
    method(
        "dpo",
        "the policy's log-ratio to its reference is the reward of a Bradley-Terry model",
        "S(beta D), D = rho(y_w) - rho(y_l), rho(y) = log pi(y|x) - log pi_ref(y|x)",
        "pairs with a winner; what all others are measured against",
        "Rafailov et al. 2023, arXiv 2305.18290",
    ),
]

OBJECTIVES = Table("objectives", "method", [*_FIRST, *by_score.ROWS, *by_link.ROWS, *by_row.ROWS])
"""What a policy learns by. Knobs are the switches and scalars of ``switches.objective``."""

HEADS = Table("heads", "method", [*map(by_head.with_form, by_head.HEAD_ROWS), *by_feature.ROWS])
"""What a reward model learns by. Knobs are those of ``switches.objective``, and the shape of its head."""

OFFLINE = Table("offline", "method", [*OBJECTIVES, *HEADS])
"""Both: all that learns from rows."""

PACES: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 5e-5, "epochs": 1.0, "batch": 64, "decay": "linear"},
    "dpo": {"learning_rate": 1e-6, "epochs": 1.0, "batch": 64, "decay": "constant"},
    **by_score.PACES,
    **by_link.PACES,
    **by_row.PACES,
    **by_head.PACES,
    **by_feature.PACES,
}
"""Published pace of each method: vanilla-RLAIF's SFT, the DPO paper's appendix B, and what each file says."""
