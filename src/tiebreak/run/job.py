"""What a stage is handed and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.recipe import Recipe
from tiebreak.records import InputError, Judgment, Progress, Prompt
from tiebreak.store import Ledger

JUDGING = ("collect", "judge")
"""Stages that bring judgments; without any of them the imported ones count."""


def place_of(recipe: Recipe, named: str) -> Path | str:
    """Return where a model is that a recipe names: a training stage's folder, or what it says."""
    return recipe.folder / "train" / named / "model" if named in recipe.train else named


@dataclass(frozen=True)
class Job:
    """One stage at work: its name and key, the recipe, the ledger, its own folder and what ran before it."""

    name: str
    key: str
    recipe: Recipe
    ledger: Ledger
    home: Path
    before: Mapping[str, dict[str, Any]]
    progress: Progress

    @property
    def project(self) -> Path:
        """The folder of the whole run."""
        return self.recipe.folder

    def set_of(self, stage: str, kind: str) -> list[str]:
        """Return the record ids a stage put into its set of ``kind``."""
        if stage not in self.before:
            raise InputError(f"{self.name} needs {stage}, which has not been run; run that first.")
        return self.ledger.get_set(f"{self.before[stage]['key']}/{kind}")

    def put(self, kind: str, ids: Sequence[str]) -> None:
        """Keep the record ids this stage brought as its set of ``kind``."""
        self.ledger.put_set(f"{self.key}/{kind}", ids)

    def prompts(self, name: str, limit: int | None = None) -> list[Prompt]:
        """Return the prompts of a set of the import (``train``, ``test``, or ``all``), the first ``limit`` of them."""
        splits = self.before["import"]["outputs"]["splits"]
        if name != "all" and name not in splits:
            raise InputError(f"{self.name} wants the prompts {name!r}; the import has {', '.join(splits)} and all.")
        ids = self.set_of("import", "prompts" if name == "all" else f"prompts/{name}")
        return self.ledger.prompts(ids[:limit])

    def judgments(self) -> list[Judgment]:
        """Return the judgments this run is about: people's and the judge section's, or else the imported ones."""
        stages = [stage for stage in JUDGING if stage in self.before] or ["import"]
        return self.ledger.judgments([name for stage in stages for name in self.set_of(stage, "judgments")])

    def others(self) -> list[Judgment]:
        """Return what else was said in this run, imported or by the jurors of a panel, for who asks for it by name."""
        if not any(stage in self.before for stage in JUDGING):
            return []
        ids = self.set_of("import", "judgments") if "import" in self.before else []
        return self.ledger.judgments(ids + (self.set_of("judge", "jurors") if "judge" in self.before else []))

    def model(self, named: str) -> tuple[str, Path | str]:
        """Return the name and place of a model that is a training stage, a folder or a hub name."""
        return Path(named).name, place_of(self.recipe, named)


@dataclass(frozen=True)
class Made:
    """What a stage made: counts for the funnel, why rows went, remarks, outputs other stages read, and the price."""

    counts: Mapping[str, int | float] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    outputs: Mapping[str, Any] = field(default_factory=dict)
    price: float | None = None
