"""Run a recipe: each stage in order, skipped when nothing it depends on has changed, resumed when it was killed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tiebreak.recipe import Judge, Recipe, expanded, resolved, voices_of
from tiebreak.records import InputError, Progress, content_id, quiet
from tiebreak.run.folder import StageFolder, versions, write_json
from tiebreak.run.job import Job, Made
from tiebreak.run.plan import Planned, lasting, marks, plan
from tiebreak.run.summary import summarise
from tiebreak.store import Ledger
from tiebreak.train.methods import loop_of

HIDDEN = ":***@"
"""Stands for the password of a ledger's address wherever the address is written."""


def without_password(address: str) -> str:
    """Return a ledger's address with its password hidden; a ${NAME} in its place is no secret and stays."""
    return re.sub(r"(://[^:/@]*):(?!\$\{\w+\}@)[^@/]*@", rf"\1{HIDDEN}", address)


class Display(Protocol):
    """Who shows a run to a person or a log."""

    def begin(self, stage: str) -> Progress:
        """A stage starts; returns what it calls with its progress."""
        ...

    def end(self, stage: str, manifest: Mapping[str, Any], skipped: bool) -> None:
        """A stage is done, now or before."""
        ...


class Silent:
    """The display that shows nothing."""

    def begin(self, stage: str) -> Progress:
        """Return the quiet callback."""
        return quiet

    def end(self, stage: str, manifest: Mapping[str, Any], skipped: bool) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Ran:
    """What a run did: the folder, each stage's manifest, the stages that were skipped, and the summary.

    ``stale`` are stages that were not asked for but rested on, whose result was made with other knobs or inputs.
    """

    folder: Path
    manifests: Mapping[str, Mapping[str, Any]]
    skipped: tuple[str, ...]
    stale: tuple[str, ...]
    summary: Mapping[str, Any]


def run(recipe: Recipe, *, only: Sequence[str] = (), display: Display | None = None) -> Ran:
    """Carry out ``recipe`` and return what was done.

    Args:
        recipe: see :func:`tiebreak.recipe.load_recipe`.
        only: sections to run; the stages they need must have been run before. All when empty.
        display: shows progress.

    Raises:
        InputError: something the user can mend; every stage finished before it stays done.
    """
    show = display or Silent()
    folder = recipe.folder
    stages = plan(recipe)
    chosen = [stage for stage in stages if not only or stage.section in only or stage.name in only]
    needed = _needed(stages, chosen)
    _at_the_door(recipe, {stage.section for stage in chosen})
    if not only:
        write_json(folder / "recipe.json", remembered(recipe))
    manifests: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    stale: list[str] = []
    with open_ledger(recipe) as ledger:
        for stage in stages:
            home = StageFolder(folder, stage.name)
            if stage not in chosen:
                if (found := home.manifest) is not None:
                    if stage.name in needed and not _current(stage, recipe, manifests, ledger):
                        stale.append(stage.name)
                    manifests[stage.name] = found
                continue
            key = _key(stage, recipe, manifests, ledger)
            if home.done(key) and (manifest := home.manifest) is not None:
                manifests[stage.name] = manifest
                skipped.append(stage.name)
                show.end(stage.name, manifest, True)
                continue
            manifests[stage.name] = _carry_out(stage, key, recipe, ledger, home, manifests, show)
    write_json(folder / "recipe.json", remembered(recipe))
    summary = summarise(folder, manifests)
    write_json(folder / "summary.json", summary)
    return Ran(folder, manifests, tuple(skipped), tuple(stale), summary)


def _needed(stages: Sequence[Planned], chosen: Sequence[Planned]) -> set[str]:
    """Return the names of all stages that the chosen ones rest on."""
    needed = {need for stage in chosen for need in stage.needs}
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.needs)
    return needed


def _current(stage: Planned, recipe: Recipe, manifests: Mapping[str, Mapping[str, Any]], ledger: Ledger) -> bool:
    """Whether the stage's last result was made with the knobs and inputs of now."""
    known = all(need in manifests for need in stage.needs)
    return known and StageFolder(recipe.folder, stage.name).done(_key(stage, recipe, manifests, ledger))


def _key(stage: Planned, recipe: Recipe, manifests: Mapping[str, Mapping[str, Any]], ledger: Ledger) -> str:
    """Return the stage's key; what people have said by now is an input that no other stage makes."""
    key = stage_key(stage, recipe, manifests)
    if stage.section != "collect":
        return key
    from tiebreak.run.collecting import mark

    return content_id("stage", key, mark(recipe, ledger, manifests))


def _at_the_door(recipe: Recipe, sections: Collection[str]) -> None:
    """Refuse a missing source and a judge that cannot be made, before the first stage takes its time."""
    from tiebreak.run.stages import check_source

    if "train" in sections:
        _check_policies(recipe)
    if recipe.import_ and "import" in sections:
        check_source(recipe.import_)
    if recipe.judge and "judge" in sections:
        _check_judge(recipe.judge, recipe)
    if recipe.evaluate and recipe.evaluate.win_rate and "evaluate" in sections:
        spec = recipe.evaluate.win_rate.judge or recipe.judge
        if spec is None:
            raise InputError("evaluate.win_rate has no judge; give it one, or add a judge section.")
        _check_judge(spec, recipe)


def _check_judge(section: Judge, recipe: Recipe) -> None:
    """Refuse a judge that cannot be made; a reward model that this run trains is not there to be looked at."""
    from tiebreak.run.stages import judge_of

    voices = voices_of(section.by, section.knobs)
    if not any(by == "reward" and knobs.get("model") in recipe.train for by, knobs in voices):
        judge_of(section, recipe)


def _check_policies(recipe: Recipe) -> None:
    """Refuse switches that do not go together before the stages that a policy rests on are trained."""
    for name, stage in recipe.train.items():
        if loop_of(stage.method) == "online":
            from tiebreak.run.acting import check_stage

            check_stage(stage, f"train.{name}")


def remembered(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as its folder keeps it for the next verb: a password in the ledger's address stays out."""
    kept = resolved(recipe)
    if recipe.ledger:
        kept["ledger"] = without_password(recipe.ledger)
    return kept


def open_ledger(recipe: Recipe) -> Ledger:
    """Open the ledger of a recipe's project.

    Raises:
        InputError: its password or a variable of the environment is missing, or it cannot be made.
    """
    if HIDDEN in (recipe.ledger or ""):
        raise InputError(
            f"The project's ledger {recipe.ledger} needs its password again; give ledger=..., or write it as ${{NAME}} "
            "and export NAME."
        )
    where = expanded(recipe.ledger, "ledger") if recipe.ledger else recipe.folder / "ledger.db"
    try:
        return Ledger(where)
    except OSError as error:
        raise InputError(f"The ledger {where} cannot be made: {error.strerror}; choose another place.") from error


def stage_key(stage: Planned, recipe: Recipe, manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the hash of all that shapes a stage's result: knobs, seed, files, code version and its inputs' keys."""
    inputs = {}
    for need in stage.needs:
        if need not in manifests:
            raise InputError(f"{stage.name} needs {need}, which has not been run in {recipe.folder}; run that first.")
        inputs[need] = manifests[need]["key"]
    ledger = recipe.ledger and without_password(recipe.ledger)
    machine = (recipe.threads, recipe.device) if _computes(stage) else None
    shared = [recipe.seed, ledger, versions().get("tiebreak"), machine]
    return content_id("stage", stage.name, lasting(stage.knobs), inputs, marks(stage), shared)


def _carry_out(
    stage: Planned,
    key: str,
    recipe: Recipe,
    ledger: Ledger,
    home: StageFolder,
    manifests: Mapping[str, dict[str, Any]],
    show: Display,
) -> dict[str, Any]:
    progress = show.begin(stage.name)
    started, clock = datetime.now(UTC), time.monotonic()
    home.begin(key)
    with _machine(recipe) if _computes(stage) else nullcontext():
        made = _stage(stage)(Job(stage.name, key, recipe, ledger, home.path, dict(manifests), progress))
    manifest = {
        "stage": stage.name,
        "key": key,
        "inputs": {need: manifests[need]["key"] for need in stage.needs},
        "knobs": dict(stage.knobs),
        "seed": recipe.seed,
        "versions": versions(),
        "counts": dict(made.counts),
        "dropped": dict(made.dropped),
        "notes": list(made.notes),
        "outputs": dict(made.outputs),
        "price": made.price,
        "seconds": round(time.monotonic() - clock, 3),
        "started_at": started.isoformat(timespec="seconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    home.finish(manifest)
    ledger.add_run(content_id("run", key, manifest["started_at"]), stage.name, manifest)
    show.end(stage.name, manifest, False)
    return manifest


def _computes(stage: Planned) -> bool:
    """Whether a stage runs models here, so that its result depends on the number of threads in the last bits."""
    if stage.section != "judge":
        return stage.section in ("train", "sample", "evaluate")
    voices = voices_of(str(stage.knobs.get("by")), stage.knobs)
    return any(not knobs.get("endpoint") and ("model" in knobs) for _, knobs in voices)


@contextmanager
def _machine(recipe: Recipe) -> Iterator[None]:
    """Let models use the recipe's number of processor threads inside; a small one on a busy machine is fastest on one.

    Raises:
        InputError: the recipe asks for a device that is not here.
    """
    if find_spec("torch") is None:
        yield
        return
    import torch

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device is 'cuda', and torch {torch.__version__} finds no CUDA device here; set device=cpu, or install a "
            "build of torch with CUDA on a machine that has one."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stage(stage: Planned) -> Callable[[Job], Made]:
    """Return what carries the stage out; modules load when it is their turn, so only what needs torch loads it."""
    files = {"train": "learning", "evaluate": "evaluation", "collect": "collecting"}
    file = files.get(stage.section, "stages")
    module = import_module(f"tiebreak.run.{file}")
    carry_out: Callable[[Job], Made] = getattr(module, "import_" if stage.section == "import" else stage.section)
    return carry_out
