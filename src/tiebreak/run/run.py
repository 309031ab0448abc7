"""Run a recipe: each stage in order, skipped when nothing it depends on has changed, resumed when it was killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tiebreak.recipe import Recipe
from tiebreak.records import InputError, Progress, content_id, quiet
from tiebreak.run.folder import StageFolder, read_json, versions, write_json
from tiebreak.run.job import Job, Made
from tiebreak.run.plan import Planned, file_mark, lasting, plan
from tiebreak.run.summary import summarise
from tiebreak.store import Ledger


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
    """What a run did: the folder, each stage's manifest, the stages that were skipped, and the summary."""

    folder: Path
    manifests: Mapping[str, Mapping[str, Any]]
    skipped: tuple[str, ...]
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
    write_json(folder / "recipe.json", recipe.model_dump(mode="json", by_alias=True, exclude_none=True))
    manifests: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    with Ledger(recipe.ledger or folder / "ledger.db") as ledger:
        for stage in stages:
            home = StageFolder(folder, stage.name)
            if stage not in chosen:
                if (found := home.manifest) is not None:
                    manifests[stage.name] = found
                continue
            key = stage_key(stage, recipe, manifests)
            if home.done(key) and (manifest := home.manifest) is not None:
                manifests[stage.name] = manifest
                skipped.append(stage.name)
                show.end(stage.name, manifest, True)
                continue
            manifests[stage.name] = _carry_out(stage, key, recipe, ledger, home, manifests, show)
            if stage.name == "evaluate" or stage is chosen[-1]:
                write_json(folder / "summary.json", summarise(folder, manifests))
    return Ran(folder, manifests, tuple(skipped), read_json(folder / "summary.json") or {})


def stage_key(stage: Planned, recipe: Recipe, manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the hash of all that shapes a stage's result: knobs, seed, files, code version and its inputs' keys."""
    inputs = {}
    for need in stage.needs:
        if need not in manifests:
            raise InputError(f"{stage.name} needs {need}, which has not been run in {recipe.folder}; run that first.")
        inputs[need] = manifests[need]["key"]
    marks = [file_mark(stage.knobs.get(name)) for name in ("path", "mapping")]
    shared = [recipe.seed, recipe.ledger, versions().get("tiebreak")]
    return content_id("stage", stage.name, lasting(stage.knobs), inputs, marks, shared)


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


def _stage(stage: Planned) -> Callable[[Job], Made]:
    from tiebreak.run import evaluation, learning, stages

    table: dict[str, Callable[[Job], Made]] = {
        "import": stages.import_,
        "sample": stages.sample,
        "judge": stages.judge,
        "audit": stages.audit,
        "curate": stages.curate,
        "train": learning.train,
        "evaluate": evaluation.evaluate,
        "export": stages.export,
        "report": stages.report,
    }
    return table[stage.section]
