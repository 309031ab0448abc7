"""From a recipe to its stages in an order in which every stage finds what it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tiebreak.recipe import Recipe, Stage
from tiebreak.records import InputError


@dataclass(frozen=True)
class Planned:
    """One stage: its name (``train.sft``), the stages it needs and the knobs that shape its result."""

    name: str
    needs: tuple[str, ...]
    knobs: Mapping[str, Any]

    @property
    def section(self) -> str:
        """The section of the recipe it belongs to."""
        return self.name.partition(".")[0]


WITHOUT_EFFECT = frozenset({"concurrency", "checkpoint_every", "log_every", "key_env", "timeout", "retries"})
"""Knobs that change how a stage is carried out and not what comes out, so changing one redoes nothing."""


def plan(recipe: Recipe) -> list[Planned]:
    """Return the recipe's stages in order.

    Raises:
        InputError: stages that wait for each other, or one that needs a section the recipe does not have.
    """
    stages = {stage.name: stage for stage in _stages(recipe)}
    if not stages:
        raise InputError("The recipe has no sections; give it at least import:, for example with format: world.")
    for stage in stages.values():
        for need in stage.needs:
            if need not in stages:
                raise InputError(f"{stage.name} needs the section {need}, which the recipe does not have; add it.")
    ordered: list[Planned] = []
    left = dict(stages)
    while left:
        done = {stage.name for stage in ordered}
        ready = next((stage for stage in left.values() if done.issuperset(stage.needs)), None)
        if ready is None:
            raise InputError(f"{' and '.join(left)} wait for each other; a model cannot be trained from itself.")
        ordered.append(left.pop(ready.name))
    return ordered


def _stages(recipe: Recipe) -> list[Planned]:
    judged = "judge" if recipe.judge else "import"
    found: list[Planned] = []

    def add(name: str, needs: list[str], section: BaseModel | list[Any] | None) -> None:
        if section is not None:
            found.append(Planned(name, tuple(dict.fromkeys(needs)), _knobs(section)))

    add("import", [], recipe.import_)
    for name, stage in recipe.train.items():
        add(f"train.{name}", _train_needs(recipe, name, stage), stage)
    if recipe.sample:
        add("sample", ["import", *_model(recipe, recipe.sample.model)], recipe.sample)
    add("judge", ["sample" if recipe.sample else "import"], recipe.judge)
    add("audit", [judged], recipe.audit)
    add("curate", [judged], recipe.curate)
    add("evaluate", _evaluate_needs(recipe, judged), recipe.evaluate)
    add("export", ["curate"], recipe.export)
    add("report", [stage.name for stage in found], recipe.report)
    return found


def _knobs(section: BaseModel | list[Any]) -> dict[str, Any]:
    if isinstance(section, list):
        return {"steps": section}
    return section.model_dump(mode="json")


def _model(recipe: Recipe, model: str | dict[str, Any]) -> list[str]:
    return [f"train.{model}"] if isinstance(model, str) and model in recipe.train else []


def _train_needs(recipe: Recipe, name: str, stage: Stage) -> list[str]:
    if stage.model == name:
        raise InputError(f"train.{name} starts from itself; name another stage, a folder or a hub model.")
    rows = "import" if rows_of(stage) != "pairs" else "curate"
    return ["import", rows, *_model(recipe, stage.model)] if recipe.import_ else [rows, *_model(recipe, stage.model)]


def rows_of(stage: Stage) -> str:
    """Return what a stage trains on: its own word, or references for sft and pairs for the rest."""
    return stage.rows or ("references" if stage.method == "sft" else "pairs")


def _evaluate_needs(recipe: Recipe, judged: str) -> list[str]:
    section = recipe.evaluate
    if section is None:
        return []
    needs = ["import"]
    if section.win_rate:
        for model in (section.win_rate.of, *section.win_rate.against):
            needs += _model(recipe, model)
    if section.reward:
        needs += ["curate", *_model(recipe, section.reward)]
    if recipe.judge or recipe.curate:
        needs.append(judged)
    return needs


def file_mark(path: str | None) -> str:
    """Return a hash of the file's content, so that an edited file redoes its import; empty without a file."""
    if not path or not Path(path).is_file():
        return ""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def lasting(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs that shape the result."""
    return {key: value for key, value in knobs.items() if key not in WITHOUT_EFFECT}
