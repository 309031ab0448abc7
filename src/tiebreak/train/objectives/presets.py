"""Published methods as rows: which switches they set, with the paper's defaults. Importing this loads no torch."""

from __future__ import annotations

from tiebreak.registry import Row, Table

LOSS = "tiebreak.train.objectives.switches:objective"

OBJECTIVES = Table(
    "objectives",
    "method",
    [
        Row(
            name="sft",
            does="maximise the likelihood of written answers",
            target=LOSS,
            knobs={"score": "", "link": "", "target": "hard", "beta": 1.0, "nll": 1.0},
            paper="Ouyang et al. 2022, arXiv 2203.02155",
        ),
        Row(
            name="bradley_terry",
            does="a reward head whose score difference is the log-odds of the (soft) preference",
            target=LOSS,
            knobs={"score": "head", "link": "logistic", "target": "soft", "beta": 1.0, "nll": 0.0},
            paper="Stiennon et al. 2020, arXiv 2009.01325; soft labels: Lee et al. 2023, arXiv 2309.00267",
        ),
        Row(
            name="dpo",
            does="the policy's log-ratio to its reference is the reward of a Bradley-Terry model",
            target=LOSS,
            knobs={"score": "log_ratio", "link": "logistic", "target": "hard", "beta": 0.1, "nll": 0.0},
            paper="Rafailov et al. 2023, arXiv 2305.18290",
        ),
    ],
)
"""Knobs are the switches and scalars of :func:`tiebreak.train.objectives.switches.objective`."""

PACES: dict[str, dict[str, str | float | int]] = {
    "sft": {"learning_rate": 5e-5, "epochs": 1.0, "batch": 64, "decay": "linear"},
    "bradley_terry": {"learning_rate": 1.5e-5, "epochs": 1.0, "batch": 64, "decay": "cosine"},
    "dpo": {"learning_rate": 1e-6, "epochs": 1.0, "batch": 64, "decay": "constant"},
}
"""Published pace of each method: vanilla-RLAIF's SFT, Stiennon et al.'s reward model, the DPO paper's appendix B."""
