"""Preference learning end to end: from the first vote to a win rate that can be defended.

Everything the command line does is a function here: ``recipe = tiebreak.load_recipe("recipe.yaml")`` and
``tiebreak.run(recipe)``, or the rooms one by one. Names load what they need when they are first used, so importing the
package is light.
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
    "audit": "tiebreak.audit.run:audit",
    "build_recipe": "tiebreak.recipe",
    "curate": "tiebreak.curate.table:curate",
    "draw": "tiebreak.sample.draw:draw",
    "export_pairs": "tiebreak.data.trl",
    "fit": "tiebreak.train.offline",
    "import_records": "tiebreak.data.importing",
    "judge_pairs": "tiebreak.judge.run",
    "load_recipe": "tiebreak.recipe",
    "plan": "tiebreak.run",
    "run": "tiebreak.run.run:run",
    "score": "tiebreak.rewards.model",
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
