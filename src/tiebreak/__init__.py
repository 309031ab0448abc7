"""Preference learning end to end: from the first vote to a win rate that can be defended.

Everything the command line does is a function here: ``recipe = tiebreak.load_recipe("recipe.yaml")`` and
``tiebreak.run_recipe(recipe)``, or the rooms one by one. Names load what they need when they are first used, so
importing the package is light. No name here is also a room's, which Python would put in its place.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Finding": "tiebreak.records",
    "InputError": "tiebreak.records",
    "Judgment": "tiebreak.records",
    "Ledger": "tiebreak.store",
    "Pair": "tiebreak.records",
    "Prompt": "tiebreak.records",
    "Response": "tiebreak.records",
    "audit_judgments": "tiebreak.audit.run:audit",
    "build_recipe": "tiebreak.recipe",
    "curate_judgments": "tiebreak.curate.table:curate",
    "draw_responses": "tiebreak.sample.draw:draw",
    "export_pairs": "tiebreak.data.trl",
    "fit_model": "tiebreak.train.offline:fit",
    "import_records": "tiebreak.data.importing",
    "judge_pairs": "tiebreak.judge.run",
    "load_recipe": "tiebreak.recipe",
    "make_judge": "tiebreak.judge.table",
    "run_recipe": "tiebreak.run.run:run",
    "score_responses": "tiebreak.models.score:score",
    "split_prompts": "tiebreak.data.split",
    "win_rate": "tiebreak.evaluate.winrate",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tiebreak' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
