"""A study small enough for a test: two methods on two kinds of labels, twice, and what ought to change nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tests.run.made import TINY

HARD = ["plurality", {"drop": "ties"}]
VARY: dict[str, dict[str, dict[str, Any]]] = {
    "method": {
        "dpo": {"train.policy.method": "dpo"},
        "again": {"train.policy.beta": 0.1},  # which it is without a word
        "same": {},
        "sft": {"train.policy.method": "sft", "train.policy.rows": "chosen"},
    },
    "labels": {"soft": {}, "hard": {"curate": HARD}},
}
CELLS = 16


def small(**changes: Any) -> dict[str, Any]:
    """Return the recipe of a study with parts of its ``study`` section replaced."""
    made = {name: copy.deepcopy(TINY[name]) for name in ("project", "import", "sample", "judge", "curate")}
    made["train"] = {name: copy.deepcopy(TINY["train"][name]) for name in ("sft", "policy")}
    made["train"]["policy"] |= {"learning_rate": 3e-3, "epochs": 4}
    rule = {"by": "rule", "rule": "world", "sharpness": "inf"}
    win_rate = {"of": "policy", "against": ["sft"], "judge": rule, "temperature": 1.0, "kl": True}
    made["evaluate"] = {"truth": "world", "win_rate": win_rate}
    made["report"] = {}
    made["study"] = {"seeds": [0, 1], "vary": copy.deepcopy(VARY)} | changes
    return made


def lines(home: str | Path) -> list[dict[str, Any]]:
    """Return what ``cells.jsonl`` says, nothing while there is none."""
    path = Path(home) / "cells.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []


def made(home: str | Path) -> dict[str, int]:
    """Return how often each stage was carried out over all cells."""
    counts: dict[str, int] = {}
    for line in lines(home):
        for stage in line["made"]:
            counts[stage] = counts.get(stage, 0) + 1
    return counts
