"""From a YAML file and ``section.key=value`` settings to a checked recipe.

Precedence: defaults < the file < the command line. There is no inheritance and no include. A key that a section does
not have is refused with the nearest name; knobs of a judge, a format or a method stand beside the section's own keys
and are checked against the row they belong to.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tiebreak.audit.table import CHECKS
from tiebreak.curate.table import STEPS
from tiebreak.curate.table import check as check_steps
from tiebreak.data.formats import FORMATS
from tiebreak.judge.rule import RULES
from tiebreak.judge.table import JUDGES
from tiebreak.recipe.mistakes import first_mistake
from tiebreak.recipe.sections import Import, Judge, Recipe, Sample, Stage
from tiebreak.records import InputError
from tiebreak.registry import Row, Table, UnknownKnob, nearest
from tiebreak.rewards.combine import check_terms
from tiebreak.rewards.table import REWARDS
from tiebreak.train.methods import METHODS, PACES, loop_of
from tiebreak.train.objectives.by_feature import ROWS as ON_FEATURES
from tiebreak.train.optimizers import OPTIMIZERS
from tiebreak.train.order import ORDERS
from tiebreak.train.trackers import TRACKERS

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_NAMES_A_ROW = re.compile(r"import\.format|(evaluate\.win_rate\.)?judge\.by|train\.[^.]+\.method")
_ROWS: dict[str, tuple[Table, type[BaseModel]]] = {
    "format": (FORMATS, Import),
    "by": (JUDGES, Judge),
    "method": (METHODS, Stage),
}


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number, and a key written twice is a mistake instead of the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is written twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^{_FLOAT.pattern}$"), list("+-.0123456789"))


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply ``section.key=value`` overrides and check all of it.

    Raises:
        InputError: no such file, not YAML, an unknown key (with the nearest name), a value of the wrong type, an unset
            environment variable, or a name no table has.
    """
    return build_recipe(read_yaml(path) if path is not None else {}, overrides, where=str(path or ""))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file} is a folder; pass the path of a recipe, a YAML file.")
    if not file.is_file():
        near = nearest(file.name, [p.name for p in file.parent.glob("*.yaml")]) if file.parent.is_dir() else ""
        if not near and not file.suffix and str(file) == file.name:  # a bare word may be a curate step
            near = nearest(file.name, [row.name for row in STEPS]).replace("mean ", "mean the curate step ")
        raise InputError(f"There is no recipe {file}; pass the path of a YAML file.{near}")
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file; pass the path of a recipe, a YAML file.") from error
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    if raw is None:
        raise InputError(f"{file} is empty; expected sections such as import: and train:.")
    if not isinstance(raw, dict):
        raise InputError(f"{file} holds a {type(raw).__name__}; expected sections such as import: and train:.")
    return raw


def build_recipe(raw: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str) -> Recipe:
    """Check ``raw`` with ``overrides`` applied; messages begin with ``where`` it came from, if that is a file."""
    merged = _numbers(override(raw, overrides))
    prefix = f"{where}: " if where else ""
    try:
        recipe = Recipe.model_validate(merged)
        _check_names(recipe)
    except ValidationError as error:
        raise InputError(prefix + first_mistake(error, merged)) from error
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error
    return recipe


def override(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``raw`` with each ``a.b.c=value`` set; values are YAML.

    Another format, judge or method is set first, and what ``raw`` says of the knobs of the one before goes with it.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(raw))
    for text in sorted(overrides, key=lambda text: _NAMES_A_ROW.fullmatch(text.partition("=")[0]) is None):
        name, found, value = text.partition("=")
        if not found or not all(name.split(".")):
            raise InputError(
                f"{text!r} is not an override; write section.key=value, for example train.policy.epochs=2."
            )
        try:
            parsed = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise InputError(f"The value of {name} is not YAML: {value!r}; put it into quotes.") from error
        keys = name.split(".")
        place = merged
        for key in keys[:-1]:
            below = place.get(key)
            if below is None:
                below = place[key] = {}
            if not isinstance(below, dict):
                raise InputError(f"{name} cannot be set: {key} is {below!r}, not a section.")
            place = below
        if _NAMES_A_ROW.fullmatch(name) and place.get(keys[-1], parsed) != parsed:
            _forget_knobs(place, keys[-1], str(parsed))
        place[keys[-1]] = parsed
    return merged


def _forget_knobs(place: dict[str, Any], key: str, named: str) -> None:
    """Take out of a section what neither it nor the row it will name has."""
    table, section = _ROWS[key]
    known = {*section.model_fields, *((table[named].knobs or ()) if named in table else ())}
    if key == "method":
        known -= OF_ANSWERS if loop_of(named) == "offline" else OF_ROWS
    for name in [name for name in place if name not in known]:
        del place[name]


def _numbers(value: Any) -> Any:
    """Read the word for infinity as the number, which is how a resolved recipe holds it."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return float(value) if value in ("inf", "-inf") else value


def expanded(text: str, what: str) -> str:
    """Return ``text`` with each ${NAME} taken from the environment.

    Only addresses of ledgers and endpoints are expanded, and only where they are used, so what the environment holds
    reaches no file.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise InputError(f"{what} needs the environment variable {match[1]}, which is not set; export it first.")
        return os.environ[match[1]]

    return _VARIABLE.sub(value, text)


def _check_names(recipe: Recipe) -> None:
    if recipe.import_:
        row = FORMATS[recipe.import_.format]
        row_knobs(row, recipe.import_.knobs, "import", also=tuple(Import.model_fields))
    for where, judge in _judges(recipe):
        row_knobs(JUDGES[judge.by], judge.knobs, where, also=tuple(Judge.model_fields))
        for by, given in voices_of(judge.by, judge.knobs):
            knobs = row_knobs(JUDGES[by], given, where, also=tuple(Judge.model_fields))
            if by == "rule" and knobs["rule"]:
                RULES[str(knobs["rule"])]
            for address in ("endpoint", "judge_endpoint"):
                if knobs.get(address):
                    expanded(str(knobs[address]), f"{where}.{address}")
    if recipe.ledger:
        expanded(recipe.ledger, "ledger")
    for check in (recipe.audit.checks or ()) if recipe.audit else ():
        CHECKS[check]
    _check_curate(recipe)
    _check_curated(recipe)
    if recipe.sample and recipe.sample.reward is not None:
        check_terms(rewards_of(recipe.sample, recipe.train), where="sample.reward")
    for name, stage in recipe.train.items():
        ORDERS[stage.order]
        OPTIMIZERS[stage.optimizer].settle(stage.optimizer_knobs, where=f"train.{name}.optimizer_knobs")
        for tracker in stage.trackers:
            TRACKERS[tracker]
        row_knobs(METHODS[stage.method], stage.knobs, f"train.{name}", also=tuple(Stage.model_fields))
        _check_loop(stage, f"train.{name}", recipe.train)
    if recipe.evaluate and recipe.evaluate.truth:
        RULES[recipe.evaluate.truth]


def _check_curate(recipe: Recipe) -> None:
    """Refuse lists of curate steps that cannot run; where there are several, say which."""
    if recipe.curate is not None and not recipe.curations:
        check_steps([])
    for name, steps in recipe.curations.items():
        where = f"curate.{name}" if len(recipe.curations) > 1 else "curate"
        try:
            check_steps(steps, where)
        except InputError as error:
            if where == "curate" or str(error).startswith(where):
                raise
            raise InputError(f"{where}: {error}") from error


def rows_of(stage: Stage) -> str:
    """Return what a stage trains on: its own word, prompts online, references for sft and pairs for the rest."""
    if loop_of(stage.method) != "offline":
        return "prompts"
    return stage.rows or ("references" if stage.method == "sft" else "pairs")


def _check_curated(recipe: Recipe) -> None:
    """Refuse a stage, a test or an export of rows that no list of curate steps makes."""
    if recipe.curate is None:
        return
    named = {
        f"train.{name}.curated": stage.curated
        for name, stage in recipe.train.items()
        if rows_of(stage) in ("pairs", "chosen") or stage.curated != "pairs"
    }
    if recipe.export:
        named["export.curated"] = recipe.export.curated
    lists = ", ".join(recipe.curations)
    for where, curated in named.items():
        if curated not in recipe.curations:
            raise InputError(f"{where} is {curated!r}, and curate has {lists}.{nearest(curated, recipe.curations)}")
    if recipe.evaluate and recipe.evaluate.reward and "pairs" not in recipe.curations:
        raise InputError(f"evaluate.reward tests on the list pairs, and curate has {lists}; call one of them pairs.")


OF_ROWS = frozenset({"rows", "loss_on", "batch_tokens", "curated", "band"})
"""Keys of a stage that learns from rows, and below those of one that learns from the policy's own answers."""
OF_ANSWERS = frozenset({"reward", "value", "rollout", "prompts", "steps"})


def _check_loop(stage: Stage, where: str, stages: Collection[str]) -> None:
    """Refuse keys that the method's loop does not read, and a policy without a reward to learn by."""
    loop = loop_of(stage.method)
    others = OF_ANSWERS if loop == "offline" else OF_ROWS
    idle = sorted(name for name in others if getattr(stage, name) != Stage.model_fields[name].default)
    if idle:
        learns = "rows" if loop == "offline" else "its own answers"
        raise InputError(f"{where}.{idle[0]} is not read by {stage.method}, which learns from {learns}; leave it out.")
    if loop == "offline":
        if stage.backbone == "frozen" or stage.method in {row.name for row in ON_FEATURES}:
            _check_frozen(stage, where)
        return
    if stage.reward is None:
        raise InputError(f"{where} has no reward; name a reward model's stage or folder, or see `tiebreak ls rewards`.")
    check_terms(rewards_of(stage, stages), where=f"{where}.reward")


OF_WHOLE_MODELS: tuple[str, ...] = ("adapter", "ema", "checkpointing", "precision", "tokens", "optimizer", "keep")
OF_WHOLE_MODELS += ("optimizer_knobs", "evaluate_every", "trackers", "reference", "checkpoint_every", "log_every")
"""Keys of a stage that the training of a head on features does not read."""


def _check_frozen(stage: Stage, where: str) -> None:
    """Refuse keys that only the training of a whole model reads."""
    for name in OF_WHOLE_MODELS:
        if getattr(stage, name) != Stage.model_fields[name].default:
            raise InputError(f"{where}.{name} is not read where the backbone is frozen; leave it out.")


def voices_of(by: str, knobs: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the judges that a judge asks, as name and knobs: itself, or each juror of a panel."""
    if by != "panel":
        return [(by, dict(knobs))]
    jurors = [one for one in knobs.get("jurors") or () if isinstance(one, Mapping) and isinstance(one.get("by"), str)]
    return [(one["by"], {name: value for name, value in one.items() if name != "by"}) for one in jurors]


def _judges(recipe: Recipe) -> Iterator[tuple[str, Judge]]:
    if recipe.judge:
        yield "judge", recipe.judge
    if recipe.evaluate and recipe.evaluate.win_rate and recipe.evaluate.win_rate.judge:
        yield "evaluate.win_rate.judge", recipe.evaluate.win_rate.judge


def row_knobs(row: Row, given: Mapping[str, Any], where: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settled knobs of ``row``; ``also`` are the section's own keys, which a misspelling may have meant."""
    try:
        settled = row.settle(given, where=where)
    except UnknownKnob as error:
        if row.knobs is None:
            raise
        near = nearest(error.knob, [*(row.knobs or ()), *also])
        raise InputError(f"{where} has no key {error.knob!r}, and {row.name!r} has no such knob.{near}") from error
    defaults = row.settle({}, where=where)
    for name, value in given.items():
        expected = _misfit(defaults.get(name), value)
        if expected:
            raise InputError(f"{where}.{name} is {value!r}; expected {expected}.")
    return settled


_FITS: tuple[tuple[type, str, Callable[[Any], bool]], ...] = (
    (bool, "true or false", lambda value: isinstance(value, bool)),
    (int, "a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    (float, "a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    (str, "text", lambda value: isinstance(value, str)),
)


def _misfit(default: Any, value: Any) -> str:
    """Return what kind of value a knob with this default takes, or nothing where ``value`` is of that kind."""
    if value is None or default is None:
        return ""
    for kind, expected, fits in _FITS:
        if isinstance(default, kind):
            return "" if fits(value) else expected
    return ""


def pace_of(stage: Stage) -> dict[str, Any]:
    """Return the pace of a stage: its own keys over the method's published ones."""
    published = {k: v for k, v in PACES.get(stage.method, PACES["dpo"]).items() if k not in (*ROLLOUT, "reference")}
    own = {key: getattr(stage, key) for key in ("epochs", "batch", "learning_rate", "decay")}
    return {
        **published,
        **{key: value for key, value in own.items() if value is not None},
        "warmup": stage.warmup,
        "weight_decay": stage.weight_decay,
        "clip": stage.clip,
        "order": stage.order,
        "batch_tokens": stage.batch_tokens,
        "mixture": stage.mixture,
    }


def reference_of(stage: Stage) -> dict[str, Any]:
    """Return what the reference of a stage does: its own keys over the method's published ones."""
    stays = {"compute": "cached", "sync_every": 0, "sync_mix": 1.0}
    published = PACES.get(stage.method, {}).get("reference", {})
    return {**stays, **published, **stage.reference.model_dump(exclude_none=True)}


ROLLOUT = ("n", "temperature", "repeats", "minibatches")
"""What a method's pace says of its rollouts."""

SERVED = frozenset({"endpoint", "model", "refresh", "key_env", "concurrency", "timeout"})
"""Keys of a rollout that are about the server it is drawn by."""


def rollout_of(stage: Stage) -> dict[str, Any]:
    """Return how a stage draws and learns from its own answers: its own keys over the method's published ones."""
    published = PACES.get(stage.method, {})
    own = stage.rollout.model_dump(exclude_none=True, exclude=set(SERVED))
    return {**{name: published[name] for name in ROLLOUT if name in published}, **own}


def rewards_of(stage: Stage | Sample, stages: Collection[str]) -> list[dict[str, Any]]:
    """Return the rewards a stage names, each as one name with its knobs; a bare word may be a stage or a folder.

    Args:
        stage: of the train section, or the sample section.
        stages: names of the train section's stages.

    Raises:
        InputError: something that is none of these, with the nearest name.
    """
    written = stage.reward if isinstance(stage.reward, list) else [stage.reward] if stage.reward else []
    return [_reward(one, stages) for one in written]


def _reward(one: str | dict[str, Any], stages: Collection[str]) -> dict[str, Any]:
    if isinstance(one, dict):
        return one
    if one in stages or (one not in REWARDS and (Path(one) / "config.json").is_file()):
        return {"model": {"model": one}}
    if one not in REWARDS and ":" not in one:
        near = nearest(one, [*stages, *(row.name for row in REWARDS)])
        raise InputError(
            f"reward is {one!r}, which is neither a stage of train:, a folder with a model, nor a name of "
            f"`tiebreak ls rewards`.{near}"
        )
    return {one: {}}


def reward_models(stage: Stage | Sample, stages: Collection[str]) -> list[str]:
    """Return the reward models among the rewards of a stage: other stages, folders or hub names."""
    named = [one["model"] for one in rewards_of(stage, stages) if "model" in one]
    return [str(knobs["model"] if isinstance(knobs, Mapping) else knobs) for knobs in named]
