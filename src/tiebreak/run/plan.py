"""From a recipe to its stages in an order in which every stage finds what it needs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tiebreak.recipe import Judge, Recipe, Stage, resolved, reward_models, voices_of
from tiebreak.recipe import rows_of as rows_of
from tiebreak.records import InputError
from tiebreak.registry import nearest
from tiebreak.train.methods import loop_of
from tiebreak.train.objectives.by_feature import READS_SHIFTED


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


WITHOUT_EFFECT = frozenset(
    {"tokens", "checkpointing", "trackers", "concurrency", "checkpoint_every", "log_every"}
    | {"least", "save", "budget", "batch_files"}
)
"""Keys that change how a stage is carried out and not what comes out, so changing one redoes nothing."""

OF_DRAWING = frozenset({"batch", "key_env", "timeout"})
"""Keys of ``rollout`` that have no effect on what is drawn."""

OF_THE_CALL = frozenset({"key_env", "timeout", "retries"})
"""Knobs of the judge ``pairwise`` that have no effect on what it says; another judge's knobs of these names may."""

FROM_OUTSIDE = frozenset({"path", "prompts", "mapping", "rubric", "model", "of", "against", "reward", "value"})
"""Keys whose value may be a file or a folder that the stage reads, so that what is in it counts."""

OWN_CODE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")
"""``module:function``, a user's own thing."""


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


Written = list[Any] | dict[str, list[Any]]
"""Curate steps as a recipe writes them."""


def _stages(recipe: Recipe) -> list[Planned]:
    answers = "sample" if recipe.sample else "import"
    judged = [name for name, one in (("collect", recipe.collect), ("judge", recipe.judge)) if one] or ["import"]
    found: list[Planned] = []

    def add(name: str, needs: list[str], section: BaseModel | Written | None) -> None:
        if section is not None:
            found.append(Planned(name, tuple(dict.fromkeys(needs)), _knobs(section)))

    add("import", [], recipe.import_)
    for name, stage in recipe.train.items():
        add(f"train.{name}", _train_needs(recipe, name, stage), stage)
    if recipe.sample:
        start = _model(recipe, recipe.sample.model, "sample.model")
        scorers = reward_models(recipe.sample, recipe.train)
        needs = [need for one in scorers for need in _model(recipe, one, "sample.reward")]
        add("sample", ["import", *start, *needs], recipe.sample)
    add("collect", [answers], recipe.collect)
    add("judge", [answers, *_judge_needs(recipe, recipe.judge, "judge.model")], recipe.judge)
    add("audit", judged, recipe.audit)
    add("curate", judged, recipe.curate)
    add("evaluate", _evaluate_needs(recipe, judged), recipe.evaluate)
    add("export", ["curate"], recipe.export)
    add("report", [stage.name for stage in found], recipe.report)
    return found


def _judge_needs(recipe: Recipe, section: Judge | None, where: str) -> list[str]:
    """Return the training stages that a judge or its jurors are, as reward models of this recipe."""
    voices = voices_of(section.by, section.knobs) if section else []
    models = [str(knobs.get("model", "")) for by, knobs in voices if by == "reward"]
    return [need for model in models for need in _model(recipe, model, where)]


def _knobs(section: BaseModel | Written) -> dict[str, Any]:
    return resolved(section) if isinstance(section, BaseModel) else {"steps": section}


def _model(recipe: Recipe, model: str | dict[str, Any], where: str) -> list[str]:
    if not isinstance(model, str) or model == "reference":
        return []
    if model in recipe.train:
        return [f"train.{model}"]
    if "/" not in model and not Path(model).exists() and (near := nearest(model, recipe.train)):
        raise InputError(f"{where} is {model!r}, which is neither a stage of train: nor a folder.{near}")
    return []


def _train_needs(recipe: Recipe, name: str, stage: Stage) -> list[str]:
    if stage.model == name:
        raise InputError(f"train.{name} starts from itself; name another stage, a folder or a hub model.")
    start = _model(recipe, stage.model, f"train.{name}.model")
    if loop_of(stage.method) == "offline":
        drawn = ["sample"] if stage.method in READS_SHIFTED and recipe.sample else []
        return ["import", "curate" if rows_of(stage) in ("pairs", "chosen") else "import", *start, *drawn]
    asked = [one for one in (*reward_models(stage, recipe.train), stage.value) if one and one != "shared"]
    return ["import", *start, *(need for one in asked for need in _model(recipe, one, f"train.{name}.reward"))]


def _evaluate_needs(recipe: Recipe, judged: list[str]) -> list[str]:
    section = recipe.evaluate
    if section is None:
        return []
    needs = ["import"]
    if section.win_rate:
        for model in (section.win_rate.of, *section.win_rate.against):
            needs += _model(recipe, model, "evaluate.win_rate")
        needs += _judge_needs(recipe, section.win_rate.judge or recipe.judge, "evaluate.win_rate.judge.model")
        if recipe.sample:
            needs.append("sample")
    if section.reward:
        needs += ["curate", *_model(recipe, section.reward, "evaluate.reward")]
    if recipe.judge or recipe.collect or recipe.curate:
        needs += judged
    return needs


def lasting(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs that shape the result, those of sections inside the section too."""
    idle = WITHOUT_EFFECT | (OF_THE_CALL if knobs.get("by") == "pairwise" else frozenset())
    if isinstance(drawn := knobs.get("rollout"), Mapping):
        knobs = {**knobs, "rollout": {key: value for key, value in drawn.items() if key not in OF_DRAWING}}
    return {
        key: lasting(value) if isinstance(value, Mapping) else value for key, value in knobs.items() if key not in idle
    }


def marks(stage: Planned) -> dict[str, str]:
    """Return a hash of each file, model folder and own module that the stage names, so that an edited one redoes it."""
    if stage.section in ("export", "report"):
        return {}
    found = {}
    for key, text in _texts(stage.knobs, ""):
        path = Path(text)
        if own := OWN_CODE.fullmatch(text):
            found[text] = _source_mark(own[1])
        elif key in FROM_OUTSIDE and path.is_file():
            found[text] = _content(path)
        elif key in FROM_OUTSIDE and (path / "config.json").is_file():
            parts = sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors", ".bin"))
            found[text] = " ".join(f"{file.name} {_content(file)}" for file in parts)
    return found


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text among the knobs with the key it belongs to; names of steps are keys themselves."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield "", str(name)
            yield from _texts(part, str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, key)


def _source_mark(module: str) -> str:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return ""
    return _content(Path(spec.origin)) if spec and spec.origin and Path(spec.origin).is_file() else ""


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
