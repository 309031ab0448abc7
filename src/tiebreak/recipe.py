"""The recipe: one YAML file that names the sections of an experiment, checked before anything loads.

Precedence: defaults < the file < ``section.key=value`` on the command line. There is no inheritance and no include. A
key that a section does not have is refused with the nearest name; knobs of a judge, a format or a method stand beside
the section's own keys and are checked against the row they belong to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tiebreak.curate.table import Written, settle
from tiebreak.data.formats import FORMATS
from tiebreak.judge.table import JUDGES
from tiebreak.records import InputError
from tiebreak.registry import Row, nearest
from tiebreak.train.objectives.presets import OBJECTIVES, PACES


class Section(BaseModel):
    """A section with fixed keys."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Open(Section):
    """A section that also takes the knobs of the row it names."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    @property
    def knobs(self) -> dict[str, Any]:
        """The keys that are not the section's own."""
        return dict(self.model_extra or {})


class Import(Open):
    """What comes in, and which prompts are for training and which for testing."""

    format: str = Field("preferences", description="name of a format, see `tiebreak ls data`")
    path: str | None = Field(None, description="file to read")
    split: dict[str, float | int | str | None] = Field(
        default={"test": 0.1, "train": None},
        description="set -> share or count of prompt groups, a tag, or null for the rest",
    )
    limit: int | None = Field(None, description="read this many rows only")


class Sample(Section):
    """Which model answers which prompts, and how."""

    model: str = Field(description="a training stage, a folder or a hub name")
    prompts: str = Field("train", description="set of prompts")
    limit: int | None = Field(None, description="use this many prompts only")
    n: int = Field(2, ge=1, description="responses per prompt")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 is off")
    max_new_tokens: int = Field(64, ge=1)
    window: int = Field(1024, ge=16, description="tokens of prompt and response together")
    cut: Literal["start", "end"] = Field("start", description="which end of too long a prompt loses lines")
    batch: int = Field(128, ge=1, description="sequences decoded together")


class Judge(Open):
    """Who judges, and in which orders."""

    by: str = Field(description="name of a judge, see `tiebreak ls judge`")
    orders: Literal["both", "random", "given"] = Field("both", description="both orders cancel position bias")
    attempts: int = Field(1, ge=1, description="times each question is asked")
    concurrency: int = Field(32, ge=1, description="calls in flight")
    limit: int | None = Field(None, description="judge this many pairs only")
    again: list[str] = Field(default=[], description="verdicts to ask again, such as invalid")


class Audit(Section):
    """Which checks to run."""

    checks: list[str] | None = Field(None, description="names of checks, all when missing")
    knobs: dict[str, dict[str, Any]] = Field(default={}, description="check -> knobs that differ")


class Stage(Open):
    """One model to train."""

    method: str = Field(description="name of an objective, see `tiebreak ls objectives`")
    model: str | dict[str, Any] = Field(
        description="another stage, a folder, a hub name, or a configuration (model_type, ...) to build from scratch"
    )
    rows: Literal["pairs", "responses", "references"] | None = Field(
        None, description="pairs; for sft the prompts' references, or imported responses"
    )
    loss_on: Literal["completion", "all"] = Field("completion", description="sft: which tokens count")
    epochs: float | None = Field(None, gt=0)
    batch: int | None = Field(None, ge=1, description="rows per step")
    learning_rate: float | None = Field(None, gt=0)
    decay: Literal["cosine", "linear", "constant"] | None = None
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="bound of the gradient's norm")
    window: int = Field(1024, ge=16, description="tokens of prompt and completion together")
    cut: Literal["start", "end"] = "start"
    held_out: float = Field(0.1, ge=0, lt=1, description="share of prompts kept out, unless a test set holds pairs")
    limit: int | None = Field(None, description="train on this many rows only")
    evaluate_every: int = Field(0, ge=0, description="steps; 0 evaluates at the end")
    checkpoint_every: int = Field(200, ge=1, description="steps")
    log_every: int = Field(10, ge=1, description="steps")
    vocabulary: int = Field(2048, ge=300, description="tokens, where a tokenizer is trained")


class WinRate(Section):
    """Whose answers are compared with whose, and who says which is better."""

    of: str = Field("policy", description="a training stage, a folder or a hub name")
    against: list[str] = Field(default=["sft"], description="models, or `reference` for the prompts' own")
    judge: Judge | None = Field(None, description="the judge section's when missing")
    prompts: str = "test"
    limit: int | None = None
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    max_new_tokens: int | None = Field(None, description="the sample section's when missing")


class Evaluate(Section):
    """What is measured in the end."""

    win_rate: WinRate | None = None
    reward: str | None = Field(None, description="the reward model to test: a stage or a folder")
    truth: str | None = Field(None, description="a rule that knows: tests judge, reward model and policy against it")
    examples: int = Field(8, ge=0, description="prompts shown side by side")


class Report(Section):
    """The page at the end."""

    title: str = ""
    figures: bool = Field(True, description="draw figures where matplotlib is installed")


class Export(Section):
    """Training rows for other tools."""

    shape: Literal["preference", "preference_implicit", "unpaired", "prompt_completion"] = "preference"
    conversational: bool = False
    path: str = Field("pairs.jsonl", description="file name ending in .jsonl or .parquet, inside the section's folder")


class Recipe(Section):
    """A whole experiment."""

    project: str = Field("tiebreak", description="name of the folder under runs/, or a path with a slash")
    seed: int = 0
    ledger: str | None = Field(None, description="path or URL; the project's own SQLite file when missing")
    import_: Import | None = Field(None, alias="import")
    sample: Sample | None = None
    judge: Judge | None = None
    audit: Audit | None = None
    curate: list[str | dict[str, Any]] | None = None
    train: dict[str, Stage] = Field(default={})
    evaluate: Evaluate | None = None
    report: Report | None = None
    export: Export | None = None

    @property
    def folder(self) -> Path:
        """Where the project lives."""
        return Path(self.project) if "/" in self.project else Path("runs") / self.project


SECTIONS = ("import", "sample", "judge", "audit", "curate", "train", "evaluate", "report", "export")


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``section.key=value`` overrides and check all of it.

    Raises:
        InputError: no such file, not YAML, an unknown key (with the nearest name), a value of the wrong type, an unset
            environment variable, or a name no table has.
    """
    return build_recipe(read_yaml(path) if path is not None else {}, overrides, where=str(path or "the command line"))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    file = Path(path)
    if not file.is_file():
        near = nearest(file.name, [p.name for p in file.parent.glob("*.yaml")]) if file.parent.is_dir() else ""
        raise InputError(f"There is no recipe {file}; pass the path of a YAML file.{near}")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{file} holds {type(raw).__name__}; expected sections such as import: and train:.")
    return raw


def build_recipe(raw: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str) -> Recipe:
    """Check ``raw`` with ``overrides`` applied; messages name ``where`` it came from."""
    merged = override(raw, overrides)
    _expand(merged)
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_mistake(error)}") from error
    _check_names(recipe)
    return recipe


def override(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``raw`` with each ``a.b.c=value`` set; values are YAML."""
    merged: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(raw)))
    for text in overrides:
        name, found, value = text.partition("=")
        if not found or not name:
            raise InputError(
                f"{text!r} is not an override; write section.key=value, for example train.policy.epochs=2."
            )
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"The value of {name} is not YAML: {value!r}.") from error
        keys = name.split(".")
        place = merged
        for key in keys[:-1]:
            below = place.get(key)
            if below is None:
                below = place[key] = {}
            if not isinstance(below, dict):
                raise InputError(f"{name} cannot be set: {key} is {below!r}, not a section.")
            place = below
        place[keys[-1]] = float(parsed) if isinstance(parsed, str) and _is_number(parsed) else parsed
    return merged


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text) is not None


def _expand(raw: dict[str, Any]) -> None:
    """Expand ${NAME} in ledger and endpoint addresses; nothing else reads the environment, and keys reach no file."""
    judges = [raw.get("judge"), ((raw.get("evaluate") or {}).get("win_rate") or {}).get("judge")]
    for place in [raw, *[judge for judge in judges if isinstance(judge, dict)]]:
        for key in ("endpoint", "ledger"):
            if isinstance(value := place.get(key), str):
                place[key] = re.sub(r"\$\{(\w+)\}", partial(_variable, key), value)


def _variable(key: str, match: re.Match[str]) -> str:
    name = match[1]
    if name not in os.environ:
        raise InputError(f"The {key} needs the environment variable {name}, which is not set; export it first.")
    return os.environ[name]


def _check_names(recipe: Recipe) -> None:
    if recipe.import_:
        row_knobs(FORMATS[recipe.import_.format], recipe.import_.knobs, "import")
    for judge in (recipe.judge, recipe.evaluate and recipe.evaluate.win_rate and recipe.evaluate.win_rate.judge):
        if judge:
            row_knobs(JUDGES[judge.by], judge.knobs, "judge")
    for step in recipe.curate or []:
        settle(step)
    for name, stage in recipe.train.items():
        row_knobs(OBJECTIVES[stage.method], stage.knobs, f"train.{name}", also=tuple(Stage.model_fields))


def row_knobs(row: Row, given: Mapping[str, Any], where: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settled knobs of ``row``; ``also`` are the section's own keys, which a misspelling may have meant."""
    for name in given:
        if row.knobs is not None and name not in row.knobs:
            near = nearest(name, [*row.knobs, *also])
            raise InputError(f"{where} has no key {name!r}, and {row.name!r} has no such knob.{near}")
    return row.settle(given, where=where)


def pace_of(stage: Stage) -> dict[str, Any]:
    """Return the pace of a stage: its own keys over the method's published ones."""
    published = PACES.get(stage.method, PACES["dpo"])
    own = {key: getattr(stage, key) for key in ("epochs", "batch", "learning_rate", "decay")}
    return {
        **published,
        **{key: value for key, value in own.items() if value is not None},
        "warmup": stage.warmup,
        "weight_decay": stage.weight_decay,
        "clip": stage.clip,
    }


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors()[0]
    keys = [str(part) for part in mistake["loc"]]
    place = ".".join(keys)
    if mistake["type"] == "extra_forbidden":
        return f"there is no key {place!r}.{nearest(keys[-1], _keys_at(keys[:-1]))}"
    if mistake["type"] == "missing":
        return f"{place!r} is missing."
    return f"{place} is {mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}."


def _keys_at(keys: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for key in keys:
        field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        if field is None:
            return list(Stage.model_fields)
        kinds = [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not kinds:
            return []
        model = kinds[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _kinds(annotation: Any) -> list[Any]:
    parts = getattr(annotation, "__args__", ())
    return [kind for part in parts for kind in _kinds(part)] if parts else [annotation]


__all__ = [
    "SECTIONS",
    "Recipe",
    "Written",
    "build_recipe",
    "load_recipe",
    "override",
    "pace_of",
    "read_yaml",
    "row_knobs",
]
